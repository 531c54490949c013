"""Corrections of critics, against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, rows

from jaxrl import corrections
from jaxrl.agents import cql
from jaxrl.types import Batch


def test_dropped() -> None:
    x = jnp.ones((40, 50))
    some = np.asarray(corrections.dropped(x, jax.random.key(0), 0.2))
    assert set(np.unique(some)) == {np.float32(0), np.float32(1.25)}
    assert abs(np.mean(some) - 1) < 0.05
    np.testing.assert_array_equal(corrections.dropped(x, jax.random.key(0), 0.0), x)


def test_dr3_by_hand() -> None:
    """Twins of three rows of which the last one ends; only the first factor has a gradient."""
    now, ahead = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    continues = jnp.array([True, True, False])
    loss, slopes = jax.value_and_grad(corrections.dr3, (0, 1))(now, ahead, continues)
    np.testing.assert_allclose(loss, np.sum(now[:, :2] * ahead[:, :2]) / 3, rtol=1e-5)
    np.testing.assert_allclose(slopes[0][:, :2], ahead[:, :2] / 3, rtol=1e-5)
    np.testing.assert_array_equal(slopes[0][:, 2], 0)
    np.testing.assert_array_equal(slopes[1], 0)


def test_bottleneck() -> None:
    """Features are samples of N(μ, σ²); without a key the critic uses μ."""
    module = corrections.Critic((3,), 1, "vib")
    x = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    params = module.init(jax.random.key(0), x)["params"]
    key = jax.random.key(1)
    found = module.apply({"params": params}, x, key, 0.0, method="train")
    assert isinstance(found, corrections.Trained)
    dense = lambda name, y: (
        y @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
    )
    mean, log_var = np.split(dense("Dense_1", np.maximum(dense("Dense_0", x), 0)), 2, -1)
    z = mean + np.exp(0.5 * log_var) * np.asarray(jax.random.normal(key, (2, 3)))
    np.testing.assert_allclose(found.features, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.q, dense("Dense_2", z)[:, 0], rtol=1e-5, atol=1e-6)
    kl = 0.5 * np.sum(mean**2 + np.exp(log_var) - 1 - log_var, -1)
    np.testing.assert_allclose(found.divergence, kl, rtol=1e-5)
    plain = module.apply({"params": params}, x)
    np.testing.assert_allclose(plain, dense("Dense_2", mean), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["vib", "dropout", "dr3"])
def test_strength_is_felt(correction: corrections.Correction) -> None:
    """A large strength lowers what it penalises; without any, vib's and dr3's metric is 0."""
    t, cfg = rows(BOX), cql.Config(batch_size=8, hidden=(5,), samples=3, correction=correction)
    agent = cql.make(cfg, BOX)
    strong = 0.5 if correction == "dropout" else 10.0
    hp = jax.vmap(lambda x: numbers(cql.Hypers(lr=0.01)).replace(strength=x))(
        jnp.float32([0.0, strong])
    )
    fitted = jax.jit(jax.vmap(logged.fit(agent, 60), (0, None)))(hp, t)
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(fitted.critic)])).all()
    told = jax.jit(jax.vmap(lambda s, h: agent.update(s, h, Batch(t), jax.random.key(3), 0)[1]))
    one = hp.replace(strength=jnp.float32([1.0, 1.0]) if correction != "dropout" else hp.strength)
    found = told(fitted, one)["correction"]
    if correction == "dropout":
        np.testing.assert_array_equal(found, 0)
        assert np.abs(np.asarray(fitted.critic[0] - fitted.critic[1])).max() > 0.01
    else:
        assert found[1] < 0.5 * found[0]
