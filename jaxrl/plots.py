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
_MANY = 10  # members from which on quartiles are worth a band
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

    A single curve of ten members or more also gets a lighter band between their quartiles.

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
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.ndim != 1 or y.shape[:1] != x.shape or y.ndim > 2:
            raise ValueError(f"curve {label}: x {list(x.shape)} does not go with y {list(y.shape)}")
        _draw(axes, label, x, y, style, alone=len(curves) == 1)
    _dress(axes, xlabel, ylabel, title)
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


def compact(value: float, _: object = None) -> str:
    """A number for a tick: 1500 is "1.5k", 1e6 "1M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def _draw(axes: Axes, label: str, x: np.ndarray, y: np.ndarray, style: tuple, alone: bool) -> None:
    """One curve, x [C] and y [C, P] or [C], with its bands."""
    y = np.where(np.isfinite(y), y, np.nan).reshape(x.size, -1)
    members = y.shape[1]
    rows = [row[~np.isnan(row)] for row in y]
    line = np.array([iqm(row) if row.size else np.nan for row in rows])
    colour, dash = style
    text = _text(label)
    if members > 1:
        text = f"{text}, IQM  (n = {members:,})" if alone else f"{text}  (n = {members:,})"
    marker = "o" if x.size <= 20 else None
    axes.plot(x, line, dash, color=colour, lw=1.6, marker=marker, ms=3.5, label=text)
    band = {"color": colour, "alpha": 0.35 if alone else 0.22, "lw": 0}
    if members > 1:
        low, high = _interval(rows, line)
        axes.fill_between(x, low, high, label="95 % interval" if alone else None, **band)
    if members >= _MANY and alone:
        quartiles = np.array([np.quantile(r, [0.25, 0.75]) if r.size else _GAP for r in rows])
        label = "middle half of members"
        axes.fill_between(x, *quartiles.T, label=label, **band | {"alpha": 0.13})


def _text(text: str) -> str:
    """Text that is shown as it is: no formulas in it, nor hidden for its underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


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

    axes.set_xlabel(_text(xlabel))
    axes.set_ylabel(_text(ylabel))
    axes.set_title(_text(title), loc="left", fontsize=11, fontweight="bold")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(compact))
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(color="0.6", labelsize=9)
    axes.grid(color="0.9", lw=0.7)
    axes.set_axisbelow(True)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        several = len(axes.lines) > 1 and len(axes.collections) > 0
        heading = "IQM and its 95 % interval" if several else None
        style = {"frameon": False, "fontsize": 9, "title_fontsize": 9, "alignment": "left"}
        axes.legend(handles=handles, title=heading, **style)
