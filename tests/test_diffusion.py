"""Diffusion: everything against the closed forms of normally distributed data N(M, S²)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import diffusion
from jaxrl.flow import along
from jaxrl.types import Array

M, S = np.float32([[0.7, -1.2]]), np.float32([[0.4, 1.5]])
ROWS = 6


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


# --- variance-preserving chains ------------------------------------------------------------------


def exact_epsilon(chain: diffusion.Chain):
    """E[e | x_i] of the data's chain."""

    def epsilon(x: Array, i: Array) -> Array:
        bar = along(jnp.asarray(chain.alpha_bar)[i], x)
        return jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar) * M) / (bar * S**2 + 1 - bar)

    return epsilon


def test_chain_follows_its_sde() -> None:
    """ᾱ at the end is exp(-∫β), with β from 0.1 to 10, for any T; steps join to the marginals."""
    for steps in (1, 5, 100):
        chain = diffusion.vp_chain(steps)
        assert chain.steps == steps
        time = np.arange(1, steps + 1) / steps
        np.testing.assert_allclose(chain.alpha_bar, np.exp(-0.1 * time - 4.95 * time**2), rtol=1e-5)
        before = np.append(1.0, chain.alpha_bar[:-1])
        mean = chain.on_data + chain.on_state * np.sqrt(chain.alpha_bar)
        np.testing.assert_allclose(mean, np.sqrt(before), rtol=1e-4)
        var = chain.deviation**2 + chain.on_state**2 * (1 - chain.alpha_bar)
        np.testing.assert_allclose(var, 1 - before, rtol=1e-4, atol=1e-6)


def test_epsilon_loss_is_smallest_at_the_exact_one() -> None:
    """By hand on a few rows; and its mean is the variance of e that x_i leaves open."""
    chain = diffusion.vp_chain(5)
    epsilon = exact_epsilon(chain)
    x, e, i = M + S * normal(0, 50_000, 2), normal(1, 50_000, 2), jnp.arange(50_000) % 5
    loss = jax.jit(lambda k: diffusion.epsilon_loss(lambda x, i: k * epsilon(x, i), chain, x, e, i))
    bar = np.float64(chain.alpha_bar)[:, None]
    left = bar * S**2 / (bar * S**2 + 1 - bar)
    np.testing.assert_allclose(loss(1.0), left.mean(), rtol=0.01)
    assert loss(1.0) < min(loss(0.95), loss(1.05))
    few = diffusion.epsilon_loss(lambda x, i: x, chain, x[:5], e[:5], i[:5])
    want = np.mean([
        (np.sqrt(bar[j]) * x[j] + (np.sqrt(1 - bar[j]) - 1) * e[j]) ** 2 for j in range(5)
    ])  # fmt: skip
    np.testing.assert_allclose(few, want, rtol=1e-4)


def backwards(chain: diffusion.Chain, mean: np.ndarray, var: np.ndarray) -> list[np.ndarray]:
    """Mean and deviation after the chain backwards, whose steps with the exact ε are linear."""
    for i in reversed(range(chain.steps)):
        bar = np.float64(chain.alpha_bar[i])
        gain = np.sqrt(bar) * S**2 / (bar * S**2 + 1 - bar)  # E[x_0 | x_i] = offset + gain x_i
        factor = chain.on_state[i] + chain.on_data[i] * gain
        mean = factor * mean + chain.on_data[i] * (1 - gain * np.sqrt(bar)) * M
        var = factor**2 * var + chain.deviation[i] ** 2
    return [mean, np.sqrt(var)]


def test_ddpm_with_the_exact_epsilon() -> None:
    """Five steps have the moments of the recursion; a thousand, begun well, those of the data."""
    chain, start, noise = diffusion.vp_chain(5), normal(0, 20_000, 2), normal(1, 5, 20_000, 2)
    got = jax.jit(lambda: diffusion.ddpm(exact_epsilon(chain), chain, start, noise))()
    mean, std = backwards(chain, np.zeros((1, 2)), np.ones((1, 2)))
    np.testing.assert_allclose([np.mean(got, 0)], mean, atol=0.03)
    np.testing.assert_allclose([np.std(got, 0)], std, rtol=0.02)
    chain = diffusion.vp_chain(1000)
    last = np.float64(chain.alpha_bar[-1])
    mean, std = backwards(chain, np.sqrt(last) * M, last * S**2 + 1 - last)
    np.testing.assert_allclose(mean, M, atol=1e-4)
    np.testing.assert_allclose(std, S, rtol=0.01)


def test_ddpm_of_one_point() -> None:
    """Where ε knows x_0, one gets x_0, clipped to the bound; index 0 adds no noise."""
    chain, point = diffusion.vp_chain(5), jnp.float32([[0.5, -2.0]])

    def epsilon(x: Array, i: Array) -> Array:
        bar = along(jnp.asarray(chain.alpha_bar)[i], x)
        return (x - jnp.sqrt(bar) * point) / jnp.sqrt(1 - bar)

    for bound, want in ((np.inf, [0.5, -2.0]), (1.0, [0.5, -1.0])):
        got = diffusion.ddpm(epsilon, chain, normal(0, 3, 2), normal(1, 5, 3, 2), bound)
        np.testing.assert_allclose(got, [want] * 3, atol=2e-5)


# --- EDM -----------------------------------------------------------------------------------------


def exact_denoiser(x: Array, sigma: Array) -> Array:
    """E[x_0 | x_0 + σ e = x]."""
    keep = S**2 / (S**2 + along(sigma, x) ** 2)
    return M + keep * (x - M)


def test_noise_levels() -> None:
    sigmas = diffusion.edm_sigmas(9)
    assert (sigmas[0], sigmas[-1]) == (80, 0) and (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[-2], 0.002, rtol=1e-5)
    np.testing.assert_allclose(np.diff(sigmas[:-1] ** (1 / 7), 2), 0, atol=1e-5)
    logs = np.log(diffusion.edm_noise_levels(jax.random.key(0), 20_000))
    np.testing.assert_allclose([logs.mean(), logs.std()], [-1.2, 1.2], atol=0.03)
    logs = np.log(diffusion.log_uniform(jax.random.key(0), 20_000, 0.01, 1.0))
    want = np.log(0.01) * np.array([0.9, 0.5, 0.1])
    np.testing.assert_allclose(np.quantile(logs, [0.1, 0.5, 0.9]), want, atol=0.06)


def test_preconditioning() -> None:
    """Unit inputs and unit targets of F at every level, and the loss of F weighs one."""
    std, count = 0.5, 20_000
    x, e = std * normal(0, count, 1), normal(1, count, 1)
    for level in (0.01, 0.5, 20.0):
        sigma, seen = jnp.full(count, level), {}

        def net(z: Array, c: Array, seen: dict = seen) -> Array:
            seen["input"], seen["level"] = z, c
            return jnp.zeros_like(z)

        empty = diffusion.precondition(net, std)(x + level * e, sigma)  # c_skip x
        np.testing.assert_allclose(np.std(seen["input"]), 1, rtol=0.02)
        np.testing.assert_allclose(seen["level"], np.log(level) / 4, rtol=1e-4)
        out = diffusion.precondition(lambda z, c: jnp.ones_like(z), std)(x + level * e, sigma)
        target = (x - empty) / (out - empty)
        np.testing.assert_allclose(np.std(target), 1, rtol=0.02)
        denoise = diffusion.precondition(lambda z, c: 0.3 * jnp.ones_like(z), std)
        loss = diffusion.edm_loss(denoise, x, e, sigma, std)
        np.testing.assert_allclose(loss, np.mean((0.3 - target) ** 2), rtol=1e-3)


def test_edm_loss_is_smallest_at_the_exact_denoiser() -> None:
    x, e = M + S * normal(0, 50_000, 2), normal(1, 50_000, 2)
    sigma = diffusion.edm_noise_levels(jax.random.key(2), 50_000)

    @jax.jit
    def loss(k: Array) -> Array:
        off = lambda x, sigma: x + k * (exact_denoiser(x, sigma) - x)
        return diffusion.edm_loss(off, x, e, sigma)

    assert loss(1.0) < min(loss(0.9), loss(1.1))


def test_deterministic_heun_is_the_flow() -> None:
    """dx/dσ is solved by M + (x - M) √(S² + σ²) / √(S² + σ_max²); second order in the step."""
    start, errors = 80 * normal(0, ROWS, 2), []
    want = M + (start - M) * np.sqrt(S**2 / (S**2 + 80.0**2))
    for steps in (20, 40, 80):
        sigmas = diffusion.edm_sigmas(steps)
        got = jax.jit(lambda sigmas=sigmas: diffusion.heun(exact_denoiser, start, sigmas))()
        errors.append(np.abs(got - want).max())
    assert errors[2] < 0.01
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_heun_step_by_step() -> None:
    """Against a numpy loop, with a guide in all steps but the last."""
    start, sigmas = 80 * normal(0, ROWS, 2), diffusion.edm_sigmas(4)
    guide = lambda x, sigma, k: x + 0.1 * sigma + (k + 1.0)
    got = jax.jit(lambda: diffusion.heun(exact_denoiser, start, sigmas, guide=guide))()
    plain = lambda x, s: M + S**2 / (S**2 + s**2) * (x - M)
    x = np.float64(start)
    for k in range(4):
        now, below = np.float64(sigmas[k : k + 2])
        if k < 3:
            x = x + 0.1 * now + (k + 1)
        slope = (x - plain(x, now)) / now
        ahead = x + (below - now) * slope
        if k < 3:
            ahead = x + (below - now) * 0.5 * (slope + (ahead - plain(ahead, below)) / below)
        x = ahead
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-4)


def test_churned_heun_keeps_the_distribution() -> None:
    """Mean and deviation of the data, by other samples than the deterministic ones."""
    start, sigmas = 80 * normal(0, 20_000, 2), diffusion.edm_sigmas(60)
    churn = (jax.random.key(1), diffusion.Churn(scale=1.0))
    sample = jax.jit(lambda: diffusion.heun(exact_denoiser, start, sigmas, churn=churn))
    got = np.asarray(sample())
    np.testing.assert_allclose([got.mean(0)], M, atol=0.03)
    np.testing.assert_allclose([got.std(0)], S, rtol=0.03)
    fixed = M + (start - M) * np.sqrt(S**2 / (S**2 + 80.0**2))
    assert abs(np.corrcoef(got[:, 0], fixed[:, 0])[0, 1]) < 0.5
    none = (jax.random.key(1), diffusion.Churn(amount=0.0))
    alike = jax.jit(lambda: diffusion.heun(exact_denoiser, start[:5], sigmas, churn=none))()
    same = jax.jit(lambda: diffusion.heun(exact_denoiser, start[:5], sigmas))()
    np.testing.assert_allclose(alike, same, rtol=1e-5)


# --- denoising score matching --------------------------------------------------------------------


def test_score() -> None:
    """The minimiser's score is that of N(M, S² + σ²); by hand on a field of one parameter."""
    x, sigma = (
        M + S * normal(0, 50_000, 2),
        diffusion.log_uniform(jax.random.key(2), 50_000, 0.3, 1),
    )
    e = normal(1, 50_000, 2)

    def exact(x: Array, sigma: Array) -> Array:
        sigma = along(sigma, x)
        return sigma * (x - M) / (S**2 + sigma**2)

    loss = jax.jit(lambda k: diffusion.dsm_loss(lambda x, s: k * exact(x, s), x, e, sigma))
    assert loss(1.0) < min(loss(0.95), loss(1.05))
    np.testing.assert_allclose(jax.grad(loss)(1.0), 0, atol=0.01)
    got = diffusion.score(exact, x[:9], sigma[:9])
    log_p = lambda x, s: -0.5 * jnp.sum((x - M[0]) ** 2 / (S[0] ** 2 + s**2))
    np.testing.assert_allclose(got, jax.vmap(jax.grad(log_p))(x[:9], sigma[:9]), rtol=1e-4)
    few = diffusion.dsm_loss(lambda x, s: x, x[:4], e[:4], sigma[:4])
    want = np.mean([(x[j] + (sigma[j] - 1) * e[j]) ** 2 for j in range(4)])
    np.testing.assert_allclose(few, want, rtol=1e-4)


def test_anneal_step_by_step() -> None:
    """Against a numpy loop, with the ε of a normal distribution; clipped."""
    mean, var = np.array([[0.3, -0.9]]), np.array([[0.04, 0.25]])
    predict = lambda x, s: s[:, None] * (x - mean) / (var + s[:, None] ** 2)
    start = np.array([[0.9, -1.0], [-3.0, 4.0]])
    got = jax.jit(lambda x: diffusion.anneal(predict, x, (0.5, 0.1), 2, 1.7))(jnp.float32(start))
    x, clipped = start, False
    for sigma in (0.5, 0.5, 0.1, 0.1):
        free = x - 1.7 * sigma**2 * (x - mean) / (var + sigma**2)
        x = np.clip(free, -1, 1)
        clipped |= bool((x != free).any())
    np.testing.assert_allclose(got, x, rtol=1e-5)
    assert clipped


def test_scores_of_scaled_networks() -> None:
    """Inputs x / √(1 + σ²), the context and log σ; a score step is -σ ε."""
    net = lambda x, context, log_sigma: x + 2 * context + log_sigma[:, None]
    x, context = jnp.array([[1.0, 2.0], [3.0, -4.0]]), jnp.array([[0.5, 1.0]])
    sigma = jnp.array([0.75])
    epsilon = jax.jit(diffusion.scaled_epsilon(net, context))
    expected = np.asarray(x) / 1.25 + [[1.0, 2.0]] + np.log(0.75)
    np.testing.assert_allclose(epsilon(x, sigma), expected, rtol=1e-6)
    np.testing.assert_allclose(diffusion.score_step(epsilon, x, sigma), -0.75 * expected, rtol=1e-5)
    assert diffusion.no_context().shape == (1, 0)


def test_sampled_dsm_loss_draws_levels_in_range() -> None:
    """Each row has a level of its own in [low, high]; the right ε has no loss."""
    x, levels = jnp.full((200, 2), 3.0), []

    def exact(noisy: Array, sigma: Array) -> Array:
        levels.append(np.asarray(sigma))
        return (noisy - x) / sigma[:, None]

    loss = diffusion.sampled_dsm_loss(exact, x, jax.random.key(0), 0.1, 0.5)
    np.testing.assert_allclose(loss, 0, atol=1e-8)
    assert levels[0].shape == (200,) and len(set(levels[0].tolist())) > 150
    assert 0.1 <= levels[0].min() < 0.12 and 0.45 < levels[0].max() <= 0.5
