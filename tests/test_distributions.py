"""Distributions over actions against scipy, sums over all actions, quadrature and samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl.distributions import Categorical, Normal, tanh_correction

ACTIONS, ROWS = 5, 4
RNG = np.random.default_rng(0)
LOGITS = [Categorical(jnp.float32(RNG.normal(0, 2, (ROWS, ACTIONS)))) for _ in range(2)]
NORMALS = [
    Normal(jnp.float32(RNG.normal(size=(ROWS, 3))), jnp.float32(RNG.normal(0, 0.5, (ROWS, 3))))
    for _ in range(2)
]


def probabilities(logits: jax.Array) -> np.ndarray:
    p = np.exp(np.float64(logits))
    return p / p.sum(-1, keepdims=True)


def test_categorical_by_sums_over_actions() -> None:
    one, two = LOGITS
    p, q = probabilities(one.logits), probabilities(two.logits)
    for action in range(ACTIONS):
        got = one.log_prob(jnp.full(ROWS, action))
        np.testing.assert_allclose(got, np.log(p[:, action]), rtol=1e-5)
    np.testing.assert_allclose(one.entropy(), stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(one.kl(two), stats.entropy(p, q, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(one.kl(one), 0, atol=1e-6)
    np.testing.assert_array_equal(one.mode, np.argmax(p, -1))


def test_categorical_knows_logits_up_to_a_constant() -> None:
    one, two = LOGITS
    moved = Categorical(one.logits + 30.0)
    np.testing.assert_allclose(moved.log_probs, one.log_probs, atol=1e-5)
    np.testing.assert_allclose(moved.kl(two), one.kl(two), rtol=1e-4)


def test_categorical_samples_as_often_as_it_should() -> None:
    """χ² with four degrees of freedom: above 27.9 once in 80,000."""
    n, one = 40_000, Categorical(LOGITS[0].logits[0])
    noise = Categorical.noise(jax.random.key(0), (n, ACTIONS))
    samples = jax.vmap(one.sample)(noise)
    assert samples.shape == (n,) and samples.dtype == jnp.int32
    expected = n * probabilities(one.logits)
    counts = np.bincount(samples, minlength=ACTIONS)
    assert np.sum((counts - expected) ** 2 / expected) < 27.9


def test_normal_against_scipy() -> None:
    normal = NORMALS[0]
    x = RNG.normal(size=(ROWS, 3)).astype(np.float32)
    theirs = stats.norm(np.float64(normal.mean), np.exp(np.float64(normal.log_std)))
    np.testing.assert_allclose(normal.log_prob(x), theirs.logpdf(x).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(normal.entropy(), theirs.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(normal.mode, normal.mean)
    shared = Normal(normal.mean, normal.log_std[:1])  # one standard deviation for all rows
    wide = Normal(normal.mean, jnp.broadcast_to(normal.log_std[:1], (ROWS, 3)))
    np.testing.assert_allclose(shared.entropy(), wide.entropy())
    np.testing.assert_allclose(shared.log_prob(x), wide.log_prob(x), rtol=1e-6)


def test_normal_kl_by_quadrature() -> None:
    """The log-ratio is quadratic, for which five Gauss-Hermite nodes are exact."""
    one, two = NORMALS
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    p, q = (stats.norm(np.float64(n.mean), np.exp(np.float64(n.log_std))) for n in NORMALS)
    log_ratios = [p.logpdf(x) - q.logpdf(x) for x in (p.mean() + p.std() * z for z in nodes)]
    total = np.tensordot(weights / np.sqrt(2 * np.pi), np.sum(log_ratios, -1), 1)
    np.testing.assert_allclose(one.kl(two), total, rtol=1e-5)
    np.testing.assert_allclose(one.kl(one), 0, atol=1e-6)
    assert not np.allclose(one.kl(two), two.kl(one), rtol=0.01)


def test_normal_samples() -> None:
    """Moments within four standard errors, and d sample / d log_std = std · noise."""
    n, normal = 40_000, Normal(jnp.array([1.0, -2.0]), jnp.array([0.3, -1.0]))
    noise = Normal.noise(jax.random.key(0), (n, 2))
    samples, std = jax.vmap(normal.sample)(noise), np.exp([0.3, -1.0])
    assert np.all(np.abs(np.mean(samples, 0) - normal.mean) < 4 * std / np.sqrt(n))
    assert np.all(np.abs(np.std(samples, 0) / std - 1) < 4 / np.sqrt(2 * n))
    slope = jax.jacobian(lambda s: Normal(normal.mean, s).sample(noise[0]))(normal.log_std)
    np.testing.assert_allclose(slope, np.diag(std * np.asarray(noise[0])), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_tanh_correction(scale: float) -> None:
    """log(1 - tanh²) in double precision where that is possible, and log 4 - 2|u| far out."""
    pre = np.linspace(-scale, scale, 7)
    exact = np.log(4) - 2 * np.abs(pre) - 2 * np.log1p(np.exp(-2 * np.abs(pre)))
    if scale < 10:
        np.testing.assert_allclose(exact, np.log(1 - np.tanh(pre) ** 2), rtol=1e-8)
    got = tanh_correction(jnp.float32(pre)[:, None])
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
    together = tanh_correction(jnp.float32(pre))
    np.testing.assert_allclose(together, exact.sum(), rtol=1e-5, atol=1e-5)


def test_density_behind_tanh_integrates_to_one() -> None:
    normal = Normal(jnp.array([[0.4]]), jnp.array([[-0.2]]))
    x = np.linspace(-1, 1, 20_002)[1:-1]
    pre = jnp.float32(np.arctanh(x))[:, None]
    density = jnp.exp(normal.log_prob(pre) - tanh_correction(pre))
    np.testing.assert_allclose(np.trapezoid(density, x), 1, rtol=1e-3)
