"""Images of observations of classic control, MinAtar and mazes, for `jaxrl render`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.envs import maze
from jaxrl.envs.names import EnvError

if TYPE_CHECKING:
    from PIL import Image

SIZE = 480  # width and height of a frame in pixels
_FINE = 2  # supersampling factor, for smooth edges
_CAPTION = 28  # height of the line of text in pixels
PAPER, INK, CART, POLE, GOAL = "#ffffff", "#9aa0a6", "#30343b", "#d55e00", "#009e73"

# One colour per MinAtar channel. The first seven are of the Okabe-Ito palette (colour-blind safe).
CHANNELS = np.array(
    [
        [0, 114, 178], [213, 94, 0], [240, 228, 66], [0, 158, 115], [204, 121, 167],
        [86, 180, 233], [230, 159, 0], [150, 150, 150], [110, 70, 160], [60, 200, 160],
    ],
    np.uint8,
)  # fmt: skip

Draw = Callable[["Canvas", np.ndarray], None]


class Canvas:
    """An RGB image with drawing functions in coordinates x and y in [-1, 1], y upwards."""

    def __init__(self) -> None:
        from PIL import Image, ImageDraw  # late: a twentieth of a second, which runs need not wait

        self.image = Image.new("RGB", (SIZE * _FINE, SIZE * _FINE), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        half = SIZE * _FINE / 2
        return half * (1 + x), half * (1 - y)

    def line(self, points: list[tuple[float, float]], colour: str, width: float = 0.02) -> None:
        pixels = [self._pixel(x, y) for x, y in points]
        self._draw.line(pixels, colour, round(width * SIZE * _FINE / 2), "curve")

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        box = [*self._pixel(x - radius, y + radius), *self._pixel(x + radius, y - radius)]
        self._draw.ellipse(box, colour)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        left, right, top, bottom = x - width / 2, x + width / 2, y + height / 2, y - height / 2
        self._draw.rectangle([*self._pixel(left, top), *self._pixel(right, bottom)], colour)

    def pixels(self) -> np.ndarray:
        from PIL import Image

        return np.asarray(self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def is_drawn(name: str) -> bool:
    """Whether there is a drawing of the environment `name`."""
    return name in DRAWINGS or name.endswith("-MinAtar")


def frame(name: str, obs: ArrayLike) -> np.ndarray:
    """An image [SIZE, SIZE, 3] uint8 of one observation [*obs] of the environment `name`.

    Raises:
      EnvError: the environment has no drawing.
    """
    obs = np.asarray(obs, np.float32)
    if name.endswith("-MinAtar"):
        return _planes(obs)
    if not is_drawn(name):
        drawn = ", ".join(DRAWINGS)
        raise EnvError(
            f"no drawing of {name}: its Env needs a function `render`; there are drawings of "
            f"{drawn} and MinAtar"
        )
    canvas = Canvas()
    DRAWINGS[name](canvas, obs)
    return canvas.pixels()


def captioned(image: np.ndarray, text: str) -> Image.Image:
    """An image [H, W, 3] uint8 above a line of text."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    whole = Image.new("RGB", (width, height + _CAPTION), PAPER)
    whole.paste(Image.fromarray(image))
    font = ImageFont.load_default(size=0.6 * _CAPTION)
    ImageDraw.Draw(whole).text((8, height + _CAPTION / 2), text, CART, font, anchor="lm")
    return whole


def _planes(obs: np.ndarray) -> np.ndarray:
    """Image of binary planes [H, W, C]: a cell has the colour of its last channel that is set."""
    on: np.ndarray = obs.astype(bool)
    last = obs.shape[-1] - 1 - np.argmax(on[..., ::-1], -1)
    colours = CHANNELS[last % len(CHANNELS)]
    cells = np.where(np.any(on, -1, keepdims=True), colours, 245).astype(np.uint8)
    scale = SIZE // max(cells.shape[:2])
    return np.kron(cells, np.ones((scale, scale, 1), np.uint8))


def _cartpole(canvas: Canvas, obs: np.ndarray) -> None:
    x, angle = obs[0] / 2.6, obs[2]
    canvas.line([(-1, -0.4), (1, -0.4)], INK, 0.01)
    for edge in (-2.4 / 2.6, 2.4 / 2.6):
        canvas.line([(edge, -0.45), (edge, -0.35)], INK, 0.01)
    canvas.box(x, -0.35, 0.3, 0.15, CART)
    canvas.line([(x, -0.3), (x + 0.8 * math.sin(angle), -0.3 + 0.8 * math.cos(angle))], POLE, 0.05)


def _pendulum(canvas: Canvas, obs: np.ndarray) -> None:
    cos, sin = obs[0], obs[1]
    canvas.line([(0, 0), (-0.8 * sin, 0.8 * cos)], POLE, 0.08)
    canvas.disc(0, 0, 0.05, CART)


def _acrobot(canvas: Canvas, obs: np.ndarray) -> None:
    first = math.atan2(obs[1], obs[0])
    second = first + math.atan2(obs[3], obs[2])
    elbow = (0.45 * math.sin(first), -0.45 * math.cos(first))
    tip = (elbow[0] + 0.45 * math.sin(second), elbow[1] - 0.45 * math.cos(second))
    canvas.line([(-1, 0.45), (1, 0.45)], GOAL, 0.01)
    canvas.line([(0, 0), elbow, tip], POLE, 0.05)
    for joint in ((0, 0), elbow):
        canvas.disc(*joint, 0.04, CART)


def _mountain_car(canvas: Canvas, obs: np.ndarray) -> None:
    # The track covers positions -1.2 to 0.6; its height is sin(3 position).
    place = lambda p: ((p + 0.3) / 0.95, 0.55 * math.sin(3 * p) - 0.1)
    canvas.line([place(p) for p in np.linspace(-1.2, 0.6, 60)], INK, 0.015)
    goal = place(0.5)
    canvas.line([goal, (goal[0], goal[1] + 0.2)], GOAL, 0.02)
    x, y = place(float(obs[0]))
    canvas.disc(x, y + 0.05, 0.06, POLE)


def _maze(canvas: Canvas, obs: np.ndarray, layout: str) -> None:
    plan = maze.parse(layout)
    size = max(plan.walls.shape)

    def place(seen: ArrayLike) -> tuple[float, float]:
        row, column = np.asarray(seen)
        return 2 * column / size, -2 * row / size  # rows go downwards

    for cell in np.argwhere(plan.walls):
        canvas.box(*place(maze.observe(plan, cell + 0.5)), 2 / size, 2 / size, INK)
    goal = maze.observe(plan, plan.cells[plan.goal] + 0.5)
    canvas.box(*place(goal), 2 / size, 2 / size, GOAL)
    canvas.disc(*place(obs), 0.3 / size, POLE)


DRAWINGS: dict[str, Draw] = {
    "CartPole-v1": _cartpole,
    "Pendulum-v1": _pendulum,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    **{f"maze:{layout}": functools.partial(_maze, layout=layout) for layout in maze.LAYOUTS},
}
