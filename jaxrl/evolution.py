"""Population-based training and successive halving: who goes on, with which weights and settings.

Decisions are numpy on the host, deterministic in their generator; `exchange` carries them out on
the population's state, wherever it lies. A trial is a group of S members that differ in nothing but
their seeds; Q trials make P = Q S members, trial by trial.

Population Based Training of Neural Networks. Max Jaderberg et al. 2017, arXiv:1711.09846.
Non-stochastic Best Arm Identification and Hyperparameter Optimization. Kevin Jamieson, Ameet
Talwalkar. AISTATS 2016, arXiv:1502.07943.

Deviation from the first: settings move by a share of their range, on the scale it has, and not by a
factor, which would be nothing to a number such as a discount between 0.9 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.program import MemberState
from jaxrl.types import Array, PyTree


def truncation(rng: np.random.Generator, scores: np.ndarray, share: float) -> np.ndarray:
    """Parents [Q]: each of the worst floor(share Q) trials gets one of as many best, others stay.

    Args:
      scores: [Q], higher is better; NaN is worst. A trial without a score is no parent; where the
        best have none, nobody moves.
      share: of the trials that is replaced, at most a half.
    """
    count = int(share * scores.size)
    parents = np.arange(scores.size)
    ranked = np.argsort(np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    best = [trial for trial in ranked[scores.size - count :] if not np.isnan(scores[trial])]
    if count and best:
        parents[ranked[:count]] = rng.choice(best, count)
    return parents


def perturb(
    rng: np.random.Generator,
    units: np.ndarray,
    parents: np.ndarray,
    step: float = 0.1,
    resample: float = 0.25,
) -> np.ndarray:
    """Settings after an exchange, [Q, V] in the unit cube: those who have a parent take its own,
    each moved up or down by `step`, or drawn anew with probability `resample`."""
    moved = units[parents] + step * rng.choice([-1.0, 1.0], units.shape)
    fresh = rng.uniform(size=units.shape)
    new = np.where(rng.uniform(size=units.shape) < resample, fresh, np.clip(moved, 0, 1))
    adopted = parents != np.arange(parents.size)
    return np.where(adopted[:, None], new, units)


def members_of(trials: np.ndarray, seeds: int) -> np.ndarray:
    """Members [Q S] of trials [Q], each with its S seeds: seed i takes from seed i."""
    return (np.asarray(trials)[:, None] * seeds + np.arange(seeds)).reshape(-1)


def exchange(state: MemberState, parents: Array, hp: PyTree) -> MemberState:
    """The population after an exchange: member i has the learner of `parents[i]` and, where that is
    another one, the settings hp[i]. Its source (environments, replay), its key and its metrics stay
    its own.

    Args:
      state: leaves [P, ...].
      parents: [P] int32.
      hp: leaves [P, ...], as in the state.
    """
    moved = parents != jnp.arange(parents.size)

    def settings(new: Array, old: Array) -> Array:
        return jnp.where(moved.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    learner = jax.tree.map(lambda x: x[parents], state.learner)
    return state._replace(learner=learner, hp=jax.tree.map(settings, hp, state.hp))


def rungs(chunks: Sequence[tuple[int, int]], trials: int, eta: int) -> list[tuple[int, int]]:
    """(updates, trials that make them) of successive halving, which keeps one of `eta` each time.

    The last rung ends with the run, each one before it after 1/eta of the updates of the next, at
    the nearest end of a chunk; there are as many as both trials and chunks allow.

    Args:
      chunks: (first update, updates) of each stretch between evaluations.
    """
    ends = np.array([first + count for first, count in chunks])
    depth = min(
        math.floor(math.log(trials, eta) + 1e-9), math.floor(math.log(ends.size, eta) + 1e-9)
    )
    wanted = [ends[-1] / eta ** (depth - i) for i in range(depth + 1)]
    chosen = [int(ends[np.argmin(np.abs(ends - x))]) for x in wanted]
    distinct = sorted(set(chosen))
    return [(end, max(trials // eta**i, 1)) for i, end in enumerate(distinct)]


def survivors(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` best trials in order of their numbers; NaN is worst, and the first wins ties."""
    ranked = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    return np.sort(ranked[:count])
