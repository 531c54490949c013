"""Does an offline agent over- or underfit? Verdicts from the metrics of training alone.

After Aviral Kumar, Anikait Singh, Stephen Tian, Chelsea Finn, Sergey Levine. A Workflow for Offline
Model-Free Robotic Reinforcement Learning. CoRL 2021, arXiv:2109.10813: a critic that overfits has
values of the dataset's actions that rise and then fall, and the policy at the peak is the one to
choose; a critic that underfits has a TD error that stays high. The paper leaves to the eye what
"fall" and "high" are; the thresholds here are this project's, as is the use of held-out TD errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

RISE, FALL = 0.1, 0.1  # of the range of Q, from which a rise and a fall count
HIGH = 0.5  # TD error relative to the standard deviation of Q, from which the former is high
STILL = 0.1  # relative change of the TD error, below which it stays

Verdict = Literal["overfitting", "underfitting", "neither", "unknown"]

REMEDIES: dict[Verdict, str] = {
    "overfitting": "choose the checkpoint at the peak of Q (jaxrl peak), or train smaller "
    "networks, or with --agent.correction vib or dropout (cql)",
    "underfitting": "train larger networks, or with --agent.correction dr3 (cql)",
}


class Diagnosis(NamedTuple):
    """What the metrics of one member say.

    Attributes:
      peak: index of the evaluation to choose, see `peak`.
      fall: see `fall`.
      unexplained: TD error relative to the standard deviation of Q at the end; NaN if unknown.
      gap: held-out TD error relative to that of training rows at the end; NaN if unknown.
    """

    verdict: Verdict
    peak: int
    fall: float
    unexplained: float
    gap: float


def peak(q: np.ndarray) -> int:
    """Index of the largest of mean Q-values [C] of the dataset's actions, the first one if several.

    Where Q rises from its first value by a tenth of its range or less, as with negative rewards or
    a strong regulariser, no peak can be seen: the last index. Values that are not finite are passed
    over.
    """
    known = q[np.isfinite(q)]
    if not known.size or np.max(known) - known[0] <= RISE * np.ptp(known):
        return len(q) - 1
    return int(np.argmax(np.where(np.isfinite(q), q, -np.inf)))


def fall(q: np.ndarray) -> float:
    """Distance of the last of values [C] from `peak`, as a fraction of their range; in [0, 1]."""
    size = np.max(q) - np.min(q)
    return float((q[peak(q)] - q[-1]) / size) if size > 0 else 0.0


def overfits_held(train: np.ndarray, held: np.ndarray) -> bool:
    """Whether held-out TD errors [C] end more than a tenth above their minimum, while those of
    training rows [C] end no higher than they were there."""
    best = int(np.argmin(held))
    return bool(held[-1] > (1 + FALL) * held[best] and train[-1] <= train[best])


def underfits(error: np.ndarray, spread: np.ndarray) -> bool:
    """Whether TD errors [C] stay high: in the last third of training they are above half the
    standard deviation of Q [C], and within a tenth of those in the third before."""
    third = len(error) // 3
    if not third:
        return False
    before, last = np.mean(error[-2 * third : -third]), np.mean(error[-third:])
    high = last > HIGH * np.mean(spread[-third:])
    return bool(high and abs(last - before) <= STILL * before)


def diagnose(history: Mapping[str, np.ndarray]) -> Diagnosis:
    """The diagnosis from metrics [C] of one member, one per evaluation.

    Args:
      history: has q; td_error, q_std and held_td_error are used if they are there. Held-out metrics
        may be NaN where no held-out batch was due.
    """
    nothing = np.full(len(history["q"]), np.nan)
    q, error, spread, held = (
        np.asarray(history.get(name, nothing), float)
        for name in ("q", "td_error", "q_std", "held_td_error")
    )
    if not np.isfinite(q).all():
        return Diagnosis("unknown", peak(q), np.nan, np.nan, np.nan)
    due = np.isfinite(held) & np.isfinite(error)
    lost = fall(q)
    verdict: Verdict = "neither"
    if underfits(error, spread):  # comparisons with NaN are false
        verdict = "underfitting"
    if lost > FALL or (due.any() and overfits_held(error[due], held[due])):
        verdict = "overfitting"
    gap = held[due][-1] / error[due][-1] if due.any() else np.nan
    return Diagnosis(verdict, peak(q), lost, float(error[-1] / spread[-1]), float(gap))
