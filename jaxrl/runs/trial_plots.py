"""Figures without members: trials of a search, and histograms of a dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.runs import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAP, _DARKEST = "viridis_r", 0.92  # the best trials are dark; the palest yellow is left out
_LOG = 50  # ratio of the largest to the smallest value from which an axis is logarithmic
_FEW = 6  # number of different values up to which an axis has a tick at each of them


def slices(
    path: str | Path,
    columns: Mapping[str, Sequence[Any]],
    y: ArrayLike,
    label: str = "objective",
    title: str = "",
) -> None:
    """Draws the objective of trials against each of their settings, one panel per setting.

    Args:
      path: file to write: PNG, PDF or SVG.
      columns: setting -> its values [Q].
      y: [Q] objective of each trial.
      label: what the objective is.
      title: what was searched; the number of trials is appended.
    """
    wide = min(len(columns), 3)
    rows = math.ceil(len(columns) / wide)
    figure = figures.new(1.2 + 3.0 * wide, 3.2 * rows)
    y = np.asarray(y, np.float64)
    for i, (name, values) in enumerate(columns.items()):
        axes = figure.add_subplot(rows, wide, i + 1, sharey=figure.axes[0] if i else None)
        x, ticks, log = _positions(values)
        axes.scatter(x, y, s=14, c=np.arange(y.size), cmap="Blues", vmin=-y.size / 2, lw=0.3,
                     edgecolors="0.4")  # fmt: skip
        figures.dress(axes, figures.setting(name), "" if i % wide else label)
        if log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(list(ticks.values()), list(ticks))
            axes.minorticks_off()
            axes.margins(x=0.2)
    figures.title(figure.axes[0], _title(title, y.size, "later ones darker"))
    figures.save(figure, path)


def parallel(
    path: str | Path,
    columns: Mapping[str, Sequence[Any]],
    y: ArrayLike,
    label: str = "objective",
    title: str = "",
) -> None:
    """Draws trials as lines across one axis per setting and one axis for the objective.

    Lines are coloured by the objective, see the colour bar. Arguments as in `slices`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    y = np.asarray(y, np.float64)
    names = [*map(figures.setting, columns), label]
    figure = figures.new(2.2 + 1.5 * len(names), 4.0)
    axes = figure.add_subplot()
    lines = [_rescaled(axes, i, *_positions(v)) for i, v in enumerate(columns.values())]
    lines.append(_rescaled(axes, len(columns), y, {}, False))  # linear, as the colour bar
    for i, name in enumerate(names):
        axes.text(i, 1.06, figures.text(name), fontsize=9, ha="center")
    axes.text(-0.25, 1.16, figures.text(_title(title, y.size, f"darker for a higher {label}")),
              fontsize=11, fontweight="bold")  # fmt: skip
    span = np.ptp(y) or 1.0
    # The colour map is cut off at its pale end by a lower limit below all trials.
    colour = ScalarMappable(Normalize(y.max() - span / _DARKEST, y.max()), _MAP)
    for trial in np.argsort(y):  # the best on top
        axes.plot(np.arange(len(names)), [line[trial] for line in lines],
                  color=colour.to_rgba(y[trial]), lw=0.9, alpha=0.8)  # fmt: skip
    axes.set_axis_off()
    axes.set_xlim(-0.3, len(names) - 0.7)
    axes.text(0, -0.08, " ")  # without labels, the axes would reach the lower edge
    bar = figure.colorbar(colour, ax=axes, label=figures.text(label), fraction=0.05)
    bar.ax.set_ylim(y.max() - span, y.max())
    bar.outline.set_visible(False)  # type: ignore[operator]
    figures.save(figure, path)


def _title(what: str, trials: int, order: str) -> str:
    return f"{what}{': ' if what else ''}{trials:,} trials, {order}"


def _rescaled(axes: Axes, i: int, x: np.ndarray, ticks: dict[str, float], log: bool) -> np.ndarray:
    """Positions x [Q] rescaled to [0, 1] on axis i, which is drawn with its ticks."""
    x = np.log10(x) if log else x
    low, high = x.min(), x.max()
    unit = lambda v: (v - low) / (high - low) if high > low else 0 * v + 0.5
    ticks = ticks or _round_ticks(low, high, log)
    if log:
        ticks = {text: math.log10(value) for text, value in ticks.items()}
    axes.axvline(i, color="0.6", lw=0.8)
    paper = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.6}  # behind the text
    for text, mark in ticks.items():
        height = unit(np.float64(mark))
        axes.plot([i, i + 0.03], [height, height], color="0.6", lw=0.8)
        axes.text(i + 0.05, height, figures.text(text), fontsize=8, va="center", zorder=3,
                  bbox=paper)  # fmt: skip
    return unit(x)


def _round_ticks(low: float, high: float, log: bool) -> dict[str, float]:
    """Round numbers between two ends by their texts; of a logarithmic axis, the ends are log10."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if log:
        low, high = 10**low, 10**high
        marks = LogLocator(subs=(1.0,) if high >= 100 * low else (1.0, 2.0, 5.0))
    else:
        marks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    margin = 1e-9 * max(abs(low), abs(high))
    inside = [m for m in marks.tick_values(low, high) if low - margin <= m <= high + margin]
    return {figures.compact(float(f"{m:.6g}")): float(m) for m in inside}


def _positions(values: Sequence[Any]) -> tuple[np.ndarray, dict[str, float], bool]:
    """Positions of values on an axis [Q], the positions of its ticks by their texts, and whether
    the axis is logarithmic.

    Only few different numbers, and settings that are not numbers, have such ticks.
    """
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        x = np.asarray(values, np.float64)
        different = np.unique(x)
        few = different if different.size <= min(_FEW, x.size - 1) else ()
        ticks = {figures.compact(value): float(value) for value in few}
        return x, ticks, bool(x.min() > 0 and x.max() >= _LOG * x.min())
    texts = list(dict.fromkeys(sorted(map(str, values), key=lambda text: (len(text), text))))
    x = np.array([texts.index(str(value)) for value in values], np.float64)
    return x, {text: float(i) for i, text in enumerate(texts)}, False


def histograms(
    path: str | Path, panels: Mapping[str, tuple[ArrayLike, str]], title: str = ""
) -> None:
    """Draws one histogram per panel, with one outline per column.

    Args:
      path: file to write: PNG, PDF or SVG.
      panels: label of the x axis -> (values [D] or [D, columns], what is counted).
    """
    rows = math.ceil(len(panels) / 2)
    figure = figures.new(9.0, 3.0 * rows)
    for i, (label, (values, counted)) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, 2, i + 1)
        columns = np.asarray(values).reshape(len(np.asarray(values)), -1)
        bins: Any = np.histogram_bin_edges(columns, 50)
        alone = columns.shape[1] == 1
        for j, column in enumerate(columns.T):
            look: Any = {"label": str(j), "histtype": "bar" if alone else "step"}
            axes.hist(column, bins, color=figures.style(j)[0], **look)
        if 1 < columns.shape[1] <= 8:
            axes.legend(frameon=False, fontsize=8)
        figures.dress(axes, label, f"number of {counted}")
    figure.suptitle(figures.text(title), x=0.01, ha="left", fontsize=11, fontweight="bold")
    figures.save(figure, path)
