"""Journeys through a maze, for data: walks from cell to cell by a noisy controller.

The controller knows the shortest paths and heads for the next cell on its way, to the same point in
each cell, which differs from journey to journey. In data to learn from, no journey is commanded
further than half of the way from start to goal, so reaching the goal from the start takes
stitching. Levels are named as those of D4RL's antmaze:

    play      from and to a handful of places: dead ends, bends and junctions
    diverse   from and to any cell
    expert    the whole way, from start to goal: what references are measured with

A journey ends, truncated, where it was commanded to. One that comes upon the maze's goal terminates
there with reward 1, wherever it was going.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs import maze
from jaxrl.envs.names import EnvError
from jaxrl.types import Array, Env, Policy, PyTree, TimeStep

LEVELS = ("play", "diverse", "expert")
NOISE = 0.5  # standard deviation of what is added to actions before they are clipped
LANE = 0.4  # a journey keeps to one side of its corridors, up to so far from their middle
NEAR = 0.3  # of the place where a journey goes, in cells


class Journey(NamedTuple):
    maze: maze.MazeState
    target: Array  # [] int32: where it is commanded to, an index into the free cells
    lane: Array  # [2] in cells: where in each cell it heads for, from the cell's centre


def make(layout: str, level: str) -> Env:
    """The maze with places to start from and to go to drawn anew for every episode."""
    if level not in LEVELS:
        raise EnvError(f"maze:{layout} has journeys {', '.join(LEVELS)}, not {level!r}")
    env, plan = maze.make(layout), maze.parse(layout)
    pairs = commands(plan, level)

    def reset(key: Array, params: PyTree) -> tuple[Journey, Array]:
        key_pair, key_place, key_lane = jax.random.split(key, 3)
        begin, target = jax.random.choice(key_pair, jnp.asarray(pairs))
        position = maze.near(key_place, jnp.asarray(plan.cells)[begin])
        lane = jax.random.uniform(key_lane, (2,), minval=-LANE, maxval=LANE)
        state = maze.MazeState(position, jnp.int32(0))
        return Journey(state, target, lane), maze.observe(plan, position)

    def step(key: Array, state: Journey, action: Array, params: PyTree) -> tuple[Journey, TimeStep]:
        after, ts = env.step(key, state.maze, action, params)
        cell = jnp.asarray(plan.cells)[state.target]
        far = jnp.linalg.norm(after.position - cell - 0.5 - state.lane)
        arrived = maze.at(after.position, cell) & (far <= NEAR)
        truncated = (ts.truncated | arrived) & ~ts.terminated
        return state._replace(maze=after), ts._replace(truncated=truncated)

    return dataclasses.replace(env, reset=reset, step=step)


def controller(layout: str) -> Policy:
    """Heads for its journey's target, noisily. What it observes are states, `Journey` [n]."""
    plan = maze.parse(layout)
    ahead = jnp.asarray(plan.cells)[next_cells(plan)]  # [C, C, 2]
    number = np.zeros(plan.walls.shape, np.int32)  # of a free cell
    number[~plan.walls] = np.arange(len(plan.cells))

    def act(state, hp, obs, start, memory, noise, explore):
        position = obs.maze.position
        row, column = jnp.floor(position).astype(jnp.int32).T
        way = ahead[jnp.asarray(number)[row, column], obs.target] + 0.5 + obs.lane - position
        length = jnp.linalg.norm(way, axis=-1, keepdims=True)
        action = way / jnp.maximum(length, 0.1)
        return jnp.clip(action + explore * noise, -1.0, 1.0), memory, {}

    return Policy(act=act, noise=lambda key, n: NOISE * jax.random.normal(key, (n, 2)))


# --- shortest paths ------------------------------------------------------------------------------


def neighbours(plan: maze.Plan) -> np.ndarray:
    """[C, C] bool: which free cells share a side."""
    return np.abs(plan.cells[:, None] - plan.cells[None]).sum(-1) == 1


def distances(plan: maze.Plan) -> np.ndarray:
    """[C, C] int: cells to walk between free cells, by breadth-first search from all at once."""
    near = neighbours(plan)
    found = np.where(np.eye(len(near), dtype=bool), 0, -1)
    for length in range(1, len(near)):
        reached = (found == length - 1).astype(int) @ near > 0
        found[reached & (found < 0)] = length
    return found


def next_cells(plan: maze.Plan) -> np.ndarray:
    """[C, C] int: from the first to the second, the cell to go to next; at the target itself."""
    between = distances(plan)
    onward = np.where(neighbours(plan)[:, :, None], between[None], len(between)).argmin(1)
    return np.where(between == 0, np.arange(len(between)), onward)


def commands(plan: maze.Plan, level: str) -> np.ndarray:
    """Pairs [K, 2] int32 of free cells: where journeys of the level start, and where they go.

    None starts at the goal, where an episode is over.
    """
    if level == "expert":
        return np.array([[plan.start, plan.goal]], np.int32)
    between = distances(plan)
    place = places(plan) if level == "play" else np.ones(len(plan.cells), bool)
    reach = between[plan.start, plan.goal] // 2
    far = (between > 0) & (np.arange(len(place)) != plan.goal)[:, None]
    far &= (between <= reach) & place[:, None] & place[None]
    return np.argwhere(far).astype(np.int32)


def places(plan: maze.Plan) -> np.ndarray:
    """[C] bool: start, goal, dead ends, junctions and bends, but no corners of rooms."""
    near = neighbours(plan)
    row, column = plan.cells.T.astype(int)
    above, left = ~plan.walls[row - 1, column], ~plan.walls[row, column - 1]
    below, right = ~plan.walls[row + 1, column], ~plan.walls[row, column + 1]
    opposite = (above & below) | (left & right)
    diagonal = ~plan.walls[row + np.where(below, 1, -1), column + np.where(right, 1, -1)]
    found = (near.sum(1) != 2) | ~(opposite | diagonal)
    found[[plan.start, plan.goal]] = True
    return found
