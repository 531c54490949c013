"""The common form of objectives on sampled tokens, and means over tokens."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array

Aggregate = Callable[[Array, Array], Array]  # (values [B, T], mask [B, T]) -> []


def token_mean(values: Array, mask: Array) -> Array:
    """Σ m x / Σ m [] over all tokens of the batch (DAPO, arXiv:2503.14476, eq. 8)."""
    return _sum(values, mask) / jnp.maximum(jnp.sum(mask), 1)


def sequence_mean(values: Array, mask: Array) -> Array:
    """Mean over responses of the mean over their tokens [] (GRPO, arXiv:2402.03300, eq. 3).

    Responses without tokens count as 0.
    """
    count = jnp.maximum(jnp.sum(mask, -1), 1)
    return jnp.mean(jnp.sum(jnp.where(mask, values, 0.0), -1) / count)


def sequence_sum(values: Array, mask: Array) -> Array:
    """Mean over responses of the sum over their tokens []: the gradient of log π(response)."""
    return _sum(values, mask) / mask.shape[0]


def surrogate(log_prob: Array, coefficient: Array, mask: Array, aggregate: Aggregate) -> Array:
    """L = -Agg[sg(c) log π] [], whose gradient is that of the objective with coefficients c.

    Only the gradient has a meaning; the value is that of no published loss.

    Args:
      log_prob: log π(a_t | prefix) [B, T] of the sampled tokens, differentiable.
      coefficient: c [B, T], constants to the gradient.
      mask: [B, T] bool, the tokens that count.
    """
    return -aggregate(jax.lax.stop_gradient(coefficient) * log_prob, mask)


def log_ratio(log_prob: Array, behaviour: Array, mask: Array) -> Array:
    """log π - log μ [B, T], 0 where `mask` is False."""
    return jnp.where(mask, log_prob - behaviour, 0.0)


def log_sequence_ratio(log_prob: Array, behaviour: Array, mask: Array) -> Array:
    """log π(response) - log μ(response) [B, 1]."""
    return jnp.sum(log_ratio(log_prob, behaviour, mask), -1, keepdims=True)


def sequence_average(values: Array, mask: Array) -> Array:
    """Mean over the tokens of each response [B, 1]; 0 without tokens."""
    total = jnp.sum(jnp.where(mask, values, 0.0), -1, keepdims=True)
    return total / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)


def _sum(values: Array, mask: Array) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0))
