"""Files that are seen whole or not at all, even after a crash, and JSON of any record."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import enum
import errno
import io
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxrl.errors import UserError


def atomic_write(path: str | Path, data: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name and renames the file when complete.

    Args:
      path: the file; missing folders are created.
      data: the contents, or a function that writes the contents into an open binary file.
    """
    path = Path(path)
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("wb") as file:
            file.write(data) if isinstance(data, bytes) else data(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def make_folder(path: Path) -> list[Path]:
    """Creates a folder and missing parents so that they survive a power failure; returns the new
    ones, outermost first."""
    missing = list(itertools.takewhile(lambda x: not x.is_dir(), (path, *path.parents)))
    new = []
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was first
            each.mkdir()
            new.append(each)
        sync_folder(each.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return new


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes what `make_folder` has made, if it is still empty."""
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


def check_writable(*given: Path | None) -> None:
    """Raises UserError for a file that cannot be written, before the work that fills it."""
    for file in given:
        if file is None:
            continue
        new = []
        try:
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            new = make_folder(file.parent)
            with tempfile.TemporaryFile(dir=file.parent):
                pass
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from error
        finally:
            remove_empty(new)


def sync_folder(path: Path) -> None:
    """Makes renames and new files in a folder survive a power failure."""
    _sync(path)


def sync_tree(path: Path) -> None:
    """Makes everything in a folder survive a power failure: first files, then folders upwards."""
    found = sorted(path.rglob("*"), key=lambda x: (x.is_dir(), -len(x.parts)))
    for each in (*found, path):
        _sync(each)


def _sync(path: Path) -> None:
    try:
        opened = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not read
        return
    try:
        os.fsync(opened)
    except OSError as error:  # some network file systems refuse
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(opened)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `plain(value)` as indented JSON, atomically."""
    text = json.dumps(plain(value), indent=2, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def plain(value: Any) -> Any:
    """The JSON form of numbers, arrays, records and containers of them.

    numpy and JAX scalars become numbers, arrays become lists, NaN becomes None, and infinities
    become the strings "inf" and "-inf". Dataclasses and named tuples become objects, paths become
    strings, enum members their names, and functions and classes "module:name".

    Raises:
      TypeError: names the value that has no JSON form.
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


def csv_bytes(names: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A CSV file. An apostrophe precedes texts that spreadsheets would run as formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_inert(cell) for cell in row] for row in (names, *rows))
    return text.getvalue().encode(errors="replace")


def csv_text(cell: str) -> str:
    """The text that `csv_bytes` wrote as `cell`."""
    return cell[1:] if cell[:1] == "'" and _inert(cell[1:]) == cell else cell


def _inert(cell: str) -> str:
    if cell[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return cell
    try:
        float(cell)
        return cell
    except ValueError:
        return f"'{cell}"
