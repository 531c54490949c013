"""Checkpoints of a population: every process writes its own members, any process reads all.

    checkpoints/0000000-0000512/<index>/   members 0 to 511
    checkpoints/0000512-0001024/<index>/   members 512 to 1,023

An index is one point of the run. A run can continue from an index if its undamaged shards cover all
members. The ranges may differ from those of the run, so a run can continue with more or fewer
processes. All processes need the same file system.

Every shard holds the identity of its run, so that checkpoints of another run are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.errors import UserError
from jaxrl.runs.checkpoint import Checkpoints
from jaxrl.runs.files import plain
from jaxrl.runs.folders import AGAIN, check_same
from jaxrl.runs.processes import ALONE, Processes
from jaxrl.types import PyTree

Range = tuple[int, int]
_REMOVED = ".removed"


class Found(NamedTuple):
    """The shards of one index that hold the requested members, in order of members."""

    meta: dict[str, Any]
    parts: list[tuple[Range, PyTree]]


class Shards:
    """Writes the shard of this process, and reads shards.

    Args:
      path: the folder of all shards.
      identity: what determines the results of the run, as JSON.
      ranges: the members (first, last + 1) of every process; first = last + 1 if it has none.
      keep: number of indices to keep.
      processes: the processes that train the run.
      say: called with one line per damaged checkpoint.
    """

    def __init__(
        self,
        path: Path,
        identity: Any,
        ranges: Sequence[Range],
        keep: int = 2,
        processes: Processes = ALONE,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.ranges, self.processes, self.say = path, list(ranges), processes, say
        self.identity = plain(identity)
        self.own = self.ranges[processes.index]
        # Processes may be one save apart, and the slower one still needs the older index.
        self._keep = keep + (processes.count > 1)
        self._mine: Checkpoints | None = None
        self._saved = False

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: object) -> None:
        if self._mine is not None:
            self._mine.close()

    def restore(
        self, target: Callable[[dict[str, Any], Range], PyTree], members: Range
    ) -> Found | None:
        """Reads `members` from the newest index that is undamaged in all processes.

        `target(meta, range)` is what the shard of `range` is read into; subtrees in whose place it
        has `checkpoint.SKIP` are not read.

        Raises:
          UserError: a checkpoint is that of another run; raised in all processes.
        """
        known = indices(self.path)
        count = self.ranges[-1][1]
        candidates = [i for i in sorted(known, reverse=True) if cover(known[i], (0, count))]
        # The leader's view of the folder is the one that counts.
        listed = self.processes.broadcast(" ".join(map(str, candidates)))
        for index in map(int, listed.split()):
            found, problem = None, ""
            try:
                found = read(
                    self.path, self.identity, index, members, target, self.say, read_only=False
                )
            except UserError as error:
                problem = str(error)
            self.processes.raise_first(problem)
            if self.processes.all_true(found is not None):
                self._drop_after(index)
                return found
        self._drop_after(-1)
        return None

    def save(self, index: int, tree: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing this process's shard of `index`, once all processes finished the last."""
        self.wait()
        if self.own[0] == self.own[1]:
            return
        if self._mine is None:
            self._mine = Checkpoints(self.path / folder(self.own), self._keep, self.say)
        self._mine.save(index, tree, meta | {"identity": self.identity})
        self._saved = True

    def wait(self) -> None:
        """Returns when the last save of every process is on disk."""
        if self._mine is not None:
            self._mine.wait()
        if self.processes.all_true(True) and self._saved and self.processes.leads:
            self._remove_others()
            self._saved = False

    def _drop_after(self, index: int) -> None:
        """Removes later indices of this shard, which other processes could not read."""
        for later in (self.path / folder(self.own)).glob("[0-9]*"):
            if later.name.isdecimal() and int(later.name) > index:
                shutil.rmtree(later, ignore_errors=True)

    def _remove_others(self) -> None:
        """Removes shards of earlier ranges, once all current shards are written."""
        current = {folder(r) for r in self.ranges}
        for other in self.path.iterdir():
            if other.is_dir() and other.name not in current:
                if not other.name.endswith(_REMOVED):  # renamed first: no shard is half removed
                    other = other.rename(other.with_name(f"{other.name}{_REMOVED}"))
                shutil.rmtree(other, ignore_errors=True)


def folder(members: Range) -> str:
    """The folder name of a shard, such as "0000000-0000512"."""
    return f"{members[0]:07d}-{members[1]:07d}"


def indices(path: Path) -> dict[int, list[Range]]:
    """The ranges of the shards of every index."""
    known: dict[int, list[Range]] = {}
    for shard in sorted(path.glob("*-*")):
        first, _, last = shard.name.partition("-")
        if first.isdecimal() and last.isdecimal() and shard.is_dir():
            for index in shard.iterdir():
                if index.name.isdecimal():
                    known.setdefault(int(index.name), []).append((int(first), int(last)))
    return known


def cover(ranges: Sequence[Range], members: Range) -> list[Range]:
    """The fewest of `ranges` that together hold all of `members`, in order; [] if impossible."""
    chosen, at = [], members[0]
    while at < members[1]:
        best = max((r for r in ranges if r[0] <= at), key=lambda r: r[1], default=(0, 0))
        if best[1] <= at:
            return []
        chosen.append(best)
        at = best[1]
    return chosen


def read(
    path: Path,
    identity: Any,
    index: int,
    members: Range,
    target: Callable[[dict[str, Any], Range], PyTree],
    say: Callable[[str], None] | None = None,
    read_only: bool = True,
) -> Found | None:
    """Reads the shards of `index` that hold `members`; None if undamaged shards do not suffice.

    Raises:
      ConfigMismatch: a shard is that of a run with another identity.
    """

    def checked(meta: dict[str, Any], part: Range) -> PyTree:
        remedy = f"put back those of this run, or {AGAIN}"
        check_same(path, "run's checkpoints", meta.get("identity"), identity, remedy)
        return target(meta, part)

    known = indices(path).get(index, [])
    while chosen := cover(known, members):
        meta, parts = {}, []
        for part in chosen:
            with Checkpoints(path / folder(part), say=say, read_only=read_only) as checkpoints:
                restored = checkpoints.restore(lambda meta: checked(meta, part), index)  # noqa: B023
            if restored is None:
                known.remove(part)  # others may hold the same members
                break
            meta = restored.meta
            parts.append((part, restored.tree))
        else:
            return Found(meta, parts)
    return None


def newest(
    path: Path,
    identity: Any,
    members: Range,
    target: Callable[[dict[str, Any], Range], PyTree],
    say: Callable[[str], None] | None = None,
) -> Found | None:
    """The newest undamaged index that holds `members`, of a run that may be in progress.

    Subtrees in whose place `target(meta, range)` has `checkpoint.SKIP` are not read. `say` is
    called with one line per damaged checkpoint.
    """
    for index in sorted(indices(path), reverse=True):
        if found := read(path, identity, index, members, target, say):
            return found
    return None
