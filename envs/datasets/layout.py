"""Names of the arrays of a dataset in files, and how a `Transition` is made of them.

    obs action reward next_obs terminated truncated start
    extras/NAME      each entry of `extras` but "state"
    state/0 ...      the leaves of extras["state"]

`.npz` files use these names; the other formats use them for extras, with a prefix.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxrl.envs.datasets.columns import Columns, Rows, bad
from jaxrl.envs.datasets.episodes import jumps, transition
from jaxrl.types import Transition

Read = tuple[Transition, dict[str, Any]]  # what readers return: transitions and metadata


def arrays(t: Transition) -> dict[str, Rows]:
    """The leaves of `t` by their names."""
    columns: dict[str, Any] = t._asdict()
    columns.pop("extras")
    return columns | extra_arrays(t)


def extra_arrays(t: Transition, prefix: str = "") -> dict[str, Rows]:
    """The leaves of `t.extras` by their names after `prefix`."""
    extras = dict(t.extras)
    state = extras.pop("state", ())
    named = {f"{prefix}extras/{name}": x for name, x in extras.items()}
    return named | {f"{prefix}state/{i}": x for i, x in enumerate(state)}


def parse(columns: Columns) -> Transition:
    """The checked columns as a `Transition`.

    obs, action, reward, next_obs and terminated (or NeoRL-2's done) are needed. Without truncated,
    episodes end before a `start`; without both, where next_obs differs from the next row's obs.

    Raises:
      UserError: missing or invalid columns.
    """
    for needed in ("obs", "action", "reward", "next_obs"):
        columns.find(needed)
    obs = columns.observations("obs")
    rows = len(obs)
    next_obs = columns.observations("next_obs", obs)
    terminated = columns.flags("terminated" if "terminated" in columns else "done", rows)
    if "truncated" in columns:
        truncated = columns.flags("truncated", rows)
    elif "start" in columns:
        truncated = np.append(columns.flags("start", rows)[1:], False)
    else:
        truncated = np.append(jumps(obs, next_obs), False)
    return transition(
        obs,
        columns.actions("action", rows),
        columns.scalars("reward", rows),
        next_obs,
        terminated,
        truncated,
        extras(columns, rows),
    )


def extras(columns: Columns, rows: int, prefix: str = "") -> dict[str, Any]:
    """The extras of which names begin with `prefix`.

    Raises:
      UserError: invalid columns, or a missing leaf of the state.
    """
    found: dict[str, Any] = {}
    begin = f"{prefix}extras/"
    for key in columns.stored:
        name = key.removeprefix(begin)
        if key.startswith(begin):
            if name in ("state", ".", "..") or not re.fullmatch(r"[\w .-]+", name):
                raise bad(columns.file, key, "no name for an extra: use letters and digits")
            read = {"next_known": columns.flags, "log_prob": columns.scalars}
            found[name] = read.get(name, columns.exact)(key, rows)
    count = sum(key.startswith(f"{prefix}state/") for key in columns.stored)
    if count:
        state = (columns.exact(f"{prefix}state/{i}", rows) for i in range(count))
        found["state"] = tuple(state)
    return found
