"""Figures of members: learning curves, and scores against hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.runs import figures
from jaxrl.runs.stats import bootstrap_ci, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 60  # points of a curve at which the interval is computed; it is interpolated between them
_MANY = 10  # members from which quartiles are drawn, too
_BUDGET = 3e7  # resampled values per figure, which takes about a second
_TICKS = 8  # maximum number of settings with a tick each
_CROWDED = 3  # number of lines above which bands are fainter, with an edge
_HEADING = "IQM and its 95 % interval"


def learning_curves(
    path: str | Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str = "environment steps",
    ylabel: str = "return",
    title: str = "",
) -> None:
    """Draws the IQM over members against x, with its 95 % bootstrap interval as a band.

    A single curve of ten members or more also gets a lighter band between its quartiles.

    Args:
      path: file to write: PNG, PDF or SVG.
      curves: label -> (x [C], y [C, P] or [C]); NaN and infinite values are left out, and points
        without any value leave a gap.
    """
    figure = figures.new(6.4, 4.0 + figures.below(len(curves)))
    axes = figure.add_subplot()
    for i, (label, (x, y)) in enumerate(curves.items()):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.ndim != 1 or y.shape[:1] != x.shape or y.ndim > 2:
            raise ValueError(f"curve {label}: x {list(x.shape)} does not go with y {list(y.shape)}")
        y = np.where(np.isfinite(y), y, np.nan).reshape(x.size, -1)
        _curve(axes, label, x, y, i, len(curves))
    figures.dress(axes, xlabel, ylabel)
    if axes.lines:
        axes.set_xlim(left=0)
        figures.include_zero(axes)
    figures.title(axes, title)
    several = len(axes.lines) > 1 and len(axes.collections) > 0
    figures.legend(axes, len(curves), _HEADING if several else None)
    figures.save(figure, path)


def _curve(axes: Axes, label: str, x: np.ndarray, y: np.ndarray, i: int, curves: int) -> None:
    """Draws curve i of several, x [C] and y [C, P], with its bands."""
    members, alone = y.shape[1], curves == 1
    rows = [row[~np.isnan(row)] for row in y]
    line = np.array([iqm(row) if row.size else np.nan for row in rows])
    text = figures.text(label)
    if members > 1:
        text += f"{', IQM' if alone else ''}  (n = {members:,})"
    _line(axes, x, line, i, text)
    if members > 1:
        bounds = _interval(rows, line, _BUDGET / curves)
        alpha, name = (0.35, "95 % interval") if alone else (_alpha(curves), None)
        _band(axes, x, bounds, i, alpha, label=name)
    if members >= _MANY and alone:
        gap = [np.nan, np.nan]
        bounds = np.array([np.quantile(r, [0.25, 0.75]) if r.size else gap for r in rows]).T
        _band(axes, x, bounds, i, 0.13, label="middle half of members")


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, i: int, text: str) -> None:
    colour, dash = figures.style(i)
    axes.plot(x, y, dash, color=colour, lw=1.6, marker=figures.marker(x), ms=3.5)
    axes.lines[-1].set_label(text)


def _alpha(lines: int) -> float:
    return 0.22 if lines <= _CROWDED else 0.08


def _band(axes: Axes, x: np.ndarray, bounds: Any, i: int, alpha: float, **more: Any) -> None:
    """Fills between two bounds [2, C]; a faint band gets an edge, which shows through others."""
    colour, edge = figures.style(i)[0], 0.5 if alpha < 0.1 else 0
    axes.fill_between(
        x, *bounds, facecolor=(colour, alpha), edgecolor=(colour, 0.5), lw=edge, **more
    )


def _interval(
    rows: list[np.ndarray], line: np.ndarray, budget: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap bounds [C] around `line` [C] from the finite values at each point."""
    count = len(rows)
    points = np.unique(np.linspace(0, count - 1, min(count, _POINTS)).round().astype(int))
    points = np.array([c for c in points if rows[c].size], int)
    if not points.size:
        return line, line
    reps = int(np.clip(budget / (points.size * max(r.size for r in rows)), 200, 2000))
    bounds = np.array([bootstrap_ci(rows[c], reps=reps) for c in points])
    away = bounds - line[points, None]  # distances change more slowly than the bounds themselves
    low, high = (line + np.interp(np.arange(count), points, side) for side in away.T)
    return low, high


# --- scores against settings ---------------------------------------------------------------------


class Panel(NamedTuple):
    """A score as a function of one setting."""

    name: str
    values: Sequence[Any]  # X settings: numbers, or anything with a text
    # label -> at each setting, scores in strata of a bootstrap, [P] each; no strata leave a gap
    lines: Mapping[str, Sequence[Sequence[np.ndarray]]]


def sensitivity(
    path: str | Path, panels: Sequence[Panel], ylabel: str = "return", title: str = ""
) -> None:
    """Draws the IQM over members against settings, one panel each, with its 95 % interval.

    Numbers are in ascending order, on a logarithmic axis if they are spaced by ratios; other
    settings are side by side in their given order.

    Args:
      path: file to write: PNG, PDF or SVG.
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    height = 4.0 + figures.below(max(len(panel.lines) for panel in panels))
    figure = figures.new(2.4 + 4.0 * columns, height * rows)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1, sharey=figure.axes[0] if i else None)
        x, texts, log = _axis(panel.values)
        order = np.argsort(x)
        for j, (label, cells) in enumerate(panel.lines.items()):
            middle, low, high = np.array([_cell(cells[k]) for k in order]).T
            _line(axes, x[order], middle, j, figures.text(label) if label else "_")
            _band(axes, x[order], (low, high), j, _alpha(len(panel.lines)))
        figures.dress(axes, figures.setting(panel.name), "" if i % columns else ylabel)
        if log:
            axes.set_xscale("log")
        if texts:
            axes.set_xticks(x, texts)
            axes.minorticks_off()
        several = len(panel.lines) > 1
        figures.legend(axes, len(panel.lines), _HEADING if several else None)
    for axes in figure.axes:
        figures.include_zero(axes)
    figures.title(figure.axes[0], title)
    figures.save(figure, path)


def _axis(values: Sequence[Any]) -> tuple[np.ndarray, list[str], bool]:
    """Positions of settings [X], their labels ([] if too many), and whether the axis is log."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        texts = ["x".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in values]
        return np.arange(len(values), dtype=np.float64), texts, False
    x = np.asarray(values, np.float64)
    texts = [f"{value:.4g}" for value in x] if x.size <= _TICKS else []
    return x, texts, _is_log(np.sort(x))


def _is_log(x: np.ndarray) -> bool:
    """Whether ascending numbers are spaced by ratios more evenly than by differences."""
    if x[0] <= 0:
        return False
    if x.size == 2:
        return bool(x[1] >= 10 * x[0])
    unevenness = lambda gaps: gaps.std() / gaps.mean()
    return bool(unevenness(np.diff(np.log(x))) < unevenness(np.diff(x)))


def _cell(strata: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """IQM and the bounds of its interval.

    The bootstrap is not stratified if a stratum has a single score, which would seem certain.
    """
    kept = [scores[np.isfinite(scores)] for scores in strata]
    kept = [scores for scores in kept if scores.size]
    x = np.concatenate([*kept, np.zeros(0)])
    if not x.size:
        return math.nan, math.nan, math.nan
    labels = np.repeat(np.arange(len(kept)), [scores.size for scores in kept])
    alone = min(scores.size for scores in kept) < 2
    return (iqm(x), *bootstrap_ci(x, strata=None if alone else labels))
