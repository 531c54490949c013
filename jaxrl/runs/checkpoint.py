"""Checkpoints of a run: any pytree of arrays, written atomically, checked when read back.

A thin layer over orbax's CheckpointManager. Leaves are stored as a flat list of host arrays, so
that what is read back takes its structure from the target alone: named tuples come back as named
tuples, whatever they are made of. Beside them lies a JSON record with the caller's `meta` and
name, shape, dtype and crc32 of every leaf.

A checkpoint is complete or absent, even if the process is killed while writing. One that was
damaged later is noticed, reported, set aside as "damaged-<index>", and the one before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.types import PyTree

_TMP = "orbax-checkpoint-tmp"  # part of the name of every unfinished write of orbax


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found."""

    tree: PyTree  # host numpy arrays and typed keys, in the structure of the target
    meta: dict[str, Any]
    index: int
    notes: list[str]  # one line per damaged checkpoint that was passed over


class CheckpointMismatch(UserError):
    """A sound checkpoint whose leaves are not those of the target."""


class _Damaged(Exception):
    """A checkpoint that cannot be read back as it was written; the text says why."""


class Checkpoints:
    """The checkpoints in one folder, of which the last `keep` are kept.

    Args:
      path: the folder; created unless `read_only`.
      keep: how many complete checkpoints stay.
      say: called with each line about a damaged checkpoint.
      read_only: neither write nor move anything, so that the folder of a run in progress can be
        read. Unfinished writes are removed and damaged checkpoints set aside otherwise, so one
        writer at a time.

    Every process opens its own: nothing here waits for other processes.
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
        self.path = Path(path).resolve()  # orbax fails late, in its thread, on relative paths
        self._say = say or (lambda line: None)
        self._read_only = read_only
        if not read_only:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in self.path.glob(f"*{_TMP}*"):
                shutil.rmtree(folder, ignore_errors=True)
        self._manager = self._open(keep)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(self, index: int, tree: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing `tree` and `meta` as checkpoint `index`, above all earlier ones.

        The arrays are copied before this returns; the files follow in the background, and an error
        there is raised by the next `save`, `wait` or `close`.

        Args:
          tree: pytree of arrays, typed keys or numbers; each leaf wholly on this process.
          meta: anything JSON can hold; tuples come back as lists.

        Raises:
          TypeError: a leaf is not numeric, or meta is not JSON.
          OSError: ENOSPC, the disk is full; also from `wait` and `close`.
          ValueError: a checkpoint with this or a later index exists.
        """
        if self._read_only:
            raise ValueError(f"{self.path} is open for reading only")
        args = _orbax().args
        names, leaves = _flatten(tree)
        arrays = _host(leaves)
        record = _record(names, leaves, arrays, meta)
        # orbax refuses arrays without elements, and trees without arrays
        state = {_slot(i): x for i, x in enumerate(arrays) if x.size}
        state = args.PyTreeSave(state or {"none": np.zeros(1, np.int8)})
        items = args.Composite(state=state, meta=args.JsonSave(record))
        with _plain_errors():
            done = self._manager.save(index, args=items)
        if not done:
            newest = self._manager.latest_step()
            raise ValueError(f"checkpoint {index} must come after {newest}, the newest there is")

    def restore(
        self, target: Callable[[dict[str, Any]], PyTree], index: int | None = None
    ) -> Restored | None:
        """Reads the newest sound checkpoint; None where there is none.

        Args:
          target: maps the checkpoint's meta to a pytree of ShapeDtypeStructs (or arrays) with the
            structure, shapes and dtypes expected; where it has a number of Python's own, one comes
            back.
          index: only this one, so that several processes surely read the same.

        Raises:
          CheckpointMismatch: names the first leaf whose name, shape or dtype is another one.
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
        with _plain_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then stops the background threads."""
        try:
            self.wait()
        finally:
            with _plain_errors():
                self._manager.close()

    def _open(self, keep: int) -> Any:
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            create=False,
            read_only=self._read_only,
            lightweight_initialize=True,  # does not read what may be damaged
        )
        return ocp.CheckpointManager(self.path, options=options, item_names=("state", "meta"))

    def _indices(self) -> list[int]:
        """Newest first. Not the manager's own list, which may omit damaged ones."""
        found = self.path.iterdir() if self.path.is_dir() else ()
        return sorted((int(x.name) for x in found if x.name.isdecimal()), reverse=True)

    def _set_aside(self, index: int) -> None:
        if self._read_only:
            return
        aside = self.path / f"damaged-{index}"
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process was first
            (self.path / str(index)).rename(aside)
        self._manager.reload()

    def _read(self, index: int, target: Callable) -> tuple[PyTree, dict[str, Any]]:
        args = _orbax().args
        record = self._item(index, meta=args.JsonRestore())
        if not isinstance(record, dict) or record.get("crc32") != _record_crc(record):
            raise _Damaged("its record is not the one that was written")
        expected = target(record["meta"])
        names, wanted = _flatten(expected)
        _check(index, record["leaves"], names, wanted)
        # One leaf at a time: it is no slower, and where several fail together orbax ends its event
        # loop before the last of them reports, which tensorstore then prints.
        rows = enumerate(zip(record["leaves"], wanted, strict=True))
        leaves = [self._leaf(index, _slot(i), saved, like) for i, (saved, like) in rows]
        return jax.tree.unflatten(jax.tree.structure(expected), leaves), record["meta"]

    def _leaf(self, index: int, slot: str, saved: dict[str, Any], like: Any) -> Any:
        """One leaf as it was saved: verified, and a typed key where the target has one."""
        ocp = _orbax()
        data = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else _spec(like)
        if math.prod(data.shape):
            part = ocp.args.PyTreeRestore(
                item={slot: 0},
                restore_args={slot: ocp.RestoreArgs(restore_type=np.ndarray)},
                partial_restore=True,
            )
            x = np.asarray(self._item(index, state=part).get(slot))
        else:
            x = np.zeros(data.shape, data.dtype)
        if x.shape != data.shape or x.dtype != data.dtype or _crc(x) != saved["crc32"]:
            raise _Damaged(f"leaf {saved['name']} is not the one that was written")
        if not _is_key(like):
            return x if hasattr(like, "dtype") else x.item()
        impl = jax.random.key_impl(jnp.empty(0, like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(x), impl=impl)

    def _item(self, index: int, **item: Any) -> Any:
        """One item of one checkpoint; whatever orbax or tensorstore raise becomes `_Damaged`."""
        (name,) = item
        try:
            return self._manager.restore(index, args=_orbax().args.Composite(**item))[name]
        except (MemoryError, PermissionError):
            raise  # no fault of the checkpoint
        except Exception as error:
            text = next(iter(str(error).splitlines()), "")[:120]
            raise _Damaged(f"{name} cannot be read, {type(error).__name__}: {text}") from error


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
    """Host arrays in C order; of keys, their data."""
    data = jax.device_get([jax.random.key_data(x) if _is_key(x) else x for x in leaves])
    arrays = [np.asarray(x, order="C") for x in data]
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
    has = [(row["name"], row["type"]) for row in saved]
    want = [(name, _type(x)) for name, x in zip(names, wanted, strict=True)]
    if has == want:
        return
    there, here = dict(has), dict(want)
    for name in here | there:
        if there.get(name) != here.get(name):
            text = f"leaf {name} is {there.get(name, 'absent')}, not {here.get(name, 'absent')}"
            break
    else:
        text = "its leaves come in another order"
    raise CheckpointMismatch(f"checkpoint {index} is of another configuration: {text}")


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A full disk as the OSError that it is."""
    try:
        yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "No space left" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "no space left for a checkpoint") from error


def _orbax() -> Any:
    """orbax, imported late since that takes a second, and silent: its errors are raised anyway.

    It is told that each process is the only one. Of several it would let the first alone write host
    arrays, all waiting for each other; here each writes its own members into its own folder.
    """
    import orbax.checkpoint as ocp
    from absl import logging
    from orbax.checkpoint._src.multihost import multihost

    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)  # of a failed save, one error of each leaf
    multihost.process_index, multihost.process_count = (lambda: 0), (lambda: 1)
    multihost.should_skip_process_sync = lambda processes=None: True
    multihost.is_jax_distributed_client_initialized = lambda: False
    return ocp
