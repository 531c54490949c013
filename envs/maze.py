"""Point mazes: walk to the far corner, where the only reward is.

A point in a maze of unit cells moves by up to `speed` along each axis and stops at walls. It starts
in one corner; in the goal's cell, far away, it earns 1 and the episode terminates. The maps are
those of D4RL's mazes. Time limits truncate. Observations [2] are the position in cells, from the
maze's centre; actions [2] lie in [-1, 1].
Data for offline learning come from `jaxrl.envs.maze_walks`.
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

GAP = 1e-3  # between the point and a wall that stops it
SPREAD = 0.25  # around the centre of the first cell

# The maps of D4RL's mazes (arXiv:2004.07219). S start, G goal, # wall.
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
LIMITS = {"umaze": 100, "medium": 200, "large": 300}


class MazeState(NamedTuple):
    position: (
        Array  # [2] float32 (row, column) in cells; cell (i, j) has its centre at (i, j) + 0.5
    )
    t: Array  # [] int32


def make(layout: str, max_steps: int | None = None) -> Env:
    """The maze of `LAYOUTS` with the start and the goal of its drawing."""
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
    """A maze on paper. `start` and `goal` are indices into `cells`."""

    walls: np.ndarray  # [H, W] bool
    cells: np.ndarray  # [C, 2] float32: row and column of the free cells
    start: int
    goal: int


def parse(layout: str) -> Plan:
    """The drawing of `LAYOUTS`."""
    drawing = np.array([list(row) for row in LAYOUTS[layout].split()])
    cells = np.argwhere(drawing != "#")
    letters = drawing[tuple(cells.T)]
    start, goal = (int(np.argmax(letters == letter)) for letter in "SG")
    return Plan(drawing == "#", cells.astype(np.float32), start, goal)


def observe(plan: Plan, position: Array | np.ndarray) -> Any:
    """What is seen at a position: [2] in cells, 0 at the centre.

    As in D4RL's mazes; in [-1, 1] both sides of a wall would look more alike to a network.
    """
    return position - np.array(plan.walls.shape, np.float32) / 2


def near(key: Array, cell: Array) -> Array:
    """A position around the centre of a cell (row, column)."""
    return cell + 0.5 + jax.random.uniform(key, (2,), minval=-SPREAD, maxval=SPREAD)


def at(position: Array, cell: Array) -> Array:
    """[] bool: whether a position lies in the cell (row, column)."""
    return jnp.all(jnp.floor(position) == cell)


def move(walls: np.ndarray, position: Array, delta: Array) -> Array:
    """`position` moved along rows, then along columns; less than a cell each. Walls stop it."""
    for axis in range(2):
        moved = position.at[axis].add(delta[axis])
        row, column = jnp.floor(moved).astype(jnp.int32)
        edge = jnp.floor(position[axis])  # of the cell it is in
        stopped = position.at[axis].set(jnp.where(delta[axis] > 0, edge + 1 - GAP, edge + GAP))
        position = jnp.where(jnp.asarray(walls)[row, column], stopped, moved)
    return position
