"""Parts that all figures share: colours, axes, ticks, legends and files, without pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.runs.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision; yellow is too faint.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
FORMATS = (".png", ".pdf", ".svg")
_INSIDE = 3  # maximum number of lines with a legend inside the axes


def new(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, which needs no pyplot and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: half a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_format(path: str | Path) -> str:
    """The format of a figure by the suffix of its file: png, pdf or svg.

    Raises:
      UserError: any other suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"{path}: figures are written as {', '.join(FORMATS)} files")
    return suffix[1:]


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, PDF or SVG by the suffix of `path`, whole or not at all.

    Raises:
      UserError: another suffix, or the file cannot be written.
    """
    from matplotlib import rc_context

    kind = check_format(path)
    try:
        with rc_context({"pdf.fonttype": 42}):  # Type 3 fonts are refused by some conferences
            atomic_write(path, lambda file: figure.savefig(file, format=kind))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; pass --out FILE") from error


def style(i: int) -> tuple[str, str]:
    """Colour and dashes of line i."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def marker(x: np.ndarray) -> str | None:
    return "o" if x.size <= 20 else None


def text(words: str) -> str:
    """Text that matplotlib shows literally: no formulas, no leading underscore."""
    words = words.replace("$", r"\$")
    return f" {words}" if words.startswith("_") else words


def setting(name: str) -> str:
    """Short name of a swept setting: lr for agent.lr."""
    return name.removeprefix("agent.")


def compact(value: float, _: object = None) -> str:
    """A number for a tick: 1500 is "1.5k", 1e6 "1M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def dress(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, ticks at round numbers, and a light grid."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(text(xlabel))
    axes.set_ylabel(text(ylabel))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(compact))
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(color="0.6", labelsize=9)
    axes.grid(color="0.9", lw=0.7)
    axes.set_axisbelow(True)


def include_zero(axes: Axes) -> None:
    """Extends the y axis to 0 if all values have one sign and 0 is within their own magnitude."""
    low, high = axes.dataLim.intervaly
    if 0 < low < high / 2:
        axes.set_ylim(bottom=0)
    elif low / 2 < high < 0:
        axes.set_ylim(top=0)


def title(axes: Axes, words: str) -> None:
    axes.set_title(text(words), loc="left", fontsize=11, fontweight="bold")


def below(lines: int) -> float:
    """Height in inches of a legend below the axes."""
    return 0.2 * (lines + 2) if lines > _INSIDE else 0.0


def legend(axes: Axes, lines: int, heading: str | None = None) -> None:
    """Draws the legend if any line has a label: inside the axes if there are few lines."""
    if not axes.get_legend_handles_labels()[0]:
        return
    place: Any = {"loc": "best"}
    if lines > _INSIDE:
        place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.16), "borderaxespad": 0.0}
    axes.legend(
        title=heading, frameon=False, fontsize=9, title_fontsize=9, alignment="left", **place
    )
