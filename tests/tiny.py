"""A tiny environment with discrete actions that terminates and is cut, for conformance tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep

LIMIT = 5


def walk() -> Env:
    """A noisy walk on a line by -0.4, 0 or 0.4: ends beyond |x| = 1, cut after five steps."""

    def obs(state: PyTree) -> Array:
        x, t = state
        return jnp.stack([x, t / LIMIT])

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state = (0.4 * jax.random.normal(key), jnp.int32(0))
        return state, obs(state)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        x, t = state
        x = x + 0.4 * (action - 1) + params["noise"] * jax.random.normal(key)
        state = (x, t + 1)
        terminated = jnp.abs(x) > 1
        truncated = (t + 1 >= LIMIT) & ~terminated
        return state, TimeStep(obs(state), 1 - x * x, terminated, truncated)

    spec = EnvSpec("walk", (2,), Discrete(3), LIMIT)
    return Env(spec, {"noise": jnp.float32(0.3)}, reset, step)
