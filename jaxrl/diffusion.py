"""Diffusion: discrete variance-preserving chains, EDM, and denoising score matching.

Denoising Diffusion Probabilistic Models. Jonathan Ho, Ajay Jain, Pieter Abbeel. NeurIPS 2020,
arXiv:2006.11239 (DDPM).
Elucidating the Design Space of Diffusion-Based Generative Models. Tero Karras, Miika Aittala, Timo
Aila, Samuli Laine. NeurIPS 2022, arXiv:2206.00364 (EDM).
A Connection Between Score Matching and Denoising Autoencoders. Pascal Vincent. Neural Computation
2011 (denoising score matching).

Shapes: x, noise [B, ...] float32; one sigma or step index per row, [B]. Samplers pass one value for
all rows, [1], so that its embedding is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.flow import along
from jaxrl.types import Array

# --- variance-preserving chains ------------------------------------------------------------------


class Chain(NamedTuple):
    """x_i = √ᾱ_i x_0 + √(1 - ᾱ_i) e for i = 0 .. T-1; arrays [T] float32."""

    alpha_bar: np.ndarray  # ᾱ_i, from nearly 1 to nearly 0
    on_data: np.ndarray  # mean of x_{i-1} given x_i and x_0: on_data x_0 + on_state x_i
    on_state: np.ndarray
    deviation: np.ndarray  # standard deviation of x_{i-1} given x_i and x_0; 0 at i = 0

    @property
    def steps(self) -> int:
        return self.alpha_bar.size


def vp_chain(steps: int, low: float = 0.1, high: float = 10.0) -> Chain:
    """1 - β_i = exp(-low / T - (high - low) (2 i + 1) / (2 T²)), the steps of Diffusion-QL.

    Wang, Hunt and Zhou (ICLR 2023, arXiv:2208.06193). For any T, ᾱ is that of the
    variance-preserving SDE of Song et al. (2021) at times 1/T, ..., 1.
    """
    i = np.arange(steps)
    alpha = np.exp(-low / steps - 0.5 * (high - low) * (2 * i + 1) / steps**2)
    bar = np.cumprod(alpha)
    before = np.append(1.0, bar[:-1])
    on_data = (1 - alpha) * np.sqrt(before) / (1 - bar)
    on_state = (1 - before) * np.sqrt(alpha) / (1 - bar)
    deviation = np.sqrt((1 - alpha) * (1 - before) / (1 - bar))
    return Chain(*(x.astype(np.float32) for x in (bar, on_data, on_state, deviation)))


def corrupt(chain: Chain, x: Array, noise: Array, i: Array) -> Array:
    """x_i = √ᾱ_i x + √(1 - ᾱ_i) e (DDPM eq. 4)."""
    bar = along(jnp.asarray(chain.alpha_bar)[i], x)
    return jnp.sqrt(bar) * x + jnp.sqrt(1 - bar) * noise


def epsilon_loss(
    epsilon: Callable[[Array, Array], Array], chain: Chain, x: Array, noise: Array, i: Array
) -> Array:
    """Mean of (ε(x_i, i) - e)² [] over rows and elements (DDPM eq. 14)."""
    return jnp.mean((epsilon(corrupt(chain, x, noise, i), i) - noise) ** 2)


def ddpm(
    epsilon: Callable[[Array, Array], Array],
    chain: Chain,
    start: Array,
    noise: Array,
    bound: float = np.inf,
) -> Array:
    """A sample of the reverse chain from `start` ~ N(0, 1) [B, ...] (DDPM algorithm 2).

    Each step draws x_{i-1} given x_i and the estimate x_0 = (x_i - √(1 - ᾱ_i) ε) / √ᾱ_i.

    Args:
      noise: [T, B, ...] standard normal; index 0 is not used.
      bound: estimates of x_0 are clipped to ±bound.
    """
    table = jax.tree.map(jnp.asarray, chain)

    def step(x: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
        i, e = xs
        at = jax.tree.map(lambda column: column[i], table)
        guess = (x - jnp.sqrt(1 - at.alpha_bar) * epsilon(x, i[None])) / jnp.sqrt(at.alpha_bar)
        guess = jnp.clip(guess, -bound, bound)
        return at.on_data * guess + at.on_state * x + at.deviation * e, None

    return jax.lax.scan(step, start, (jnp.arange(chain.steps), noise), reverse=True)[0]


# --- EDM -----------------------------------------------------------------------------------------

Denoiser = Callable[[Array, Array], Array]  # D(x [B, ...], sigma [B]) -> E[clean x | x] [B, ...]
Guide = Callable[[Array, Array, Array], Array]  # (x [B, ...], sigma [], step k []) -> x [B, ...]


def edm_sigmas(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """Noise levels [steps + 1] float32 from `high` to `low`, then 0 (EDM eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return np.append(levels, 0.0).astype(np.float32)


def edm_noise_levels(key: Array, count: int, mean: float = -1.2, std: float = 1.2) -> Array:
    """Training noise levels [count], log σ ~ N(mean, std²) (EDM table 1)."""
    return jnp.exp(mean + std * jax.random.normal(key, (count,)))


def precondition(net: Denoiser, data_std: float = 1.0) -> Denoiser:
    """D(x, σ) = c_skip x + c_out F(c_in x, c_noise) of a network F (EDM eq. 7 and table 1).

    Inputs and targets of F have unit variance if the data's standard deviation is `data_std`.
    """

    def denoise(x: Array, sigma: Array) -> Array:
        total = sigma**2 + data_std**2
        scale = jax.lax.rsqrt(total)
        skip, out = data_std**2 / total, sigma * data_std * scale
        inner = net(along(scale, x) * x, 0.25 * jnp.log(sigma))
        return along(skip, x) * x + along(out, x) * inner

    return denoise


def edm_loss(
    denoise: Denoiser, x: Array, noise: Array, sigma: Array, data_std: float = 1.0
) -> Array:
    """Mean of λ(σ) (D(x + σ e, σ) - x)² [], λ = (σ² + σ_d²) / (σ σ_d)² (EDM eq. 2 and table 1).

    With this λ the loss of the network inside D has weight one at every level.
    """
    error = denoise(x + along(sigma, x) * noise, sigma) - x
    weight = (sigma**2 + data_std**2) / (sigma * data_std) ** 2
    return jnp.mean(along(weight, x) * error**2)


class Churn(NamedTuple):
    """Fresh noise added in each step of `heun` (EDM algorithm 2)."""

    amount: float = 80.0  # S_churn
    low: float = 0.05  # S_tmin, the lowest level at which noise is added
    high: float = 50.0  # S_tmax, the highest
    scale: float = 1.003  # S_noise


def heun(
    denoise: Denoiser,
    start: Array,
    sigmas: np.ndarray,
    *,
    churn: tuple[Array, Churn] | None = None,
    guide: Guide | None = None,
) -> Array:
    """A sample by Heun's method along dx/dσ = (x - D(x, σ)) / σ (EDM algorithms 1 and 2).

    With `churn` both stages start from the state with its fresh noise, as in algorithm 2.

    The last step, to σ = 0, is an Euler step, whose result is D(x, σ). So N steps evaluate D
    2 N - 1 times.

    Args:
      start: [B, ...], of standard deviation sigmas[0].
      sigmas: [N + 1] decreasing, the last 0.
      churn: a key and the amount of noise; None for the deterministic sampler.
      guide: (x, σ [], k []) -> x, applied before each step k = 0 .. N-2, all but the last.
    """
    steps, now = len(sigmas) - 1, np.float64(sigmas[:-1])
    if churn is None:
        keys, scale, higher = None, 0.0, now
    else:
        key, how = churn
        keys, scale = jax.random.split(key, steps), how.scale
        inside = (now >= how.low) & (now <= how.high)
        higher = now * (1 + inside * min(how.amount / steps, np.sqrt(2) - 1))
    extra = scale * np.sqrt(higher**2 - now**2)
    levels = [jnp.asarray(x, jnp.float32) for x in (now, higher, extra, sigmas[1:])]
    slope = lambda x, sigma: (x - denoise(x, sigma[None])) / sigma

    def churned(x: Array, extra: Array, key: Array | None) -> Array:
        return x if key is None else x + extra * jax.random.normal(key, x.shape)

    def step(x: Array, xs: tuple) -> tuple[Array, None]:
        k, (sigma, above, extra, below), key = xs
        if guide is not None:
            x = guide(x, sigma, k)
        x = churned(x, extra, key)
        first = slope(x, above)
        second = slope(x + (below - above) * first, below)
        return x + (below - above) * 0.5 * (first + second), None

    order = (jnp.arange(steps), levels, keys)
    x, _ = jax.lax.scan(step, start, jax.tree.map(lambda column: column[:-1], order))
    _, (_, above, extra, _), key = jax.tree.map(lambda column: column[-1], order)
    return denoise(churned(x, extra, key), above[None])


# --- denoising score matching --------------------------------------------------------------------


Epsilon = Callable[[Array, Array], Array]  # ε(x [B, ...], sigma [B] or [1]) [B, ...]


def scaled_epsilon(net: Callable[[Array, Array, Array], Array], context: Array) -> Epsilon:
    """ε(x [B, D], σ) of a network with inputs x / √(1 + σ²), context and log σ.

    The scaled inputs have unit variance at every σ if the data have unit variance.

    Args:
      net: (x [B, D], context [B or 1, C], log σ [B or 1]) -> predicted noise [B, D].
      context: [B or 1, C]; `no_context()` for an unconditional score.
    """

    def epsilon(x: Array, sigma: Array) -> Array:
        scale = along(jax.lax.rsqrt(1 + sigma**2), x)
        return net(scale * x, context, jnp.log(sigma))

    return epsilon


def no_context() -> Array:
    """The context [1, 0] of an unconditional score."""
    return jnp.zeros((1, 0))


def log_uniform(key: Array, count: int, low: float, high: float) -> Array:
    """Noise levels [count] in [low, high] with uniform logarithms."""
    return jnp.exp(jax.random.uniform(key, (count,), minval=np.log(low), maxval=np.log(high)))


def dsm_loss(epsilon: Epsilon, x: Array, noise: Array, sigma: Array) -> Array:
    """Mean of (ε(x + σ e, σ) - e)² []: denoising score matching, weighted by σ² (Vincent 2011)."""
    return jnp.mean((epsilon(x + along(sigma, x) * noise, sigma) - noise) ** 2)


def sampled_dsm_loss(epsilon: Epsilon, x: Array, key: Array, low: float, high: float) -> Array:
    """`dsm_loss` [] with fresh noise, at one log-uniform noise level in [low, high] per row."""
    key_noise, key_level = jax.random.split(key)
    noise = jax.random.normal(key_noise, x.shape)
    return dsm_loss(epsilon, x, noise, log_uniform(key_level, x.shape[0], low, high))


def score(epsilon: Epsilon, x: Array, sigma: Array) -> Array:
    """∇ log p_σ(x) = -ε(x, σ) / σ [B, ...], where ε minimises `dsm_loss`."""
    return -epsilon(x, sigma) / along(sigma, x)


def score_step(epsilon: Epsilon, x: Array, sigma: Array) -> Array:
    """σ² ∇ log p_σ(x) [B, ...]: the step from x to the mean of the clean data given x."""
    return along(sigma**2, x) * score(epsilon, x, sigma)


def anneal(
    epsilon: Epsilon,
    x: Array,
    levels: tuple[float, ...],
    steps: int,
    step_size: Array | float,
    bound: float = 1.0,
) -> Array:
    """x [B, ...] after `steps` steps x <- clip(x + step_size σ² ∇ log p_σ(x), ±bound) per level σ.

    A step of size one leads to the mean of the clean data given x.
    """

    def step(x: Array, sigma: Array) -> tuple[Array, None]:
        return jnp.clip(x + step_size * score_step(epsilon, x, sigma), -bound, bound), None

    return jax.lax.scan(step, x, jnp.repeat(jnp.float32(levels), steps)[:, None])[0]
