"""Checks of the columns of datasets, for all readers; `.npz` files.

Readers return (`Transition`, meta) with numpy leaves [D, ...]: float32, bool flags, int32 discrete
actions. An episode ends at a row that is terminated or truncated, never both; the next row has
`start`.

`read_npz` reads two layouts:

    jaxrl      obs action reward next_obs terminated truncated start, extras/NAME, state/0 ..., and
               meta, a JSON text; written by `write_npz`
    NeoRL-2    obs action reward next_obs done truncated, where done means terminated

The columns obs, action, reward, next_obs and terminated (or done) are sufficient. Without truncated
and start, an episode also ends at a row whose next_obs differs from the obs of the next row.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.runs.files import atomic_write, plain
from jaxrl.types import Transition

Rows = Any  # a numpy array [D, ...]; Any, since leaves of a Transition are annotated as jax.Array
Read = tuple[Transition, dict[str, Any]]

NEEDED = ("obs", "action", "reward", "next_obs")


def bad(file: str | Path, key: str, what: str, row: int | None = None) -> UserError:
    """A UserError that names file, key and, if given, the row."""
    place = "" if row is None else f", row {row}"
    return UserError(f"{file}: {key}{place}: {what}")


# --- columns -------------------------------------------------------------------------------------


def find(file: Path, columns: Mapping[str, Any], key: str) -> Any:
    """The column `key`.

    Raises:
      UserError: the column is missing.
    """
    if key not in columns:
        raise bad(file, key, f"missing; the file has {', '.join(sorted(columns)) or 'nothing'}")
    return columns[key]


def numbers(file: Path, key: str, x: Any, rows: int | None = None) -> Rows:
    """Finite numbers [rows, ...]: floats as float32, integers as int32, bool as bool.

    Raises:
      UserError: another number of rows, no rows, not numeric, NaN or infinite values.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise bad(file, key, f"holds {x.dtype}, not numbers")
    if x.ndim == 0 or not x.shape[0]:
        raise bad(file, key, f"has no rows, its shape is {x.shape}")
    if rows is not None and x.shape[0] != rows:
        raise bad(file, key, f"has {x.shape[0]} rows, other columns have {rows}")
    kind = {"f": np.float32, "b": np.bool_}.get(x.dtype.kind, np.int32)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused below
        x = x.astype(kind)
    broken = ~np.isfinite(x).reshape(x.shape[0], -1).all(1)
    if broken.any():
        row = int(np.argmax(broken))
        raise bad(file, key, f"NaN or infinite: {x[row].tolist()}", row)
    return x


def scalars(file: Path, key: str, x: Any, rows: int) -> Rows:
    """A column [rows] or [rows, 1] as float32 [rows].

    Raises:
      UserError: as `numbers`, or more than one number per row.
    """
    x = numbers(file, key, x, rows)
    if x.size != rows:
        raise bad(file, key, f"must have one number per row, its shape is {x.shape}")
    return x.reshape(rows).astype(np.float32)


def flags(file: Path, key: str, x: Any, rows: int) -> Rows:
    """A column of zeros and ones as bool [rows].

    Raises:
      UserError: as `scalars`, or another value than 0 and 1.
    """
    x = scalars(file, key, x, rows)
    other = (x != 0) & (x != 1)
    if other.any():
        row = int(np.argmax(other))
        raise bad(file, key, f"must be 0 or 1, not {x[row]:g}", row)
    return x.astype(bool)


def observations(file: Path, key: str, x: Any, like: Rows = None) -> Rows:
    """A column of observations as float32 [rows, *obs].

    Args:
      like: observations that must have the same shape.

    Raises:
      UserError: as `numbers`, or a shape other than that of `like`.
    """
    x = numbers(file, key, x, None if like is None else like.shape[0]).astype(np.float32)
    if like is not None and x.shape != like.shape:
        raise bad(file, key, f"has shape {x.shape}, other observations {like.shape}")
    return x


def starts(done: Rows) -> Rows:
    """`start` [D] bool of `done` [D] bool: the first row, and rows after the end of an episode."""
    return np.concatenate([[True], done[:-1]])


def arrays(transitions: Transition) -> dict[str, Rows]:
    """The leaves of `transitions` by their names in jaxrl's `.npz` layout."""
    columns: dict[str, Any] = transitions._asdict()
    extras = dict(columns.pop("extras"))
    state = extras.pop("state", ())
    columns |= {f"extras/{name}": x for name, x in extras.items()}
    return columns | {f"state/{i}": x for i, x in enumerate(state)}


# --- .npz ----------------------------------------------------------------------------------------


def read_npz(file: Path) -> Read:
    """Reads jaxrl's and NeoRL-2's layout, and files with the needed columns only.

    Raises:
      UserError: a damaged file, or missing or invalid columns.
    """
    columns: dict[str, Rows] = {}
    key = "as a whole"
    try:
        # Opened here, since np.load(path) does not close the file if the archive is damaged.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            for key in archive.files:
                columns[key] = archive[key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise bad(file, key, f"cannot be read, truncated or damaged? ({error})") from None
    for needed in NEEDED:
        find(file, columns, needed)
    obs = observations(file, "obs", columns["obs"])
    rows = len(obs)
    next_obs = observations(file, "next_obs", columns["next_obs"], obs)
    ends = "terminated" if "terminated" in columns else "done"
    terminated = flags(file, ends, find(file, columns, ends), rows)
    if "truncated" in columns:
        truncated = flags(file, "truncated", columns["truncated"], rows)
    elif "start" in columns:
        start = flags(file, "start", columns["start"], rows)
        truncated = np.concatenate([start[1:], [False]])
    else:
        elsewhere = (np.abs(next_obs[:-1] - obs[1:]) > 1e-6).reshape(rows - 1, -1).any(1)
        truncated = np.concatenate([elsewhere, [False]])
    extras = {
        key.removeprefix("extras/"): numbers(file, key, x, rows)
        for key, x in columns.items()
        if key.startswith("extras/")
    }
    leaves = [key for key in columns if key.startswith("state/")]
    if leaves:
        ordered = [f"state/{i}" for i in range(len(leaves))]
        extras["state"] = tuple(numbers(file, k, find(file, columns, k), rows) for k in ordered)
    transitions = Transition(
        obs,
        numbers(file, "action", columns["action"], rows),
        scalars(file, "reward", columns["reward"], rows),
        next_obs,
        terminated,
        truncated & ~terminated,
        starts(terminated | truncated),
        extras,
    )
    return transitions, _meta(file, columns)


def _meta(file: Path, columns: dict[str, Rows]) -> dict[str, Any]:
    if "meta" not in columns:
        return {}
    try:
        meta = json.loads(str(columns["meta"]))
    except json.JSONDecodeError as error:
        raise bad(file, "meta", f"is not JSON ({error})") from None
    if not isinstance(meta, dict):
        raise bad(file, "meta", "must be a JSON object")
    return meta


def write_npz(file: Path, transitions: Transition, meta: Mapping[str, Any]) -> None:
    """Writes jaxrl's layout, compressed and atomically."""
    text = np.array(json.dumps(plain(meta)))
    columns: dict[str, Any] = {**arrays(transitions), "meta": text}
    atomic_write(file, lambda to: np.savez_compressed(to, **columns))
