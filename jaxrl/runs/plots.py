"""Figures of runs and sweeps, drawn without pyplot and so without global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.runs.files import atomic_write
from jaxrl.runs.stats import bootstrap_ci, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision; yellow is too faint.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
_POINTS = 60  # along the curve at which the interval is computed; between them it is interpolated
_MANY = 10  # members from which on quartiles are worth a band
_GAP = [np.nan, np.nan]
_BUDGET = 3e7  # resampled values per picture, which is about a second
_TICKS = 8  # values that fit below an axis
_INSIDE = 3  # lines whose legend leaves room for them


def learning_curves(
    path: str | Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str = "environment steps",
    ylabel: str = "return",
    title: str = "",
) -> None:
    """Draws the IQM over members against x, with its 95 % bootstrap interval as a band.

    A single curve of ten members or more also gets a lighter band between their quartiles.

    Args:
      path: the PNG file, written whole or not at all.
      curves: label -> (x [C], y [C, P] or [C]); NaN and infinite values are left out, and points
        without any value leave a gap.
    """
    figure = _figure(6.4, 4.0 + _below(len(curves)))
    axes = figure.add_subplot()
    for i, (label, (x, y)) in enumerate(curves.items()):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.ndim != 1 or y.shape[:1] != x.shape or y.ndim > 2:
            raise ValueError(f"curve {label}: x {list(x.shape)} does not go with y {list(y.shape)}")
        _draw(axes, label, x, y, _style(i), curves=len(curves))
    _dress(axes, xlabel, ylabel)
    _head(axes, title)
    _legend(axes, len(curves))
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


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

    Numbers stand in order on an axis, which is logarithmic where they are spaced so; other settings
    stand side by side as they come.

    Args:
      path: the PNG file, written whole or not at all.
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    height = 4.0 + _below(max(len(panel.lines) for panel in panels))
    figure = _figure(2.4 + 4.0 * columns, height * rows)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1, sharey=figure.axes[0] if i else None)
        x, texts, log = _axis(panel.values)
        order = np.argsort(x)
        for j, (label, cells) in enumerate(panel.lines.items()):
            found = np.array([_cell(cells[k]) for k in order])
            colour, dash = _style(j)
            style = {"color": colour, "lw": 1.6, "marker": _marker(x), "ms": 3.5}
            axes.plot(x[order], found[:, 0], dash, **style)
            axes.lines[-1].set_label(_text(label) if label else "_")
            axes.fill_between(x[order], found[:, 1], found[:, 2], color=colour, alpha=0.22, lw=0)
        _dress(axes, panel.name, "" if i % columns else ylabel)
        if log:
            axes.set_xscale("log")
        if texts:
            axes.set_xticks(x, texts)
            axes.minorticks_off()
        _legend(axes, len(panel.lines))
    _head(figure.axes[0], title)
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


def slices(
    path: str | Path, columns: Mapping[str, Sequence[Any]], y: ArrayLike, ylabel: str = "objective"
) -> None:
    """Draws the objective of trials against each of their settings, one panel per setting.

    Args:
      path: the PNG file, written whole or not at all.
      columns: setting -> its values [Q].
      y: [Q] objective of each trial.
    """
    wide = min(len(columns), 3)
    rows = math.ceil(len(columns) / wide)
    figure = _figure(1.2 + 3.0 * wide, 3.2 * rows)
    y = np.asarray(y, np.float64)
    for i, (name, values) in enumerate(columns.items()):
        axes = figure.add_subplot(rows, wide, i + 1, sharey=figure.axes[0] if i else None)
        x, ticks, log = _positions(values)
        axes.scatter(x, y, s=14, c=np.arange(y.size), cmap="Blues", vmin=-y.size / 2, lw=0.3,
                     edgecolors="0.4")  # fmt: skip
        _dress(axes, name, "" if i % wide else ylabel)
        if log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(np.arange(len(ticks)), ticks)
            axes.margins(x=0.2)
    _head(figure.axes[0], f"{y.size:,} trials, later ones darker")
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


def parallel(
    path: str | Path, columns: Mapping[str, Sequence[Any]], y: ArrayLike, label: str = "objective"
) -> None:
    """Draws trials as lines across one axis per setting and one axis for the objective.

    Lines are coloured by the objective. Arguments as in `slices`.
    """
    y = np.asarray(y, np.float64)
    figure = _figure(1.6 + 1.5 * (len(columns) + 1), 4.0)
    axes = figure.add_subplot()
    lines, count = [], len(columns) + 1
    for i, (name, values) in enumerate({**columns, label: y.tolist()}.items()):
        x, ticks, log = _positions(values)
        x = np.log10(x) if log else x
        low, high = x.min(), x.max()
        unit = lambda v, low=low, high=high: (v - low) / (high - low) if high > low else 0 * v + 0.5
        lines.append(unit(x))
        marks = np.arange(len(ticks)) if ticks else np.linspace(low, high, 5)
        texts = ticks or [f"{10**m if log else m:.3g}" for m in marks]
        axes.axvline(i, color="0.6", lw=0.8)
        for mark, text in zip(unit(marks), texts, strict=True):
            axes.text(i + 0.03, mark, _text(text), fontsize=8, va="center", zorder=3)
        axes.text(i, 1.06, _text(name), fontsize=9, ha="center")
    colour = _matplotlib_colours("viridis", lines[-1])
    for trial in np.argsort(y):  # the best on top
        axes.plot(np.arange(count), [line[trial] for line in lines], color=colour[trial], lw=0.9,
                  alpha=0.7)  # fmt: skip
    axes.set_axis_off()
    axes.set_xlim(-0.3, count - 0.5)
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


def _matplotlib_colours(name: str, units: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[name](units)


def _positions(values: Sequence[Any]) -> tuple[np.ndarray, list[str], bool]:
    """Positions of values on an axis [Q], labels of settings that are not numbers, and whether the
    axis is logarithmic."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        x = np.asarray(values, np.float64)
        return x, [], bool(x.min() > 0 and x.max() >= 50 * x.min())
    texts = list(dict.fromkeys(sorted(map(str, values), key=lambda text: (len(text), text))))
    return np.array([texts.index(str(value)) for value in values], np.float64), texts, False


def _axis(values: Sequence[Any]) -> tuple[np.ndarray, list[str], bool]:
    """Positions of settings [X], their labels (none if too many), and whether the axis is
    logarithmic."""
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

    The bootstrap is stratified unless a stratum has a single score, which would seem certain.
    """
    kept = [scores[np.isfinite(scores)] for scores in strata]
    kept = [scores for scores in kept if scores.size]
    x = np.concatenate([*kept, np.zeros(0)])
    if not x.size:
        return math.nan, math.nan, math.nan
    labels = np.repeat(np.arange(len(kept)), [scores.size for scores in kept])
    alone = min(scores.size for scores in kept) < 2
    return (iqm(x), *bootstrap_ci(x, strata=None if alone else labels))


def compact(value: float, _: object = None) -> str:
    """A number for a tick: 1500 is "1.5k", 1e6 "1M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: half a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(i: int) -> tuple[str, str]:
    """Colour and dashes of line i."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def _marker(x: np.ndarray) -> str | None:
    return "o" if x.size <= 20 else None


def _draw(axes: Axes, label: str, x: np.ndarray, y: np.ndarray, style: tuple, curves: int) -> None:
    """Draws one of several curves, x [C] and y [C, P] or [C], with its bands."""
    alone = curves == 1
    y = np.where(np.isfinite(y), y, np.nan).reshape(x.size, -1)
    members = y.shape[1]
    rows = [row[~np.isnan(row)] for row in y]
    line = np.array([iqm(row) if row.size else np.nan for row in rows])
    colour, dash = style
    text = _text(label)
    if members > 1:
        text = f"{text}, IQM  (n = {members:,})" if alone else f"{text}  (n = {members:,})"
    axes.plot(x, line, dash, color=colour, lw=1.6, marker=_marker(x), ms=3.5, label=text)
    band = {"color": colour, "alpha": 0.35 if alone else 0.22, "lw": 0}
    if members > 1:
        low, high = _interval(rows, line, _BUDGET / curves)
        axes.fill_between(x, low, high, label="95 % interval" if alone else None, **band)
    if members >= _MANY and alone:
        quartiles = np.array([np.quantile(r, [0.25, 0.75]) if r.size else _GAP for r in rows])
        label = "middle half of members"
        axes.fill_between(x, *quartiles.T, label=label, **band | {"alpha": 0.13})


def _text(text: str) -> str:
    """Text that matplotlib shows literally: no formulas, no leading underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


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


def _dress(axes: Axes, xlabel: str, ylabel: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(_text(xlabel))
    axes.set_ylabel(_text(ylabel))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(compact))
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(color="0.6", labelsize=9)
    axes.grid(color="0.9", lw=0.7)
    axes.set_axisbelow(True)


def _head(axes: Axes, title: str) -> None:
    axes.set_title(_text(title), loc="left", fontsize=11, fontweight="bold")


def _below(lines: int) -> float:
    """Height in inches of a legend below the axes."""
    return 0.2 * (lines + 2) if lines > _INSIDE else 0.0


def _legend(axes: Axes, lines: int) -> None:
    """Draws the legend, inside the axes if there are few lines."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        several = len(axes.lines) > 1 and len(axes.collections) > 0
        heading = "IQM and its 95 % interval" if several else None
        style = {"frameon": False, "fontsize": 9, "title_fontsize": 9, "alignment": "left"}
        if lines > _INSIDE:
            style |= {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.16), "borderaxespad": 0.0}
        axes.legend(handles=handles, title=heading, **style)
