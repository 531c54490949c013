"""Returns along time. Arrays are time-major, [T, ...]; trailing axes are carried along.

Every function takes the value of the *true* successor at each step, so a time limit needs no
special case beyond cutting the trace: `terminated` sets the successor's value to zero, `truncated`
keeps it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array


def lambda_returns(
    reward: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    lam: Array | float,
) -> Array:
    """λ-returns, G_t = r_t + γ (1 - terminated_t) [(1 - λ) v_t + λ G_{t+1}].

    With v_t = max_a Q(s_{t+1}, a) these are Peng's Q(λ) targets (Gallici et al. 2025, eq. 6 ff.).
    At a time limit and at the end of the window the bracket is v_t alone. λ = 0 is TD(0); λ = 1 is
    the Monte Carlo return, bootstrapped where the data stop.

    Args:
      reward: [T, ...] float32.
      next_value: [T, ...] float32, value of the true successor of step t.
      terminated: [T, ...] bool.
      truncated: [T, ...] bool.
      gamma: discount.
      lam: trace decay λ.

    Returns:
      [T, ...] float32.
    """

    def back(later: Array, xs: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, value, terminated, truncated = xs
        mixed = (1 - lam) * value + lam * later
        ahead = jnp.where(truncated, value, mixed)
        target = reward + gamma * jnp.where(terminated, 0.0, ahead)
        return target, target

    xs = (reward, next_value, terminated, truncated)
    return jax.lax.scan(back, next_value[-1], xs, reverse=True)[1]
