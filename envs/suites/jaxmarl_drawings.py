"""Images of the states of JaxMARL's environments, for `jaxrl render`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl.envs.draw import CHANNELS, GOAL, INK, POLE, Canvas

ALLY, ENEMY = "#0072b2", POLE
EMPTY, WALL = (0, 1, 10), 2  # of JaxMARL's numbers of kinds; 10 is a cell with an agent
_COLOURS = [f"#{bytes(colour).hex()}" for colour in CHANNELS]


def drawing(task: str, game: Any) -> Callable[[Any], np.ndarray]:
    """A function of a state of JaxMARL's `game` to an image [SIZE, SIZE, 3] uint8."""
    if task.startswith("SMAX"):
        return lambda state: battle(state.state, game.num_allies, game.map_width, game.map_height)
    return kitchen if task == "overcooked" else lambda state: particles(state, len(game.agents))


def particles(state: Any, agents: int) -> np.ndarray:
    """MPE: agents as discs, landmarks as squares; the border is at a distance of 1.5."""
    canvas = Canvas()
    places = np.asarray(state.p_pos) / 1.5
    for x, y in places[agents:]:
        canvas.box(x, y, 0.1, 0.1, GOAL)
    for x, y in places[:agents]:
        canvas.disc(x, y, 0.08, ALLY)
    return canvas.pixels()


def battle(state: Any, allies: int, width: float, height: float) -> np.ndarray:
    """SMAX: living units as discs, allies in blue, with a bar of the health that is left."""
    canvas = Canvas()
    places = 2 * np.asarray(state.unit_positions) / np.array([width, height]) - 1
    alive, health = np.asarray(state.unit_alive), np.asarray(state.unit_health)
    for i, (x, y) in enumerate(places):
        if alive[i]:
            canvas.disc(x, y, 0.035, ALLY if i < allies else ENEMY)
            left = 0.1 * health[i] / max(health.max(), 1.0)
            canvas.line([(x - 0.05, y + 0.06), (x - 0.05 + left, y + 0.06)], GOAL)
    return canvas.pixels()


def kitchen(state: Any) -> np.ndarray:
    """Overcooked: one colour per kind of cell, agents as discs with a line where they look."""
    canvas = Canvas()
    rows, columns = state.wall_map.shape
    padded = np.asarray(state.maze_map)
    top, left = ((x - y) // 2 for x, y in zip(padded.shape, (rows, columns), strict=False))
    kinds = padded[top : top + rows, left : left + columns, 0]
    size = 2 / max(rows, columns)
    centre = lambda row, column: (-1 + (column + 0.5) * size, 1 - (row + 0.5) * size)
    for row in range(rows):
        for column in range(columns):
            if (kind := kinds[row, column]) not in EMPTY:
                colour = INK if kind == WALL else _COLOURS[kind]
                canvas.box(*centre(row, column), 0.95 * size, 0.95 * size, colour)
    looks = np.asarray(state.agent_dir)
    for i, (column, row) in enumerate(np.asarray(state.agent_pos)):
        x, y = centre(row, column)
        canvas.disc(x, y, 0.3 * size, _COLOURS[i])
        ahead = (x + 0.45 * size * looks[i, 0], y - 0.45 * size * looks[i, 1])
        canvas.line([(x, y), ahead], "#000000")
    return canvas.pixels()
