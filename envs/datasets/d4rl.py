"""D4RL's HDF5 files: flat arrays (d4rl/offline_env.py of Farama-Foundation/D4RL).

    observations actions rewards terminals           in all files
    timeouts                                         in all but the oldest files
    next_observations, infos/action_log_probs        in some files

In files without next_observations the successor of row i is the observation of row i + 1, as in
D4RL's `qlearning_dataset`. Rows without a successor are treated in the same way:

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
from jaxrl.envs.datasets.scores import LIMITS, task
from jaxrl.runs.files import atomic_write, plain
from jaxrl.types import Transition

LOG_PROB, META = "infos/action_log_probs", "metadata/jaxrl"
COLUMNS = (
    "observations", "actions", "rewards", "terminals", "timeouts", "next_observations", LOG_PROB
)  # fmt: skip


def read(path: Path) -> Read:
    """Reads a D4RL file by the rules of the module docstring.

    Raises:
      UserError: missing or invalid columns.
    """
    with opened(path) as file:
        columns: dict[str, Rows] = {key: np.asarray(file[key]) for key in COLUMNS if key in file}
        meta = json.loads(np.asarray(file[META]).item()) if META in file else {}
    obs = observations(path, "observations", find(path, columns, "observations"))
    rows = len(obs)
    terminated = flags(path, "terminals", find(path, columns, "terminals"), rows)
    if "timeouts" in columns:
        timeouts = flags(path, "timeouts", columns["timeouts"], rows)
    else:
        timeouts = limits(path, terminated)
    extras = {}
    if LOG_PROB in columns:
        extras["log_prob"] = scalars(path, LOG_PROB, columns[LOG_PROB], rows)
    t = Transition(
        obs,
        numbers(path, "actions", find(path, columns, "actions"), rows),
        scalars(path, "rewards", find(path, columns, "rewards"), rows),
        obs,
        terminated,
        timeouts & ~terminated,
        starts(terminated | timeouts),
        extras,
    )
    if "next_observations" in columns:
        next_obs = observations(path, "next_observations", columns["next_observations"], obs)
        return t._replace(next_obs=next_obs), meta
    kept = ~timeouts
    kept[-1] = False
    if not kept.any():
        raise bad(path, "timeouts", "no row has a successor")
    return paired(t, kept), meta


def paired(t: Transition, kept: Rows) -> Transition:
    """The rows `kept` [D] bool, with the observation of the next row of `t` as next_obs."""
    cut: Rows = np.append(~kept[1:], False)  # the next row of the episode is dropped
    t = t._replace(
        next_obs=np.roll(t.obs, -1, axis=0),
        truncated=cut & ~t.terminated,
        extras=t.extras | {"next_known": ~t.terminated},
    )
    extras = {name: x[kept] for name, x in t.extras.items()}
    columns: dict[str, Any] = {name: x[kept] for name, x in t._asdict().items() if name != "extras"}
    t = Transition(**columns, extras=extras)
    return t._replace(start=starts(t.terminated | t.truncated))


def limits(path: Path, terminated: Rows) -> Rows:
    """Timeouts [D] bool by the environment's time limit, for files without timeouts.

    Args:
      path: the file, whose name gives the environment.
      terminated: [D] bool.

    Raises:
      UserError: the file name names no environment with a known time limit.
    """
    limit = LIMITS.get(task(path.stem) or "")
    if limit is None:
        raise bad(path, "timeouts", "missing, and the file name names no environment of D4RL")
    first = np.flatnonzero(starts(terminated))
    lengths = np.diff(np.append(first, len(terminated)))
    since = np.arange(len(terminated)) - np.repeat(first, lengths)  # rows since the last terminal
    return (since % limit == limit - 1) & ~terminated


def write(path: Path, t: Transition, meta: Mapping[str, Any]) -> None:
    """Writes D4RL's layout with next_observations, and `meta` as JSON in metadata/jaxrl."""
    columns = {
        "observations": t.obs,
        "actions": t.action,
        "rewards": t.reward,
        "terminals": t.terminated,
        "timeouts": t.truncated,
        "next_observations": t.next_obs,
    }
    if "log_prob" in t.extras:
        columns[LOG_PROB] = t.extras["log_prob"]

    contents = io.BytesIO()  # h5py needs a readable and seekable file
    with h5py.File(contents, "w") as file:
        for key, x in columns.items():
            file.create_dataset(key, data=x, compression="gzip", compression_opts=4)
        file[META] = json.dumps(plain(meta))
    atomic_write(path, contents.getvalue())
