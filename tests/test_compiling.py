"""Compiler options: by the size of a program, unless the user has chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxrl.compiling import AT_ONCE, LARGE, LEVEL, compiler_options, equations, multiplications

ONE = jnp.float32(1)


def body(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return carry + x, carry * x


def test_equations_inside_loops_branches_and_calls_count() -> None:
    def branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x > 0, lambda x: x + 1, lambda x: x * x - 1, x)

    count = lambda closed: len(list(equations(closed.jaxpr)))
    loop = jax.make_jaxpr(lambda x: jax.lax.scan(body, x, jnp.ones(3)))(ONE)
    assert count(loop) == len(loop.jaxpr.eqns) + 2
    both = jax.make_jaxpr(branch)(ONE)
    assert count(both) == len(both.jaxpr.eqns) + 3
    called = jax.make_jaxpr(lambda x: jax.jit(branch)(x))(ONE)
    assert count(called) == 1 + count(both)


def test_multiplications_of_products() -> None:
    def dense(x: jax.Array, y: jax.Array) -> jax.Array:
        return x @ y + 1

    x, y = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4))
    products = lambda fn: list(map(multiplications, equations(jax.make_jaxpr(fn)(x, y).jaxpr)))
    assert max(products(dense)) == sum(products(dense)) == 5 * 2 * 3 * 4
    assert max(products(lambda x, y: jax.lax.map(lambda pair: dense(*pair), (x, y)))) == 2 * 3 * 4


@pytest.mark.optimised
def test_options_by_size_and_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(x: jax.Array, n: int) -> jax.Array:
        for _ in range(n):
            x = x + 1
        return x

    trace = jax.jit(chain, static_argnums=1).trace
    small, large = trace(1.0, 10), trace(1.0, LARGE + 1)
    assert compiler_options(small, "cpu") == {LEVEL: 1, AT_ONCE: False}
    assert compiler_options(large, "cpu") == {AT_ONCE: False}
    assert compiler_options(small, "gpu") == {}
    assert small.lower().compile(compiler_options(small, "cpu"))(1.0) == 11
    square = lambda n: jax.jit(lambda x: x @ x).trace(jnp.ones((n, n)))
    assert compiler_options(square(128), "cpu") == {LEVEL: 1, AT_ONCE: False}
    assert compiler_options(square(129), "cpu") == {LEVEL: 1}
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=2")
    assert compiler_options(small, "cpu") == {AT_ONCE: False}
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=2 --{AT_ONCE}=true")
    assert compiler_options(small, "cpu") == {}


def test_a_quick_compiler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves compile at level 0."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert LEVEL not in compiler_options(jax.jit(jnp.sin).trace(1.0), "cpu")
