"""Point mazes with a sparse reward, on the maps of D4RL.

A point in a maze of unit cells moves by up to `speed` cells along each axis per step and stops at
walls. It starts in one corner. Entering the goal's cell in the far corner gives reward 1 and
terminates the episode; all other rewards are 0. Time limits truncate. Observations [2] are the
position (row, column) in cells, relative to the maze's centre; actions [2] lie in [-1, 1].
`jaxrl.envs.maze_walks` generates data for offline learning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.wrappers import positive
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep

GAP = 1e-3  # cells between a stopped point and the wall
SPREAD = 0.25  # cells: half the side of the square in which episodes start

# The maps of D4RL's mazes (arXiv:2004.07219). S: start, G: goal, #: wall, dot: free cell.
LAYOUTS = {
    "umaze": """
        #####
        #S..#
        ###.#
        #G..#
        #####""",
    "medium": """
        ########
        #S.##..#
        #..#...#
        ##...###
        #..#...#
        #.#..#.#
        #...#.G#
        ########""",
    "large": """
        ############
        #S...#.....#
        #.##.#.#.#.#
        #......#...#
        #.####.###.#
        #..#.#.....#
        ##.#.#.#.###
        #..#...#.G.#
        ############""",
}
LIMITS = {"umaze": 100, "medium": 200, "large": 300}  # default time limits in steps


class MazeState(NamedTuple):
    """State of a maze; cell (i, j) has its centre at position (i, j) + 0.5."""

    position: Array  # [2] float32, (row, column) in cells
    t: Array  # [] int32, steps since the start of the episode


def make(layout: str, max_steps: int | None = None) -> Env:
    """The maze `layout`, a key of `LAYOUTS`. `speed` [] in cells per step is a traced parameter.

    Raises:
      EnvError: max_steps is not a positive whole number.
    """
    limit = positive(LIMITS[layout] if max_steps is None else max_steps, "max_steps of a maze")
    plan = parse(layout)

    def reset(key: Array, params: PyTree) -> tuple[MazeState, Array]:
        state = MazeState(near(key, jnp.asarray(plan.cells[plan.start])), jnp.int32(0))
        return state, observe(plan, state.position)

    def step(
        key: Array, state: MazeState, action: Array, params: PyTree
    ) -> tuple[MazeState, TimeStep]:
        position = move(plan.walls, state.position, params["speed"] * jnp.clip(action, -1.0, 1.0))
        after = MazeState(position, state.t + 1)
        there = at(position, jnp.asarray(plan.cells[plan.goal]))
        truncated = (after.t >= limit) & ~there
        return after, TimeStep(observe(plan, position), there.astype(jnp.float32), there, truncated)

    def outcome(obs: Array, action: Array, next_obs: Array, params: PyTree) -> tuple[Array, Array]:
        there = at(next_obs - observe(plan, np.zeros(2)), jnp.asarray(plan.cells[plan.goal]))
        return there.astype(jnp.float32), there

    space = Box((-1.0, -1.0), (1.0, 1.0), (2,))
    params = {"speed": jnp.float32(0.2)}
    spec = EnvSpec(f"maze:{layout}", (2,), space, limit)
    return Env(spec, params, reset, step, outcome=outcome)


MAZES: dict[str, Callable[..., Env]] = {
    f"maze:{layout}": functools.partial(make, layout) for layout in LAYOUTS
}


class Plan(NamedTuple):
    """Walls, free cells, start and goal of a maze. `start` and `goal` are indices into `cells`."""

    walls: np.ndarray  # [H, W] bool
    cells: np.ndarray  # [C, 2] float32: row and column of the free cells
    start: int
    goal: int


def parse(layout: str) -> Plan:
    """Parses the map `layout` of `LAYOUTS`."""
    drawing = np.array([list(row) for row in LAYOUTS[layout].split()])
    cells = np.argwhere(drawing != "#")
    letters = drawing[tuple(cells.T)]
    start, goal = (int(np.argmax(letters == letter)) for letter in "SG")
    return Plan(drawing == "#", cells.astype(np.float32), start, goal)


def observe(plan: Plan, position: Array | np.ndarray) -> Any:
    """Observation [..., 2] at a position [..., 2]: cells from the maze's centre.

    D4RL's mazes do not normalise positions either. In [-1, 1] the two sides of a wall would be
    harder to distinguish for a network.
    """
    return position - np.array(plan.walls.shape, np.float32) / 2


def near(key: Array, cell: Array) -> Array:
    """A uniform random position [2] within SPREAD of the centre of `cell` [2], (row, column)."""
    return cell + 0.5 + jax.random.uniform(key, (2,), minval=-SPREAD, maxval=SPREAD)


def at(position: Array, cell: Array) -> Array:
    """[] bool: whether `position` [2] lies in `cell` [2], (row, column)."""
    return jnp.all(jnp.floor(position) == cell)


def move(walls: np.ndarray, position: Array, delta: Array) -> Array:
    """`position` [2] moved by `delta` [2], first along rows, then along columns, up to a wall.

    Elements of `delta` must be less than 1, so that a step cannot jump over a wall.
    """
    for axis in range(2):
        moved = position.at[axis].add(delta[axis])
        row, column = jnp.floor(moved).astype(jnp.int32)
        edge = jnp.floor(position[axis])  # lower edge of the current cell
        stopped = position.at[axis].set(jnp.where(delta[axis] > 0, edge + 1 - GAP, edge + GAP))
        position = jnp.where(jnp.asarray(walls)[row, column], stopped, moved)
    return position
