"""`--track` and `jaxrl track`: sends the metrics of a run to an experiment tracker.

Points are read from the metrics files of the run, so that one process sends those of all, and a
finished run can be sent as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.errors import UserError, nearest
from jaxrl.experiments.console import print_line, short_path
from jaxrl.experiments.options import Options
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.own_code import load_attribute, missing, split
from jaxrl.runs import metrics, records
from jaxrl.runs.trackers import TRACKERS, TrackedRun, Tracker, aggregates

_STATISTICS = ("iqm", "mean", "std", "min", "max")


def check(target: str | None) -> None:
    """Raises UserError if there is no such tracker, or its package is missing. Imports nothing."""
    if target is None:
        return
    if ":" in target:
        if reason := missing(split(target)[0]):
            raise UserError(f"{target}: {reason}")
        return
    if target not in TRACKERS:
        raise UserError(
            f"unknown tracker {target!r}{nearest(target, TRACKERS)}: pass "
            f"{', '.join(TRACKERS)}, or module:attribute for a tracker of your own"
        )
    package = "tensorboardX" if target == "tensorboard" else target
    if importlib.util.find_spec(package) is None:
        raise UserError(f"--track {target} needs {package}: pip install {package}")


def target(options: Options, leads: bool) -> str | None:
    """The tracker of a run, in the process that sends to it."""
    found = options.track or ("tensorboard" if options.tensorboard else None)
    return found if leads else None


def make(target: str, run: TrackedRun) -> Tracker:
    """The tracker of a run."""
    check(target)
    kind = load_attribute(target, None) if ":" in target else TRACKERS[target]
    tracker = kind(run)
    for name in ("log", "close"):
        if not callable(getattr(tracker, name, None)):
            raise UserError(
                f"{target} returns {type(tracker).__name__}, which has no method {name!r}: see "
                "jaxrl.runs.trackers.Tracker"
            )
    return tracker


class Tracked:
    """A run with its tracker.

    `update` sends the points that are on disk and not sent yet. Without a target nothing is sent.

    Args:
      resumed: an earlier process has sent the points that are there now.
    """

    def __init__(self, run: records.RunDir, target: str | None, resumed: bool = False) -> None:
        self._run, self._tracker, self._sent = run, None, (-1, -1)
        if target is None:
            return
        self._config = run.config()
        points = self._points() if resumed else []
        at = points[-1][1] + 1 if points else None
        self._sent = points[-1][0] if points else self._sent
        about = TrackedRun(run.path.name, run.path, hyperparameters(self._config), at)
        self._tracker = make(target, about)

    def update(self, all_written: bool = True) -> None:
        """Sends new points; without `all_written`, not the last one, which may lack members."""
        if self._tracker is None:
            return
        points = self._points()
        for order, step, columns in points if all_written else points[:-1]:
            self._tracker.log(step, aggregates(columns))
            self._sent = order

    def close(self) -> None:
        """Sends the last points and the results, which are there if the run is finished."""
        if self._tracker is None:
            return
        summary = self._run.summary()
        if summary is not None:
            self.update()
        self._tracker.close([] if summary is None else table(summary))
        self._tracker = None

    def _points(self) -> list[tuple[tuple[int, int], int, dict[str, np.ndarray]]]:
        """((stage, update), step, columns [P]) of each evaluation that was not sent; the last may
        lack members."""
        found, _ = metrics.read_parts(self._run.path / "metrics", after=self._sent)
        if not found:
            return []
        context = self._config["context"]
        before, points = 0, []
        for i, (name, stage) in enumerate(context["stages"].items()):
            rows = found["stage"] == name
            for update in np.unique(found["update"][rows]):
                here = rows & (found["update"] == update)
                step = int(found["env_steps"][here].max())
                if context.get("unit") == "updates":
                    step = before + int(update)
                columns = {k: x[here] for k, x in found.items() if k not in _INDEX}
                points.append(((i, int(update)), step, columns))
            before += stage["updates"]
        return points


_INDEX = ("stage", "member", "update", "env_steps")


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Settings that all members share, from the contents of config.json."""
    own = config["config"]
    swept = {name.removeprefix("agent.") for point in own.get("points", [{}]) for name in point}
    found: dict[str, Any] = {name: own[name] for name in ("agent", "env", "seed", "seeds")}
    found |= {f"env.{name}": value for name, value in own.get("env_options", {}).items()}
    found |= {name: x for name, x in own.get("settings", {}).items() if name not in swept}
    plain = lambda x: x if isinstance(x, bool | int | float | str) else str(x)
    return {name: plain(value) for name, value in found.items()}


def table(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results of a finished run, one row per hyperparameter point."""
    rows = []
    for point in records.points_of(summary):
        found = point["return"]
        low, high = found["ci95"] or (None, None)
        row = dict(point["values"]) | {"members": found["members"], "failed": point["failed"]}
        row |= {f"return/{name}": found[name] for name in _STATISTICS}
        rows.append(row | {"return/ci95_low": low, "return/ci95_high": high})
    return rows


@contextlib.contextmanager
def live(run: records.RunDir, target: str | None) -> Iterator[Tracked]:
    """The tracker of a run that this process trains, closed at the end."""
    tracked = Tracked(run, target, run.resumed)
    try:
        yield tracked
    finally:
        tracked.close()


def track(path: Path, target: str) -> None:
    """Sends a run, finished or in progress, to a tracker (`jaxrl track`)."""
    check(target)
    run = open_run_folder(path)
    if not metrics.read_parts(run.path / "metrics")[0] and run.summary() is None:
        raise UserError(f"{short_path(run.path)} has no metrics yet: there is nothing to send")
    tracked = Tracked(run, target)
    tracked.update()
    tracked.close()
    print_line(f"{short_path(run.path)}: sent to {target}")
