"""Compiler options: by the size of a program, unless the user has chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxrl.compiling import LARGE, compiler_options, equations

ONE = jnp.float32(1)
QUICK = {"xla_backend_optimization_level": 1}


def body(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return carry + x, carry * x


def test_equations_inside_loops_branches_and_calls_count() -> None:
    def branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x > 0, lambda x: x + 1, lambda x: x * x - 1, x)

    loop = jax.make_jaxpr(lambda x: jax.lax.scan(body, x, jnp.ones(3)))(ONE)
    assert equations(loop.jaxpr) == len(loop.jaxpr.eqns) + 2
    both = jax.make_jaxpr(branch)(ONE)
    assert equations(both.jaxpr) == len(both.jaxpr.eqns) + 3
    called = jax.make_jaxpr(lambda x: jax.jit(branch)(x))(ONE)
    assert equations(called.jaxpr) == 1 + equations(both.jaxpr)


@pytest.mark.optimised
def test_options_by_size_and_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(x: jax.Array, n: int) -> jax.Array:
        for _ in range(n):
            x = x + 1
        return x

    trace = jax.jit(chain, static_argnums=1).trace
    small, large = trace(1.0, 10), trace(1.0, LARGE + 1)
    assert compiler_options(small, "cpu") == QUICK
    assert compiler_options(large, "cpu") == compiler_options(small, "gpu") == {}
    assert small.lower().compile(compiler_options(small, "cpu"))(1.0) == 11
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert compiler_options(small, "cpu") == {}


def test_a_quick_compiler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves compile at level 0."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(jax.jit(jnp.sin).trace(1.0), "cpu") == {}
