"""Metrics of a run: Parquet files, one row per member and chunk, one column per metric.

A part has a checksum of all its other bytes between the columns and the footer, where readers of
Parquet do not look. A damaged part is left out, and so is never read as other numbers.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.program import chunk_ends
from jaxrl.runs.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

_INDEX = ("stage", "member", "update", "env_steps")  # the first columns of a part
_SEAL = b"crc32"  # followed by four bytes; both come before the footer


class Missing(NamedTuple):
    """Rows that a run should have.

    Attributes:
      name: of the part, without its first member.
      members: number of members without a row.
    """

    name: str
    stage: str
    update: int
    members: int


class _Damaged(Exception):
    """A part that differs from what was written."""


def part_name(stage: int, update: int, first: int | str) -> str:
    """The file name of a part, such as "part-00-0000000512-0000000.parquet"; its order is that of
    stages, updates and members."""
    first = first if isinstance(first, str) else f"{first:07d}"
    return f"part-{stage:02d}-{update:010d}-{first}.parquet"


def write_part(file: Path, columns: Mapping[str, ArrayLike]) -> None:
    """Writes one part, over an earlier part of the same name.

    Args:
      file: the name orders the parts, and differs between stages, chunks and processes; the same
        chunk of a resumed run has the same name.
      columns: "stage" (a string for all rows or one each), "member", "update", "env_steps", and
        one column of floats per metric; [R] each, or one value for all rows.

    Raises:
      ValueError: an index column is missing, or the lengths differ.
    """
    import pyarrow as pa  # late: a third of a second
    import pyarrow.parquet as pq

    if missing := [c for c in _INDEX if c not in columns]:
        raise ValueError(f"{file.name} has no column {missing[0]}")
    rest = [c for c in columns if c not in _INDEX]
    arrays = {c: np.asarray(columns[c]) for c in (*_INDEX, *rest)}
    rows = max((a.size for a in arrays.values() if a.ndim), default=1)
    types: dict[str, type] = dict.fromkeys(_INDEX, np.int64) | {"stage": object}
    for c, a in arrays.items():
        if a.shape not in ((), (rows,)):
            raise ValueError(f"{file.name}: column {c} is {list(a.shape)}, not [{rows}]")
    full = {c: np.full(rows, a, types.get(c, _float(a))) for c, a in arrays.items()}
    table = pa.table({c: _to_arrow(a) for c, a in full.items()})
    out = io.BytesIO()
    pq.write_table(table, out)
    atomic_write(file, _seal(out.getvalue()))


def _to_arrow(x: np.ndarray) -> pa.Array:
    """A column of numbers or, if the dtype is object, of strings.

    From buffers, since `pyarrow.array` imports pandas if it is installed, in a third of a second.
    """
    import pyarrow as pa

    if x.dtype != object:
        return pa.Array.from_buffers(pa.from_numpy_dtype(x.dtype), x.size, [None, pa.py_buffer(x)])
    words = [str(word).encode() for word in x]
    ends = np.cumsum([0, *map(len, words)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(words))]
    return pa.Array.from_buffers(pa.string(), x.size, buffers)


def _seal(data: bytes) -> bytes:
    """A Parquet file with its checksum before the footer."""
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:at] + _SEAL + zlib.crc32(data).to_bytes(4, "little") + data[at:]


def _unseal(data: bytes) -> bytes:
    """The Parquet file as it was before `_seal`; raises `_Damaged` for any other bytes."""
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    start = at - len(_SEAL) - 4
    if start < 0 or data[start : at - 4] != _SEAL:
        raise _Damaged("no checksum")
    whole = data[:start] + data[at:]
    if zlib.crc32(whole) != int.from_bytes(data[at - 4 : at], "little"):
        raise _Damaged("another checksum")
    return whole


def _float(x: np.ndarray) -> type:
    """float32 for values of at most 32 bits, float64 for wider ones."""
    return np.float64 if x.dtype.kind in "iuf" and x.dtype.itemsize > 4 else np.float32


def read_parts(
    path: str | Path, stage: str | None = None, after: tuple[int, int] = (-1, -1)
) -> tuple[dict[str, np.ndarray], list[str]]:
    """All metrics written so far, ordered by stage (as first met), update and member.

    Args:
      path: the folder of the parts, to which a run in progress may be writing.
      stage: only this stage, and only the metrics of this stage.
      after: only parts beyond this one: (index of the stage, update).

    Returns:
      Columns [R]: "stage" (strings), "member", "update", "env_steps" (int64), and float64 metrics,
      NaN where a row has no value. {} while nothing is written. Rows of the same stage, member and
      update, as left by a run resumed on fewer processes, are merged. The names of damaged parts,
      whose rows are left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, damaged = [], []
    last = part_name(*after, "~") if min(after) >= 0 else ""  # "~" is behind all numbers
    for file in sorted(Path(path).glob("part-*.parquet")):
        if file.name <= last:
            continue
        try:
            part = pq.ParquetFile(pa.BufferReader(_unseal(file.read_bytes())))
            # No threads: one that lets go of Python's bytes while the process ends aborts it.
            tables.append(part.read(use_threads=False))
        except (_Damaged, OSError):
            damaged.append(file.name)
    tables = [table for table in tables if table.num_rows]
    if stage is not None:
        tables = [found for table in tables if (found := _rows_of(table, stage)).num_rows]
    if not tables:
        return {}, damaged
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    stages = table["stage"].chunk(0).dictionary_encode()  # in order of appearance
    columns = {name: _to_numpy(table[name]) for name in table.column_names if name != "stage"}
    columns = {c: x if c in _INDEX else x.astype(np.float64) for c, x in columns.items()}
    merged = _merge({"stage": np.from_dlpack(stages.indices)} | columns)
    names = np.array(stages.dictionary.to_pylist())[merged["stage"]]
    return merged | {"stage": names}, damaged


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a column of one chunk; `to_numpy` would import pandas, see `_to_arrow`."""
    return column.to_numpy() if column.null_count else np.from_dlpack(column.chunk(0))


def _rows_of(table: pa.Table, stage: str) -> pa.Table:
    """The rows of one stage. Parts of a run have one stage each, so most are whole or empty."""
    stages = table["stage"].to_pylist()
    if set(stages) == {stage}:
        return table
    return table.take(_to_arrow(np.flatnonzero([name == stage for name in stages])))


def missing(
    columns: Mapping[str, np.ndarray],
    stages: Mapping[str, Mapping[str, Any]],
    members: int,
    only: str | None = None,
    complete: bool = False,
) -> list[Missing]:
    """Rows that a run should have but has not.

    Args:
      columns: see `read_parts`.
      stages: of every stage, the arguments of `program.chunk_ends`.
      members: number of members, each of which has a row per chunk.
      only: the stage that `columns` are limited to.
      complete: the last chunk is expected, too; otherwise, all before the newest one.
    """
    found, newest = [], (-1, -1)
    names = list(stages)
    for index, name in enumerate(names):
        if only not in (None, name):
            continue
        rows = columns["update"][columns["stage"] == name] if columns else np.zeros(0, int)
        if rows.size:
            newest = index, int(rows.max())
        counts = dict(zip(*np.unique(rows, return_counts=True), strict=True))
        for end in chunk_ends(**stages[name]):
            if absent := members - counts.get(end, 0):
                found.append(((index, end), Missing(part_name(index, end, "*"), name, end, absent)))
    return [each for at, each in found if complete or at < newest]


def all_failed(columns: Mapping[str, np.ndarray]) -> bool:
    """Whether no member is finite in the newest rows of `read_parts`."""
    if "finite" not in columns:
        return False
    newest = columns["stage"] == columns["stage"][-1]
    newest &= columns["update"] == columns["update"][newest].max()
    return not np.any(columns["finite"][newest] == 1)


def told(path: Path, damaged: Sequence[str], absent: Sequence[Missing]) -> list[str]:
    """At most one line about damaged parts, and one about missing ones that are not damaged."""
    lines = []
    if damaged:
        more = f" and {len(damaged) - 1} more are" if len(damaged) > 1 else " is"
        lines.append(f"{path / damaged[0]}{more} damaged and left out")
    stems = {name.rpartition("-")[0] for name in damaged}
    if absent := [each for each in absent if each.name.rpartition("-")[0] not in stems]:
        first = absent[0]
        more = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
        lines.append(
            f"{path / first.name}{more} missing: members without metrics at update "
            f"{first.update} of stage {first.stage}: {first.members}"
        )
    return lines


def by_chunk(columns: Mapping[str, Any], members: int) -> dict[str, np.ndarray]:
    """Columns [R] of one stage as [C, P], by chunk and member.

    A member without a row has NaN, but "update" and "env_steps" of the chunk.

    Raises:
      ValueError: a member has two rows of an update, as in the columns of several stages.
    """
    updates, chunk = np.unique(columns["update"], return_inverse=True)
    places = chunk * members + columns["member"]
    if len(np.unique(places)) < len(places):
        raise ValueError("rows of several stages: pass read_metrics the name of one")
    found = {}
    for name in (name for name in columns if name != "stage"):
        values = columns[name]
        kind = np.issubdtype(values.dtype, np.integer)
        table = np.full((updates.size, members), 0 if kind else np.nan, values.dtype)
        table[chunk, columns["member"]] = values
        found[name] = table
    for name in ("update", "env_steps"):
        found[name] = np.broadcast_to(found[name].max(1, keepdims=True), found[name].shape)
    return found | {"member": np.broadcast_to(np.arange(members), (updates.size, members))}


def _merge(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sorts rows, and merges rows of the same stage, update and member.

    A merged row has the last number of each metric that is not NaN.
    """
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
