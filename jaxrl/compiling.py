"""Compiler options for the programs of a run.

XLA's CPU backend compiles the programs of PQN, PPO, DQN, SAC and MinAtar 15 to 40 % faster at
optimisation level 1 than at its default 3, and they run at the same speed. Programs of physics
engines run up to 16 % slower at level 1, so large programs keep the default. Results of most agents
are bitwise equal at both levels, those of SAC and brax are equal up to rounding.

XLA orders operations so that independent ones can run at once on several threads. Where all
products are small, handing them over takes longer than computing them (docs/decisions.md, 58), so
there the order is the one that needs least memory. Results are bitwise equal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxrl.types import PyTree

LARGE = 10_000  # equations; PQN, PPO, SAC and IQL have 2,000 to 3,000, PPO on brax:hopper 13,000
SMALL = 2**21  # multiplications of a product; DQN with 120 and 84 units has 1.3 million, SAC 17

LEVEL = "xla_backend_optimization_level"
ORDER = "xla_cpu_scheduler_type"


def compiled(
    fn: Callable[..., PyTree], args: PyTree, platform: str, donate: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """`fn` compiled for arguments of the shapes of `args`; the result may overwrite `donate`."""
    traced = jax.jit(fn, donate_argnums=donate).trace(*args)
    return traced.lower().compile(compiler_options(traced, platform))


def compiler_options(traced: jax.stages.Traced, platform: str) -> dict[str, Any]:
    """Options for `traced.lower().compile(options)` on `platform`, such as "cpu".

    What is set by XLA_FLAGS or by `jax_disable_most_optimizations` stays.
    """
    if platform != "cpu":
        return {}
    given, found = os.environ.get("XLA_FLAGS", ""), list(equations(traced.jaxpr.jaxpr))
    options: dict[str, Any] = {}
    chosen = LEVEL in given or jax.config.values["jax_disable_most_optimizations"]
    if not chosen and len(found) <= LARGE:
        options[LEVEL] = 1
    if ORDER not in given and max(map(multiplications, found), default=0) <= SMALL:
        options[ORDER] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    return options


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of loop bodies, branches and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                each = getattr(each, "jaxpr", each)
                if hasattr(each, "eqns"):
                    yield from equations(each)


def multiplications(equation: Any) -> int:
    """Multiplications of a matrix product or a convolution; 0 for any other equation."""
    if equation.primitive is jax.lax.dot_general_p:
        shape, ((axes, _), _) = equation.invars[0].aval.shape, equation.params["dimension_numbers"]
        each = math.prod(shape[axis] for axis in axes)
    elif equation.primitive is jax.lax.conv_general_dilated_p:
        kernel, axes = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
        each = math.prod(kernel) // kernel[axes.rhs_spec[0]]
    else:
        return 0
    return equation.outvars[0].aval.size * each
