"""Objective of a search: the score of a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.search.options import Options
from jaxrl.experiments.summary import last_trained
from jaxrl.ope.during import NAME as OPE
from jaxrl.runs import stats


@dataclasses.dataclass(frozen=True)
class Objective:
    """Objective of a trial.

    Attributes:
      metric: a column of the metrics; "return" is the return of evaluation episodes.
      mean: score a member by the mean over all evaluations instead of the last one.
      cvar: None for the IQM over seeds, else the fraction of the worst seeds to average.
      minimise: lower values are better.
    """

    metric: str = "return"
    mean: bool = False
    cvar: float | None = None
    minimise: bool = False

    def members(self, history: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores [P] from columns [C, P]; NaN for failed members. Members stopped early are scored
        by their last evaluation."""
        row, each = last_trained(history["finite"]), np.arange(history["finite"].shape[1])
        values = history[self.metric]
        values = values.mean(0) if self.mean else values[row, each]
        return np.where(history["finite"][row, each] == 1, values, np.nan)

    def trials(self, members: np.ndarray) -> np.ndarray:
        """Objective [Q] from scores [Q, S] of seeds; NaN if a seed has failed."""
        if self.cvar is None:
            return stats.iqm(members, axis=1)
        sign = -1 if self.minimise else 1
        found = [np.nan] * len(members)
        for i, row in enumerate(members):
            if np.isfinite(row).all():
                found[i] = sign * stats.cvar(sign * row, self.cvar)
        return np.array(found)

    def ranking(self, members: np.ndarray) -> np.ndarray:
        """Objective [Q] from scores [Q, S] of seeds, signed so that higher is better."""
        return (-1 if self.minimise else 1) * self.trials(members)


def objective(own: Options) -> Objective:
    """Objective of a search; raises UserError for options that cannot be combined."""
    if own.halving and own.pbt:
        raise UserError("--halving and --pbt cannot be combined")
    if own.pbt and (own.sampler not in ("random", "qmc") or own.confirm):
        raise UserError(
            "--pbt learns schedules from random starting points: pass --sampler random or qmc, "
            "and no --confirm, which trains with constant settings"
        )
    if (own.halving or own.pbt) and own.score != "final":
        raise UserError("--score mean needs complete runs: leave out --halving and --pbt")
    if own.eval_budget and (own.halving or own.eval_budget < own.trials):
        raise UserError(
            "--eval-budget must be at least --trials, one episode each, and excludes --halving"
        )
    kind, _, metric = own.objective.partition(":")
    metric = OPE if own.objective == "ope:fqe" else metric
    if own.objective not in ("return", "ope:fqe") and not (kind == "metric" and metric):
        told = f"not {own.objective!r}"
        raise UserError(f"--objective must be return, ope:fqe or metric:NAME, {told}")
    name, _, share = own.statistic.partition(":")
    try:
        cvar = None if own.statistic == "iqm" else float(share)
    except ValueError:
        cvar = -1.0
    if cvar is not None and (name != "cvar" or not 0 < cvar <= 1):
        raise UserError(f"--statistic must be iqm or cvar:SHARE, not {own.statistic!r}")
    return Objective(metric or "return", own.score == "mean", cvar, own.minimise)
