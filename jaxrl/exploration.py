"""Exploration: ε-greedy actions, smoothing noise, and random actions for warm-ups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.masks import random_legal, unmask
from jaxrl.types import Array, Box, Discrete, Policy


def epsilon_noise(
    num_actions: int, masked: bool = False
) -> Callable[[Array, int], tuple[Array, Array]]:
    """The noise of ε-greedy actions: coins [n] in [0, 1) and random actions [n].

    With action masks, numbers [n] in [0, 1) replace the actions.
    """

    def noise(key: Array, n: int) -> tuple[Array, Array]:
        key_coin, key_action = jax.random.split(key)
        coin = jax.random.uniform(key_coin, (n,))
        if masked:
            return coin, jax.random.uniform(key_action, (n,))
        return coin, jax.random.randint(key_action, (n,), 0, num_actions)

    return noise


def epsilon_greedy(
    q: Array,
    eps: Array,
    noise: tuple[Array, Array],
    explore: bool,
    legal: Array | None = None,
) -> Array:
    """Greedy actions [n] of Q-values [n, A], each replaced by a random one with probability ε.

    Args:
      legal: [n, A], for noise with masks; `q` is -inf where an action is illegal (`legal_only`).
    """
    action = jnp.argmax(q, -1)
    if not explore:
        return action
    coin, random_action = noise
    if legal is not None:
        random_action = random_legal(random_action, legal)
    return jnp.where(coin < eps, random_action, action)


def smoothed(action: Array, key: Array, hp: Any) -> Array:
    """clip(a + clip(ε, ±noise_clip), ±1), ε ~ N(0, policy_noise²); unit actions [B, A]."""
    noise = hp.policy_noise * jax.random.normal(key, action.shape)
    return jnp.clip(action + jnp.clip(noise, -hp.noise_clip, hp.noise_clip), -1.0, 1.0)


def random_policy(space: Discrete | Box, masked: bool = False) -> Policy:
    """A policy of uniformly random actions, for warm-ups; of legal ones if the spec is `masked`.

    Raises:
      UserError: the action space is an unbounded box.
    """

    def noise(key: Array, n: int) -> Array:
        if masked:
            return jax.random.uniform(key, (n,))
        if isinstance(space, Discrete):
            return jax.random.randint(key, (n,), 0, space.n)
        low, high = (np.array(x, np.float32).reshape(space.shape) for x in (space.low, space.high))
        return jax.random.uniform(key, (n, *space.shape), minval=low, maxval=high)

    def act(state, hp, obs, start, memory, noise, explore):
        legal = unmask(obs)[1]
        return noise if legal is None else random_legal(noise, legal), memory, {}

    if isinstance(space, Box) and not np.isfinite([space.low, space.high]).all():
        raise UserError(f"random actions need bounds; these are {space.low} to {space.high}")
    return Policy(act=act, noise=noise, masks=True, bytes=True, views=True)
