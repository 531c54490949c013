"""After the trials: retraining of the best with fresh seeds, and selection of a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.envs.datasets import normalised_score
from jaxrl.errors import UserError
from jaxrl.experiments import restore, train
from jaxrl.experiments.search import bandit, study
from jaxrl.experiments.search.options import Options
from jaxrl.experiments.search.space import Space
from jaxrl.experiments.settings import identity
from jaxrl.runs import records

if TYPE_CHECKING:
    from optuna import Study


def confirm(
    own: Options, space: Space, path: Path, points: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Trains each point again with fresh seeds: {"values", "return", "failed"} of each point.

    The result of the best of many trials is biased upwards; fresh seeds remove this bias.
    """
    results: list[dict[str, Any]] = [{} for _ in points]
    statics = [{name: point[name] for name in space.static} for point in points]
    for static in [x for i, x in enumerate(statics) if x not in statics[:i]]:
        rows = [i for i, other in enumerate(statics) if other == static]
        traced = [{name: points[i][name] for name in space.traced} for i in rows]
        settings = space.settings(static, traced)
        its = settings.options
        name = records.default_name(
            "best", its.env, [identity(settings, space.digests), own.confirm_seeds]
        )
        fresh = dataclasses.replace(
            its,
            out=path / "confirm" / name,
            seed=its.seed + its.seeds,
            seeds=own.confirm_seeds,
            overwrite=False,
        )
        summary = train.train(dataclasses.replace(settings, options=fresh))
        for i, found in zip(rows, records.points_of(summary), strict=True):
            results[i] = {"values": points[i], "return": found["return"], "failed": found["failed"]}
    return results


def choose(own: Options, space: Space, book: Study, path: Path) -> dict[str, Any]:
    """The trial selected by a bandit; the policy of the first seed of each trial is an arm."""
    trials = study.best(book, own.trials)
    if not trials:
        raise UserError("--eval-budget: no trial has been trained to the end")
    returns, meta = {}, {}
    trust = restore.trust_of(space.programs[0])
    for run in dict.fromkeys(trial.user_attrs["run"] for trial in trials):
        ready, episodes, _ = restore.evaluate(path / run, own.eval_budget, 0, trust=trust)
        meta = ready.meta or {"env": ready.settings.options.env}
        for trial in trials:
            if trial.user_attrs["run"] == run:
                row = trial.user_attrs["row"] * ready.settings.options.seeds
                returns[trial.number] = episodes.returns[row]
    trials.sort(key=lambda trial: trial.number)
    arms = np.array([returns[trial.number] for trial in trials])
    low, high = float(arms[:, 0].min()), float(arms[:, 0].max())
    ends = normalised_score(meta, np.array([low, high]))
    if ends is not None and high > low:  # returns with a normalised score of 0 and 1
        slope = (ends[1] - ends[0]) / (high - low) / 100
        low, high = low - ends[0] / 100 / slope, low + (1 - ends[0] / 100) / slope
    found = bandit.ucb(arms, low, high, own.eval_budget)
    true = arms.mean(1)
    picked = int(found.chosen[-1])
    return {
        "episodes": own.eval_budget,
        "trial": trials[picked].number,
        "values": trials[picked].params,
        "estimate": found.estimates[picked],
        "return": true[picked],  # mean over `eval_budget` episodes
        "best_return": true.max(),
        "normalised": ends is not None,
        "chosen": [trials[i].number for i in found.chosen],
    }
