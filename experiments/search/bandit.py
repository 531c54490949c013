"""Selection among trained policies from few evaluation episodes.

Each policy is an arm, each episode a pull; UCB1 (Auer et al. 2002, "Finite-time Analysis of the
Multiarmed Bandit Problem") selects the next arm. Returns are normalised to about [0, 1], as in the
evaluation protocol of unifloral (Jackson et al. 2025, arXiv:2504.11453).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Bandit(NamedTuple):
    """Results of a bandit with A arms and a budget of B episodes."""

    pulled: np.ndarray  # [B] arm of each episode
    chosen: np.ndarray  # [B] arm with the highest mean after each episode
    estimates: np.ndarray  # [A] final mean return, NaN for arms that were not pulled


def ucb(returns: np.ndarray, low: float, high: float, budget: int) -> Bandit:
    """Pulls each arm once, then always the arm with the highest mean + sqrt(2 ln t / n).

    Args:
      returns: [A, K >= budget - A + 1] returns of the episodes of each arm, used in order.
      low, high: returns normalised to 0 and 1.
      budget: number B of episodes, at least A.
    """
    arms = len(returns)
    scaled = (returns - low) / (high - low if high > low else 1.0)
    counts, totals = np.zeros(arms, int), np.zeros(arms)
    pulled, chosen = np.zeros(budget, int), np.zeros(budget, int)
    for t in range(budget):
        if t < arms:
            arm = t
        else:
            arm = int(np.argmax(totals / counts + np.sqrt(2 * np.log(t) / counts)))
        totals[arm] += scaled[arm, counts[arm]]
        counts[arm] += 1
        means = np.where(counts > 0, totals / np.maximum(counts, 1), -np.inf)
        pulled[t], chosen[t] = arm, int(np.argmax(means))
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return Bandit(pulled, chosen, low + means * (high - low if high > low else 1.0))
