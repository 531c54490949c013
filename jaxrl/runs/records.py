"""On-disk layout of a run: configuration, metrics per member, results.

    config.json              the resolved configuration, and the context of the run
    members.csv              one row per member
    metrics/part-*.parquet   one row per member and chunk, one column per metric; see `metrics`
    summary.json             the results; {"finished": true, ...} once the run is complete
    checkpoints/  plots/  tensorboard/  exports/

Every file is written under a temporary name and renamed, so that readers never see incomplete files
and a killed run can be continued.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.errors import UserError
from jaxrl.runs import folders, metrics
from jaxrl.runs.files import atomic_write, csv_bytes, csv_text, plain, sync_folder, write_json

# Entries of the summary.json of a finished run that are read again.
RESULTS = ("members", "return", "failed_members", "env_steps", "wall_s", "compile_s")
RESULTS += ("steps_per_s", "updates_per_s")


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The folder of a run, finished or in progress.

    `open_run` creates, checks and locks the folder. `RunDir(path)` is enough for reading, and for
    writing metrics from further processes.
    """

    path: Path
    resumed: bool = False  # the folder already held this run
    finished: bool = False  # the run was complete

    def as_found(self) -> RunDir:
        """This folder with `resumed` set, and `finished` as summary.json says."""
        finished = (self.summary() or {}).get("finished") is True
        return dataclasses.replace(self, resumed=True, finished=finished)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def config(self) -> dict[str, Any]:
        """The contents of config.json: {"config": {...}, "context": {...}}.

        Raises:
          UserError: the file is missing or damaged.
        """
        file = self.path / "config.json"
        known = folders.read_json(file)
        _check_shape(file, known)
        return known

    def summary(self, say: Callable[[str], None] | None = None) -> dict[str, Any] | None:
        """The contents of summary.json; None without the file, or if the file is damaged.

        Args:
          say: called with one line about a damaged file.
        """
        return read_summary(self.path / "summary.json", RESULTS, say)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json; an entry "finished": True marks the run as complete."""
        write_json(self.path / "summary.json", summary)

    def write_members(self, columns: Mapping[str, Sequence[Any] | ArrayLike]) -> None:
        """Writes members.csv from columns of one length: id, seed, swept values, final, ..."""
        rows = zip(*(plain(c) for c in columns.values()), strict=True)
        cells = ([_cell(value) for value in row] for row in rows)
        atomic_write(self.path / "members.csv", csv_bytes(list(columns), cells))

    def members(self) -> dict[str, np.ndarray]:
        """The columns [P] of members.csv as booleans, numbers or strings; {} without the file.

        Raises:
          UserError: the file is damaged.
        """
        file = self.path / "members.csv"
        if not file.is_file():
            return {}
        try:
            with file.open(newline="", encoding="utf-8") as text:
                names, *rows = csv.reader(text)
            columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
            return {
                csv_text(name): _parse(cells) for name, cells in zip(names, columns, strict=True)
            }
        except (ValueError, csv.Error) as error:
            raise UserError(
                f"{file} is damaged: remove the file, and the command that made the run writes it "
                "again"
            ) from error

    def has_members(self, count: int) -> bool:
        """Whether members.csv is undamaged and has `count` rows."""
        try:
            return len(self.members().get("id", ())) == count
        except UserError:
            return False

    def write_part(self, name: str, columns: Mapping[str, ArrayLike]) -> None:
        """Writes metrics/`name`, a `metrics.part_name`; see `metrics.write_part`."""
        metrics.write_part(self.path / "metrics" / name, columns)


@contextlib.contextmanager
def open_run(
    path: str | Path,
    config: Any,
    context: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Iterator[RunDir]:
    """Context in which this process is the only writer of a run, new or found in its folder.

    Args:
      path: the folder.
      config: the resolved configuration; anything that `files.plain` accepts.
      context: facts that may differ when the run is continued, such as versions, device, command
        line, tile width and git hash. The context of the first start is kept.
      overwrite: remove all files of an earlier run, whatever its configuration, and no others.

    Raises:
      ConfigMismatch: the folder holds another configuration; names the first field that differs.
      UserError: the folder holds files but no run, its config.json cannot be read, or another
        process is writing the run.
    """
    path, config = Path(path).resolve(), plain(config)
    contents = {"config": config, "context": plain(context or {})}
    known = []

    def check(found: dict[str, Any]) -> None:
        known.append(found)
        _check_config(path, found, config)

    clear = (lambda: _clear(path)) if overwrite else None
    with folders.writing(path / "config.json", "run", contents, check, clear):
        yield RunDir(path).as_found() if known else RunDir(path)


def find_run(path: str | Path, config: Any) -> RunDir | None:
    """The run in a folder, for reading; None without a config.json.

    Raises:
      ConfigMismatch, UserError: see `open_run`.
    """
    path = Path(path).resolve()
    if not (path / "config.json").is_file():
        return None
    _check_config(path, folders.read_json(path / "config.json"), plain(config))
    return RunDir(path).as_found()


def _check_config(path: Path, known: Mapping[str, Any], config: Any) -> None:
    _check_shape(path / "config.json", known)
    folders.check_same(path, "configuration", known["config"], config)


def _check_shape(file: Path, known: Mapping[str, Any]) -> None:
    """Raises UserError if config.json lacks an entry."""
    for name in ("config", "context"):
        if not isinstance(known.get(name), dict):
            raise UserError(
                f"{file} is damaged (no {name!r}): restore the file, or {folders.AGAIN}"
            )


def _clear(path: Path) -> None:
    """Removes all files of an earlier run but config.json.

    summary.json is removed first, then checkpoints: if this is cut short, the earlier run counts
    as unfinished and starts from the beginning.
    """
    names = ("summary.json", "checkpoints", "metrics", "plots", "tensorboard", "members.csv")
    for name in (*names, "exports"):
        old = path / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        sync_folder(path)


def _cell(value: Any) -> str:
    """A value as text for members.csv: empty for NaN, strings unchanged, the rest as JSON."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _parse(cells: Sequence[str]) -> np.ndarray:
    """A column of members.csv: bool, int64 or float64 if all cells are, strings otherwise."""
    if set(cells) <= {"true", "false"}:
        return np.array([cell == "true" for cell in cells])
    for kind in (int, float):
        try:
            return np.array([kind(cell or "nan") for cell in cells])
        except ValueError:
            pass
    return np.array([csv_text(cell) for cell in cells])


def read_summary(
    file: Path, keys: Collection[str], say: Callable[[str], None] | None = None
) -> dict[str, Any] | None:
    """The contents of a summary.json; None without the file, or if the file is damaged.

    Args:
      keys: entries of a finished run, sweep or search.
      say: called with one line about a damaged file.
    """
    if not file.is_file():
        return None
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["finished"] is not True or set(keys) <= set(known):
            return known
        problem = f"no {min(set(keys) - set(known))!r}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split()) or "no JSON object"
    if say is not None:
        say(f"{file} is damaged ({problem}): the command that made the run writes it again")
    return None


def default_name(agent: str, task: str, config: Any) -> str:
    """The default name of a run, such as "pqn-CartPole-v1-3fa9c2d1".

    The last part is a hash of the resolved configuration.
    """
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    agent, task = (re.sub(r"[^A-Za-z0-9.-]+", "_", x).strip("_.")[-60:] for x in (agent, task))
    return f"{agent}-{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def points_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results of a summary by hyperparameter point; of a run without swept values, one."""
    alone = {"values": {}, "return": summary["return"], "failed": len(summary["failed_members"])}
    return summary.get("points", [alone])


def read_metrics(
    run: RunDir | str | Path,
    stage: str | None = None,
    say: Callable[[str], None] | None = None,
    complete: bool = False,
) -> dict[str, np.ndarray]:
    """All metrics of a run or its folder, which may be in progress; see `metrics.read_parts`.

    Args:
      stage: only this stage, and only the metrics of this stage.
      say: called with one line about damaged parts, and with one about missing parts.
      complete: the last part should be there, too; otherwise, all before the newest one.
    """
    run = run if isinstance(run, RunDir) else RunDir(Path(run))
    columns, damaged = metrics.read_parts(run.path / "metrics", stage)
    if say is not None:
        context = run.config()["context"] if (run.path / "config.json").is_file() else {}
        stages = context.get("stages", {})
        complete = complete and not metrics.all_failed(columns)  # such a run stops early
        missing = metrics.missing(columns, stages, context.get("members", 0), stage, complete)
        for line in metrics.told(run.path / "metrics", damaged, missing):
            say(line)
    return columns
