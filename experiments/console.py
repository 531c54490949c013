"""Output of the commands: lines, tables, CSV files, and numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.segment import Segments
from rich.table import Table

from jaxrl.errors import UserError
from jaxrl.experiments.streams import printable
from jaxrl.runs import files, stats
from jaxrl.runs.figures import compact


def print_line(what: str | Table) -> None:
    """Prints a line, or a table at its full width.

    A narrower terminal wraps the table; rich would truncate its numbers.
    """
    to = Console(highlight=False, markup=False)
    if isinstance(what, str):
        to.print(printable(what), soft_wrap=True)
        return
    to.width = max(to.width, to.measure(what, options=to.options.update_width(1000)).maximum)
    parts = to.render(what)
    to.print(Segments(part._replace(text=printable(part.text)) for part in parts), end="")


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes one column per name in any row; missing values, NaN and infinities are empty cells."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = ([_csv(row.get(name)) for name in names] for row in rows)
    try:
        files.atomic_write(file, files.csv_bytes(names, cells))
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def interval(found: Mapping[str, Any]) -> str:
    """The 95 % interval of `stats.summarise` as text, with a warning if it is of few members."""
    low, high = found["ci95"]
    count = found.get("members") or stats.FEW
    few = f" of only {count} members" if count < stats.FEW else ""
    return "no interval" if count == 1 else f"95 % interval {low:.4g} to {high:.4g}{few}"


def short_path(path: Path) -> Path:
    """A path as a user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def device_kind() -> str:
    return jax.devices()[0].device_kind


def rate(value: float) -> str:
    """A rate with three digits: 38.7k, 1.24M."""
    digits = 3 - len(str(int(value)))
    return compact(round(value, digits))


def size(count: int) -> str:
    """A number of bytes as text: 806 KiB, 1.4 GiB."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def clock(seconds: float) -> str:
    """A number of seconds as text: 42 s, 3:05 or 1:02:03."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def label(values: Mapping[str, Any]) -> str:
    """Names and values as text: agent.lr=0.0001,agent.hidden=64x64."""
    return ",".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """A value as a user would type it; floats have four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "x".join(map(shown, value)) or "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _csv(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating):
        return repr(float(value)) if np.isfinite(value) else ""
    return shown(value) if isinstance(value, list | tuple) else str(value)
