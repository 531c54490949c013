"""AILBoost: adversarial imitation by boosting, with a replay buffer weighted by a mixture.

Adversarial Imitation Learning via Boosting. Jonathan D. Chang, Dhruv Sreenivas, Yingbing Huang,
Kianté Brantley, Wen Sun. ICLR 2024, arXiv:2404.08513.

Each round adds a policy to a mixture, with weight α, and shrinks the weights of the others by
1 - α. The function g maximises E[g] over the mixture - E[exp g] over the demonstrations, whose
maximum is at the log-ratio of their state-action distributions; the mixture's is that of the replay
buffer with the weights of its rounds (`jaxrl.adversarial.mixture`). The policy of the next round is
trained on rewards -g, from the whole buffer, unweighted, and starts from the last one.

Only the last policy acts, in training and in evaluations. The rest is `jaxrl.agents.dac`.

Sources: the paper's official code was not available. From reviews: the weights, the divergence,
and that policies learn from unweighted rows. Choices of this file, where the paper was not at hand:
- α is 0.05, and rounds have 1000 steps.
- g has one update per ten of the policy, all along; public notes have 100 after every 1000.
- The gradient penalty of DAC.
- Data of the warm-up belong to the first round.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from flax import struct

from jaxrl.adversarial import mixture, reverse_kl_loss
from jaxrl.agents import dac
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_replay, replayed, single_stage
from jaxrl.sources import mix, uniform
from jaxrl.types import Agent, Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config(dac.Config):
    """Static configuration: a new value compiles a new program."""

    discriminator_every: int = 10
    """updates per update of g, which has gradient_steps steps"""
    round_steps: int = 1_000
    """environment steps per round"""

    @property
    def round_updates(self) -> int:
        return self.round_steps // self.window


@struct.dataclass
class Hypers(dac.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    alpha: Any = bounded(0.05, above=0, below=1)
    """weight α of the newest policy in the mixture"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; batches are [3 G B], see `dac.make_variant`.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
    """
    check_replay(cfg)
    at_least(cfg.window, round_steps=cfg.round_steps)
    if cfg.reward != "logit":
        raise UserError(f"reward={cfg.reward} is none of AILBoost's: its reward is -g; use logit")
    variant = dac.Variant("ailboost", reverse_kl_loss, lambda value: -value)
    return dataclasses.replace(dac.make_variant(cfg, spec, variant), hypers=Hypers())


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    agent, count = make(cfg, env.spec), cfg.gradient_steps * cfg.batch_size
    warmup = math.ceil(cfg.warmup / cfg.window)
    own = mixture(replayed(cfg, env, agent), count, cfg.updates, warmup, cfg.round_updates)
    source = mix(uniform(count), own, 1 / 3, 3 * count)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
