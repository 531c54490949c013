"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxrl.plots import compact


class Display:
    """Tells a person what a run is doing. A context manager; `console` prints above the line."""

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.total, self.first, self.done = total_steps, 0, 0
        self.compile_s = 0.0
        self._clock = time.perf_counter()
        self._compiling_since: float | None = None
        self._bar = Progress(
            BarColumn(30),
            TextColumn("{task.percentage:3.0f}%  {task.description}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=total_steps)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Wall time so far, compiling apart."""
        return time.perf_counter() - self._clock - self.compile_s

    @property
    def rate(self) -> float:
        """Environment steps (or updates, where there are none) per second, compiling apart."""
        return (self.done - self.first) / max(self.seconds, 1e-9)

    def begin_at(self, done_steps: int) -> None:
        """Of a continued run: what earlier processes did."""
        self.first = self.done = done_steps
        self._bar.update(self._task, completed=done_steps)

    def compiling(self, what: str) -> None:
        self._compiling_since = time.perf_counter()
        self._bar.update(self._task, description=f"compiling: {what}")

    def compiled(self, what: str, seconds: float) -> None:
        self.compile_s += seconds
        self._bar.update(self._task, description="running")
        self.say(f"compiled {what} in {seconds:.1f} s")

    def advance(self, done_steps: int, numbers: dict[str, float]) -> None:
        """After a chunk: how far the run is, and what to show of its metrics."""
        self.done = done_steps
        left = (self.total - done_steps) / max(self.rate, 1e-9)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        line = f"{shown}  {rate(self.rate)} steps/s  {clock(left)} left"
        self._bar.update(self._task, completed=done_steps, description=line)
        if not self.console.is_terminal:
            self.say(f"{100 * done_steps / self.total:3.0f}%  {line}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def rate(value: float) -> str:
    """A speed in three digits: 38.7k, 1.24M."""
    digits = 3 - len(str(int(value)))
    return compact(round(value, digits))


def clock(seconds: float) -> str:
    """Seconds as 42 s, 3:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
