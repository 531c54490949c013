"""Journal file of an Optuna study, in which related operations are stored together or not at all.

A line is an operation of Optuna's journal storage with two more entries: `last` ends a group of
operations, and `check` is a CRC-32 of the line and of all lines before. An incomplete group at the
end was left by a kill and does not count. Lines of other programs, such as optuna-dashboard, have
neither entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.runs import files


class Intact(NamedTuple):
    """The intact groups at the beginning of a journal file.

    Attributes:
      lines: their operations, as JSON.
      check: CRC-32 of all lines.
      size: bytes.
      damaged: number of the first damaged line, 0 if there is none.
    """

    lines: list[bytes]
    check: int
    size: int
    damaged: int


def read(file: Path) -> Intact:
    """Reads a journal up to the first damaged line or incomplete group; empty without a file."""
    data = file.read_bytes() if file.is_file() else b""
    found, check, size, last = Intact([], 0, 0, 0), 0, 0, True
    lines = data.split(b"\n")[:-1]  # behind the last line break: nothing, or half a line
    for index, line in enumerate(lines):
        record = _record(line, check)
        if record is None:
            return found._replace(damaged=index + 1)
        size += len(line) + 1
        check, last = record.get("check", check), record.get("last", last)
        if last:
            found = Intact(lines[: index + 1], check, size, 0)
    return found


def _record(line: bytes, before: int) -> dict[str, Any] | None:
    """The operation of a line; None if the line is damaged, or a line before it is missing."""
    body, checked, told = line.rpartition(b',"check":')
    if checked and told != b"%d}" % zlib.crc32(body, before):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(record, dict) and {"op_code", "worker_id"} <= set(record)
    return record if sound else None


class Journal:
    """Backend of `optuna.storages.JournalStorage`; at most one process writes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines, self._check, *_ = read(file)
        self._pending: list[bytes] = []
        self._grouping = False

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Operations from this index on."""
        yield from map(json.loads, self._lines[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds operations: to the file, or to the group in progress."""
        new = [json.dumps(log, separators=(",", ":")).encode() for log in logs]
        self._lines += new
        self._pending += new
        if not self._grouping:
            self._write()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Context whose operations are written as one group at the end; none after an exception."""
        self._grouping = True
        try:
            yield
        except BaseException:
            self._pending.clear()
            raise
        finally:
            self._grouping = False
        self._write()

    def _write(self) -> None:
        """Appends the pending operations as a group; a kill leaves a group that is incomplete."""
        text = b""
        for left, line in zip(range(len(self._pending))[::-1], self._pending, strict=True):
            body = b'%s,"last":%s' % (line[:-1], b"false" if left else b"true")
            self._check = zlib.crc32(body, self._check)
            text += b'%s,"check":%d}\n' % (body, self._check)
        self._pending.clear()
        with self._file.open("ab") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        files.sync_folder(self._file.parent)


def repair(file: Path) -> str:
    """Removes everything behind the intact groups of a journal; only the writer may call this.

    Returns:
      A line for the user if the journal was damaged, "" otherwise.
    """
    found = read(file)
    if not file.is_file() or found.size == file.stat().st_size:
        return ""
    told = ""
    if found.damaged:
        aside = file.with_name(f"{file.name}.damaged")
        files.atomic_write(aside, file.read_bytes())
        told = (
            f"{file} is damaged from line {found.damaged} on: trials recorded there are proposed "
            f"again; the damaged file is kept as {aside.name}"
        )
    with file.open("r+b") as out:
        out.truncate(found.size)
        os.fsync(out.fileno())
    return told
