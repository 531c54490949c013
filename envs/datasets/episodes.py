"""Ends of episodes in datasets: rows in temporal order, one episode after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrl.envs.datasets.columns import PIECE, Rows
from jaxrl.types import Transition


def starts(done: Rows) -> Rows:
    """`start` [D] bool of `done` [D] bool: the first row, and rows after the end of an episode."""
    return np.concatenate([[True], done[:-1]])


def transition(
    obs: Rows,
    action: Rows,
    reward: Rows,
    next_obs: Rows,
    terminated: Rows,
    truncated: Rows,
    extras: dict[str, Any],
) -> Transition:
    """Columns [D, ...] as a `Transition`: terminated rows are not truncated, ends give `start`."""
    start = starts(terminated | truncated)
    return Transition(
        obs, action, reward, next_obs, terminated, truncated & ~terminated, start, extras
    )


def split(t: Transition) -> tuple[Transition, int]:
    """Truncates episodes where next_obs is not the next row's obs; also how many were truncated."""
    cut = np.append(jumps(t.obs, t.next_obs), False) & ~(t.terminated | t.truncated)
    count = int(cut.sum())
    if not count:
        return t, 0
    truncated = t.truncated | cut
    return t._replace(truncated=truncated, start=starts(t.terminated | truncated)), count


def jumps(obs: Rows, next_obs: Rows) -> Rows:
    """[D - 1] bool: whether next_obs of a row differs from obs of the next row.

    The tolerance is a millionth of the largest magnitude of each number of an observation, for
    copies that were rounded differently.
    """
    rows, found = len(obs), np.zeros(max(len(obs) - 1, 0), bool)
    step = max(PIECE // max(obs[:1].size, 1), 1)
    pieces = [slice(begin, begin + step) for begin in range(0, rows, step)]
    exact = obs.dtype == np.uint8
    scale = 0.0 if exact else np.max([np.abs(obs[piece]).max(0) for piece in pieces], 0)
    for piece in pieces:
        a, b = next_obs[:-1][piece], obs[1:][piece]
        wrong = a != b if exact else np.abs(a.astype(np.float64) - b) > 1e-6 * scale
        found[piece] = wrong.any(axis=tuple(range(1, wrong.ndim)))
    return found


def compact(t: Transition) -> Transition:
    """A dataset of byte observations with each frame stored once, see `sources.gather`.

    Other datasets are returned as they are.
    """
    if t.obs.dtype != np.uint8:
        return t
    rows = len(t.reward)
    new = np.flatnonzero(np.append(jumps(t.obs, t.next_obs), True))
    index = np.arange(1, rows + 1, dtype=np.int32)
    index[new] = rows + np.arange(len(new), dtype=np.int32)
    return t._replace(obs=np.concatenate([t.obs, t.next_obs[new]]), next_obs=index)


def episode_returns(t: Transition) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted returns [E] float64 and lengths [E] of the episodes.

    An incomplete last episode is left out, unless it is the only one.
    """
    first = np.flatnonzero(t.start)
    returns = np.add.reduceat(t.reward, first, dtype=np.float64)
    lengths = np.diff(np.append(first, len(t.reward)))
    whole = len(first) if t.done[-1] or len(first) == 1 else -1
    return returns[:whole], lengths[:whole]


def return_factor(t: Transition) -> float | None:
    """1000 / (highest - lowest return of an episode); None if all returns are equal.

    With this factor IQL's authors scale the rewards of MuJoCo datasets.
    """
    returns, _ = episode_returns(t)
    width = float(np.max(returns) - np.min(returns))
    return 1000.0 / width if width > 0 else None
