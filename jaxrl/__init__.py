"""Reinforcement learning compiled end to end.

    import jax, jaxrl
    from jaxrl.agents import pqn

    env = jaxrl.make("CartPole-v1")
    train = jaxrl.train(pqn.program(pqn.Config(total_steps=100_000), env))
    result = jax.jit(train)(jax.random.key(0), pqn.Hypers(lr=3e-4))
    act = jaxrl.policy(result)

Functions of programs: `train`, `policy`. One call per command: `run`, `sweep`, `search`, `load`.
Names are imported when they are first used, so `import jaxrl` loads no other package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl.algorithm import Algorithm
    from jaxrl.api import TrainedPolicy, policy
    from jaxrl.envs import make
    from jaxrl.errors import UserError
    from jaxrl.experiments.jax_setup import enable_compilation_cache
    from jaxrl.experiments.restore import load
    from jaxrl.experiments.search.loop import search
    from jaxrl.experiments.sweep import sweep
    from jaxrl.experiments.train import run
    from jaxrl.program import Program, Result, Stage, train
    from jaxrl.types import (
        Agent,
        Batch,
        Box,
        Discrete,
        Env,
        EnvSpec,
        HyperParams,
        Learner,
        Policy,
        Source,
        TimeStep,
        Transition,
    )

    __version__: str

_RECORDS = (
    "Agent Batch Box Discrete Env EnvSpec HyperParams Learner Policy Source TimeStep Transition"
)
_HOMES = {
    "make": "jaxrl.envs",
    "train": "jaxrl.program",
    "policy": "jaxrl.api",
    "run": "jaxrl.experiments.train",
    "sweep": "jaxrl.experiments.sweep",
    "search": "jaxrl.experiments.search.loop",
    "load": "jaxrl.experiments.restore",
    "enable_compilation_cache": "jaxrl.experiments.jax_setup",
    "TrainedPolicy": "jaxrl.api",
    "UserError": "jaxrl.errors",
    "Algorithm": "jaxrl.algorithm",
    "Program": "jaxrl.program",
    "Result": "jaxrl.program",
    "Stage": "jaxrl.program",
    **dict.fromkeys(_RECORDS.split(), "jaxrl.types"),
}

__all__ = [
    "Agent",
    "Algorithm",
    "Batch",
    "Box",
    "Discrete",
    "Env",
    "EnvSpec",
    "HyperParams",
    "Learner",
    "Policy",
    "Program",
    "Result",
    "Source",
    "Stage",
    "TimeStep",
    "TrainedPolicy",
    "Transition",
    "UserError",
    "__version__",
    "enable_compilation_cache",
    "load",
    "make",
    "policy",
    "run",
    "search",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("jaxrl")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
