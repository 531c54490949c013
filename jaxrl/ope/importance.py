"""Importance sampling: returns of the data, reweighted by how probable the target makes them.

    w_{0:t} = Π_{k ≤ t} π(a_k|s_k) / π_b(a_k|s_k)

The trajectory-wise estimator weights whole returns by w_{0:T-1} (Hammersley, Handscomb 1964), the
per-decision one each reward by w_{0:t} (Precup, Sutton, Singh. Eligibility Traces for Off-Policy
Policy Evaluation. ICML 2000). Both are unbiased if π_b covers π. The self-normalised forms replace
w by w / mean w, the mean over episodes at each step: biased, consistent, of far smaller variance.

Estimators return a term per episode, [E]; the estimate is the mean. Past the end of an episode
rewards are 0 and weights constant.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.ope.episodes import discounted
from jaxrl.types import Array


def log_weights(log_target: Array, log_behaviour: Array, live: Array) -> Array:
    """log w_{0:t} [E, T] from log-probabilities [E, T] of the actions taken."""
    return jnp.cumsum(jnp.where(live, log_target - log_behaviour, 0.0), 1)


def self_normalised(log_weight: Array) -> Array:
    """w_{0:t} divided by its mean over episodes, [E, T]; 0 where all weights are 0."""
    count = log_weight.shape[0]
    total = jax.nn.logsumexp(log_weight, 0, keepdims=True)
    safe = jnp.where(jnp.isfinite(total), total, 0.0)
    return count * jnp.exp(log_weight - safe)


def trajectory(weight: Array, reward: Array, gamma: Array | float) -> Array:
    """w_{0:T-1} Σ_t γ^t r_t [E] of weights and rewards [E, T]."""
    return weight[:, -1] * discounted(reward, gamma)


def per_decision(weight: Array, reward: Array, gamma: Array | float) -> Array:
    """Σ_t γ^t w_{0:t} r_t [E] of weights and rewards [E, T]."""
    return discounted(weight * reward, gamma)


def effective_episodes(log_weight: Array) -> Array:
    """(Σ w)² / Σ w² [] of whole-episode weights: E where all are equal, near 1 where one rules."""
    last = log_weight[:, -1]
    top = jnp.max(last)
    weight = jnp.exp(last - jnp.where(jnp.isfinite(top), top, 0.0))
    squares = jnp.sum(weight**2)
    return jnp.where(squares > 0, jnp.sum(weight) ** 2 / jnp.maximum(squares, 1e-30), 0.0)
