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

from jaxrl.envs.datasets import episodes, layout, npz
from jaxrl.envs.datasets.columns import Columns, bad, first_row, in_memory
from jaxrl.envs.datasets.episodes import compact as compact
from jaxrl.envs.datasets.episodes import episode_returns as episode_returns
from jaxrl.envs.datasets.episodes import return_factor as return_factor
from jaxrl.envs.datasets.scores import reference
from jaxrl.errors import UserError
from jaxrl.types import Box, EnvSpec, Transition

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK"  # first bytes of the files
OWN = ("file", "splits")  # entries of the metadata that `load` makes


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
        the arrays; "file", the path; "splits", see `load`; for data of `jaxrl data make` also
        "level", "seed", "versions" and the training configuration.
    """

    transitions: Transition
    meta: dict[str, Any]


# --- files ---------------------------------------------------------------------------------------


def load(path: str | Path, max_episode_steps: int | None = None) -> Dataset:
    """A dataset from a file or a Minari folder.

    An episode also ends where next_obs differs from the next row's obs; meta["splits"] counts these
    ends if there are any.

    Args:
      max_episode_steps: time limit of the episodes, for D4RL files that do not show their ends.

    Raises:
      UserError: unknown format or invalid contents; the message names file, key and row.
    """
    path = Path(path)
    transitions, meta = _read(path, max_episode_steps)
    meta = {key: value for key, value in meta.items() if key not in OWN}
    digest = sha256(transitions)
    if meta.get("sha256", digest) != digest:
        what = "the arrays have another sha256: the file is damaged or was changed"
        raise bad(path, "meta", f"{what} (without the entry sha256 it is accepted)")
    transitions, splits = episodes.split(transitions)
    env = meta.get("env") or _env_of(path)
    found = meta.get("reference") or reference(env)
    known = {"env": env, "sha256": sha256(transitions) if splits else digest, "file": str(path)}
    known |= {"splits": splits} if splits else {}
    return Dataset(transitions, meta | known | ({"reference": found} if found else {}))


def save(path: str | Path, dataset: Dataset) -> None:
    """Writes `.npz`, D4RL's `.hdf5`, or a Minari folder if the path has no suffix.

    All formats keep extras and metadata. The arrays pass the same checks as those of files.

    Raises:
      UserError: another suffix, a Minari folder that exists, invalid arrays, or a full disk.
    """
    path = Path(path)
    check_suffix(path)
    columns = layout.arrays(dataset.transitions)
    checked = layout.parse(Columns("dataset", {k: in_memory(x) for k, x in columns.items()}))
    transitions, _ = episodes.split(checked)
    meta = {k: v for k, v in dataset.meta.items() if k not in OWN}
    meta |= {"sha256": sha256(transitions)}
    if path.suffix == ".npz":
        write = npz.write
    elif path.suffix == ".hdf5":
        from jaxrl.envs.datasets.d4rl import write
    else:
        from jaxrl.envs.datasets.minari import write
    try:
        write(path, transitions, meta)
    except (OSError, RuntimeError) as error:  # h5py raises both on a full disk
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path} cannot be written: {why}") from None


def check_suffix(path: Path) -> None:
    """Raises UserError unless `save` knows the suffix of `path`."""
    if path.suffix not in (".npz", ".hdf5", ""):
        raise UserError(f"{path}: use the suffix .npz, .hdf5 (D4RL) or none (Minari folder)")


def sha256(transitions: Transition) -> str:
    """Hex digest of names, dtypes, shapes and contents of all arrays; independent of the format."""
    digest = hashlib.sha256()
    for name, x in sorted(layout.arrays(transitions).items()):
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


def _read(path: Path, max_episode_steps: int | None) -> layout.Read:
    """Reads a file in the format that its first bytes and keys show; h5py is imported for HDF5."""
    head, keys = _head(path)
    if "observations" in keys:
        from jaxrl.envs.datasets import d4rl

        return d4rl.read(path, max_episode_steps)
    if max_episode_steps is not None:
        raise UserError(f"{path}: --max-episode-steps is for D4RL's HDF5 files only")
    if head == ZIP:
        return npz.read(path)
    from jaxrl.envs.datasets import minari

    if path.is_dir():
        return minari.read(minari.main_file(path))
    if any(key.startswith("episode_") for key in keys):
        return minari.read(path)
    has = ", ".join(keys) or "nothing"
    raise bad(path, "observations", f"missing, and so is episode_0; the file has {has:.300}")


def _head(path: Path) -> tuple[bytes, list[str]]:
    """The known first bytes of a file, and the top-level names of an HDF5 file; else b"" and []."""
    if path.is_dir():
        return b"", []
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file")
        with path.open("rb") as file:
            head = file.read(len(HDF5))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(ZIP):
        return ZIP, []
    if head != HDF5:
        raise UserError(f"{path} is neither .npz nor HDF5, nor a Minari folder")
    from jaxrl.envs.datasets import hdf5

    return head, hdf5.keys(path)


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
        low, high = (np.reshape(x, space.shape).astype(np.float32) for x in (space.low, space.high))
        sizes = np.abs([low, high])
        slack = 1e-6 * np.max(np.where(np.isfinite(sizes), sizes, 0), 0)  # rounding in float32
        low, high = low - slack, high + slack
    elif t.action.dtype != np.int32:
        raise bad(file, "action", f"must be whole numbers for {spec.name}")
    else:
        low, high = np.array(0), np.array(space.n - 1)
    row = first_row(lambda action: (action < low) | (action > high), t.action)
    if row is not None:
        raise bad(file, "action", f"{t.action[row]} is outside the bounds of {spec.name}", row)


def check_successors(dataset: Dataset, agent: str) -> None:
    """Raises UserError unless models of s' have a row to learn from and a row to be judged by."""
    t = dataset.transitions
    count = int(np.sum(t.extras.get("next_known", np.ones(len(t.reward), bool))))
    if count < 2:
        file = dataset.meta.get("file", "the dataset")
        what = f"{count} rows have a known successor, {agent} needs at least 2"
        raise bad(file, "next_obs", what)


def action_bounds(spec: EnvSpec) -> dict[str, Any]:
    """For `Dataset.meta`: {"action_low", "action_high"}, or {"action_count"} if discrete."""
    space = spec.action
    if not isinstance(space, Box):
        return {"action_count": space.n}
    shaped = lambda x: np.reshape(x, space.shape).tolist()
    return {"action_low": shaped(space.low), "action_high": shaped(space.high)}


def normalised_score(meta: Mapping[str, Any], returns: ArrayLike) -> np.ndarray | None:
    """Normalised scores 100 (R - random) / (expert - random) of D4RL (arXiv:2004.07219).

    None if the reference returns of the dataset are unknown or equal. Same shape as `returns`.
    """
    found = meta.get("reference") or reference(meta.get("env", ""))
    if not found or found["expert"] == found["random"]:
        return None
    return 100 * (np.asarray(returns) - found["random"]) / (found["expert"] - found["random"])
