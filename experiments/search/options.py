"""What a search can be told beside the options of its runs."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrl.errors import UserError
from jaxrl.experiments.search.slots import Objective


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a search; `jaxrl train AGENT --help` shows the others, which it takes too."""

    trials: int = dataclasses.field(default=64, metadata={"least": 1})
    """hyperparameter settings to try, each with --seeds seeds; more continue a search"""
    batch: int = dataclasses.field(default=64, metadata={"least": 1})
    """trials that are proposed and trained at a time"""
    programs: int = dataclasses.field(default=4, metadata={"least": 1})
    """programs that a batch may compile, where static settings are searched"""
    sampler: Literal["tpe", "cmaes", "qmc", "random", "grid"] = "tpe"
    """who proposes; cmaes needs the package of that name, grid a list for each setting"""
    objective: str = "return"
    """what counts: return, or metric:NAME for a column of the metrics, as metric:td_error"""
    minimise: bool = False
    """less is better"""
    score: Literal["final", "mean"] = "final"
    """the last evaluation, or the mean over all of them"""
    statistic: str = "iqm"
    """over seeds: iqm, or cvar:SHARE for the mean of the worst of them"""
    halving: bool = False
    """stop the worst trials of a batch early: successive halving"""
    eta: int = dataclasses.field(default=4, metadata={"least": 2})
    """one of so many trials goes on at each rung of --halving"""
    pbt: bool = False
    """population-based training: after each evaluation the worst quarter of a batch takes over
    weights and settings of the best, and varies the settings"""
    confirm: int = 0
    """the best trials to be trained again with fresh seeds"""
    confirm_seeds: int = dataclasses.field(default=32, metadata={"least": 1})
    """those seeds"""
    eval_budget: int = 0
    """episodes in which a bandit chooses among the trained policies"""


PHASES = ("trials", "confirm", "confirm_seeds", "eval_budget")  # more of them continue a search


def objective(own: Options) -> Objective:
    """The objective; UserError for options that cannot be met."""
    if own.halving and own.pbt:
        raise UserError("--halving and --pbt exclude each other")
    if own.pbt and (own.sampler not in ("random", "qmc") or own.confirm):
        raise UserError(
            "--pbt finds schedules from random starts: give --sampler random or qmc, and no "
            "--confirm, which trains with constant settings"
        )
    if (own.halving or own.pbt) and own.score != "final":
        raise UserError("--score mean takes whole runs: no --halving, no --pbt")
    if own.eval_budget and (own.halving or own.eval_budget < own.trials):
        raise UserError(
            "--eval-budget takes whole runs, and at least one episode for each of --trials"
        )
    kind, _, metric = own.objective.partition(":")
    if own.objective != "return" and not (kind == "metric" and metric):
        raise UserError(f"--objective is return or metric:NAME, not {own.objective!r}")
    name, _, share = own.statistic.partition(":")
    try:
        cvar = None if own.statistic == "iqm" else float(share)
    except ValueError:
        cvar = -1.0
    if cvar is not None and (name != "cvar" or not 0 < cvar <= 1):
        raise UserError(f"--statistic is iqm or cvar:SHARE, not {own.statistic!r}")
    return Objective(metric or "return", own.score == "mean", cvar, own.minimise)
