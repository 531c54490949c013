"""Minari datasets (minari.farama.org) in HDF5 format, read and written with h5py alone.

    NAME-vN/data/metadata.json     dataset_id, spaces, numbers of episodes and steps, ...
    NAME-vN/data/main_data.hdf5    one group episode_i per episode: observations [T + 1], actions,
                                   rewards, terminations and truncations [T]

Dictionary observations are concatenated in alphabetical order of their keys.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs.datasets.hdf5 import h5py, opened
from jaxrl.envs.datasets.npz import (
    Read,
    Rows,
    bad,
    find,
    flags,
    numbers,
    observations,
    scalars,
    starts,
)
from jaxrl.errors import UserError
from jaxrl.runs.files import write_json
from jaxrl.types import Transition


def main_file(folder: Path) -> Path:
    """Path of main_data.hdf5; `folder` is the folder of the dataset, or data/ in it.

    Raises:
      UserError: there is no such file.
    """
    for place in (folder / "data", folder):
        if (file := place / "main_data.hdf5").is_file():
            return file
    raise UserError(
        f"{folder} is not a Minari folder in HDF5 format: data/main_data.hdf5 is missing"
    )


def read(file: Path) -> Read:
    """Reads main_data.hdf5 and the metadata.json beside it.

    Raises:
      UserError: missing or invalid columns, or metadata that are not JSON.
    """
    meta = _metadata(file.with_name("metadata.json"))
    with opened(file) as found:
        names = [str(name) for name in found if str(name).startswith("episode_")]
        ordered = sorted(names, key=lambda name: int(name.removeprefix("episode_")))
        episodes = [_episode(file, name, found[name]) for name in ordered]
    for name, episode in zip(ordered, episodes, strict=True):
        if episode.obs.shape[1:] != episodes[0].obs.shape[1:]:
            raise bad(file, f"{name}/observations", f"has another shape than in {ordered[0]}")
    columns: Rows = [np.concatenate(x) for x in zip(*(e[:-1] for e in episodes), strict=True)]
    t = Transition(*columns)
    # An episode without an end was cut by the data collection; only the last may be unfinished.
    cut: Rows = np.append(t.start[1:], False) & ~t.terminated
    return t._replace(truncated=t.truncated | cut), meta


def _episode(file: Path, name: str, group: Any) -> Transition:
    """The checked rows [T, ...] of one episode."""

    columns = {f"{name}/{key}": node for key, node in group.items()}

    def column(key: str) -> tuple[Path, str, Rows]:
        key = f"{name}/{key}"
        return file, key, _joined(find(file, columns, key))

    actions = numbers(*column("actions"))
    rows = len(actions)
    obs = observations(*column("observations"))
    if len(obs) != rows + 1:
        raise bad(
            file, f"{name}/observations", f"has {len(obs)} rows for {rows} actions, not one more"
        )
    terminated = flags(*column("terminations"), rows)
    truncated = flags(*column("truncations"), rows) & ~terminated
    early = (terminated | truncated)[:-1]
    if early.any():
        row = int(np.argmax(early))
        raise bad(file, f"{name}/terminations", "the episode ends before its last row", row)
    reward = scalars(*column("rewards"), rows)
    start = starts(np.zeros(rows, bool))
    return Transition(obs[:-1], actions, reward, obs[1:], terminated, truncated, start)


def _joined(node: Any) -> Rows:
    """An array as it is; the arrays of a group, flattened and concatenated, as [T, n]."""
    if not isinstance(node, h5py.Group):
        return np.asarray(node)
    parts = [_joined(node[key]) for key in sorted(node)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def _metadata(file: Path) -> dict[str, Any]:
    """Name, reference returns and jaxrl's own metadata of metadata.json, as far as present."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    low, high = found.get("ref_min_score"), found.get("ref_max_score")
    meta = {"env": found["dataset_id"]} if "dataset_id" in found else {}
    meta |= found.get("jaxrl", {})
    if low is not None and high is not None:
        meta["reference"] = {"random": low, "expert": high}
    return meta


def write(folder: Path, t: Transition, meta: Mapping[str, Any]) -> None:
    """Writes a dataset that Minari can load if `folder` is under $MINARI_DATASETS_PATH.

    The dataset id is the name of `folder`. A temporary folder is written and then renamed, so that
    readers see a complete dataset or none.

    Raises:
      UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already")
    first = np.flatnonzero(t.start)
    bounds = zip(first, [*first[1:], len(t.reward)], strict=True)
    part = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    (part / "data").mkdir(parents=True)
    with h5py.File(part / "data" / "main_data.hdf5", "w") as file:
        for i, (a, b) in enumerate(bounds):
            group = file.create_group(f"episode_{i}")
            group.attrs.update({"id": i, "total_steps": b - a})
            group["observations"] = np.concatenate([t.obs[a:b], t.next_obs[b - 1 : b]])
            group["actions"], group["rewards"] = t.action[a:b], t.reward[a:b]
            group["terminations"], group["truncations"] = t.terminated[a:b], t.truncated[a:b]
    scores = meta.get("reference", {})
    about = {
        "dataset_id": folder.name,
        "total_episodes": len(first),
        "total_steps": len(t.reward),
        "data_format": "hdf5",
        "observation_space": _space(t.obs),
        "action_space": _space(t.action, meta.get("action_low"), meta.get("action_high")),
        "minari_version": "0.5.4",
        "ref_min_score": scores.get("random"),
        "ref_max_score": scores.get("expert"),
        "jaxrl": meta,
    }
    about = {key: value for key, value in about.items() if value is not None}
    write_json(part / "data" / "metadata.json", about)
    part.rename(folder)


def _space(x: Rows, low: Any = None, high: Any = None) -> str:
    """Minari's JSON text of the space of rows x [D, ...], with bounds [...] or ±infinity."""
    if x.dtype == np.int32 and x.ndim == 1:
        space = {"type": "Discrete", "dtype": "int64", "start": 0, "n": int(x.max()) + 1}
    else:
        shape = x.shape[1:]
        free = lambda bound, x: np.full(shape, x).tolist() if bound is None else bound
        bounds = {"low": free(low, -np.inf), "high": free(high, np.inf)}
        space = {"type": "Box", "dtype": x.dtype.name, "shape": shape, **bounds}
    return json.dumps(space)
