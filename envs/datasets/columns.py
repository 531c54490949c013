"""Columns of dataset files: the checks that every reader passes, before and after reading.

A reader describes each column by a `Stored` record: shape, dtype and how the values are read.
`Columns` refuses wrong shapes and dtypes before anything is read, and wrong values afterwards.
"""

from __future__ import annotations

import dataclasses
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import UserError
from jaxrl.runs import memory

Rows = Any  # a numpy array [D, ...]; Any, since leaves of a Transition are annotated as jax.Array
INT32 = np.iinfo(np.int32)
PIECE = 2**22  # numbers that are checked at a time
# What zipfile, numpy and h5py raise on damaged files.
DAMAGE = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, EOFError, MemoryError,
    ArithmeticError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Stored(NamedTuple):
    """A column that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def in_memory(x: Any) -> Stored:
    """An array as a column."""
    x = np.asarray(x)
    return Stored(x.shape, x.dtype, lambda: x)


def bad(file: str | Path, key: str, what: str, row: int | None = None) -> UserError:
    """A UserError that names file, key and, if given, the row."""
    place = "" if row is None else f", row {row}"
    text = f"{file}: {key}{place}: {what}"  # names and texts of the file may hold any character
    return UserError("".join(x if x.isprintable() else "?" for x in text))


@contextmanager
def reading(file: str | Path, key: str = "as a whole") -> Iterator[None]:
    """Turns errors of the libraries that read `key` of `file` into a UserError."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise bad(file, key, f"cannot be read, truncated or damaged? ({text:.200})") from None


def first_row(wrong: Callable[..., np.ndarray], *columns: Rows) -> int | None:
    """The first row with a number for which `wrong` is true, or None; works in pieces.

    Args:
      wrong: function of rows [n, ...] of each column, to bool [n, ...].
      columns: arrays [D, ...] of equal length.
    """
    step = max(PIECE // max(columns[0][:1].size, 1), 1)
    for begin in range(0, len(columns[0]), step):
        found = wrong(*(x[begin : begin + step] for x in columns))
        if found.any():
            return begin + int(np.argmax(found.any(axis=tuple(range(1, found.ndim)))))
    return None


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of an untrusted file. All methods raise UserError naming file, key and row."""

    file: str | Path
    stored: Mapping[str, Stored]

    def __contains__(self, key: str) -> bool:
        return key in self.stored

    def find(self, key: str) -> Stored:
        """The column `key`, which must exist, be numeric, and have rows."""
        if key not in self.stored:
            has = ", ".join(sorted(self.stored)) or "nothing"
            raise bad(self.file, key, f"missing; the file has {has:.300}")
        column = self.stored[key]
        if column.dtype.kind not in "fiub":
            raise bad(self.file, key, f"holds {column.dtype}, not numbers")
        if not column.shape or 0 in column.shape:
            raise bad(self.file, key, f"has no rows, its shape is {column.shape}")
        return column

    def floats(self, key: str, rows: int | None = None) -> Rows:
        """Any numbers as float32 [rows, ...]."""
        return self._finite(key, self._values(key, rows), np.float32)

    def scalars(self, key: str, rows: int) -> Rows:
        """A column [rows] or [rows, 1] as float32 [rows]."""
        self._one_per_row(key, rows)
        return self.floats(key, rows).reshape(rows)

    def flags(self, key: str, rows: int) -> Rows:
        """A column [rows] or [rows, 1] of zeros and ones as bool [rows]."""
        self._one_per_row(key, rows)
        x = self._values(key, rows).reshape(rows)
        row = first_row(lambda x: (x != 0) & (x != 1), x)
        if row is not None:
            raise bad(self.file, key, f"must be 0 or 1, not {x[row]}", row)
        return x.astype(bool)

    def observations(self, key: str, like: Rows = None) -> Rows:
        """Bytes and bool as uint8, other numbers as float32, [rows, *obs].

        Args:
          like: observations that must have the same shape and dtype.
        """
        shape = self.find(key).shape
        if like is not None and shape != like.shape:
            raise bad(self.file, key, f"has shape {shape}, other observations {like.shape}")
        x = self._values(key)
        if x.dtype.kind == "b" or x.dtype == np.uint8:
            x = x.view(np.uint8)
        else:
            x = self._finite(key, x, np.float32)
        if like is not None and x.dtype != like.dtype:
            raise bad(self.file, key, f"holds {x.dtype}, other observations {like.dtype}")
        return x

    def actions(self, key: str, rows: int) -> Rows:
        """Floats as float32, integers and bool as int32, [rows, ...]."""
        x = self._values(key, rows)
        return self._finite(key, x, np.float32 if x.dtype.kind == "f" else np.int32)

    def exact(self, key: str, rows: int) -> Rows:
        """Numbers of up to 32 bits as they are, wider ones as float32 or int32, [rows, ...]."""
        x = self._values(key, rows)
        wide = np.float32 if x.dtype.kind == "f" else np.int32
        kept = x.dtype.newbyteorder("=").type if x.dtype.itemsize <= 4 else wide
        return self._finite(key, x, kept)

    def check_memory(self) -> None:
        """Raises UserError unless all columns, with a 32-bit copy, fit into free memory."""
        sizes = self.stored.values()
        copies = sum(prod(x.shape) * min(x.dtype.itemsize, 4) for x in sizes)
        need = copies + max((x.nbytes for x in sizes), default=0)
        memory.check_fits(need, f"{self.file}", "use a smaller dataset or a larger machine")

    def _one_per_row(self, key: str, rows: int) -> None:
        shape = self.find(key).shape
        if shape[0] == rows and prod(shape) != rows:
            raise bad(self.file, key, f"must have one number per row, its shape is {shape}")

    def _values(self, key: str, rows: int | None = None) -> Rows:
        column = self.find(key)
        if rows is not None and column.shape[0] != rows:
            raise bad(self.file, key, f"has {column.shape[0]} rows, other columns have {rows}")
        with reading(self.file, key):
            x = column.read()
        if x.shape != column.shape:
            raise bad(self.file, key, f"has shape {x.shape}, but declares {column.shape}")
        if x.dtype.kind == "b":  # files can hold other bytes
            row = first_row(lambda x: x > 1, x.view(np.uint8))
            if row is not None:
                raise bad(self.file, key, "bool must be stored as 0 or 1", row)
        return x

    def _finite(self, key: str, x: Rows, dtype: Any) -> Rows:
        """`x` as `dtype`, which must hold all values."""
        if np.dtype(dtype) == np.int32 and x.dtype.itemsize >= 4 and x.dtype != np.int32:
            row = first_row(lambda x: (x < INT32.min) | (x > INT32.max), x)
            if row is not None:
                raise bad(self.file, key, f"beyond 32 bits: {x[row].tolist()}", row)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite
            y = x.astype(dtype, copy=False)
        row = first_row(lambda y: ~np.isfinite(y), y) if y.dtype.kind == "f" else None
        if row is not None:
            raise bad(self.file, key, f"NaN or infinite: {str(x[row].tolist()):.80}", row)
        return y
