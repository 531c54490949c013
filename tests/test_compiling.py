"""Compiler options: by the size of a program, unless the user has chosen."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.compiling import LARGE, LEVEL, ORDER, compiler_options, equations, multiplications

ONE = jnp.float32(1)
AS_SET = {ORDER: "CPU_SCHEDULER_TYPE_DEFAULT"}
IN_ORDER = {ORDER: "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


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


def test_multiplications_of_convolutions() -> None:
    names = ("NHWC", "HWIO", "NHWC")
    fn = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", None, None, names
    )
    jaxpr = jax.make_jaxpr(fn)(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))).jaxpr
    assert max(map(multiplications, equations(jaxpr))) == 2 * 3 * 3 * 4 * (3 * 3 * 3)


@pytest.mark.optimised
def test_options_by_size_and_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(x: jax.Array, n: int) -> jax.Array:
        for _ in range(n):
            x = x + 1
        return x

    trace = jax.jit(chain, static_argnums=1).trace
    small, large = trace(1.0, 10), trace(1.0, LARGE + 1)
    assert compiler_options(small, "cpu") == {LEVEL: 1} | IN_ORDER
    assert compiler_options(large, "cpu") == IN_ORDER
    assert compiler_options(small, "gpu") == {}
    assert small.lower().compile(compiler_options(small, "cpu"))(1.0) == 11
    square = lambda n: jax.jit(lambda x: x @ x).trace(jnp.ones((n, n)))
    assert compiler_options(square(128), "cpu") == {LEVEL: 1} | IN_ORDER
    assert compiler_options(square(129), "cpu") == {LEVEL: 1}
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=2")
    assert compiler_options(small, "cpu") == IN_ORDER
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=2 --{ORDER}=CPU_SCHEDULER_TYPE_DEFAULT")
    assert compiler_options(small, "cpu") == {}


def test_small_products_run_in_order() -> None:
    """One chain after the other; by default XLA has the first operations of all chains first."""

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = jnp.sin(x) @ x
        return x

    traced = jax.jit(lambda x: sum(chain(x * i) for i in range(4))).trace(jnp.ones((8, 8)))
    chosen = compiler_options(traced, "cpu")
    ours, default = traced.lower().compile(chosen), traced.lower().compile({**chosen, **AS_SET})
    order = lambda each: re.findall(r"%(\S+) = ", each.as_text().partition("ENTRY")[2])
    assert order(ours) != order(default) and sorted(order(ours)) == sorted(order(default))
    np.testing.assert_array_equal(ours(jnp.ones((8, 8))), default(jnp.ones((8, 8))))


def test_a_quick_compiler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves compile at level 0."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert LEVEL not in compiler_options(jax.jit(jnp.sin).trace(1.0), "cpu")
