"""The agents that come with jaxrl, by name. Importing this file does not import JAX."""

from __future__ import annotations

import importlib
from typing import Any

from jaxrl import own_code
from jaxrl.errors import UserError, nearest

AGENTS = {
    "pqn": "parallelised Q-network: no replay, no target network (arXiv:2407.04811)",
    "pqn_rnn": "PQN with a memory (GRU or LSTM) for what is not all in the observation",
    "pqn_continuous": "PQN for continuous actions: actor and critic, no replay, no target network",
    "ppo": "proximal policy optimisation: clipped ratios (arXiv:1707.06347)",
    "mdpo": "mirror descent policy optimisation, on-policy (arXiv:2005.09814)",
    "mdpo_offpolicy": "mirror descent policy optimisation, off-policy (arXiv:2005.09814)",
    "sac": "soft actor-critic: twin critics, fixed or learned temperature (arXiv:1812.05905)",
    "bc": "behaviour cloning of a dataset, by regression",
    "td3bc": "TD3 held to the actions of a dataset (arXiv:2106.06860)",
    "cql": "SAC with critics pushed down outside a dataset (arXiv:2006.04779)",
    "edac": "SAC with many diverse critics on a dataset, and SAC-N (arXiv:2110.01548)",
    "ravl": "EDAC's critics on rollouts in a model, and MBPO, MOPO (arXiv:2402.12527)",
    "iql": "implicit Q-learning from a dataset, with fine-tuning (arXiv:2110.06169)",
    "cdsa": "corrects trained policies by scores of a dataset (arXiv:2406.07541)",
    "dql": "Q-learning from a dataset with a diffusion policy (arXiv:2208.06193)",
    "ofql": "Q-learning from a dataset with a one-step flow policy (arXiv:2508.13904)",
    "pgd_iql": "IQL on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "pgd_td3bc": "TD3+BC on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "pgd_ofql": "OFQL on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "dqn": "Q-learning with replay and target network, double and n-step (arXiv:1509.06461)",
}


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, unless `load(name)` has something to try."""
    if name in AGENTS:
        return
    module, _ = own_code.split(name)
    reason = own_code.missing(module)
    if not reason:
        return
    if "." in name or ":" in name:
        raise UserError(f"agent {name!r}: {reason}")
    raise UserError(
        f"unknown agent {name!r}{nearest(name, AGENTS)}; `jaxrl list agents` names them all, and "
        "a module or file.py gives your own"
    )


def load(name: str) -> Any:
    """An agent: `Config`, `Hypers`, `make(cfg, spec)` and `program(cfg, env, ...)`.

    Args:
      name: a key of `AGENTS`, or an agent of your own: a module or file, optionally followed by
        `:attribute` (`jaxrl.own_code`).

    Raises:
      UserError: there is no such agent, it cannot be imported, or it lacks one of the four.
    """
    check_name(name)
    if name in AGENTS:
        return importlib.import_module(f"jaxrl.agents.{name}")
    agent = own_code.load_attribute(name, default=None)
    for needed in ("Config", "Hypers", "make", "program"):
        if not hasattr(agent, needed):
            raise UserError(f"agent {name!r}: {getattr(agent, '__file__', name)} has no {needed}")
    return agent
