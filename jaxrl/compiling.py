"""Compiler options for the programs of a run.

XLA's CPU backend compiles the programs of PQN, PPO, DQN, SAC and MinAtar 15 to 40 % faster at
optimisation level 1 than at its default 3, and they run at the same speed. Programs of physics
engines run up to 16 % slower at level 1, so large programs keep the default. Results of most agents
are bitwise equal at both levels, those of SAC and brax are equal up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax

from jaxrl.types import PyTree

LARGE = 10_000  # equations; PQN, PPO, SAC and IQL have 2,000 to 3,000, PPO on brax:hopper 13,000


def compiled(
    fn: Callable[..., PyTree], args: PyTree, platform: str, donate: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """`fn` compiled for arguments of the shapes of `args`; the result may overwrite `donate`."""
    traced = jax.jit(fn, donate_argnums=donate).trace(*args)
    return traced.lower().compile(compiler_options(traced, platform))


def compiler_options(traced: jax.stages.Traced, platform: str) -> dict[str, Any]:
    """Options for `traced.lower().compile(options)` on `platform`, such as "cpu".

    A level set by XLA_FLAGS or by `jax_disable_most_optimizations` stays.
    """
    chosen = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    if platform != "cpu" or chosen or jax.config.values["jax_disable_most_optimizations"]:
        return {}
    return {} if equations(traced.jaxpr.jaxpr) > LARGE else {"xla_backend_optimization_level": 1}


def equations(jaxpr: Any) -> int:
    """Number of equations, those of loop bodies, branches and calls included."""
    inner = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                each = getattr(each, "jaxpr", each)
                if hasattr(each, "eqns"):
                    inner += equations(each)
    return len(jaxpr.eqns) + inner
