"""Navigation in the plane with known optimal values, for the study of edge-of-reach states.

The task follows the illustration of Sims et al., The Edge-of-Reach Problem in Offline Model-Based
Reinforcement Learning, NeurIPS 2024, arXiv:2402.12527. States and observations [2] are positions,
s' = s + a with a in [-1, 1]². Episodes start uniformly in [-2, 2]² and are truncated after 30
steps. The reward r = exp(-‖s' - goal‖² / 18) lies in (0, 1]. It is a product of one factor per axis
that falls with the distance along this axis, so the optimal policy moves towards the goal along
both axes at once, and its values are known.

Starting from [-2, 2]², n steps reach exactly the positions with |s|∞ ≤ 2 + n. Rollouts of k steps
therefore take steps from |s|∞ ≤ 2 + k - 1 only, but end in |s|∞ ≤ 2 + k. The positions in between
are the edge of reach: they are bootstrapped from and never updated.

The paper's rewards are not public. Here the goal is at (5, 5), at most seven steps from every
start, so rollouts of ten steps contain steps at the goal. With a goal further out, rollouts end
before the policy has learned what to do on arrival.

In `reach:sparse` the reward is 1 for a step that ends within `radius` of the goal, which terminates
the episode, and 0 otherwise: a task for demonstrations, with a controller that needs no training.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.envs.wrappers import positive
from jaxrl.types import Array, Box, Env, EnvSpec, Policy, PyTree, TimeStep

START = 2.0  # episodes start in [-START, START]²
GOAL = (5.0, 5.0)  # at most seven steps from every start
RADIUS = 0.25  # of the goal in `reach:sparse`
WIDTH = 18.0  # twice the variance of the Gaussian reward: standard deviation 3


class ReachState(NamedTuple):
    position: Array  # [2] float32
    t: Array  # [] int32, steps since the start of the episode


def make(max_steps: int = 30) -> Env:
    """The environment. `goal` [2] is a traced parameter.

    Raises:
      EnvError: max_steps is not a positive whole number.
    """
    limit = positive(max_steps, "max_steps of reach")

    def reset(key: Array, params: PyTree) -> tuple[ReachState, Array]:
        position = jax.random.uniform(key, (2,), minval=-START, maxval=START)
        return ReachState(position, jnp.int32(0)), position

    def step(
        key: Array, state: ReachState, action: Array, params: PyTree
    ) -> tuple[ReachState, TimeStep]:
        after = ReachState(state.position + jnp.clip(action, -1.0, 1.0), state.t + 1)
        reward = reward_at(after.position, params["goal"])
        never = jnp.zeros((), bool)
        return after, TimeStep(after.position, reward, never, after.t >= limit)

    space = Box((-1.0, -1.0), (1.0, 1.0), (2,))
    return Env(EnvSpec("reach", (2,), space, limit), {"goal": jnp.float32(GOAL)}, reset, step)


def sparse(max_steps: int = 12) -> Env:
    """The environment with a sparse reward. `goal` [2] and `radius` [] are traced parameters.

    Raises:
      EnvError: max_steps is not a positive whole number.
    """
    dense = make(max_steps)

    def step(
        key: Array, state: ReachState, action: Array, params: PyTree
    ) -> tuple[ReachState, TimeStep]:
        after, ts = dense.step(key, state, action, params)
        there = jnp.linalg.norm(after.position - params["goal"]) <= params["radius"]
        reward = there.astype(jnp.float32)
        return after, ts._replace(reward=reward, terminated=there, truncated=ts.truncated & ~there)

    spec = dataclasses.replace(dense.spec, name="reach:sparse")
    params = dense.params | {"radius": jnp.float32(RADIUS)}
    return dataclasses.replace(dense, spec=spec, params=params, step=step)


def controller() -> Policy:
    """The optimal policy of `reach:sparse`, straight to the goal; `obs` are positions [n, 2]."""

    def act(state, hp, obs, start, memory, noise, explore):
        return jnp.clip(jnp.float32(GOAL)[None] - obs, -1.0, 1.0), memory, {}

    return Policy(act=act)


def reward_at(position: Array, goal: Array) -> Array:
    """Reward [...] of a step that ends at `position` [..., 2]; `goal` has shape [2]."""
    return jnp.exp(-jnp.sum((position - jnp.broadcast_to(goal, position.shape)) ** 2, -1) / WIDTH)


def optimal_value(position: Array, goal: Array, gamma: Array | float, steps: int = 1000) -> Array:
    """Optimal value [...] of positions [..., 2], by rolling out the optimal policy.

    The policy moves straight to the goal. The value is Σ_j γ^j r_j over `steps` steps.
    """
    to_goal = jnp.broadcast_to(goal, position.shape) - position

    def add(left: Array, power: Array) -> tuple[Array, Array]:
        left = left - jnp.clip(left, -1.0, 1.0)
        return left, power * reward_at(-left, jnp.zeros(2))

    powers = jnp.asarray(gamma, jnp.float32) ** jnp.arange(steps)
    return jnp.sum(jax.lax.scan(add, to_goal, powers)[1], 0)


def reached_after(position: Array, steps: int) -> Array:
    """[...] bool: positions [..., 2] that at most `steps` steps from a start can reach."""
    return jnp.max(jnp.abs(position), -1) <= START + steps


def edge_of_reach(position: Array, steps: int) -> Array:
    """[...] bool: positions [..., 2] that only the last of `steps` steps from a start can reach."""
    return reached_after(position, steps) & ~reached_after(position, steps - 1)
