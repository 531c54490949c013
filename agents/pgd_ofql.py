"""PGD with OFQL: one-step flow Q-learning on policy-guided synthetic experience.

See `jaxrl.agents.pgd` and `jaxrl.agents.ofql` for papers and deviations. Guidance uses a normal
distribution with std 1 around the best candidate action.
"""

from __future__ import annotations

import dataclasses

from flax import struct

from jaxrl.agents import ofql, pgd
from jaxrl.policies import LogProb, unit_normal
from jaxrl.program import Program
from jaxrl.spaces import box_scale
from jaxrl.types import Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config(pgd.Settings, ofql.Config):
    """Static configuration: a new value compiles a new program."""


@struct.dataclass
class Hypers(pgd.Rates, ofql.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""


make = ofql.make


def log_prob(cfg: Config, spec: EnvSpec) -> LogProb:
    """log N(π(s), 1) of unit actions."""
    return unit_normal(make(cfg, spec), box_scale("pgd", spec))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """The model, then the agent with `evals` evaluations of `episodes` whole episodes."""
    agent = dataclasses.replace(make(cfg, env.spec), hypers=Hypers())
    policy = log_prob(cfg, env.spec)
    return pgd.program(cfg, env, agent, policy, evals, episodes, explore=True)


ALGORITHM = dataclasses.replace(
    ofql.ALGORITHM,
    Config=Config,
    Hypers=Hypers,
    program=program,
    extras=("next_known",),
    check_request=pgd.check_request,
    log_prob=log_prob,
)
