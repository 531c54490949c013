"""Files that are seen whole or not at all, even after a crash, and JSON of any record."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


def atomic_write(path: str | Path, data: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name and renames the file when complete.

    Args:
      path: the file; missing folders are created.
      data: the contents, or a function that writes the contents into an open binary file.
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
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Makes renames and new files in a folder survive a power failure."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some network file systems refuse
        pass
    finally:
        os.close(folder)


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
