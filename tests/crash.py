"""Folders as a kill or a power failure leaves them, taken before every file operation of some work.

An audit hook sees each operation of Python before it happens, in every thread. Four images are
taken, of a kind each:

    kill   the process dies before the operation: all earlier operations are seen
    half   as kill, and the file that was written last has only half of its new bytes
    torn   power fails: all names are there, but bytes that were not synced are lost
    lost   power fails: names and bytes that were not synced are lost

Files that C++ code writes (checkpoint arrays) are seen when the next operation of Python happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from jaxrl.experiments import train, train_loop
from jaxrl.runs import files

_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Image(NamedTuple):
    """A copy of the folder, before one operation."""

    kind: str  # "kill", "half", "torn" or "lost"
    before: str  # the operation, such as "os.rename .summary.json.7.tmp"
    path: Path


def images(
    folder: Path, into: Path, work: Callable[[], Any], kinds: Sequence[str] = ("kill",)
) -> list[Image]:
    """Runs `work`, which writes into `folder`, and returns images of `folder` without repetitions.

    Args:
      folder: its parent exists and counts as synced; the folder itself may not exist yet.
      into: an empty folder elsewhere, for the copies.
      kinds: the kinds of images.

    Raises:
      Exception: what `work` raises.
    """
    recorder = _Recorder(folder.resolve(), into.resolve(), kinds)
    with _recording(recorder):
        work()
    return recorder.found


def some(found: Sequence[Image], count: int) -> list[Image]:
    """`count` images at even distances, the first and the last among them; all if fewer."""
    if len(found) <= count:
        return list(found)
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Runs of the same identity, seeds aside, and layout compile once, with all continuations.

    Sizes of states, which take a trace, are not computed.
    """
    built: dict[str, dict] = {}
    run = train_loop.run

    def shared(ready: Any, *rest: Any, **more: Any) -> dict[str, float]:
        folder, processes, display, *given = rest
        within = given[0] if given else more.get("within") or train_loop.Within({})
        same = ready.identity | {"seed": 0}
        key = json.dumps(files.plain([same, ready.layout.width, ready.members]))
        within = within._replace(built=built.setdefault(key, {}))
        return run(ready, folder, processes, display, within)

    with mock.patch.object(train_loop, "run", shared):
        nothing = {"abstract_states": lambda ready: []}
        nothing |= {name: lambda ready, states: 1 for name in ("state_bytes", "batch_bytes")}
        with mock.patch.multiple(train, **nothing):
            yield


# --- recording -----------------------------------------------------------------------------------


class _Recorder:
    """Takes images when told of operations; `synced` keeps what survives a power failure."""

    def __init__(self, folder: Path, into: Path, kinds: Sequence[str]) -> None:
        self.folder, self.into, self.kinds = folder, into, kinds
        self.found: list[Image] = []
        self.busy = threading.RLock()
        self.inside = False  # an operation of the recorder itself
        self.seen: set[Any] = set()
        self.written: tuple[Path, int] | None = None  # the last file opened, and its size then
        self.synced = _Synced(folder)

    def operation(self, event: str, args: tuple) -> None:
        with self.busy:
            if self.inside:
                return
            self.inside = True
            try:
                self._operation(event, args)
            finally:
                self.inside = False

    def _operation(self, event: str, args: tuple) -> None:
        path = _path_of(event, args)
        if path is None or not path.is_relative_to(self.folder):
            return
        if event == "open" and not _writes(args):
            return
        if any(".removed." in folder.name for folder in path.parents):
            return  # inside a checkpoint that is being removed, which nothing reads
        self.take(f"{event} {path.relative_to(self.folder)}")
        if event == "open":
            self.written = path, path.stat().st_size if path.exists() else 0

    def take(self, before: str) -> None:
        """Images of every kind before an operation, unless they were taken before."""
        self.image("kill", before, lambda to: _copy(self.folder, to), _listing(self.folder))
        if self.written is not None:
            path, size = self.written
            grown = path.stat().st_size if path.is_file() else 0
            if grown > size:
                what = (path, size, grown, _listing(self.folder))
                self.image("half", before, lambda to: self.halved(to, path, size, grown), what)
        for kind in ("torn", "lost"):
            if kind in self.kinds:
                copy = getattr(self.synced, kind)
                self.image(kind, before, copy, copy(None))

    def image(self, kind: str, before: str, copy: Callable[[Path], Any], what: Any) -> None:
        if kind not in self.kinds or (kind, what) in self.seen:
            return
        self.seen.add((kind, what))
        to = self.into / f"{len(self.found):04d}-{kind}"
        to.mkdir(parents=True)
        try:
            copy(to / self.folder.name)
        except FileNotFoundError:  # another thread has just moved a file: no state of this kind
            shutil.rmtree(to)
            return
        self.found.append(Image(kind, before, to / self.folder.name))

    def halved(self, to: Path, path: Path, size: int, grown: int) -> None:
        _copy(self.folder, to)
        os.truncate(to / path.relative_to(self.folder), (size + grown) // 2)

    def fsync(self, fd: int) -> None:
        with self.busy:
            self.inside = True
            try:
                self.synced.fsync(fd)
            finally:
                self.inside = False

    def close(self) -> None:
        self.synced.close()


class _Synced:
    """What is on disk for certain: by inode, entries of folders and bytes of files at their last
    fsync. Inodes stay open, so that their numbers are not used again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes: dict[int, bytes] = {}
        self.entries: dict[int, dict[str, tuple[int, bool]]] = {}
        self.held: list[int] = []
        for path in (folder.parent, folder, *_walk(folder)):
            if path.exists():
                fd = os.open(path, os.O_RDONLY)
                self.fsync(fd)
                os.close(fd)

    def fsync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if not path.is_relative_to(self.folder.parent):
            return
        self.held.append(os.dup(fd))
        if path.is_dir():
            # Of the folder above, which holds other things too, only this folder.
            names = os.listdir(path) if path != self.folder.parent else [self.folder.name]
            rows = {}
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    rows[name] = (path / name).stat().st_ino, (path / name).is_dir()
            self.entries[path.stat().st_ino] = rows
        elif path.is_file():
            self.bytes[path.stat().st_ino] = path.read_bytes()

    def lost(self, to: Path | None) -> Any:
        """Writes the folder as it survives into `to`; without `to`, a key for the image."""
        parent = self.entries.get(self.folder.parent.stat().st_ino, {})
        found = parent.get(self.folder.name)
        return found and self._lost(to, *found)

    def _lost(self, to: Path | None, inode: int, is_folder: bool) -> Any:
        if not is_folder:
            data = self.bytes.get(inode, b"")
            if to is not None:
                to.write_bytes(data)
            return hash(data)
        if to is not None:
            to.mkdir()
        rows = sorted(self.entries.get(inode, {}).items())
        return tuple((name, self._lost(to and to / name, *row)) for name, row in rows)

    def torn(self, to: Path | None) -> Any:
        """As `lost`, but with all names."""
        rows = []
        for path in (self.folder, *_walk(self.folder)):
            with contextlib.suppress(FileNotFoundError):
                data = None if path.is_dir() else self.bytes.get(path.stat().st_ino, b"")
                rows.append((path.relative_to(self.folder), data))
        for name, data in rows if to is not None else []:
            if data is None:
                (to / name).mkdir(parents=True, exist_ok=True)
            else:
                (to / name).write_bytes(data)
        return tuple((name, hash(data)) for name, data in rows)

    def close(self) -> None:
        for fd in self.held:
            os.close(fd)


_ACTIVE: list[_Recorder] = []
_HOOKED: list[bool] = []


def _hook(event: str, args: tuple) -> None:
    if _ACTIVE and (event == "open" or event in _EVENTS):
        _ACTIVE[0].operation(event, args)


@contextlib.contextmanager
def _recording(recorder: _Recorder) -> Iterator[None]:
    if not _HOOKED:  # an audit hook cannot be removed
        sys.addaudithook(_hook)
        _HOOKED.append(True)
    fsync = os.fsync

    def told(fd: Any) -> None:
        fsync(fd)
        recorder.fsync(fd if isinstance(fd, int) else fd.fileno())

    _ACTIVE.append(recorder)
    try:
        with mock.patch.object(os, "fsync", told):
            yield
        recorder.inside = True
        recorder.take("the end")
    finally:
        _ACTIVE.remove(recorder)
        recorder.close()


def _path_of(event: str, args: tuple) -> Path | None:
    """The file that an operation changes; of a rename, the old name."""
    name, fd = args[0], -1
    if event in ("os.remove", "os.rmdir"):
        fd = args[1]
    elif event in ("os.rename", "os.mkdir"):
        fd = args[2]
    if isinstance(name, int) or name is None:
        return None
    at = os.getcwd() if fd in (-1, None) else os.readlink(f"/proc/self/fd/{fd}")
    return Path(at) / os.fsdecode(name)


def _writes(args: tuple) -> bool:
    _, mode, flags = args
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & _WRITES)


def _walk(folder: Path) -> list[Path]:
    """All files and folders, folders first, without those that another thread removes meanwhile."""
    found = []
    for at, folders, names in os.walk(folder):
        found += [Path(at) / name for name in (*folders, *names)]
    return sorted(found)


def _listing(folder: Path) -> Any:
    """Changes with every change of the folder."""
    rows = []
    for path in _walk(folder):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            what = (found.st_size, found.st_mtime_ns) if path.is_file() else ()
            rows.append((str(path), found.st_ino, what))
    return tuple(rows) if folder.exists() else None


def _copy(folder: Path, to: Path) -> None:
    """A copy, without what another thread removes meanwhile."""
    if not folder.exists():
        return
    to.mkdir()
    for path in _walk(folder):
        there = to / path.relative_to(folder)
        with contextlib.suppress(FileNotFoundError):
            there.mkdir() if path.is_dir() else shutil.copy2(path, there, follow_symlinks=False)
