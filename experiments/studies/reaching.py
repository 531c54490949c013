"""Four goals in a square: the environment of the studies of retrieval and merging.

A point in [-1, 1]² moves by up to 0.1 along each axis per step. An episode starts anywhere, ends
with reward 1 within 0.15 of its goal, and is truncated after 40 steps. Goals are at the corners
(±0.7, ±0.7). Observations [6] are the position and the number of the goal, one-hot; with
`told` False the number is hidden, and observations are [2].
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.evaluate import evaluator
from jaxrl.rollout import rollout
from jaxrl.types import (
    Array,
    Box,
    Env,
    EnvSpec,
    HyperParams,
    Policy,
    PyTree,
    TimeStep,
    Transition,
)

GOALS = ((0.7, 0.7), (-0.7, 0.7), (-0.7, -0.7), (0.7, -0.7))
STEPS, CLOSE, SPEED = 40, 0.15, 0.1


def make(goals: tuple[int, ...], told: bool = True) -> Env:
    """The environment with a random goal of `goals` in every episode."""
    spec = EnvSpec("reaching", (6 if told else 2,), Box((-1.0,) * 2, (1.0,) * 2, (2,)), STEPS)

    def observe(place: Array, goal: Array) -> Array:
        return jnp.concatenate([place, jax.nn.one_hot(goal, 4)]) if told else place

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        key_place, key_goal = jax.random.split(key)
        place = jax.random.uniform(key_place, (2,), minval=-1.0)
        goal = jax.random.choice(key_goal, jnp.asarray(goals))
        return (place, goal, jnp.int32(0)), observe(place, goal)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        place, goal, t = state
        place = jnp.clip(place + SPEED * jnp.clip(action, -1.0, 1.0), -1.0, 1.0)
        done = jnp.linalg.norm(place - jnp.asarray(GOALS)[goal]) < CLOSE
        cut = ~done & (t + 1 >= STEPS)
        ts = TimeStep(observe(place, goal), done.astype(jnp.float32), done, cut)
        return (place, goal, t + 1), ts

    return Env(spec, {}, reset, step)


def walker(goal: int | None, scale: float = 0.5) -> Policy:
    """A policy that walks to a goal with normal noise, or, for None, to the goal it is told."""

    def act(state, hp, obs, start, memory, noise, explore):
        goals = jnp.asarray(GOALS)
        aim = obs[:, 2:] @ goals if goal is None else goals[jnp.full(len(obs), goal)]
        way = aim - obs[:, :2]
        way = way / jnp.maximum(jnp.linalg.norm(way, axis=-1, keepdims=True), SPEED)
        return jnp.clip(way + noise, -1.0, 1.0), memory, {}

    return Policy(act=act, noise=lambda key, n: scale * jax.random.normal(key, (n, 2)))


def demonstrations(env: Env, policy: Policy, episodes: int, seed: int) -> Transition:
    """Rows [D] of the first episode of each of `episodes` environments."""
    source, key = rollout(env, policy, episodes, STEPS, resets=1), jax.random.key(seed)
    begin = jax.jit(source.init)(key, (), HyperParams(()), {})
    go = jax.jit(source.next)
    t = go(begin, (), HyperParams(()), {}, jax.random.fold_in(key, 1), jnp.int32(0))[1].transitions
    swap = lambda x: np.swapaxes(np.asarray(x), 0, 1)
    t = jax.tree.map(swap, t._replace(extras={}))
    first = np.cumsum(t.start, 1) == 1
    return jax.tree.map(lambda x: x[first], t)


def success(env: Env, agent: Policy, states: PyTree, hp: Any, episodes: int = 200) -> np.ndarray:
    """Fraction of episodes that reach their goal [P], of states [P, ...]."""
    play = evaluator(env, agent, episodes)
    one = lambda state, key: play(state, HyperParams(hp), {}, key).returns.mean()
    count = len(jax.tree.leaves(states)[0])
    return np.asarray(jax.jit(jax.vmap(one))(states, jax.random.split(jax.random.key(7), count)))


def joined(parts: list[Transition]) -> Transition:
    """The rows of all parts."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
