"""The Optuna study of a search (ask-and-tell), stored in a journal file.

The user attributes of a trial include `run`, the folder of its slot, and `row`, its index there. A
batch of trials is stored as one group of the journal, and so are the results of a slot: a killed
search has whole batches, and continues their slots from the last checkpoints. Only the holder of
the search's lock opens the study for writing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.console import shown
from jaxrl.experiments.search import samplers
from jaxrl.experiments.search.journal import Journal
from jaxrl.experiments.search.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"
NAME = "search"


class Slot(NamedTuple):
    """Trials with the same static values, trained together.

    Attributes:
      run: name of the folder.
      trials: numbers of the trials.
      points: traced values of each trial.
      waiting: whether the result of each trial is still to be recorded.
    """

    run: str
    static: dict[str, Any]
    trials: list[int]
    points: list[dict[str, Any]]
    waiting: list[bool]


def open_study(path: Path, minimise: bool) -> tuple[Study, Journal]:
    """Opens or creates the study in a folder, for writing; the journal has to be intact.

    Returns:
      The study and its journal.
    """
    import optuna

    found = Journal(path / JOURNAL)
    if any(found.read_logs(0)):
        return _load(found), found
    direction = "minimize" if minimise else "maximize"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(found)  # type: ignore[arg-type]
    return optuna.create_study(storage=storage, study_name=NAME, direction=direction), found


def read_study(path: Path) -> Study:
    """Opens the study in a folder for reading only.

    Raises:
      UserError: there is no study yet.
    """
    found = Journal(path / JOURNAL)
    if not any(found.read_logs(0)):
        raise UserError(f"{path} has no trials yet")
    return _load(found)


def _load(found: Journal) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(found)  # type: ignore[arg-type]
    return optuna.load_study(study_name=NAME, storage=storage)


# --- trials --------------------------------------------------------------------------------------


def current(study: Study) -> list[FrozenTrial]:
    """Trials of the search; other programs may have added further ones."""
    return [trial for trial in study.get_trials(deepcopy=False) if "run" in trial.user_attrs]


def unfinished(study: Study) -> list[Slot]:
    """Slots with trials that have no result yet."""
    left = [t.user_attrs["run"] for t in current(study) if not t.state.is_finished()]
    return [slot(study, run) for run in dict.fromkeys(left)]


def without_run(study: Study, path: Path) -> list[Slot]:
    """Slots with results whose run folders were removed."""
    done = dict.fromkeys(t.user_attrs["run"] for t in current(study) if t.state.is_finished())
    return [slot(study, run) for run in done if not (path / run / "config.json").is_file()]


def slot(study: Study, run: str) -> Slot:
    """The slot in folder `run`."""
    own = [trial for trial in current(study) if trial.user_attrs["run"] == run]
    own.sort(key=lambda trial: trial.user_attrs["row"])
    static = study.user_attrs["static"]
    split = lambda trial, wanted: {k: v for k, v in trial.params.items() if (k in static) == wanted}
    return Slot(
        run,
        split(own[0], True),
        [trial.number for trial in own],
        [split(trial, False) for trial in own],
        [not trial.state.is_finished() for trial in own],
    )


def ask(study: Study, space: Space, sampler: str, seed: int, sizes: Sequence[int]) -> list[Slot]:
    """New trials in slots of these sizes; the first trial of a slot determines its static values. A
    grid proposes its remaining combinations, in as many slots as its static values need.

    Each batch has a new sampler, seeded by `seed` and the number of trials: a continued search
    proposes the same trials as an undisturbed one.
    """
    study.set_user_attr("static", list(space.static))
    study.set_user_attr("traced", list(space.traced))
    its = {name: samplers.distribution(each) for name, each in space.ranges.items()}
    if sampler == "grid":
        return _ask_grid(study, space, its, sizes)
    base = samplers.make(sampler, seed, len(current(study)), sum(sizes))
    runs = []
    for size in sizes:
        run, fixed = "", {}
        for row in range(size):
            study.sampler = samplers.holding(fixed, base)
            trial = study.ask(its)
            fixed = {name: trial.params[name] for name in space.static}
            run = run or _next_run(study, fixed)
            trial.set_user_attr("row", row)
            trial.set_user_attr("run", run)
        runs.append(run)
    return [slot(study, run) for run in runs]


def _ask_grid(
    study: Study, space: Space, its: Mapping[str, BaseDistribution], sizes: Sequence[int]
) -> list[Slot]:
    """The next combinations; combinations with equal static values are adjacent."""
    from optuna.trial import TrialState, create_trial

    done, runs = len(current(study)), []
    combinations = itertools.product(*(each.choices for each in space.ranges.values()))
    todo = [dict(zip(space.ranges, x, strict=True)) for x in combinations][done:]
    for size in sizes:
        if not todo:
            break
        first = todo[0]
        same = lambda point, first=first: all(point[k] == first[k] for k in space.static)
        own = list(itertools.takewhile(same, todo[:size]))
        run = _next_run(study, {name: own[0][name] for name in space.static})
        for row, point in enumerate(own):
            attrs = {"run": run, "row": row}
            made = create_trial(
                state=TrialState.RUNNING, params=point, distributions=dict(its), user_attrs=attrs
            )
            study.add_trial(made)
        runs.append(run)
        todo = todo[len(own) :]
    return [slot(study, run) for run in runs]


def tell(
    study: Study,
    number: int,
    value: float,
    scores: np.ndarray,
    pruned_at: int | None = None,
    final: Mapping[str, Any] | None = None,
) -> None:
    """Records the result of a trial; the value NaN marks the trial as failed.

    Args:
      scores: [S] scores of the seeds.
      pruned_at: updates after which the trial was stopped; None if it was trained to the end.
      final: settings at the end, if they changed during training.
    """
    from optuna.trial import Trial, TrialState

    frozen = study.get_trials(deepcopy=False)[number]
    trial = Trial(study, frozen._trial_id)
    trial.set_user_attr("scores", [None if math.isnan(x) else float(x) for x in scores])
    if final is not None:
        trial.set_user_attr("final", dict(final))
    if math.isnan(value):
        study.tell(number, state=TrialState.FAIL)
    elif pruned_at is not None:
        trial.report(value, pruned_at)
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, value)


def best(study: Study, count: int) -> list[FrozenTrial]:
    """The best trials that were trained to the end, best first."""
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    done = [trial for trial in current(study) if trial.state == TrialState.COMPLETE]
    return sorted(done, key=lambda trial: sign * (trial.value or 0.0))[:count]


def importance(study: Study) -> dict[str, float]:
    """Importance of each setting by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255): divergence
    of the better half of all trials from all trials.

    {} for fewer than eight complete trials, for equal values of all trials, or if settings changed
    during training.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = [t for t in current(study) if t.state == TrialState.COMPLETE]
    changed = any("final" in trial.user_attrs for trial in done)
    if len(done) < 8 or len({trial.value for trial in done}) == 1 or changed:
        return {}
    with samplers.silent():
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.5)
        return dict(get_param_importances(study, evaluator=evaluator))


def _next_run(study: Study, static: Mapping[str, Any]) -> str:
    """Name of the next slot's folder, such as 003-num_steps=32."""
    runs = [trial.user_attrs["run"] for trial in current(study)]
    index = 1 + max((int(run.partition("-")[0]) for run in runs), default=-1)
    text = ",".join(f"{name.partition('.')[2]}={shown(value)}" for name, value in static.items())
    return f"{index:03d}-{re.sub(r'[^A-Za-z0-9.=,_-]+', '_', text)[:80]}".rstrip("-")
