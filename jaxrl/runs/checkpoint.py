"""Checkpoints of a run: any pytree of arrays, written atomically and verified when read.

    <index>/state/          the leaves as numbered arrays; see `jaxrl.runs.arrays`
    <index>/meta/metadata   JSON: the caller's `meta`; name, type and crc32 of every leaf

Leaves are stored as a flat list of host arrays, so that the tree read back takes its structure from
the target alone: named tuples come back as named tuples.

A checkpoint is complete or absent, even if the process is killed while writing. A checkpoint that
was damaged later is noticed, reported and set aside as "damaged-<index>", and the one before it is
used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.runs.files import atomic_write, make_folder, sync_folder, sync_tree
from jaxrl.types import PyTree

_TMP = "orbax-checkpoint-tmp"  # part of the name of every incomplete checkpoint


class _Skip:
    def __repr__(self) -> str:
        return "SKIP"


SKIP = _Skip()  # in the place of a subtree of a target: neither read nor verified


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read."""

    tree: PyTree  # host numpy arrays and typed keys, in the structure of the target
    meta: dict[str, Any]
    index: int
    notes: list[str]  # one line per damaged checkpoint that was passed over


class CheckpointMismatch(UserError):
    """An undamaged checkpoint whose leaves are not those of the target."""


class _Damaged(Exception):
    """A checkpoint that differs from what was written; the text says where."""


class Checkpoints:
    """The checkpoints in one folder, of which the last `keep` are kept.

    Args:
      path: the folder; created unless `read_only`.
      keep: number of complete checkpoints to keep.
      say: called with one line per damaged checkpoint.
      read_only: write and move nothing, so that the folder of a run in progress can be read.
        Otherwise incomplete checkpoints are removed and damaged ones set aside, so only one process
        may open the folder for writing.

    Each process writes its own folder. No method waits for another process.
    """

    def __init__(
        self,
        path: str | Path,
        keep: int = 2,
        say: Callable[[str], None] | None = None,
        read_only: bool = False,
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept, got keep={keep}")
        self.path = Path(path).resolve()
        self._keep, self._read_only = keep, read_only
        self._say = say or (lambda line: None)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if not read_only:
            make_folder(self.path)
            for folder in self.path.glob(f"*{_TMP}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(self, index: int, tree: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing `tree` and `meta` as checkpoint `index`, after the save before is on disk.

        The arrays are copied before this returns. The files are written in the background; an error
        there is raised by the next `save`, `restore`, `wait` or `close`.

        Args:
          index: greater than the index of every checkpoint in the folder.
          tree: pytree of arrays, typed keys or numbers; each leaf wholly on this process.
          meta: anything JSON can hold; tuples come back as lists.

        Raises:
          TypeError: a leaf is not numeric, or meta is not JSON.
          OSError: ENOSPC, the disk is full; also from `wait` and `close`.
          ValueError: a checkpoint with this or a later index exists.
        """
        if self._read_only:
            raise ValueError(f"{self.path} is open for reading only")
        self.wait()
        if (newest := next(iter(self._indices()), -1)) >= index:
            raise ValueError(f"checkpoint {index} must come after {newest}, the newest there is")
        names, leaves = _flatten(tree)
        arrays = _host(leaves)
        record = _record(names, leaves, arrays, meta)
        self._pending = self._writer.submit(self._write, index, arrays, record)

    def restore(
        self, target: Callable[[dict[str, Any]], PyTree], index: int | None = None
    ) -> Restored | None:
        """Reads the newest undamaged checkpoint; None if there is none.

        Args:
          target: maps the checkpoint's meta to a pytree of ShapeDtypeStructs (or arrays) with the
            expected structure, shapes and dtypes. A Python number in the target is read as a
            Python number. `SKIP` in the place of a subtree leaves this subtree out: its leaves are
            neither read nor verified, and the restored tree has `SKIP` there.
          index: read this checkpoint only, so that several processes read the same one.

        Raises:
          CheckpointMismatch: names the first leaf whose name, shape or dtype differs.
        """
        self.wait()
        notes = []
        for found in self._indices():
            if index not in (None, found):
                continue
            try:
                tree, meta = self._read(found, target)
                return Restored(tree, meta, found, notes)
            except _Damaged as error:
                notes.append(f"checkpoint {found} is damaged and passed over: {error}")
                self._say(notes[-1])
                self._set_aside(found)
        return None

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits, then stops the background thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def _indices(self) -> list[int]:
        """Newest first."""
        found = self.path.iterdir() if self.path.is_dir() else ()
        return sorted((int(x.name) for x in found if x.name.isdecimal()), reverse=True)

    def _write(self, index: int, arrays: Sequence[np.ndarray], record: dict[str, Any]) -> None:
        """Writes a checkpoint under a temporary name, renames it and drops the oldest ones."""
        from jaxrl.runs import arrays as storage  # late: orbax takes a second to import

        folder = self.path / f"{index}.{_TMP}"
        try:
            (folder / "state").mkdir(parents=True)
            if state := {_slot(i): x for i, x in enumerate(arrays) if x.size}:
                storage.write(folder / "state", state)
            atomic_write(folder / "meta" / "metadata", json.dumps(record).encode())
            sync_tree(folder)  # before the new name, and so before any older checkpoint is removed
            folder.rename(self.path / str(index))
            sync_folder(self.path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in self._indices()[self._keep :]:
            self._remove(old)

    def _remove(self, index: int) -> None:
        """A removal cut short leaves an incomplete folder, never a damaged checkpoint."""
        gone = (self.path / str(index)).rename(self.path / f"{index}.removed.{_TMP}")
        shutil.rmtree(gone, ignore_errors=True)

    def _set_aside(self, index: int) -> None:
        if self._read_only:
            return
        aside = self.path / f"damaged-{index}"
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process was first
            (self.path / str(index)).rename(aside)

    def _read(self, index: int, target: Callable) -> tuple[PyTree, dict[str, Any]]:
        try:
            record = json.loads((self.path / str(index) / "meta" / "metadata").read_bytes())
        except (OSError, ValueError) as error:
            raise _unreadable("meta", error) from error
        if not isinstance(record, dict) or record.get("crc32") != _record_crc(record):
            raise _Damaged("its record is not the one that was written")
        expected = target(record["meta"])
        names, wanted = _flatten(expected)
        _check(index, record["leaves"], names, wanted)
        saved = {row["name"]: (_slot(i), row) for i, row in enumerate(record["leaves"])}
        leaves = [
            like if like is SKIP else self._leaf(index, *saved[name], like)
            for name, like in zip(names, wanted, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(expected), leaves), record["meta"]

    def _leaf(self, index: int, slot: str, saved: dict[str, Any], like: Any) -> Any:
        """One leaf as it was saved: verified, and a typed key where the target has one."""
        data = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else _spec(like)
        if math.prod(data.shape):
            x = self._array(index, slot)
        else:
            x = np.zeros(data.shape, data.dtype)
        if x.shape != data.shape or x.dtype != data.dtype or _crc(x) != saved["crc32"]:
            raise _Damaged(f"leaf {saved['name']} is not the one that was written")
        if not _is_key(like):
            return x if hasattr(like, "dtype") else x.item()
        impl = jax.random.key_impl(jnp.empty(0, like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(x), impl=impl)

    def _array(self, index: int, slot: str) -> np.ndarray:
        """One stored array; all errors of orbax and tensorstore become `_Damaged`."""
        from jaxrl.runs import arrays as storage  # late, as above

        try:
            return storage.read(self.path / str(index) / "state", slot)
        except (MemoryError, PermissionError):
            raise  # not damage
        except Exception as error:
            raise _unreadable("state", error) from error


def _unreadable(item: str, error: Exception) -> _Damaged:
    text = next(iter(str(error).splitlines()), "")[:120]
    return _Damaged(f"{item} cannot be read, {type(error).__name__}: {text}")


# --- leaves and the record of them ---------------------------------------------------------------


def _slot(i: int) -> str:
    return f"{i:05d}"


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(tree: PyTree) -> tuple[list[str], list[Any]]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return names, [leaf for _, leaf in paths]


def _host(leaves: list[Any]) -> list[np.ndarray]:
    """Copies in host memory, in C order; of keys, their data."""
    data = jax.device_get([jax.random.key_data(x) if _is_key(x) else x for x in leaves])
    arrays = [np.array(x, order="C") for x in data]
    for x in arrays:
        if not (jnp.issubdtype(x.dtype, np.number) or x.dtype == bool):
            raise TypeError(f"a checkpoint holds numbers, not {x.dtype}")
    return arrays


def _crc(x: np.ndarray) -> int:
    return zlib.crc32(x.reshape(-1).view(np.uint8).data)


def _record(names: list, leaves: list, arrays: list, meta: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": name, "type": _type(leaf if _is_key(leaf) else x), "crc32": _crc(x)}
        for name, leaf, x in zip(names, leaves, arrays, strict=True)
    ]
    record = json.loads(json.dumps({"meta": meta, "leaves": rows}))  # as it will be read back
    return record | {"crc32": _record_crc(record)}


def _record_crc(record: dict[str, Any]) -> int:
    rest = {name: value for name, value in record.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _spec(x: Any) -> Any:
    return x if hasattr(x, "dtype") else np.asarray(x)


def _type(x: Any) -> str:
    """Such as float32[4, 8], or key<fry>[3] for three typed keys."""
    x = _spec(x)
    return f"{x.dtype}{list(x.shape)}"


def _check(index: int, saved: list[dict[str, Any]], names: list[str], wanted: list) -> None:
    """Raises CheckpointMismatch for the first leaf that is not as the target wants it."""
    want = [(name, _type(x)) for name, x in zip(names, wanted, strict=True) if x is not SKIP]
    skipped = [name for name, x in zip(names, wanted, strict=True) if x is SKIP]
    there, here = {row["name"]: row["type"] for row in saved}, dict(want)
    has = [(k, v) for k, v in there.items() if k in here or not _within(k, skipped)]
    if has == want:
        return
    for name in here | dict(has):
        if there.get(name) != here.get(name):
            text = f"leaf {name} is {there.get(name, 'absent')}, not {here.get(name, 'absent')}"
            break
    else:
        text = "its leaves come in another order"
    raise CheckpointMismatch(f"checkpoint {index} is of another configuration: {text}")


def _within(name: str, subtrees: Sequence[str]) -> bool:
    """Whether a leaf lies in one of the subtrees; the name of the whole tree is ""."""
    return any(not top or name == top or name.startswith(f"{top}.") for top in subtrees)
