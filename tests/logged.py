"""Small datasets for the tests of offline agents, and the loop that learns them whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Agent, Array, Batch, Box, Discrete, EnvSpec, PyTree, Transition

OBS = 3
BOX = EnvSpec("arm", (OBS,), Box((-1.0, 0.0), (1.0, 4.0), (2,)), 10)
BUTTONS = EnvSpec("buttons", (OBS,), Discrete(3), 10)


def rows(spec: EnvSpec, count: int = 8, seed: int = 0) -> Transition:
    """Random transitions [D], on the host; one of three terminates, one is cut by a time limit."""
    rng: Any = np.random.default_rng(seed)
    number = lambda *shape: rng.normal(size=shape).astype(np.float32)
    if isinstance(spec.action, Box):
        shape = (count, *spec.action.shape)
        action = rng.uniform(spec.action.low, spec.action.high, shape).astype(np.float32)
    else:
        action = rng.integers(0, spec.action.n, count, np.int32)
    end = np.arange(count) % 3
    obs, next_obs = number(count, *spec.obs_shape), number(count, *spec.obs_shape)
    ends: Any = (end == 1, end == 2, end == 0)
    return Transition(obs, action, number(count), next_obs, *ends)


def table(
    obs: Any, action: Any, reward: Any, next_obs: Any, terminated: Any, truncated: Any
) -> Transition:
    """Transitions [D] from lists; observations of one element."""
    column = lambda x: jnp.asarray(x, jnp.float32)[:, None]
    return Transition(
        column(obs),
        jnp.asarray(action),
        jnp.asarray(reward, jnp.float32),
        column(next_obs),
        jnp.asarray(terminated, bool),
        jnp.asarray(truncated, bool),
        jnp.ones(len(obs), bool),
    )


def numbers(hp: Any) -> Any:
    """Hyperparameters as float32 arrays."""
    return jax.tree.map(jnp.float32, hp)


def relu_net(params: np.ndarray, x: Any, width: int, out: int) -> np.ndarray:
    """One hidden layer in numpy; the output's bias and kernel come first in the vector."""
    sizes = np.cumsum([out, width * out, width, x.shape[1] * width])
    b2, w2, b1, w1 = np.split(np.float64(params), sizes[:-1])
    hidden = np.maximum(x @ w1.reshape(-1, width) + b1, 0)
    return hidden @ w2.reshape(width, out) + b2


def random_params(init: Callable[..., Any], *args: Any) -> Any:
    """Normal numbers in the place of init(*args), and zeros in that of optimisers.

    For tests of one update: orthogonal weights take longer to compile than the update.
    """
    rng: Any = np.random.default_rng(0)

    def leaf(path: Any, x: Any) -> Array:
        fresh = ".opt" in jax.tree_util.keystr(path)
        return jnp.asarray(np.zeros(x.shape) if fresh else 0.5 * rng.normal(size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, *args))


def random_state(agent: Agent, hp: Any) -> Any:
    """A state of random parameters, and of optimisers that have made no step."""
    return random_params(agent.init, jax.random.key(0), hp, {})


def fit(agent: Agent, updates: int) -> Callable[[Any, Transition], PyTree]:
    """(hp, data) -> the state after `updates` updates on all rows at once; to be vmapped."""

    def learn(hp: Any, data: Transition) -> PyTree:
        key_init, key = jax.random.split(jax.random.key(0))

        def update(step: Array, state: PyTree) -> PyTree:
            return agent.update(state, hp, Batch(data), jax.random.fold_in(key, step), step)[0]

        state = agent.init(key_init, hp, {"data": data})
        return jax.lax.fori_loop(0, updates, update, state)

    return learn


def mode(agent: Agent, state: PyTree, hp: Any, obs: Any) -> np.ndarray:
    """Actions [n, ...] without exploration."""
    obs = jnp.asarray(obs, jnp.float32)
    noise, start = agent.noise(jax.random.key(0), len(obs)), jnp.ones(len(obs), bool)
    act = jax.jit(agent.act, static_argnames="explore")
    return np.asarray(act(state, hp, obs, start, (), noise, explore=False)[0])
