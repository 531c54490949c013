"""Long sums: metrics over many updates, and running moments over many rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.normalise import Moments, include, moments
from jaxrl.program import Program, Stage, train
from jaxrl.sums import add
from jaxrl.types import Array, Batch, Learner, Source, Transition


@pytest.mark.parametrize("evals", [1, 3])
def test_means_of_metrics_over_many_updates(evals: int) -> None:
    """A constant 0.2, of which a plain float32 sum loses 0.1 % in 400,000 updates."""
    rows = Transition(*[jnp.zeros(1)] * 7)
    source = Source(
        init=lambda key, learner_state, hp, inputs: (),
        next=lambda src, learner_state, hp, inputs, key, step: (src, Batch(rows), {}),
    )
    learner = Learner(
        init=lambda key, hp, inputs: jnp.float32(0.2),
        update=lambda state, hp, batch, key, step: (
            state,
            {"constant": state, "inf": 1 / (0 * state)},
        ),
    )
    stage = Stage(name="agent", learner=learner, source=source, updates=400_000, evals=evals)
    result = jax.jit(train(Program((stage,))))(jax.random.key(0), ())
    metrics = result.metrics["agent"]
    np.testing.assert_allclose(metrics["constant"].value, np.float32(0.2), rtol=1e-6)
    assert metrics["constant"].weight.sum() == 400_000
    assert np.isposinf(metrics["inf"].value).all()


def test_sums_against_float64() -> None:
    xs = np.random.default_rng(0).lognormal(sigma=3, size=20_000).astype(np.float32)
    xs[::3] *= -1
    step = lambda carry, x: (add(*carry, x), None)
    (total, rest), _ = jax.jit(lambda xs: jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), xs))(
        xs
    )
    np.testing.assert_allclose(np.float64(total) + rest, xs.astype(np.float64).sum(), rtol=1e-7)


def test_moments_beyond_the_precision_of_their_weight() -> None:
    """Single rows after 2^24 of variance 4: the exact pooled moments."""
    table, count = np.random.default_rng(1).normal(3.0, 2.0, (4096, 2)).astype(np.float32), 300_000
    before = 2**24

    @jax.jit
    def run(table: Array) -> Moments:
        old = moments((2,))._replace(
            mean=jnp.full(2, 3.0), var=jnp.full(2, 4.0), weight=jnp.float32(before)
        )
        one = lambda i, m: include(m, table[i % 4096][None])
        return jax.lax.fori_loop(0, count, one, old)

    found: Any = run(table)
    seen = table[np.arange(count) % 4096].astype(np.float64)
    total = before + count
    mean = (3.0 * before + seen.sum(0)) / total
    squares = (4.0 + 9.0) * before + (seen**2).sum(0)
    assert found.weight == total
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.var, squares / total - mean**2, rtol=1e-6)
