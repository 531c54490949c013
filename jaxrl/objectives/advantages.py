"""Advantages of responses from rewards r [G, K]: G prompts with K responses each."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array


def group_mean(reward: Array) -> Array:
    """r - r̄ [G, K], with the mean r̄ over the responses to the same prompt."""
    return reward - jnp.mean(reward, -1, keepdims=True)


def group_normalised(reward: Array, eps: float = 1e-6) -> Array:
    """(r - r̄) / (s + ε) [G, K], s the sample standard deviation (GRPO, arXiv:2402.03300)."""
    spread = jnp.std(reward, -1, ddof=1, keepdims=True)
    return group_mean(reward) / (spread + eps)


def batch_normalised(advantage: Array, eps: float = 1e-8) -> Array:
    """Advantages of any shape with mean 0 and standard deviation 1 over the batch (PPO, SPO)."""
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + eps)


def sign(reward: Array) -> Array:
    """1 for rewards above 0, otherwise -1: TOPR's rewards, without a baseline."""
    return jnp.where(reward > 0, 1.0, -1.0)


def log_partition(log_weight: Array, reward: Array, tau: Array | float) -> Array:
    """τ log Σ w exp(r / τ) [..., 1], the soft value under μ (Kimi k1.5, arXiv:2501.12599, §2.3.2).

    With weights w = μ(response) over all responses it is the exact τ log Z; with w = 1/K over K
    sampled responses it is the paper's estimate.

    Args:
      log_weight: log w [..., K].
    """
    total = jax.scipy.special.logsumexp(log_weight + reward / tau, -1, keepdims=True)
    return tau * total


def soft_advantage(reward: Array, tau: Array | float) -> Array:
    """r - τ log (1/K) Σ exp(r / τ) [G, K], OPMD's advantage with the estimated τ log Z."""
    log_weight = jnp.full(reward.shape, -jnp.log(reward.shape[-1]), reward.dtype)
    return reward - log_partition(log_weight, reward, tau)


def red_drop(reward: Array, noise: Array) -> Array:
    """RED-Drop's advantages [G, K]: r - r̄ of the kept responses, 0 of the dropped ones.

    If more responses of a group lie below its mean than not, randomly chosen ones of them are
    dropped until both are as many; r̄ is the mean of the kept ones, or 0 if one alone is left
    (arXiv:2509.24203, and the code of its authors).

    Args:
      noise: [G, K] random numbers without ties, which choose the dropped responses.
    """
    negative = reward < jnp.mean(reward, -1, keepdims=True)
    extra = 2 * jnp.sum(negative, -1, keepdims=True) - reward.shape[-1]
    order = jnp.where(negative, noise, jnp.inf)
    rank = jnp.sum(order[..., None, :] < order[..., :, None], -1)
    kept = ~(negative & (rank < extra))
    count = jnp.sum(kept, -1, keepdims=True)
    mean = jnp.sum(jnp.where(kept, reward, 0.0), -1, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(kept, reward - jnp.where(count > 1, mean, 0.0), 0.0)
