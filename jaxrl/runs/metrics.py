"""Metrics of a run: Parquet files, one row per member and chunk, one column per metric."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.runs.files import atomic_write

_INDEX = ("stage", "member", "update", "env_steps")  # the first columns of a part


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
    table = pa.table({c: np.full(rows, a, types.get(c, _float(a))) for c, a in arrays.items()})
    atomic_write(file, lambda out: pq.write_table(table, out))


def _float(x: np.ndarray) -> type:
    """float32 for values of at most 32 bits, float64 for wider ones."""
    return np.float64 if x.dtype.kind in "iuf" and x.dtype.itemsize > 4 else np.float32


def read_parts(path: str | Path, stage: str | None = None) -> dict[str, np.ndarray]:
    """All metrics written so far, ordered by stage (as first met), update and member.

    Args:
      path: the folder of the parts, to which a run in progress may be writing.
      stage: only this stage, and only the metrics of this stage.

    Returns:
      Columns [R]: "stage" (strings), "member", "update", "env_steps" (int64), and float64 metrics,
      NaN where a row has no value. {} while nothing is written. Rows of the same stage, member and
      update, as left by a run resumed on fewer processes, are merged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = sorted(Path(path).glob("part-*.parquet"))
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
