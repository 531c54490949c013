"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from jaxrl.experiments.console import clock, rate, size
from jaxrl.experiments.streams import printable, wrapped

# `drive.Compiled.what` in a user's words.
SHOWN = {
    "initialise": "initialisation",
    "advance": "training",
    "evaluate": "evaluation",
    "act": "acting",
    "warm up": "warm-up",
}


class Display:
    """Context manager that shows the progress of a run; `say` prints above the live line."""

    def __init__(
        self,
        total_steps: int,
        console: Console | None = None,
        silent: bool = False,
        unit: str = "steps",
    ) -> None:
        self.console = console or Console(highlight=False, quiet=silent)
        self.live = self.console.is_terminal
        self.total, self.first, self.done = total_steps, 0, 0
        self.compile_s = 0.0
        self._begun = self._since = time.perf_counter()
        self._doing, self._shown, self._unit = "starting", "", unit
        self._news: tuple[str, float, float] | None = None  # last chunk: text, s left, time
        self._bar = Progress(
            BarColumn(20),
            _Line(self._line),
            console=self.console,
            transient=True,
            disable=not self.live,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=total_steps)

    def __enter__(self) -> Display:
        self._begun = self._since = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def begin_at(self, done_steps: int) -> None:
        """Sets the steps already done when a run is resumed."""
        self.first = self.done = done_steps
        self._bar.update(self._task, completed=done_steps)

    def compiling(self, what: str) -> None:
        """Shows that `what`, one of the programs of `drive.Compiled`, is being compiled."""
        self._doing, self._since = f"compiling {SHOWN[what]}", time.perf_counter()
        if not self.live:
            self.say(f"{self._doing} ...", end=" ")

    def compiled(self, what: str, seconds: float, temporary_bytes: int) -> None:
        """Reports a finished compilation; `temporary_bytes` excludes the training state."""
        self.compile_s += seconds
        self._doing, self._since = "running", time.perf_counter()
        took = f"{seconds:.1f} s, {size(temporary_bytes)} of temporary memory"
        self.say(f"compiled {SHOWN[what]} in {took}" if self.live else took)

    def advance(self, done_steps: int, numbers: dict[str, float] | None) -> None:
        """Updates the steps done and the metrics shown; `numbers` is None within a chunk."""
        self.done, now, self._doing = done_steps, time.perf_counter(), "running"
        # Environment steps per second, or updates for offline agents; compile time excluded.
        speed = (self.done - self.first) / max(now - self._begun - self.compile_s, 1e-9)
        if numbers is not None:
            self._shown = "".join(f"{name} {value:.4g}  " for name, value in numbers.items())
        left = (self.total - self.done) / max(speed, 1e-9)
        self._news = (f"{self._shown}{rate(speed)} {self._unit}/s", left, now)
        self._bar.update(self._task, completed=done_steps)
        if not self.live and numbers is not None:
            self.say(self._line())

    def say(self, line: str, end: str = "\n") -> None:
        line = wrapped(printable(line), self.console.width if self.live else None)
        self.console.print(line, markup=False, soft_wrap=True, end=end)

    def _line(self) -> str:
        """Text beside the bar; the clock also advances between chunks."""
        now, percent = time.perf_counter(), f"{100 * self.done / max(self.total, 1):3.0f}%  "
        if self._news is None or self._doing != "running":
            return f"{percent}{self._doing}, {clock(now - self._since)}"
        text, left, then = self._news
        return f"{percent}{text}  {clock(max(left - (now - then), 0))} left"


class _Line(ProgressColumn):
    """Column whose text is computed at every refresh."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(), no_wrap=True)
