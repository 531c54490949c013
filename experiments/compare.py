"""Comparison of hyperparameter points by the results of their members."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.console import label, shown
from jaxrl.runs import plots, stats

_LINES = 6  # maximum number of lines in one plot
_UNITS = {"steps": "environment steps", "updates": "updates"}  # on axes


class Point(NamedTuple):
    """The S members of a run that differ only in their seeds."""

    run: str
    agent: str
    env: str
    values: dict[str, Any]  # swept values, by dotted name
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
    return all(name in point.values and _is(point.values[name], text) for name, text in pairs)


def _is(value: Any, text: str) -> bool:
    """Whether `text`, typed or copied from the table, stands for this value."""
    try:
        return shown(value) == text or math.isclose(value, float(text), rel_tol=1e-3)
    except (TypeError, ValueError):
        return False


def swept(points: Sequence[Point]) -> list[str]:
    """Dotted names of all values that differ between points."""
    return list(dict.fromkeys(name for point in points for name in point.values))


# --- pictures ------------------------------------------------------------------------------------


def draw(compared: Sequence[Result], curves: Path, sensitivity: Path) -> list[Path]:
    """Draws learning curves, and the return against each swept value, for each environment.

    With several environments, each has its own files, named after it. Returns the files, [] if no
    point has returns.
    """
    drawn = [result for result in compared if len(result.point.steps)]
    envs = list(dict.fromkeys(result.point.env for result in drawn))
    files = []
    for env in envs:
        own = [result for result in drawn if result.point.env == env]
        task = f"-{env.replace(':', '_')}" if len(envs) > 1 else ""
        named = lambda path, task=task: path.with_name(f"{path.stem}{task}{path.suffix}")
        files.append(_draw_curves(own, named(curves)))
        found = panels([result.point for result in own])
        if found:
            agents = ", ".join(dict.fromkeys(result.point.agent for result in own))
            plots.sensitivity(named(sensitivity), found, title=f"{agents} on {env}")
            files.append(named(sensitivity))
    return files


def _draw_curves(compared: Sequence[Result], file: Path) -> Path:
    """Draws one curve per point; of many points, the best ones and the worst."""
    members = sum(result.point.seeds.size for result in compared)
    first = compared[0].point
    title = f"{first.agent} on {first.env}, {members:,} members"
    chosen = list(compared)
    if len(chosen) > _LINES:
        ranked = sorted(chosen, key=lambda r: -np.inf if math.isnan(r.iqm) else r.iqm)[::-1]
        chosen = [*ranked[: _LINES - 1], ranked[-1]]
        title += f"\nthe {_LINES - 1} best of {len(compared):,} points, and the worst"
    names = [label(result.point.values) or result.point.run for result in chosen]
    if len(set(names)) < len(names):
        names = [f"{r.point.run} {label(r.point.values)}".strip() for r in chosen]
    lines = {
        name: (result.point.steps, result.point.returns)
        for name, result in zip(names, chosen, strict=True)
    }
    if len(lines) == 1:
        lines = {first.agent: (first.steps, first.returns)}
    units = dict.fromkeys(_UNITS[r.point.unit] for r in chosen)
    plots.learning_curves(file, lines, " or ".join(units), title=title)
    return file


def panels(points: Sequence[Point]) -> list[plots.Panel]:
    """One panel per swept value, with one line per combination of the other values.

    If there are too many combinations, one line pools the members of all combinations; its interval
    is a bootstrap stratified by combination.
    """
    found = []
    for name in swept(points):
        own = [point for point in points if name in point.values]
        axis = {repr(point.values[name]): point.values[name] for point in own}
        others = [{k: v for k, v in p.values.items() if k not in (name, "env")} for p in own]
        lines = {repr(other): label(other) for other in others}
        if len(lines) > _LINES:
            rest = dict.fromkeys(other for each in others for other in each)
            lines = {"": f"all values of {', '.join(rest)}"}
        cells: dict[tuple[str, str], list[np.ndarray]] = collections.defaultdict(list)
        for point, other in zip(own, others, strict=True):
            line = repr(other) if repr(other) in lines else ""
            cells[line, repr(point.values[name])].append(point.scores)
        if len(axis) > 1:
            rows = {title: [cells[line, x] for x in axis] for line, title in lines.items()}
            found.append(plots.Panel(name, list(axis.values()), rows))
    return found
