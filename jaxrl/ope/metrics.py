"""How well estimated values Ĵ [C] of candidate policies agree with their true values J [C].

Accuracy: `mse`, `rank_correlation`. Selection of the k candidates of the highest estimates: their
best, worst and mean value, `regret`, `violations` of a safety threshold, and SharpeRatio@k, the
return per risk of deploying the k candidates in a trial. Haruka Kiyohara, Ren Kishimoto, Kosuke
Kawakami, Ken Kobayashi, Kazuhide Nakata, Yuta Saito. Towards Assessing and Benchmarking Risk-Return
Tradeoff of Off-Policy Evaluation. ICLR 2024, arXiv:2311.18207.

As in the paper, the behaviour policy is itself a candidate of SharpeRatio@k, with its mean return
as estimate and as true value, and deviations are divided by k. (The authors' code divides by k - 1
and sets negative ratios to 0.) Equal estimates keep the order of the candidates. numpy, float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Top(NamedTuple):
    """Values [C] of the k candidates of the highest estimates, for k = 1 .. C."""

    best: np.ndarray
    worst: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def mse(estimate: ArrayLike, true: ArrayLike) -> float:
    """Mean of (Ĵ - J)²."""
    return float(np.mean((np.asarray(estimate, float) - np.asarray(true, float)) ** 2))


def rank_correlation(estimate: ArrayLike, true: ArrayLike) -> float:
    """Spearman's rank correlation, with the mean rank of tied values; NaN if a side is constant."""
    a, b = ranks(estimate), ranks(true)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / norm) if norm > 0 else float("nan")


def ranks(x: ArrayLike) -> np.ndarray:
    """Ranks [C] from 0, ascending; tied values share their mean rank."""
    x = np.asarray(x, float)
    below = np.sum(x[None] < x[:, None], 1)
    return below + (np.sum(x[None] == x[:, None], 1) - 1) / 2


def top(estimate: ArrayLike, true: ArrayLike) -> Top:
    """Best, worst, mean and standard deviation of J over the top k, for every k."""
    chosen = np.asarray(true, float)[order(estimate)]
    count = np.arange(1, chosen.size + 1)
    mean = np.cumsum(chosen) / count
    std = np.array([chosen[:k].std() for k in count])
    return Top(np.maximum.accumulate(chosen), np.minimum.accumulate(chosen), mean, std)


def order(estimate: ArrayLike) -> np.ndarray:
    """Indices [C] of candidates by descending estimate; NaN comes last."""
    x = np.asarray(estimate, float)
    return np.argsort(np.where(np.isnan(x), np.inf, -x), kind="stable")


def regret(estimate: ArrayLike, true: ArrayLike) -> np.ndarray:
    """Regret@k [C]: the best value of all candidates less the best of the top k."""
    return np.max(np.asarray(true, float)) - top(estimate, true).best


def sharpe_ratio(estimate: ArrayLike, true: ArrayLike, behaviour: float) -> np.ndarray:
    """SharpeRatio@k [C + 1] = (best@k - J(π_b)) / std@k; NaN at k = 1 and where std@k is 0.

    Args:
      behaviour: J(π_b), whose policy joins the candidates.
    """
    found = top(np.append(estimate, behaviour), np.append(true, behaviour))
    ratio = np.full(found.std.size, np.nan)
    return np.divide(found.best - behaviour, found.std, out=ratio, where=found.std > 0)


def violations(estimate: ArrayLike, true: ArrayLike, threshold: float) -> np.ndarray:
    """Fraction [C] of the top k with a value below `threshold`, for every k."""
    bad = np.asarray(true, float)[order(estimate)] < threshold
    return np.cumsum(bad) / np.arange(1, bad.size + 1)
