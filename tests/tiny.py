"""Tiny environments that terminate and are cut, for conformance tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Box, Discrete, Env, EnvSpec, PyTree, TimeStep

LIMIT = 5


def walk() -> Env:
    """Three actions: a step by -0.4, 0 or 0.4."""
    return _line(Discrete(3), lambda action: 0.4 * (action - 1))


def glide() -> Env:
    """Two continuous actions: their difference is the step."""
    space = Box((-0.5, 0.0), (0.5, 0.25), (2,))
    return _line(space, lambda action: action[0] - action[1])


def pair() -> Env:
    """A team of two, each in a `walk` of its own; the episode ends with the first of them."""
    one = walk()

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        return jax.vmap(one.reset, (0, None))(jax.random.split(key), params)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        keys = jax.random.split(key)
        state, ts = jax.vmap(one.step, (0, 0, 0, None))(keys, state, action, params)
        over = jnp.any(ts.terminated)
        ts = ts._replace(terminated=over, truncated=ts.truncated[0] & ~over)
        return state, ts._replace(score=jnp.mean(ts.reward))

    return Env(dataclasses.replace(one.spec, name="pair", agents=2), one.params, reset, step)


def _line(space: Discrete | Box, move: Callable[[Array], Array]) -> Env:
    """A noisy walk on a line that ends beyond |x| = 1 and is cut after five steps."""

    def obs(state: PyTree) -> Array:
        x, t = state
        return jnp.stack([x, t / LIMIT])

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state = (0.4 * jax.random.normal(key), jnp.int32(0))
        return state, obs(state)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        x, t = state
        x = x + move(action) + params["noise"] * jax.random.normal(key)
        state = (x, t + 1)
        terminated = jnp.abs(x) > 1
        truncated = (t + 1 >= LIMIT) & ~terminated
        return state, TimeStep(obs(state), 1 - x * x, terminated, truncated)

    spec = EnvSpec("line", (2,), space, LIMIT)
    return Env(spec, {"noise": jnp.float32(0.3)}, reset, step)
