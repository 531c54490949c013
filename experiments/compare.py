"""Comparison of hyperparameter points by the results of their members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.console import label, shown
from jaxrl.runs import stats


class Point(NamedTuple):
    """The S members of a run that differ only in their seeds."""

    run: str
    agent: str
    env: str
    values: dict[str, Any]  # swept values, by dotted name
    settings: dict[str, Any]  # all other settings of agent and environment, by dotted name
    seeds: np.ndarray  # [S]
    steps: np.ndarray  # [C] steps of a member at each evaluation so far
    unit: str  # unit of `steps`: "steps" (environment steps), or "updates" if there are none
    returns: np.ndarray  # [C, S]
    failed: np.ndarray  # [S] bool
    state: str
    speed: float | None  # units per second of the whole run
    risk: dict[str, float]  # `stats.risk` over episodes, mean over members; {} if unknown

    @property
    def scores(self) -> np.ndarray:
        """[S] last returns, or [0] before the first evaluation."""
        return self.returns[-1] if len(self.returns) else np.zeros(0)


class Result(NamedTuple):
    """A point with its statistics: `found` of `stats.summarise`, or {} if it has no return."""

    point: Point
    found: dict[str, Any]
    better: float  # probability that a member scores above a member of the reference
    is_reference: bool

    @property
    def iqm(self) -> float:
        return self.found.get("iqm", math.nan)


def results(points: Sequence[Point], over: str | None = None) -> list[Result]:
    """Statistics of each point, compared with the `reference` of its environment."""
    references = reference(points, over)
    compared = []
    for point in points:
        other = references.get(point.env)
        known = np.isfinite(point.scores).any()
        if other is not None and known and np.isfinite(other.scores).any():
            better = stats.probability_of_improvement(point.scores, other.scores)
        else:
            better = math.nan
        found = stats.summarise(point.scores) if known else {}
        compared.append(Result(point, found, better, point is other))
    return compared


def reference(points: Sequence[Point], over: str | None) -> dict[str, Point]:
    """The reference of each environment: its first point that matches `over`.

    Args:
      over: the name of a run, or values such as "agent.lr=1e-4,agent.hidden=64x64"; None matches
        every point.

    Raises:
      UserError: no point matches.
    """
    fit = points
    if over is not None:
        fit = [point for point in points if point.run == over or _fits(point, over)]
    if points and not fit:
        example = label(points[0].values) or points[0].run
        raise UserError(f"--over {over} matches no point; an example is --over {example}")
    return {point.env: point for point in reversed(fit)}


def _fits(point: Point, over: str) -> bool:
    pairs = [each.partition("=")[::2] for each in over.split(",")]
    known = {name.removeprefix("agent."): value for name, value in point.values.items()}
    known |= point.values
    return all(name in known and _is(known[name], text) for name, text in pairs)


def _is(value: Any, text: str) -> bool:
    """Whether `text`, typed or copied from the table, stands for this value."""
    try:
        return shown(value) == text or math.isclose(value, float(text), rel_tol=1e-3)
    except (TypeError, ValueError):
        return False


def swept(points: Sequence[Point]) -> list[str]:
    """Dotted names of all values that differ between points."""
    return list(dict.fromkeys(name for point in points for name in point.values))
