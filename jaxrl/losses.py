"""Losses and targets that several algorithms share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Transition


def q_of_action(q: Array, action: Array) -> Array:
    """Q(s, a) [...] of q [..., A]; a one-hot product, whose gradient is cheaper than a gather's."""
    return jnp.sum(q * jax.nn.one_hot(action, q.shape[-1]), -1)


def huber(error: Array, limit: Array | float) -> Array:
    """½ e² up to |e| = limit, linear beyond.

    Exact for any limit, as is the gradient. optax's form cancels for small errors and large limits.
    """
    small = jnp.clip(error, -limit, limit)
    return small * (error - 0.5 * small)


def td_target(t: Transition, gamma: Array, value: Array) -> Array:
    """r + γ^k (1 - terminated) V(s') [B] of single steps (k = 1) or n-step rows, see `fold`."""
    return t.reward + t.extras.get("discount", gamma) * jnp.where(t.terminated, 0.0, value)


def q_loss(q: Array, action: Array, target: Array) -> tuple[Array, Array]:
    """Mean of ½ (Q(s, a) - G)², and mean of Q(s, a). q [..., A], action and target [...]."""
    q = q_of_action(q, action)
    return 0.5 * jnp.mean((q - target) ** 2), jnp.mean(q)


def cloning_loss(chosen: Array, action: Array) -> Array:
    """Mean of (π(s) - a)² [] over rows and dimensions of unit actions [B, A]."""
    return jnp.mean((chosen - action) ** 2)


def scaled_rewards(t: Transition, hp: Any) -> Transition:
    """`t` with rewards reward_scale r + reward_shift."""
    return t._replace(reward=hp.reward_scale * t.reward + hp.reward_shift)


def critic_loss(q: Array, target: Array) -> Array:
    """Σ_i mean (Q_i - y)² [] of N critics' values q [N, B] and a common target [B]."""
    return jnp.sum(jnp.mean((q - target[None]) ** 2, -1))


def action_distance(chosen: Array, action: Array) -> Array:
    """Mean of ‖π(s) - a‖ [] over rows of unit actions [B, A]."""
    return jnp.mean(jnp.linalg.norm(jax.lax.stop_gradient(chosen) - action, axis=-1))


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean [] of values [B] over the rows where `mask` [B] holds; 0 without any."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def expectile_loss(error: Array, expectile: Array | float) -> Array:
    """Mean of |τ - 1[u < 0]| u² [] over errors u = Q(s, a) - V(s) [B] (IQL, eq. 4 and 5)."""
    return jnp.mean(jnp.where(error < 0, 1 - expectile, expectile) * error**2)
