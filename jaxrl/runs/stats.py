"""Statistics over members and episodes, in plain numpy.

Scores of reinforcement learning are few and heavy-tailed, so they are summarised by the
interquartile mean with a stratified bootstrap interval (Agarwal et al., "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", arXiv:2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

FEW = 5  # members below which an interval or a comparison is unreliable
_CHUNK = 2**21  # resampled values held at once


def iqm(x: ArrayLike, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and the highest quarter of the values.

    floor(n / 4) values go on each side, so of three values all are kept: the definition of scipy's
    `trim_mean` at 0.25, which the paper and its library use.

    Args:
      x: [...] numbers; NaN gives NaN.
      axis: the axis that disappears; None takes all values together.

    Raises:
      ValueError: there are no values.
    """
    x = np.asarray(x, np.float64)
    x = x.reshape(-1) if axis is None else np.moveaxis(x, axis, -1)
    n = x.shape[-1]
    if n == 0:
        raise ValueError("no values to take the interquartile mean of")
    cut = n // 4
    middle = np.partition(x, [cut, n - cut - 1], axis=-1)[..., cut : n - cut]
    return np.where(np.isnan(x).any(-1), np.nan, middle.mean(-1))[()]


def bootstrap_ci(
    x: ArrayLike,
    statistic: Callable[..., Any] = iqm,
    level: float = 0.95,
    reps: int = 2000,
    seed: int = 0,
    strata: ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over members.

    Args:
      x: [P] one score per member.
      statistic: maps ([R, P], axis=-1) to [R].
      level: coverage aimed at, between 0 and 1.
      reps: resamples.
      seed: of the resampling; the same seed gives the same interval.
      strata: [P] labels, such as the task of each member: every resample has as many members of
        each label as x has.

    Raises:
      ValueError: x is empty or not one-dimensional, or strata has another length.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"the bootstrap needs scores of shape [P], got {list(x.shape)}")
    labels = np.zeros(x.size) if strata is None else np.asarray(strata)
    if labels.shape != x.shape:
        raise ValueError(f"{labels.size} strata for {x.size} scores")
    groups = [x[labels == label] for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // x.size)
    values = []
    for start in range(0, reps, rows):
        count = min(rows, reps - start)
        draws = [g[rng.integers(g.size, size=(count, g.size), dtype=np.int32)] for g in groups]
        values.append(statistic(np.concatenate(draws, axis=1), axis=-1))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def std(x: ArrayLike, axis: int | None = None) -> Any:
    """Sample standard deviation (ddof 1) along `axis`; NaN for a single value."""
    x = np.asarray(x, np.float64)
    count = x.size if axis is None else x.shape[axis]
    return x.std(axis, ddof=1) if count > 1 else x.sum(axis) * np.nan


def summarise(returns: ArrayLike, strata: ArrayLike | None = None) -> dict[str, Any]:
    """Statistics of a run over its members.

    A member's score is its mean return. Members with any return that is not finite have failed and
    are left out. All statistics are over members: `std` is the sample standard deviation (ddof 1),
    `ci95` the bootstrap interval of the IQM.

    Args:
      returns: [P, episodes], or [P] for one episode each.
      strata: [P] labels for the bootstrap.

    Returns:
      {"iqm", "ci95": [low, high], "mean", "std", "min", "max", "episodes": per member,
      "members": number of sound members, "failed": number of failed members}; NaN if all failed.
    """
    returns = np.asarray(returns, np.float64)
    returns = returns[:, None] if returns.ndim == 1 else returns
    if returns.ndim != 2:
        raise ValueError(f"returns are [P] or [P, episodes], got {list(returns.shape)}")
    fine = np.isfinite(returns).all(1)
    scores = returns[fine].mean(1) if fine.any() else np.array([np.nan])
    strata = None if strata is None or not fine.any() else np.asarray(strata)[fine]
    return {
        "iqm": float(iqm(scores)),
        "ci95": list(bootstrap_ci(scores, strata=strata)),
        "mean": float(scores.mean()),
        "std": float(std(scores)),
        "min": float(scores.min()),
        "max": float(scores.max()),
        "episodes": returns.shape[1],
        "members": int(fine.sum()),
        "failed": int((~fine).sum()),
    }


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Probability that a member of x scores higher than a member of y; ties count half.

    Args:
      x: [P] scores; those that are not finite are left out.
      y: [Q] scores, alike.
    """
    x, y = _finite(x), np.sort(_finite(y))
    below = np.searchsorted(y, x, side="left")
    up_to = np.searchsorted(y, x, side="right")
    return float(np.mean(below + up_to) / (2 * y.size))


def optimality_gap(x: ArrayLike, target: float = 1.0) -> float:
    """How far members are from `target` on average: target - mean of min(score, target).

    Scores beyond the target count as the target. With normalised scores and target 1 it is the
    optimality gap of rliable (Agarwal et al., section 4.3).

    Args:
      x: [P] scores; those that are not finite are left out.
    """
    return float(target - np.minimum(_finite(x), target).mean())


def performance_profile(x: ArrayLike, taus: ArrayLike) -> np.ndarray:
    """Fractions [T] of members whose score exceeds each of `taus` [T] (run-score distribution).

    The empirical tail distribution of Agarwal et al., section 4.2, for one task.

    Args:
      x: [P] scores; those that are not finite are left out.
    """
    x = np.sort(_finite(x))
    above = x.size - np.searchsorted(x, np.asarray(taus, np.float64), side="right")
    return above / x.size


ALPHAS = (0.05, 0.1, 0.25)  # shares of the worst episodes that `risk` looks at
RISKS = tuple(f"{kind}_{alpha}" for kind in ("var", "cvar") for alpha in ALPHAS)


def risk(returns: ArrayLike) -> dict[str, np.ndarray]:
    """`var` and `cvar` of each member's episodes: {"var_0.05": [P], ..., "cvar_0.25": [P]}.

    Args:
      returns: [P, episodes]; a member with a return that is not finite has NaN.
    """
    x = np.asarray(returns, np.float64)
    x = np.sort(np.where(np.isfinite(x).all(1, keepdims=True), x, np.nan), 1)
    found = {}
    for alpha in ALPHAS:
        count, last = _whole(x.shape[1], alpha)
        found[f"var_{alpha}"] = x[:, last]
        found[f"cvar_{alpha}"] = (x[:, :last].sum(1) + (count - last) * x[:, last]) / count
    return {name: found[name] for name in RISKS}


def var(x: ArrayLike, alpha: float) -> float:
    """Value at risk: the least return that a fraction `alpha` of episodes does not exceed.

    Args:
      x: returns of episodes, of any shape; those that are not finite are left out.
      alpha: in (0, 1]; 0.1 looks at the worst tenth, 1 gives the maximum.
    """
    x = np.sort(_finite(x))
    return float(x[_whole(x.size, alpha)[1]])


def cvar(x: ArrayLike, alpha: float) -> float:
    """Conditional value at risk: the mean return of the worst fraction `alpha` of episodes.

    The episode on the boundary counts with the part of it that lies inside. Arguments as in `var`;
    alpha = 1 gives the mean.
    """
    x = np.sort(_finite(x))
    count, last = _whole(x.size, alpha)
    return float((x[:last].sum() + (count - last) * x[last]) / count)


def _whole(size: int, alpha: float) -> tuple[float, int]:
    """The number of episodes in a fraction `alpha`, and the index of the last of them."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}")
    count = max(round(alpha * size, 9), 1e-9)  # 0.07 * 100 is 7.000000000000001
    return count, math.ceil(count) - 1


def _finite(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x, np.float64).reshape(-1)
    x = x[np.isfinite(x)]
    if not x.size:
        raise ValueError("no finite values")
    return x
