"""Minari datasets (minari.farama.org) in HDF5 format, read and written with h5py alone.

    NAME-vN/data/metadata.json     dataset_id, spaces, numbers of episodes and steps, ...
    NAME-vN/data/main_data.hdf5    one group episode_i per episode: observations [T + 1], actions,
                                   rewards, terminations and truncations [T]; in datasets of jaxrl
                                   also infos/jaxrl/extras/..., infos/jaxrl/state/... [T]

Dictionary observations are concatenated in alphabetical order of their keys.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.envs.datasets import hdf5, layout, meta
from jaxrl.envs.datasets.columns import INT32, Columns, Rows, Stored, bad
from jaxrl.envs.datasets.episodes import transition
from jaxrl.envs.datasets.hdf5 import h5py
from jaxrl.errors import UserError
from jaxrl.runs.files import sync_folder, write_json
from jaxrl.types import Transition

COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
OWN = "infos/jaxrl"


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


def read(file: Path) -> layout.Read:
    """Reads main_data.hdf5 and the metadata.json beside it.

    Raises:
      UserError: missing or invalid columns or metadata.
    """
    about = _metadata(file.with_name("metadata.json"))
    with hdf5.opened(file) as opened:
        names = sorted((x for x in map(str, opened) if x.startswith("episode_")), key=_number)
        parts = [Columns(file, _stored(file, opened, name)) for name in names]
        Columns(file, {key: x for part in parts for key, x in part.stored.items()}).check_memory()
        episodes = [_episode(part, name) for part, name in zip(parts, names, strict=True)]
    if not episodes:
        raise bad(file, "episode_0", "missing, the file has no episodes")
    for name, episode in zip(names, episodes, strict=True):
        _check_alike(file, name, episode, names[0], episodes[0])
    found: Transition = jax.tree.map(lambda *x: np.concatenate(x), *episodes)
    # An episode without an end was cut by the data collection; only the last may be unfinished.
    cut: Rows = np.append(found.start[1:], False) & ~found.terminated
    return found._replace(truncated=found.truncated | cut), about


def _number(name: str) -> tuple[int, str]:
    digits = name.removeprefix("episode_")
    return (int(digits[:18]) if digits.isdecimal() else -1), name


def _stored(file: Path, opened: h5py.File, name: str) -> dict[str, Stored]:
    """The columns of an episode, by paths in the file."""
    if _number(name)[0] < 0:
        raise bad(file, name, "is no episode: names are episode_0, episode_1, ...")
    group = hdf5.find(file, opened, name)
    if not isinstance(group, h5py.Group):
        raise bad(file, name, "is no group")
    nodes = {f"{name}/{key}": hdf5.find(file, group, key) for key in COLUMNS}
    found = {key: hdf5.stored(file, key, node) for key, node in nodes.items() if node is not None}
    return found | hdf5.tree(file, opened, f"{name}/{OWN}")


def _episode(columns: Columns, name: str) -> Transition:
    """The checked rows [T, ...] of one episode."""
    rows = columns.find(f"{name}/actions").shape[0]
    actions = columns.actions(f"{name}/actions", rows)
    obs = columns.observations(f"{name}/observations")
    if len(obs) != rows + 1:
        what = f"has {len(obs)} rows for {rows} actions, not one more"
        raise bad(columns.file, f"{name}/observations", what)
    terminated = columns.flags(f"{name}/terminations", rows)
    truncated = columns.flags(f"{name}/truncations", rows)
    early: Rows = (terminated | truncated)[:-1]
    if early.any():
        row, key = int(np.argmax(early)), f"{name}/terminations"
        raise bad(columns.file, key, "the episode ends before its last row", row)
    reward = columns.scalars(f"{name}/rewards", rows)
    extras = layout.extras(columns, rows, f"{name}/{OWN}/")
    return transition(obs[:-1], actions, reward, obs[1:], terminated, truncated, extras)


def _check_alike(file: Path, name: str, t: Transition, first: str, like: Transition) -> None:
    """Raises UserError unless the columns of an episode look like those of the first."""
    keys = {"obs": "observations", "action": "actions"}
    expected = layout.arrays(like)
    for column, x in layout.arrays(t).items():
        key, y = f"{name}/{keys.get(column, f'{OWN}/{column}')}", expected.pop(column, None)
        if y is None:
            raise bad(file, key, f"missing in {first}")
        if x.shape[1:] != y.shape[1:]:
            raise bad(file, key, f"has rows of another shape than {y.shape[1:]} in {first}")
        if x.dtype != y.dtype:
            raise bad(file, key, f"holds {x.dtype}, but {y.dtype} in {first}")
    for column in expected:
        raise bad(file, f"{name}/{OWN}/{column}", f"missing, {first} has it")


def _metadata(file: Path) -> dict[str, Any]:
    """Name, reference returns and jaxrl's own metadata of metadata.json, as far as present."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    found = meta.parse(file, "as a whole", text)
    about = {"env": found["dataset_id"]} if "dataset_id" in found else {}
    about |= found.get("jaxrl", {})
    if "ref_min_score" in found and "ref_max_score" in found:
        scores = {"random": found["ref_min_score"], "expert": found["ref_max_score"]}
        about["reference"] = scores
    return about


def write(folder: Path, t: Transition, about: Mapping[str, Any]) -> None:
    """Writes a dataset that Minari can load if `folder` is under $MINARI_DATASETS_PATH.

    The dataset id is the name of `folder`. A temporary folder is written and then renamed, so that
    readers see a complete dataset or none. Within an episode of `t`, next_obs must be the next
    row's obs, see `episodes.split`.

    Raises:
      UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / "data").mkdir(parents=True)
        _write_episodes(part / "data" / "main_data.hdf5", t)
        write_json(part / "data" / "metadata.json", _description(folder.name, t, about))
        sync_folder(part)
        part.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_episodes(file: Path, t: Transition) -> None:
    """Writes main_data.hdf5, and waits until it is on disk."""
    first = np.flatnonzero(t.start)
    extras = layout.extra_arrays(t, f"{OWN}/")
    with h5py.File(file, "w", libver=hdf5.WRITTEN) as to:
        for i, (a, b) in enumerate(zip(first, [*first[1:], len(t.reward)], strict=True)):
            group = to.create_group(f"episode_{i}")
            group.attrs.update({"id": i, "total_steps": b - a})
            group["observations"] = np.concatenate([t.obs[a:b], t.next_obs[b - 1 : b]])
            group["actions"], group["rewards"] = t.action[a:b], t.reward[a:b]
            group["terminations"], group["truncations"] = t.terminated[a:b], t.truncated[a:b]
            for key, x in extras.items():
                group[key] = x[a:b]
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _description(name: str, t: Transition, about: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of metadata.json."""
    scores = about.get("reference", {})
    bounds = about.get("action_low"), about.get("action_high")
    found = {
        "dataset_id": name,
        "total_episodes": int(t.start.sum()),
        "total_steps": len(t.reward),
        "data_format": "hdf5",
        "observation_space": json.dumps(_box(t.obs)),
        "action_space": json.dumps(_action_space(t.action, *bounds, about.get("action_count"))),
        "minari_version": "0.5.4",
        "ref_min_score": scores.get("random"),
        "ref_max_score": scores.get("expert"),
        "jaxrl": about,
    }
    return {key: value for key, value in found.items() if value is not None}


def _action_space(x: Rows, low: Any, high: Any, count: int | None) -> dict[str, Any]:
    """Minari's description of the space of actions x [D, ...].

    Args:
      low, high: bounds [...] of a box, if known.
      count: number of discrete actions, if known; by default up to the largest in the data.
    """
    if x.dtype != np.int32 or low is not None:
        return _box(x, low, high)
    begin = np.minimum(x.min(0), 0)
    sizes = x.max(0).astype(np.int64) + 1 - begin
    if x.ndim == 1:
        n = max(int(sizes), count or 0)
        return {"type": "Discrete", "dtype": "int64", "start": int(begin), "n": n}
    numbers = {"nvec": sizes.tolist(), "start": begin.tolist()}
    return {"type": "MultiDiscrete", "dtype": "int64", **numbers}


def _box(x: Rows, low: Any = None, high: Any = None) -> dict[str, Any]:
    """Minari's description of a box of rows x [D, ...], with the range of bytes or ±infinity."""
    shape = x.shape[1:]
    ranges = {"uint8": (0, 255), "int32": (int(INT32.min), int(INT32.max))}
    least, most = ranges.get(x.dtype.name, (-np.inf, np.inf))
    known = lambda bound: bound is not None and np.shape(bound) == shape
    bounds = {
        "low": np.asarray(low if known(low) else np.full(shape, least)).tolist(),
        "high": np.asarray(high if known(high) else np.full(shape, most)).tolist(),
    }
    return {"type": "Box", "dtype": x.dtype.name, "shape": shape, **bounds}
