"""`.npz` files, with the names of `layout` and a JSON text `meta`.

NeoRL-2's files have the columns obs, action, reward, next_obs, done and truncated, where done means
terminated. Sizes are read from the headers before any array, and the checksums of all arrays that
are read are verified.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs.datasets import layout, meta
from jaxrl.envs.datasets.columns import Columns, Stored, bad, reading
from jaxrl.runs.files import atomic_write, plain
from jaxrl.types import Transition

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(file: Path) -> layout.Read:
    """Reads the layouts of the module docstring.

    Raises:
      UserError: a damaged file, or missing or invalid columns.
    """
    with reading(file), zipfile.ZipFile(file) as archive:
        members = [x for x in archive.infolist() if x.filename.endswith(".npy")]
        if _entries(file) not in (None, len(archive.infolist())):
            raise ValueError("entries are missing")
        stored = {x.filename.removesuffix(".npy"): _stored(file, archive, x) for x in members}
        columns = Columns(file, stored)
        columns.check_memory()
        about = _meta(file, stored["meta"]) if "meta" in stored else {}
        return layout.parse(columns), about


def _entries(file: Path) -> int | None:
    """Number of entries by the last record of a zip file, which zipfile does not compare."""
    with file.open("rb") as opened:
        opened.seek(-22, io.SEEK_END)
        record = opened.read()
    count = int.from_bytes(record[10:12], "little")
    return count if record.startswith(b"PK\5\6") and count < 2**16 - 1 else None


def _stored(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    """The column in a member of the archive, by its header."""
    key = member.filename.removesuffix(".npy")

    def read() -> np.ndarray:
        with archive.open(member) as opened:
            x = np.lib.format.read_array(opened, allow_pickle=False)
            if opened.read(1):  # also makes zipfile compare the checksum, at the end of the member
                raise ValueError("bytes follow the array")
            return x

    with reading(file, key), archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        if version not in HEADERS:
            raise ValueError(f"unknown header {version}")
        shape, _, dtype = HEADERS[version](opened)
    found = Stored(shape, dtype, read)
    if min(shape, default=0) < 0 or (found.nbytes > member.file_size and not dtype.hasobject):
        size = f"shape {shape} of {dtype} does not fit into {member.file_size} bytes"
        raise bad(file, key, f"truncated or damaged, {size}")
    return found


def _meta(file: Path, column: Stored) -> dict[str, Any]:
    if column.dtype.kind not in "US" or column.shape not in ((), (1,)):
        raise bad(file, "meta", f"must be a text, not {column.dtype} of shape {column.shape}")
    with reading(file, "meta"):
        text = column.read().item()
    return meta.parse(file, "meta", text)


def write(file: Path, t: Transition, about: Mapping[str, Any]) -> None:
    """Writes the arrays, compressed, and `about` as `meta`; atomically."""
    columns: dict[str, Any] = layout.arrays(t) | {"meta": np.array(json.dumps(plain(about)))}
    atomic_write(file, lambda to: np.savez_compressed(to, **columns))
