"""The plane in which the edge of reach is seen: a walk to a place, in steps of known length.

After the illustrative task of Sims et al., The Edge-of-Reach Problem in Offline Model-Based
Reinforcement Learning, NeurIPS 2024, arXiv:2402.12527. States and observations [2] are positions,
s' = s + a with a in [-1, 1]². Episodes start uniformly in [-2, 2]² and have 30 steps. Rewards in
(0, 1] fall with the distance from a goal along each axis, r = exp(-‖s' - goal‖² / 18): going
straight, along both axes at once, is best at every step, and optimal values are known.

From the starts, n steps reach the positions with |s|∞ ≤ 2 + n and no others. So rollouts of k steps
that begin there take steps from |s|∞ ≤ 2 + k - 1 only, while their ends come to |s|∞ ≤ 2 + k; what
lies between is their edge of reach.

The paper's rewards are not public. Here the goal is at (5, 5): seven steps lead there from every
start, so that rollouts of ten steps take steps from the goal, and a policy is asked for nothing
that they do not show it. With goals further out, nothing is learned of what to do on arrival.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.envs.wrappers import positive
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep

START = 2.0  # episodes start in [-START, START]²
GOAL = (5.0, 5.0)  # half of the way from the middle to the corner of what ten steps begin in
WIDTH = 18.0  # of the rewards' hill: twice its variance


class ReachState(NamedTuple):
    position: Array  # [2]
    t: Array  # [] int32


def make(max_steps: int = 30) -> Env:
    """The task; its model and its environment are the same."""
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


def reward_at(position: Array, goal: Array) -> Array:
    """[...] of arriving at positions [..., 2]; goal [2]."""
    return jnp.exp(-jnp.sum((position - jnp.broadcast_to(goal, position.shape)) ** 2, -1) / WIDTH)


def optimal_value(position: Array, goal: Array, gamma: Array | float, steps: int = 1000) -> Array:
    """max Σ_j γ^j r over `steps` steps, [...] of positions [..., 2]: straight to the goal."""
    to_goal = jnp.broadcast_to(goal, position.shape) - position

    def add(left: Array, power: Array) -> tuple[Array, Array]:
        left = left - jnp.clip(left, -1.0, 1.0)
        return left, power * reward_at(-left, jnp.zeros(2))

    powers = jnp.asarray(gamma, jnp.float32) ** jnp.arange(steps)
    return jnp.sum(jax.lax.scan(add, to_goal, powers)[1], 0)


def reached_after(position: Array, steps: int) -> Array:
    """[...] bool: whether `steps` steps, or fewer, can lead from a start to positions [..., 2]."""
    return jnp.max(jnp.abs(position), -1) <= START + steps


def edge_of_reach(position: Array, steps: int) -> Array:
    """[...] bool: positions [..., 2] where rollouts of `steps` steps end, but take no step from."""
    return reached_after(position, steps) & ~reached_after(position, steps - 1)


def largest_stable_discount(steps: int) -> float:
    """The discount above which values that grow with the distance grow without bound.

    A critic w |s| learns by temporal differences on walks of `steps` steps straight outwards from
    0, the last state being bootstrapped from like any other. Whatever the rewards, w runs away if
    Σ_t t (γ (t + 1) - t) > 0, which is γ > (2 k - 1) / (2 k + 2) for t < k steps. With true values
    in place of the last bootstrap it never does.
    """
    return (2 * steps - 1) / (2 * steps + 2)
