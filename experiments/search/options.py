"""Options of a search, in addition to the options of its training runs."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrl.ranges import bounded


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a search, in addition to those of `jaxrl train AGENT --help`."""

    trials: int = bounded(64, least=1)
    """number of trials, each with --seeds seeds; a larger number continues a search"""
    batch: int = bounded(64, least=1)
    """number of trials that are proposed and trained together"""
    programs: int = bounded(4, least=1)
    """maximum number of programs compiled per batch if static settings are searched"""
    sampler: Literal["tpe", "cmaes", "qmc", "random", "grid"] = "tpe"
    """Optuna sampler; cmaes needs the package cmaes, grid needs a list of values per setting"""
    objective: str = "return"
    """objective: return; metric:NAME for a logged metric, for example metric:td_error; or ope:fqe
    for the value that an offline agent's dataset predicts, which needs --ope-updates"""
    minimise: bool = False
    """minimise the objective instead of maximising it"""
    score: Literal["final", "mean"] = "final"
    """score of a trial: its last evaluation, or the mean over all its evaluations"""
    statistic: str = "iqm"
    """aggregate over seeds: iqm, or cvar:SHARE for the mean of the worst fraction SHARE of seeds"""
    halving: bool = False
    """stop the worst trials of a batch early: successive halving"""
    eta: int = bounded(4, least=2)
    """reduction factor of --halving: one trial in ETA is promoted at each rung"""
    pbt: bool = False
    """population-based training: after each evaluation the worst quarter of a batch copies
    weights and settings from the best and perturbs the settings"""
    confirm: int = bounded(0, least=0)
    """number of best trials to train again with fresh seeds"""
    confirm_seeds: int = bounded(32, least=1)
    """number of fresh seeds per trial of --confirm"""
    eval_budget: int = bounded(0, least=0)
    """total evaluation episodes that a bandit spends to choose among the trained policies"""


PHASES = ("trials", "confirm", "confirm_seeds", "eval_budget")  # larger values continue a search
