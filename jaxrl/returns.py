"""Returns over time. Arrays are time-major, [T, ...]; trailing axes are batch axes.

Functions take the value of the *true* successor at each step. `terminated` sets this value to zero;
`truncated` keeps it. Both end the trace.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree


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
    value_of: Callable[[PyTree], Array], successors: PyTree, value: Array, truncated: Array
) -> Array:
    """Values [T, N] of the true successors in a window, under the parameters that acted.

    The value of a successor within an episode is `value` of the next step, which the policy
    recorded. `value_of` computes the values of the window's last successors and of successors at
    truncated steps, in passes of at most 2N rows: one pass if no environment was truncated more
    than once, as with time limits of at least T steps, then one pass per further truncation of the
    same environment. Values of successors at terminated steps are arbitrary.

    Args:
      value_of: (rows of `successors`, leaves [B, ...]) -> values [B]. No gradient can flow through.
      successors: leaves [T, N, ...], such as `next_obs`.
      value: [T, N] float32, values of the observations acted on.
      truncated: [T, N] bool.
    """
    num_envs = truncated.shape[1]
    before = jnp.cumsum(truncated, 0) - truncated  # truncations of the environment before this step

    def at_cut(cut: Array) -> PyTree:
        """Successors [N, ...] where `cut` [T, N] holds, at most once per environment."""
        rows = jnp.argmax(cut, 0), jnp.arange(num_envs)
        return jax.tree.map(lambda x: x[rows], successors)

    first = truncated & (before == 0)
    ends = jax.tree.map(lambda x, y: jnp.concatenate([x[-1], y]), successors, at_cut(first))
    values = value_of(ends)
    later = jnp.concatenate([value[1:], values[None, :num_envs]])
    found = jnp.where(truncated, values[None, num_envs:], later)

    def next_cut(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, found = carry
        cut = truncated & (before == count)
        return count + 1, jnp.where(cut, value_of(at_cut(cut))[None], found)

    more = jnp.max(jnp.sum(truncated, 0))
    one = (jnp.ones((), before.dtype), found)
    return jax.lax.while_loop(lambda carry: carry[0] < more, next_cut, one)[1]
