"""Standard streams of commands: they outlast their readers; what reaches a terminal is text."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from typing import Any, TextIO

FILL = 100  # columns of help texts
SLACK = 10  # by which a writer may break lines earlier


def printable(text: str) -> str:
    """`text` with ? for control characters, which could command the terminal, and for surrogates.

    Names in files may contain them. Newlines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() or x in "\n\t\xa0" else "?" for x in text)


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal; None if `stream`, by default stdout, is a file or a pipe."""
    stream = stream or sys.stdout
    return shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """`text` with its long lines broken between words; a longer word, such as a path, stays whole.

    A width of None, of a file or a pipe, breaks no line.
    """
    if width is None:
        return text
    keep: Any = {"break_long_words": False, "break_on_hyphens": False}
    lines = (textwrap.wrap(x, width, **keep) if len(x) > width else [x] for x in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def filled(text: str, width: int | None) -> str:
    """`text`, filled to `FILL` columns, filled anew for a narrower terminal.

    A line continues the one before, of equal indentation, if its first word would have made that
    one too long. The text of an item of a list is indented by its dash.
    """
    if width is None or width >= FILL:
        return text
    whole: list[str] = []
    before = ""
    for line in text.split("\n"):
        first = (line.split() or [""])[0]
        aligned = len(line) - len(line.lstrip()) == _indentation(before)
        if first not in ("", "-") and aligned and len(before) + len(first) >= FILL - SLACK:
            whole[-1] += f" {line.strip()}"
        else:
            whole.append(line)
        before = line
    lines = []
    for line in whole:
        keep: Any = {"break_long_words": False, "break_on_hyphens": False}
        keep["subsequent_indent"] = " " * _indentation(line)
        lines += textwrap.wrap(line, width, **keep) if len(line) > width else [line]
    return "\n".join(lines)


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip().removeprefix("- "))


class _Outlasting(io.FileIO):
    """A file descriptor whose writes succeed after its reader has gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:  # EPIPE after `| head`, EIO after the terminal was closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def outlast_readers() -> None:
    """Makes stdout and stderr of the process ignore closed pipes and terminals."""
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
        if sys.stdout is not None and sys.stderr is not None:  # None without a console
            sys.stdout, sys.stderr = _outlasting(sys.stdout), _outlasting(sys.stderr)


def _outlasting(stream: TextIO) -> TextIO:
    stream.flush()
    file = io.BufferedWriter(_Outlasting(stream.fileno(), "w", closefd=False))
    lines = stream.isatty() or stream is sys.stderr
    return io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=lines)
