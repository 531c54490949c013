"""`jaxrl report --html`: one page with a table, learning curves and performance profiles.

The page holds its data and its own script, so it needs no network and no other file.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.compare import Point, Result
from jaxrl.experiments.console import label, rate
from jaxrl.experiments.pictures import legends, title
from jaxrl.experiments.report_table import gap
from jaxrl.runs import stats
from jaxrl.runs.figures import COLOURS
from jaxrl.runs.files import atomic_write

_PAGE = Path(__file__).with_name("report_page.html")
_INSTANTS = 80  # points of a curve
_REPS = 500  # resamples of an interval
_LINES = 6  # lines that are shown at first, and up to which intervals are drawn


def write(file: Path, compared: Sequence[Result], target: float | None = None) -> None:
    """Writes the page of these results.

    Raises:
      UserError: the file cannot be written.
    """
    envs = list(dict.fromkeys(result.point.env for result in compared))
    tasks = [task([r for r in compared if r.point.env == env], target) for env in envs]
    data = json.dumps({"tasks": tasks, "colours": COLOURS, "lines": _LINES}, allow_nan=False)
    page = _PAGE.read_text(encoding="utf-8")
    page = page.replace(
        "{{TITLE}}", html.escape(", ".join(task["title"] for task in tasks) or "no results")
    )
    page = page.replace("{{DATA}}", data.replace("<", "\\u003c"))
    try:
        atomic_write(file, page.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; pass --html FILE") from error


def task(compared: Sequence[Result], target: float | None = None) -> dict[str, Any]:
    """Data of one environment: rows of the table, curves and profiles; numbers or None."""
    points = [result.point for result in compared]
    names = legends(points)
    taus = thresholds(np.concatenate([*(point.scores for point in points), np.zeros(0)]))
    rows = []
    for name, result in zip(names, compared, strict=True):
        found, point = result.found, result.point
        row = {"name": name, "run": point.run, "values": label(point.values)}
        row |= {"members": point.seeds.size, "failed": int(point.failed.sum())}
        row |= {key: _number(found.get(key)) for key in ("iqm", "mean", "std", "min", "max")}
        row |= {"ci95": [_number(x) for x in found.get("ci95", (None, None))]}
        row |= {"better": _number(result.better), "reference": result.is_reference}
        row |= {"gap": None if target is None else _number(gap(result, target))}
        row |= {"state": point.state, "speed": None if point.speed is None else rate(point.speed)}
        row |= {"unit": point.unit, "curve": curve(point), "profile": None}
        if found:
            profile = stats.performance_profile(point.scores, taus)
            row["profile"] = [_number(x) for x in profile]
        rows.append(row)
    best = sorted(range(len(rows)), key=lambda i: _descending(rows[i]["iqm"]))
    few = sorted({row["members"] for row in rows if row["members"] < stats.FEW})
    return {
        "env": points[0].env,
        "title": title(points),
        "unit": points[0].unit,
        "rows": rows,
        "best": best,
        "taus": [_number(x) for x in taus],
        "target": target,
        "few": few,
    }


def thresholds(scores: np.ndarray) -> np.ndarray:
    """101 returns τ of a performance profile, from a little below all scores to a little above."""
    known = scores[np.isfinite(scores)]
    if not known.size:
        return known
    low, high = known.min(), known.max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return np.linspace(low - margin, high + margin, 101)


def curve(point: Point) -> dict[str, list[Any]]:
    """IQM and its 95 % interval over members, at no more than `_INSTANTS` steps."""
    count = len(point.steps)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _INSTANTS)).round().astype(int))
    found: dict[str, list[Any]] = {"x": [], "y": [], "low": [], "high": []}
    for i in chosen if count else ():
        scores = point.returns[i][np.isfinite(point.returns[i])]
        low = high = math.nan
        if scores.size > 1:
            low, high = stats.bootstrap_ci(scores, reps=_REPS)
        found["x"].append(int(point.steps[i]))
        found["y"].append(_number(stats.iqm(scores) if scores.size else math.nan))
        found["low"].append(_number(low))
        found["high"].append(_number(high))
    return found


def _descending(score: float | None) -> float:
    """Key that sorts scores from the highest to the lowest, and missing ones last."""
    return math.inf if score is None else -score


def _number(x: Any) -> float | None:
    """A number with six digits; None if it is missing or not finite."""
    return float(f"{x:.6g}") if x is not None and math.isfinite(x) else None
