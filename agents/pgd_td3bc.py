"""PGD with TD3+BC: TD3+BC on policy-guided synthetic experience.

See `jaxrl.agents.pgd` and `jaxrl.agents.td3bc` for papers and deviations. Guidance uses a normal
distribution with std 1 around the deterministic action, scaled to [-1, 1].
"""

from __future__ import annotations

import dataclasses

from flax import struct

from jaxrl.agents import pgd, td3bc
from jaxrl.policies import LogProb, unit_normal
from jaxrl.program import Program
from jaxrl.recipes import fine_tuning
from jaxrl.spaces import box_scale
from jaxrl.types import Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config(pgd.Settings, td3bc.Config):
    """Static configuration: a new value compiles a new program."""


@struct.dataclass
class Hypers(pgd.Rates, td3bc.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""


make = td3bc.make


def log_prob(cfg: Config, spec: EnvSpec) -> LogProb:
    """log N(π(s), 1) of unit actions."""
    return unit_normal(make(cfg, spec), box_scale("pgd", spec))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """The model, then the agent with `evals` evaluations of `episodes` whole episodes."""
    agent = dataclasses.replace(make(cfg, env.spec), hypers=Hypers())
    tuned = dataclasses.replace(td3bc.fine_tuned(cfg, env.spec), hypers=Hypers())
    online = fine_tuning(cfg, env, tuned, evals, episodes)
    policy = log_prob(cfg, env.spec)
    return pgd.program(cfg, env, agent, policy, evals, episodes, after=online)


ALGORITHM = dataclasses.replace(
    td3bc.ALGORITHM,
    Config=Config,
    Hypers=Hypers,
    program=program,
    extras=("next_known",),
    check_request=pgd.check_request,
    log_prob=log_prob,
)
