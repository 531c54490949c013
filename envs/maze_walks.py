"""Offline data for mazes: walks between cells by a noisy shortest-path controller.

Each episode is a journey from one cell to a target cell. The controller moves to the next cell of
the shortest path, always to the same offset from a cell's centre, drawn once per journey. In
training data no target is further than half the distance from start to goal, so a policy must
stitch journeys together to reach the goal from the start. Levels have the names of D4RL's antmaze:

    play      between dead ends, bends and junctions
    diverse   between any two cells
    expert    from start to goal; gives the expert return of normalised scores

A journey is truncated on arrival at its target. A journey that enters the maze's goal terminates
there with reward 1, whatever its target.
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
NOISE = 0.5  # standard deviation of the action noise, added before clipping
LANE = 0.4  # largest offset of a journey from the centres of cells along each axis, in cells
NEAR = 0.3  # distance from the target at which a journey has arrived, in cells


class Journey(NamedTuple):
    """State of the environment that `make` returns."""

    maze: maze.MazeState
    target: Array  # [] int32, target cell as an index into `Plan.cells`
    lane: Array  # [2] float32, offset from the centres of cells, in cells


def make(layout: str, level: str) -> Env:
    """The maze `layout` with a random start cell and target cell in every episode.

    Raises:
      EnvError: `level` is not one of `LEVELS`.
    """
    if level not in LEVELS:
        raise EnvError(f"maze:{layout} has the levels {', '.join(LEVELS)}, not {level!r}")
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
    """Policy that moves to the target with Gaussian noise. Its `obs` are `Journey` states [n]."""
    plan = maze.parse(layout)
    ahead = jnp.asarray(plan.cells)[next_cells(plan)]  # [C, C, 2]
    number = np.zeros(plan.walls.shape, np.int32)  # index of each free cell
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
    """[C, C] bool: pairs of free cells that share a side."""
    return np.abs(plan.cells[:, None] - plan.cells[None]).sum(-1) == 1


def distances(plan: maze.Plan) -> np.ndarray:
    """[C, C] int: path lengths between free cells, by breadth-first search from all cells."""
    near = neighbours(plan)
    found = np.where(np.eye(len(near), dtype=bool), 0, -1)
    for length in range(1, len(near)):
        reached = (found == length - 1).astype(int) @ near > 0
        found[reached & (found < 0)] = length
    return found


def next_cells(plan: maze.Plan) -> np.ndarray:
    """[C, C] int: next cell on the shortest path from the first cell to the second.

    On the diagonal, the cell itself.
    """
    between = distances(plan)
    onward = np.where(neighbours(plan)[:, :, None], between[None], len(between)).argmin(1)
    return np.where(between == 0, np.arange(len(between)), onward)


def commands(plan: maze.Plan, level: str) -> np.ndarray:
    """(start, target) pairs [K, 2] int32 of free cells for the journeys of a level.

    No journey starts at the maze's goal, where episodes terminate.
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
    """[C] bool: start, goal, dead ends, junctions and bends of corridors, not corners of rooms."""
    near = neighbours(plan)
    row, column = plan.cells.T.astype(int)
    above, left = ~plan.walls[row - 1, column], ~plan.walls[row, column - 1]
    below, right = ~plan.walls[row + 1, column], ~plan.walls[row, column + 1]
    opposite = (above & below) | (left & right)
    diagonal = ~plan.walls[row + np.where(below, 1, -1), column + np.where(right, 1, -1)]
    found = (near.sum(1) != 2) | ~(opposite | diagonal)
    found[[plan.start, plan.goal]] = True
    return found
