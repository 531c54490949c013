"""D4RL's HDF5 files: flat arrays (d4rl/offline_env.py of Farama-Foundation/D4RL).

    observations actions rewards terminals           in all files
    timeouts                                         in all but the oldest files
    next_observations, infos/action_log_probs        in some files
    infos/jaxrl/extras/..., infos/jaxrl/state/...    further extras, in files of jaxrl
    metadata/jaxrl                                   metadata as JSON, in files of jaxrl

Files with next_observations keep every row, and need no timeouts: an episode also ends where
next_observations differ from the next row's observations. In other files the successor of row i is
the observation of row i + 1, as in D4RL's `qlearning_dataset`. Rows without a successor are treated
in the same way:

    timeouts    the row is dropped, and the row before it is truncated
    last row    the same
    terminals   the row is kept, since TD targets do not use its next_obs, which is the first
                observation of the next episode; extras["next_known"] is False
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.envs.datasets import hdf5, layout, meta
from jaxrl.envs.datasets.columns import Columns, Rows, bad, reading
from jaxrl.envs.datasets.episodes import starts, transition
from jaxrl.envs.datasets.hdf5 import h5py
from jaxrl.envs.datasets.scores import LIMITS, task
from jaxrl.runs.files import atomic_write, plain
from jaxrl.types import Transition

LOG_PROB, META, OWN = "infos/action_log_probs", "metadata/jaxrl", "infos/jaxrl"
COLUMNS = (
    "observations", "actions", "rewards", "terminals", "timeouts", "next_observations", LOG_PROB
)  # fmt: skip


def read(path: Path, max_episode_steps: int | None = None) -> layout.Read:
    """Reads a D4RL file by the rules of the module docstring.

    Args:
      max_episode_steps: time limit of the episodes, for files without timeouts and
        next_observations; by default that of the environment in the file name.

    Raises:
      UserError: missing or invalid columns.
    """
    with hdf5.opened(path) as file:
        nodes = {key: hdf5.find(path, file, key) for key in COLUMNS}
        stored = {key: hdf5.stored(path, key, x) for key, x in nodes.items() if x is not None}
        columns = Columns(path, stored | hdf5.tree(path, file, OWN))
        columns.check_memory()
        about = _meta(path, file)
        return _transitions(columns, path, max_episode_steps), about


def _transitions(columns: Columns, path: Path, max_episode_steps: int | None) -> Transition:
    for needed in ("observations", "actions", "rewards", "terminals"):
        columns.find(needed)
    obs = columns.observations("observations")
    rows = len(obs)
    terminated = columns.flags("terminals", rows)
    explicit = "next_observations" in columns
    if "timeouts" in columns:
        timeouts = columns.flags("timeouts", rows)
    elif explicit and max_episode_steps is None:
        timeouts = np.zeros(rows, bool)  # `episodes.split` finds the ends
    else:
        timeouts = limits(path, terminated, max_episode_steps)
    if max_episode_steps is not None and "timeouts" in columns:
        raise bad(path, "timeouts", "show where episodes end: leave out --max-episode-steps")
    extras = layout.extras(columns, rows, f"{OWN}/")
    if LOG_PROB in columns:
        extras["log_prob"] = columns.scalars(LOG_PROB, rows)
    t = transition(
        obs,
        columns.actions("actions", rows),
        columns.scalars("rewards", rows),
        columns.observations("next_observations", obs) if explicit else obs,
        terminated,
        timeouts,
        extras,
    )
    return t if explicit else paired(path, t, timeouts)


def paired(path: Path, t: Transition, timeouts: Rows) -> Transition:
    """The rows of `t` that have a successor, which is the next row's observation.

    Raises:
      UserError: no row has one.
    """
    kept = ~timeouts
    kept[-1] = False
    index = np.flatnonzero(kept)
    if not len(index):
        raise bad(path, "timeouts", "no row has a successor")
    terminated = t.terminated[index]
    extras = jax.tree.map(lambda x: x[index], t.extras) | {"next_known": ~terminated}
    cut = ~kept[index + 1]  # the next row of the episode is dropped
    return transition(
        t.obs[index], t.action[index], t.reward[index], t.obs[index + 1], terminated, cut, extras
    )


def limits(path: Path, terminated: Rows, limit: int | None = None) -> Rows:
    """Timeouts [D] bool by a time limit, for files without timeouts.

    Args:
      path: the file, whose name gives the environment.
      terminated: [D] bool.
      limit: in steps; None: that of the environment.

    Raises:
      UserError: no limit, and the file name names no environment with a known one.
    """
    limit = limit or LIMITS.get(task(path.stem) or "")
    if limit is None:
        raise bad(
            path,
            "timeouts",
            "missing, and the file name names no environment with a known time limit: write a copy "
            f"by jaxrl data convert {path} COPY.npz --max-episode-steps N",
        )
    first = np.flatnonzero(starts(terminated))
    lengths = np.diff(np.append(first, len(terminated)))
    since = np.arange(len(terminated)) - np.repeat(first, lengths)  # rows since the last terminal
    return (since % limit == limit - 1) & ~terminated


def _meta(path: Path, file: h5py.File) -> dict[str, Any]:
    node = hdf5.find(path, file, META)
    if node is None:
        return {}
    column = hdf5.stored(path, META, node)
    if column.dtype.kind not in "SO" or column.shape not in ((), (1,)):
        raise bad(path, META, f"must be a text, not {column.dtype} of shape {column.shape}")
    with reading(path, META):
        text = column.read().item()
    return meta.parse(path, META, text)


def write(path: Path, t: Transition, about: Mapping[str, Any]) -> None:
    """Writes D4RL's layout with next_observations, all extras, and `about` as metadata/jaxrl.

    Every dataset has checksums, which HDF5 compares when it is read.
    """
    columns = {
        "observations": t.obs,
        "actions": t.action,
        "rewards": t.reward,
        "terminals": t.terminated,
        "timeouts": t.truncated,
        "next_observations": t.next_obs,
        **layout.extra_arrays(t, f"{OWN}/"),
    }
    if "log_prob" in t.extras:
        columns[LOG_PROB] = columns.pop(f"{OWN}/extras/log_prob")
    columns[META] = np.array([json.dumps(plain(about)).encode()])

    contents = io.BytesIO()  # h5py needs a readable and seekable file
    with h5py.File(contents, "w", libver=hdf5.WRITTEN) as file:
        for key, x in columns.items():
            file.create_dataset(
                key, data=x, compression="gzip", compression_opts=4, fletcher32=True
            )
    atomic_write(path, contents.getvalue())
