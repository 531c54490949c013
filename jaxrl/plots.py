"""Figures made at the end of a run, drawn without pyplot and so without global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.records import atomic_write
from jaxrl.stats import bootstrap_ci, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with every kind of colour vision; yellow is too faint.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
_POINTS = 60  # along the curve at which the interval is computed; between them it is interpolated
_GAP = [np.nan, np.nan]
_BUDGET = 3e7  # resampled values per curve, which is about a second


def learning_curves(
    path: str | Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str = "environment steps",
    ylabel: str = "return",
    title: str = "",
) -> None:
    """Draws the IQM over members against x, in a band that is its 95 % bootstrap interval.

    A single curve also gets a lighter band from the lower to the upper quartile of its members.

    Args:
      path: the PNG file, written whole or not at all.
      curves: label -> (x [C], y [C, P] or [C]); NaN and infinite values are left out, and points
        without any value leave a gap.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: half a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (label, (x, y)) in enumerate(curves.items()):
        style = (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        _draw(axes, label, np.asarray(x, np.float64), np.asarray(y, np.float64), style, len(curves))
    _dress(axes, xlabel, ylabel, title)
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


def compact(value: float, _: object = None) -> str:
    """A number for a tick: 1500 is "1.5k", 1e6 "1M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def _draw(axes: Axes, label: str, x: np.ndarray, y: np.ndarray, style: tuple, curves: int) -> None:
    """One curve: x [C], y [C, P] or [C]."""
    y = np.where(np.isfinite(y), y, np.nan).reshape(x.size, -1)
    members = y.shape[1]
    rows = [row[~np.isnan(row)] for row in y]
    line = np.array([iqm(row) if row.size else np.nan for row in rows])
    colour, dash = style
    alone = curves == 1
    name = label if not alone else "IQM" if members > 1 else label
    if members > 1:
        name += f"  (n = {members:,})"
        low, high = _interval(rows, line)
        if alone:
            quartiles = np.array([np.quantile(r, [0.25, 0.75]) if r.size else _GAP for r in rows])
            band = {"color": colour, "alpha": 0.13, "lw": 0, "label": "middle half of members"}
            axes.fill_between(x, *quartiles.T, **band)
        band = {"color": colour, "alpha": 0.35 if alone else 0.22, "lw": 0}
        axes.fill_between(x, low, high, **band, label="95 % interval" if alone else None)
    marker = "o" if x.size <= 20 else None
    axes.plot(x, line, dash, color=colour, lw=1.6, marker=marker, ms=3.5, label=name)


def _interval(rows: list[np.ndarray], line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap bounds [C] around `line` [C] from the finite values at each point."""
    count = len(rows)
    points = np.unique(np.linspace(0, count - 1, min(count, _POINTS)).round().astype(int))
    points = np.array([c for c in points if rows[c].size], int)
    if not points.size:
        return line, line
    reps = int(np.clip(_BUDGET / (points.size * max(r.size for r in rows)), 200, 2000))
    bounds = np.array([bootstrap_ci(rows[c], reps=reps) for c in points])
    away = bounds - line[points, None]  # distances change more slowly than the bounds themselves
    low, high = (line + np.interp(np.arange(count), points, side) for side in away.T)
    return low, high


def _dress(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(compact))
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(color="0.6", labelsize=9)
    axes.grid(color="0.9", lw=0.7)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9)
