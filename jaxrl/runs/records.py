"""The folder of a run: who it is, what its members did, how it ended.

    config.json              the resolved configuration, and the context it ran in
    members.csv              one row per member
    metrics/part-*.parquet   one row per member and chunk, one column per metric
    summary.json             the results; {"finished": true, ...} once the run is complete
    checkpoints/  plots/  tensorboard/

Every file is written under a temporary name and renamed, so that a reader never sees half of one
and a killed run can always be continued.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import enum
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.errors import UserError

_INDEX = ("stage", "member", "update", "env_steps")  # the first columns of a part
FORMAT = 2  # of config.json, sweep.json and search.json; jaxrl 0.1 wrote no number
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "gymnax", "numpy", "jaxrl")


class ConfigMismatch(UserError):
    """The folder holds a run of another configuration."""


# --- the folder ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RunDir:
    """A run's folder, which may also be one in progress.

    `open_run` makes and checks it; `RunDir(path)` alone is enough to read, or to write a part from
    another process.
    """

    path: Path
    resumed: bool = False  # the folder held this run already
    finished: bool = False  # and it was complete

    def as_found(self) -> RunDir:
        """With `resumed` and `finished` as the folder has them."""
        finished = (self.summary() or {}).get("finished") is True
        return dataclasses.replace(self, resumed=True, finished=finished)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """For as long as a run is written; UserError while another process does. It goes with the
        process, however that ends."""
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
        """{"config": ..., "context": ...} as it was written."""
        return json.loads((self.path / "config.json").read_text())

    def summary(self) -> dict[str, Any] | None:
        """summary.json, None while there is none."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json; with "finished": True among it the run counts as complete."""
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
        """The columns of members.csv [P], as numbers or booleans where they are; {} without it."""
        file = self.path / "members.csv"
        if not file.is_file():
            return {}
        with file.open(newline="", encoding="utf-8") as text:
            names, *rows = csv.reader(text)
        columns = zip(*rows, strict=True) if rows else [()] * len(names)
        return {name: _parse(cells) for name, cells in zip(names, columns, strict=True)}

    def write_part(self, name: str, columns: Mapping[str, ArrayLike]) -> None:
        """Writes metrics/part-`name`.parquet, over an earlier one of that name.

        Args:
          name: orders the parts, and differs between stages, chunks and processes; the same chunk
            of a resumed run has the same name.
          columns: "stage" (a string for all rows or one each), "member", "update", "env_steps", and
            one column of floats per metric; [R] each, or one value for all rows.
        """
        import pyarrow as pa  # late: a third of a second
        import pyarrow.parquet as pq

        if missing := [c for c in _INDEX if c not in columns]:
            raise ValueError(f"part {name} has no column {missing[0]}")
        rest = [c for c in columns if c not in _INDEX]
        arrays = {c: np.asarray(columns[c]) for c in (*_INDEX, *rest)}
        rows = max((a.size for a in arrays.values() if a.ndim), default=1)
        types: dict[str, type] = dict.fromkeys(_INDEX, np.int64) | {"stage": object}
        for c, a in arrays.items():
            if a.shape not in ((), (rows,)):
                raise ValueError(f"part {name}: column {c} is {list(a.shape)}, not [{rows}]")
        table = pa.table({c: np.full(rows, a, types.get(c, _float(a))) for c, a in arrays.items()})
        file = self.path / "metrics" / f"part-{name}.parquet"
        atomic_write(file, lambda out: pq.write_table(table, out))


def open_run(
    path: str | Path,
    config: Any,
    context: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> RunDir:
    """Makes the folder of a run, or opens the one that holds it already.

    One process opens a run for writing at a time. `overwrite` removes what an earlier run wrote,
    of whatever configuration, and nothing else.

    Args:
      path: the folder.
      config: the resolved configuration: whatever `plain` can turn into JSON.
      context: what may differ when the run is continued: versions, device, command line, tile
        width, git hash. The context of the run's start stays.

    Raises:
      ConfigMismatch: the folder holds another configuration; names the first field that differs.
      UserError: the folder holds files but no run, or its config.json cannot be read.
    """
    config, context = plain(config), plain(context or {})
    path = Path(path).resolve()
    file = path / "config.json"
    path.mkdir(parents=True, exist_ok=True)
    for leftover in (*path.glob(".*.tmp"), *path.glob("*/.*.tmp")):
        leftover.unlink(missing_ok=True)
    if not file.is_file() and any(path.iterdir()):
        raise UserError(f"{path} holds files but no config.json: this is not the folder of a run")
    if file.is_file() and not overwrite:
        known = _load(file)
        check_format(path, known)
        check_same(path, "configuration", known["config"], config)
        return RunDir(path).as_found()
    # Checkpoints go first: without them a run cut short here starts anew, never in the middle.
    for name in ("checkpoints", "metrics", "plots", "tensorboard", "summary.json", "members.csv"):
        old = path / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    write_json(file, {"format": FORMAT, "config": config, "context": context})
    return RunDir(path)


def _load(file: Path) -> dict[str, Any]:
    try:
        return {"config": None} | json.loads(file.read_text())
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def check_format(path: Path, known: Mapping[str, Any]) -> None:
    """Raises UserError for the JSON of a folder that another version of jaxrl has made.

    What is not the JSON of a run at all is left to later checks.
    """
    made = known.get("format")
    if made == FORMAT or not {"config", "sweep", "search"} & set(known):
        return
    by = "jaxrl 0.1" if made is None else "another version of jaxrl"
    raise UserError(f"{path} was made by {by} and cannot be read by this version")


def check_same(path: Path, what: str, there: Any, here: Any) -> None:
    """Raises ConfigMismatch, with the first field that differs, where a folder holds another `what`
    than is asked for; both are JSON."""
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
    """A value in members.csv: empty for NaN, text as it is, the rest as in JSON."""
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


def _float(x: np.ndarray) -> type:
    """Single precision for what comes from the device, double for what would lose by it."""
    return np.float64 if x.dtype.kind in "iuf" and x.dtype.itemsize > 4 else np.float32


# --- metrics -------------------------------------------------------------------------------------


def read_metrics(run: RunDir | str | Path, stage: str | None = None) -> dict[str, np.ndarray]:
    """All metrics written so far, ordered by stage (as first met), update and member.

    Args:
      run: the run or its folder, which may be in progress.
      stage: this stage alone, and only the metrics it has.

    Returns:
      Columns [R]: "stage" (strings), "member", "update", "env_steps" (int64), and float64 metrics,
      NaN where a row has none. {} where nothing is written yet. Rows of the same stage, member and
      update, as left by a run resumed on fewer hosts, are one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = run.path if isinstance(run, RunDir) else Path(run)
    files = sorted((path / "metrics").glob("part-*.parquet"))
    tables = [pq.read_table(io.BytesIO(file.read_bytes())) for file in files]
    if stage is not None:
        tables = [table.filter(pc.field("stage") == stage) for table in tables]
    tables = [table for table in tables if table.num_rows]
    if not tables:
        return {}
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    stages = table["stage"].chunk(0).dictionary_encode()  # in order of appearance
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "stage"}
    columns = {c: x if c in _INDEX else x.astype(np.float64) for c, x in columns.items()}
    merged = _merge({"stage": stages.indices.to_numpy()} | columns)
    return merged | {"stage": np.array(stages.dictionary.to_pylist())[merged["stage"]]}


def _merge(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sorts rows; joins those of one stage, update and member, of each metric the last number."""
    keys = np.stack([columns[name] for name in ("stage", "update", "member")])
    order = np.lexsort(keys[::-1])
    keys = keys[:, order]
    first = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))
    if first.all():
        return {name: x[order] for name, x in columns.items()}
    starts, rows = np.flatnonzero(first), np.arange(first.size)
    fallback = starts[np.cumsum(first) - 1]
    merged = {}
    for name, x in columns.items():
        known = ~np.isnan(x[order])
        last = np.maximum.reduceat(np.where(known, rows, fallback), starts)
        merged[name] = x[order][last]
    return merged


# --- names and circumstances ---------------------------------------------------------------------


def default_name(agent: str, task: str, config: Any) -> str:
    """The run's name: "pqn-CartPole-v1-3fa9c2d1", from the resolved configuration alone."""
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    agent, task = (re.sub(r"[^A-Za-z0-9.-]+", "_", x).strip("_.")[-60:] for x in (agent, task))
    return f"{agent}-{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide about results; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_hash(folder: str | Path = ".") -> str | None:
    """The commit of the repository around `folder`, "-dirty" behind it with changes; or None."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


# --- files ---------------------------------------------------------------------------------------


def atomic_write(path: str | Path, data: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that it is seen whole or not at all, even after a crash.

    Args:
      path: the file; its folder is made where it is missing.
      data: the contents, or a function that writes them into an open binary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("wb") as file:
            file.write(data) if isinstance(data, bytes) else data(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `plain(value)` as indented JSON, atomically."""
    text = json.dumps(plain(value), indent=2, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def plain(value: Any) -> Any:
    """The JSON form of numbers, arrays, records and containers of them.

    numpy and JAX scalars become numbers and arrays lists, NaN None, infinities the strings "inf"
    and "-inf", dataclasses and named tuples objects, paths strings, enum members their names,
    functions and classes "module:name".

    Raises:
      TypeError: names what has no such form.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())  # type: ignore[attr-defined]
    if isinstance(value, list | tuple | range):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=json.dumps)
    if hasattr(value, "__array__") and not isinstance(value, type):
        return plain(np.asarray(value).tolist())
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    raise TypeError(f"{value!r} cannot be written as JSON")
