"""PGD with IQL: implicit Q-learning on policy-guided synthetic experience.

See `jaxrl.agents.pgd` and `jaxrl.agents.iql` for papers and deviations. Guidance uses the
log-probability of IQL's normal distribution over actions scaled to [-1, 1].
"""

from __future__ import annotations

import dataclasses

from flax import struct

from jaxrl.agents import iql, pgd
from jaxrl.program import Program
from jaxrl.recipes import fine_tuning
from jaxrl.types import Env

make, log_prob = iql.make, iql.log_prob


@dataclasses.dataclass(frozen=True)
class Config(pgd.Settings, iql.Config):
    """Static configuration: a new value compiles a new program."""


@struct.dataclass
class Hypers(pgd.Rates, iql.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """The model, then the agent with `evals` evaluations of `episodes` whole episodes."""
    agent = dataclasses.replace(make(cfg, env.spec), hypers=Hypers())
    tuned = dataclasses.replace(make(cfg, env.spec, decay=False), hypers=Hypers())
    online = fine_tuning(cfg, env, tuned, evals, episodes)
    policy = log_prob(cfg, env.spec)
    return pgd.program(cfg, env, agent, policy, evals, episodes, after=online)


ALGORITHM = dataclasses.replace(
    iql.ALGORITHM,
    Config=Config,
    Hypers=Hypers,
    program=program,
    extras=("next_known",),
    check_request=pgd.check_request,
    log_prob=log_prob,
)
