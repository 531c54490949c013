"""On-disk layout of a run: configuration, metrics per member, results.

    config.json              the resolved configuration, and the context of the run
    members.csv              one row per member
    metrics/part-*.parquet   one row per member and chunk, one column per metric
    summary.json             the results; {"finished": true, ...} once the run is complete
    checkpoints/  plots/  tensorboard/

Every file is written under a temporary name and renamed, so that readers never see incomplete files
and a killed run can be continued.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.errors import UserError
from jaxrl.runs import metrics
from jaxrl.runs.files import atomic_write, plain, write_json

FORMAT = 2  # of config.json, sweep.json and search.json; jaxrl 0.1 wrote no number


class ConfigMismatch(UserError):
    """The folder holds a run with another configuration."""


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The folder of a run, finished or in progress.

    `open_run` creates and checks the folder. `RunDir(path)` is enough for reading, and for writing
    metrics from further processes.
    """

    path: Path
    resumed: bool = False  # the folder already held this run
    finished: bool = False  # the run was complete

    def as_found(self) -> RunDir:
        """This folder with `resumed` set, and `finished` read from summary.json."""
        finished = (self.summary() or {}).get("finished") is True
        return dataclasses.replace(self, resumed=True, finished=finished)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context in which this process is the only writer; the lock ends with the process.

        Raises:
          UserError: another process is writing.
        """
        file = (self.path / ".lock").open("w")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is writing {self.path}") from error
            yield
        finally:
            file.close()

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
        """The contents of config.json: {"config": ..., "context": ...}."""
        return json.loads((self.path / "config.json").read_text())

    def summary(self) -> dict[str, Any] | None:
        """The contents of summary.json; None without the file."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json; an entry "finished": True marks the run as complete."""
        write_json(self.path / "summary.json", summary)

    def write_members(self, columns: Mapping[str, Sequence[Any] | ArrayLike]) -> None:
        """Writes members.csv from columns of one length: id, seed, swept values, final, ..."""
        rows = zip(*(plain(c) for c in columns.values()), strict=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
        atomic_write(self.path / "members.csv", text.getvalue().encode())

    def members(self) -> dict[str, np.ndarray]:
        """The columns [P] of members.csv as booleans, numbers or strings; {} without the file."""
        file = self.path / "members.csv"
        if not file.is_file():
            return {}
        with file.open(newline="", encoding="utf-8") as text:
            names, *rows = csv.reader(text)
        columns = zip(*rows, strict=True) if rows else [()] * len(names)
        return {name: _parse(cells) for name, cells in zip(names, columns, strict=True)}

    def write_part(self, name: str, columns: Mapping[str, ArrayLike]) -> None:
        """Writes metrics/part-`name`.parquet; see `metrics.write_part`."""
        metrics.write_part(self.path / "metrics" / f"part-{name}.parquet", columns)


def open_run(
    path: str | Path,
    config: Any,
    context: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> RunDir:
    """Creates the folder of a run, or opens the folder that already holds this run.

    Only one process may open a run for writing at a time.

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
    config, context = plain(config), plain(context or {})
    path = Path(path).resolve()
    file = path / "config.json"
    path.mkdir(parents=True, exist_ok=True)
    if not file.is_file() and any(x.name != ".lock" for x in path.iterdir()):
        raise UserError(f"{path} holds files but no config.json: this is not the folder of a run")
    if file.is_file() and not overwrite:
        known = _load(file)
        check_format(path, known)
        check_same(path, "configuration", known["config"], config)
        found = RunDir(path).as_found()
        if not found.finished:
            with found.lock():
                _remove_leftovers(path)
        return found
    with RunDir(path).lock():  # before anything of a run in progress is removed
        _start(path, {"format": FORMAT, "config": config, "context": context})
    return RunDir(path)


def _remove_leftovers(path: Path) -> None:
    """Removes incomplete files of killed processes."""
    for leftover in (*path.glob(".*.tmp"), *path.glob("*/.*.tmp")):
        leftover.unlink(missing_ok=True)


def _start(path: Path, contents: Any) -> None:
    """Removes all files of an earlier run and writes config.json."""
    _remove_leftovers(path)
    # Checkpoints are removed first: if this is cut short, the run restarts from the beginning.
    for name in ("checkpoints", "metrics", "plots", "tensorboard", "summary.json", "members.csv"):
        old = path / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    write_json(path / "config.json", contents)


def _load(file: Path) -> dict[str, Any]:
    try:
        return {"config": None} | json.loads(file.read_text())
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def check_format(path: Path, known: Mapping[str, Any]) -> None:
    """Raises UserError for the JSON of a folder that another version of jaxrl has made.

    JSON of another kind is left to later checks.
    """
    made = known.get("format")
    if made == FORMAT or not {"config", "sweep", "search"} & set(known):
        return
    by = "jaxrl 0.1" if made is None else "another version of jaxrl"
    raise UserError(f"{path} was made by {by} and cannot be read by this version")


def check_same(path: Path, what: str, there: Any, here: Any) -> None:
    """Raises ConfigMismatch for the first field in which two JSON values of a `what` differ."""
    old, new = dict(_fields("", there)), dict(_fields("", here))
    for name in new | old:
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if a != b:
            raise ConfigMismatch(
                f"{path} holds another {what}: {name} is {a} there and {b} here; "
                "choose another folder, or overwrite it"
            )


def _fields(name: str, value: Any) -> list[tuple[str, Any]]:
    """Leaves of nested JSON under dotted names; values as text."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {str(index): each for index, each in enumerate(value)}
    if isinstance(value, dict) and value:
        return [x for k, v in value.items() for x in _fields(f"{name}.{k}" if name else k, v)]
    return [(name, json.dumps(value))]


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
    return np.array(cells)


def default_name(agent: str, task: str, config: Any) -> str:
    """The default name of a run, such as "pqn-CartPole-v1-3fa9c2d1".

    The last part is a hash of the resolved configuration.
    """
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    agent, task = (re.sub(r"[^A-Za-z0-9.-]+", "_", x).strip("_.")[-60:] for x in (agent, task))
    return f"{agent}-{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_metrics(run: RunDir | str | Path, stage: str | None = None) -> dict[str, np.ndarray]:
    """All metrics of a run or its folder, which may be in progress; see `metrics.read_parts`."""
    path = run.path if isinstance(run, RunDir) else Path(run)
    return metrics.read_parts(path / "metrics", stage)
