"""Rows of a dataset as padded episodes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array, Transition


class Padded(NamedTuple):
    """E episodes of at most T steps, as indices of rows of a dataset.

    Attributes:
      rows: [E, T] int32 row of each step; past an episode's end, its last row.
      live: [E, T] bool, False past the end.
    """

    rows: np.ndarray | Array
    live: np.ndarray | Array

    def column(self, x: Array) -> Array:
        """Values [E, T] of a column x [D]; 0 past the end."""
        return jnp.where(self.live, x[self.rows], 0)


def padded(t: Transition) -> Padded:
    """The whole episodes of a dataset, on the host.

    An incomplete last episode is left out, unless it is the only one.
    """
    first = np.flatnonzero(np.asarray(t.start))
    lengths = np.diff(np.append(first, len(t.reward)))
    if len(first) > 1 and not (t.terminated[-1] or t.truncated[-1]):
        first, lengths = first[:-1], lengths[:-1]
    steps = np.arange(lengths.max())[None]
    rows = first[:, None] + np.minimum(steps, lengths[:, None] - 1)
    return Padded(rows.astype(np.int32), steps < lengths[:, None])


def discounted(reward: Array, gamma: Array | float) -> Array:
    """Σ_t γ^t r_t [E] of rewards [E, T]."""
    power = jnp.asarray(gamma, jnp.float32) ** jnp.arange(reward.shape[1])
    return jnp.sum(power[None] * reward, 1)
