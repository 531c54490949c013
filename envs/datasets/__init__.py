"""Datasets for offline learning, in one in-memory form for all file formats.

    data = jaxrl.envs.datasets.load("DMSD-high-100000-train.npz")
    data.transitions.obs  # [D, *obs]

Formats are recognised by content: `.npz` (npz.py), D4RL's HDF5 (d4rl.py) and Minari folders
(minari.py). The last two need h5py. Invalid data raise a UserError that names file, key and row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.envs.datasets import npz
from jaxrl.envs.datasets.npz import bad
from jaxrl.envs.datasets.scores import reference
from jaxrl.errors import UserError
from jaxrl.types import Box, EnvSpec, Transition

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK"  # first bytes of the files


class Dataset(NamedTuple):
    """Transitions [D, ...] in temporal order, one episode after the other.

    Attributes:
      transitions: numpy arrays. `start` marks the first row of every episode. If the data stop in
        the middle of an episode, the last row is neither terminated nor truncated. `extras` may
        contain
          "log_prob" [D]: log-probability of the action under the behaviour policy;
          "state": tuple of [D, ...], leaves of the simulator's state before the step;
          "next_known" [D] bool: False if next_obs is not the successor but the observation that
            follows a termination in the file. TD targets do not use it; dynamics models must not.
      meta: JSON-like metadata: "env"; "reference", the returns {"random", "expert"}; "sha256" of
        the arrays; "file", the path; for data of `jaxrl data make` also "level", "seed", "versions"
        and the training configuration.
    """

    transitions: Transition
    meta: dict[str, Any]


# --- files ---------------------------------------------------------------------------------------


def load(path: str | Path) -> Dataset:
    """A dataset from a file or a Minari folder.

    Raises:
      UserError: unknown format or invalid contents; the message names file, key and row.
    """
    path = Path(path)
    transitions, meta = _read(path)
    digest = sha256(transitions)
    if meta.get("sha256", digest) != digest:
        raise bad(path, "meta", "the sha256 is not that of the arrays: the file has been changed")
    env = meta.get("env") or _env_of(path)
    found = meta.get("reference") or reference(env)
    known = {"env": env, "sha256": digest, "file": str(path)}
    return Dataset(transitions, meta | known | ({"reference": found} if found else {}))


def save(path: str | Path, dataset: Dataset) -> None:
    """Writes `.npz`, D4RL's `.hdf5`, or a Minari folder if the path has no suffix.

    Only `.npz` keeps all extras and metadata.

    Raises:
      UserError: another suffix, or a Minari folder that exists.
    """
    path = Path(path)
    meta = {k: v for k, v in dataset.meta.items() if k not in ("file", "sha256")}
    if path.suffix not in (".npz", ".hdf5", ""):
        raise UserError(f"{path}: use the suffix .npz, .hdf5 (D4RL) or none (Minari folder)")
    if path.suffix == ".npz":
        write, meta = npz.write_npz, meta | {"sha256": sha256(dataset.transitions)}
    elif path.suffix == ".hdf5":
        from jaxrl.envs.datasets.d4rl import write
    else:
        from jaxrl.envs.datasets.minari import write
    write(path, dataset.transitions, meta)


def sha256(transitions: Transition) -> str:
    """Hex digest of names, dtypes, shapes and contents of all arrays; independent of the format."""
    digest = hashlib.sha256()
    for name, x in sorted(npz.arrays(transitions).items()):
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


def _read(path: Path) -> npz.Read:
    """Reads a file in the format that its first bytes and keys show; h5py is imported for HDF5."""
    if path.is_dir():
        from jaxrl.envs.datasets import minari

        return minari.read(minari.main_file(path))
    try:
        with path.open("rb") as file:
            head = file.read(len(HDF5))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(ZIP):
        return npz.read_npz(path)
    if head != HDF5:
        raise UserError(f"{path} is neither .npz nor HDF5, nor a Minari folder")
    from jaxrl.envs.datasets import d4rl, hdf5, minari

    keys = hdf5.keys(path)
    if "observations" in keys:
        return d4rl.read(path)
    if any(key.startswith("episode_") for key in keys):
        return minari.read(path)
    has = ", ".join(keys) or "nothing"
    raise bad(path, "observations", f"missing, and so is episode_0; the file has {has}")


def _env_of(path: Path) -> str:
    """ "dmsd" for NeoRL-2's "DMSD-high-100000-train.npz"; else the file name without suffix."""
    return "dmsd" if path.name.startswith("DMSD-") else path.name.removesuffix(path.suffix)


# --- contents ------------------------------------------------------------------------------------


def check(dataset: Dataset, spec: EnvSpec) -> None:
    """Checks shapes, dtypes and action bounds of a dataset against the environment `spec`.

    Raises:
      UserError: a mismatch; the message names file, key and row.
    """
    file, t, space = dataset.meta.get("file", "the dataset"), dataset.transitions, spec.action
    if t.obs.shape[1:] != spec.obs_shape:
        raise bad(file, "obs", f"has shape {t.obs.shape[1:]}, {spec.name} has {spec.obs_shape}")
    if t.action.shape[1:] != space.shape:
        raise bad(file, "action", f"has shape {t.action.shape[1:]}, {spec.name} has {space.shape}")
    if isinstance(space, Box):
        low = np.reshape(space.low, space.shape) - 1e-6  # tolerance for float32 rounding
        high = np.reshape(space.high, space.shape) + 1e-6
    elif t.action.dtype != np.int32:
        raise bad(file, "action", f"must be whole numbers for {spec.name}")
    else:
        low, high = np.array(0), np.array(space.n - 1)
    outside = ((t.action < low) | (t.action > high)).reshape(len(t.action), -1).any(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise bad(file, "action", f"{t.action[row]} is outside the bounds of {spec.name}", row)


def action_bounds(spec: EnvSpec) -> dict[str, Any]:
    """Bounds of continuous actions, {"action_low", "action_high"}, for `Dataset.meta`; else {}."""
    space = spec.action
    if not isinstance(space, Box):
        return {}
    shaped = lambda x: np.reshape(x, space.shape).tolist()
    return {"action_low": shaped(space.low), "action_high": shaped(space.high)}


def episode_returns(transitions: Transition) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted returns [E] float64 and lengths [E] of the episodes.

    An incomplete last episode is left out, unless it is the only one.
    """
    first = np.flatnonzero(transitions.start)
    returns = np.add.reduceat(transitions.reward, first, dtype=np.float64)
    lengths = np.diff(np.append(first, len(transitions.reward)))
    whole = len(first) if transitions.done[-1] or len(first) == 1 else -1
    return returns[:whole], lengths[:whole]


def normalised_score(meta: Mapping[str, Any], returns: ArrayLike) -> np.ndarray | None:
    """Normalised scores 100 (R - random) / (expert - random) of D4RL (arXiv:2004.07219).

    None if the reference returns of the dataset are unknown. Same shape as `returns`.
    """
    found = meta.get("reference") or reference(meta.get("env", ""))
    if not found:
        return None
    return 100 * (np.asarray(returns) - found["random"]) / (found["expert"] - found["random"])
