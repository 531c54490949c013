"""Simulator states for datasets that were made elsewhere, where observations tell them.

`jaxrl data make` stores the state before each step in `extras["state"]`. Of NeoRL-2's DMSD the
observation holds all of it but the time, which decides when targets are drawn again: that is the
number of steps since the episode began. Rollouts that pass half-time in a true model then draw
their own new targets, as the environment does, from the distribution that the data's come from.
"""

from __future__ import annotations

import numpy as np

from jaxrl.errors import UserError
from jaxrl.types import Transition


def with_states(env: str, data: Transition) -> Transition:
    """`data` with states of the environment called `env`; as it is where it has them or must.

    Raises:
      UserError: data that begin in the middle of an episode.
    """
    if env != "dmsd" or "state" in data.extras:
        return data
    start = np.asarray(data.start)
    if not start[0]:
        raise UserError("row 0 is in the middle of an episode: its simulator state is not known")
    rows = np.arange(len(start))
    t = rows - np.maximum.accumulate(np.where(start, rows, 0))
    x, v, target = np.split(np.asarray(data.obs), 3, axis=1)
    return data._replace(extras=data.extras | {"state": (x, v, target, t.astype(np.int32))})
