"""Choice among trained policies from few episodes, for environments with costly episodes.

Each policy is an arm, each episode a pull; UCB1 (Auer et al. 2002, "Finite-time Analysis of the
Multiarmed Bandit Problem") selects the next arm, on returns normalised to about [0, 1], as in
the evaluation protocol of unifloral (Jackson et al. 2025, arXiv:2504.11453).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Bandit(NamedTuple):
    """A bandit's run over A arms with a budget of B episodes."""

    pulled: np.ndarray  # [B] the arm of each episode
    chosen: np.ndarray  # [B] the arm that has the highest mean after each
    estimates: np.ndarray  # [A] mean return at the end, NaN for arms not tried


def ucb(returns: np.ndarray, low: float, high: float, budget: int) -> Bandit:
    """Plays arms, each once at first, then the one with the highest mean + sqrt(2 ln t / n).

    Args:
      returns: [A, K >= budget - A + 1] episodes of each arm, of which it sees those it pays for.
      low, high: returns that count as 0 and 1.
      budget: B, at least A.
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
