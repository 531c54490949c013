"""Returns over time. Arrays are time-major, [T, ...]; trailing axes are batch axes.

Functions take the value of the *true* successor at each step. `terminated` sets this value to zero;
`truncated` keeps it. Both end the trace.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Transition


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
    At truncated steps and at the end of the window the bracket is v_t alone. λ = 0 is TD(0); λ = 1
    is the Monte Carlo return, bootstrapped at the end of the data.

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


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array | float,
    lam: Array | float,
) -> Array:
    """Generalised advantage estimates, A_t = δ_t + γ λ (1 - done_t) A_{t+1} (Schulman et al. 2016).

    δ_t = r_t + γ (1 - terminated_t) v_t - V(s_t). Computed as λ-return minus value, which is equal
    if v_t = V(s_{t+1}) within episodes, that is, if the same V gives the values of successors.

    Args:
      value: [T, ...] float32, V(s_t). Other arguments as in `lambda_returns`.

    Returns:
      [T, ...] float32.
    """
    return lambda_returns(reward, next_value, terminated, truncated, gamma, lam) - value


def successor_values(
    value_of: Callable[[Array], Array], window: Transition, one_limit: bool
) -> Array:
    """Values [T, N] of the true successors in a window, under the parameters that acted.

    Inside an episode the successor is the next observation, whose value acting already recorded in
    `extras["value"]` [T, N]. What is left are the window's last successors and those cut by a time
    limit; where a window holds at most one limit per environment, that is one forward pass of 2N
    rows. A value behind a termination may be anything.

    Args:
      value_of: obs [B, *obs] to values [B].
      window: transitions [T, N, ...].
      one_limit: whether the window holds at most one time limit per environment. Otherwise all
        successors go through `value_of`.
    """
    if not one_limit:
        rows = window.next_obs.reshape(-1, *window.next_obs.shape[2:])
        return value_of(rows).reshape(window.reward.shape)
    num_envs = window.reward.shape[1]
    cut = jnp.argmax(window.truncated, 0)  # [N] when the limit came, 0 if it did not
    at_limit = window.next_obs[cut, jnp.arange(num_envs)]
    values = value_of(jnp.concatenate([window.next_obs[-1], at_limit]))
    later = jnp.concatenate([window.extras["value"][1:], values[None, :num_envs]])
    return jnp.where(window.truncated, values[None, num_envs:], later)
