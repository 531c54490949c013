"""Successive halving inside a population: each rung stops the worst trials of a slot.

A rung is the end of a chunk. The members of promoted trials move to the front, and the tiles
behind them are no longer computed: nothing is recompiled, and the results of promoted trials do
not change. Metrics of stopped trials are NaN after the rung; a continued run derives the promoted
trials from the metrics.

Non-stochastic Best Arm Identification and Hyperparameter Optimization. Kevin Jamieson, Ameet
Talwalkar. AISTATS 2016, arXiv:1502.07943.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrl import drive
from jaxrl.experiments import train_loop
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.search import slots
from jaxrl.experiments.search.slots import Engine, Outcome, members_of
from jaxrl.experiments.settings import Settings
from jaxrl.runs import metrics, records


def halve(engine: Engine, settings: Settings, path: Path, size: int, eta: int) -> Outcome:
    """Trains one slot, padded to `size` trials; each rung promotes one trial in `eta`."""
    trials, seeds = len(settings.points), settings.options.seeds
    settings = slots.filled(settings, size)
    objective, processes = engine.objective, engine.processes

    def within(ready: Plan) -> train_loop.Within:
        stage = ready.program.stages[-1]
        steps = rungs(stage.chunks, size, eta)
        nexts = {end: count for (end, _), (_, count) in zip(steps, steps[1:], strict=False)}
        first, last = ready.ranges[processes.index]

        def going_on(step: int, columns: dict[str, np.ndarray]) -> np.ndarray:
            """Trials promoted at the rung after `step` updates, from the metrics [P] there."""
            alive = np.flatnonzero(~np.isnan(columns["finite"][::seeds]))
            row = {name: x[None] for name, x in columns.items()}
            scores = objective.ranking(objective.members(row).reshape(-1, seeds)[alive])
            return alive[survivors(scores, nexts[step])]

        def mine(chosen: np.ndarray | None) -> np.ndarray:
            """Members of this process that belong to the trials `chosen` by the leader."""
            told = json.loads(
                processes.broadcast(json.dumps([] if chosen is None else chosen.tolist()))
            )
            members = members_of(np.array(told, int), seeds)
            return members[(first <= members) & (members < last)] - first

        def select(report: drive.Report) -> np.ndarray:
            if report.step not in nexts:
                return kept[-1]
            found = train_loop.metrics_of(report) or {}
            names = ["finite", objective.metric]
            own = np.stack([found[name] for name in names], 1)
            columns = dict(zip(names, slots.everywhere(ready, processes, own).T, strict=True))
            kept.append(mine(going_on(report.step, columns)))
            return kept[-1]

        def members(index: int, step: int) -> np.ndarray:
            """Members still trained after `step` updates of stage `index`."""
            passed = [end for end in nexts if end <= step and index == ready.end[0]]
            chosen = np.arange(trials)
            if passed and processes.leads:
                # Rows of later chunks may be missing from some processes.
                history = metrics.by_chunk(records.read_metrics(path, stage.name), ready.members)
                (chunk,) = np.flatnonzero(history["update"][:, 0] == passed[-1])
                names = ("finite", objective.metric)
                chosen = going_on(passed[-1], {name: history[name][chunk] for name in names})
            kept.append(mine(chosen))
            return kept[-1]

        def done(index: int, step: int) -> int:
            if index < ready.end[0]:
                return ready.progress(index, step) * ready.members
            counts = [trials, *(min(trials, count) for count in nexts.values())]
            ends = [0, *nexts, stage.updates]
            total = ready.progress(index, 0) * trials
            each = ready.progress(index, 1) - ready.progress(index, 0)  # of one update
            for (begin, end), count in zip(itertools.pairwise(ends), counts, strict=True):
                total += count * each * max(min(end, step) - begin, 0)
            return total * seeds

        kept: list[np.ndarray] = []
        return train_loop.Within({}, select=select, members=members, done=done)

    return slots.run(engine, settings, path, trials, within)


def rungs(chunks: Sequence[tuple[int, int]], trials: int, eta: int) -> list[tuple[int, int]]:
    """Rungs of successive halving: (updates at the end, number of trials trained until then).

    The last rung is the end of the run. Each earlier rung has 1/eta of the updates of the next one,
    rounded to the nearest end of a chunk. Trials and chunks limit the number of rungs.

    Args:
      chunks: (first update, updates) of each stretch between evaluations.
    """
    ends = np.array([first + count for first, count in chunks])
    depth = min(
        math.floor(math.log(trials, eta) + 1e-9), math.floor(math.log(ends.size, eta) + 1e-9)
    )
    wanted = [ends[-1] / eta ** (depth - i) for i in range(depth + 1)]
    chosen = [int(ends[np.argmin(np.abs(ends - x))]) for x in wanted]
    distinct = sorted(set(chosen))
    return [(end, max(trials // eta**i, 1)) for i, end in enumerate(distinct)]


def survivors(scores: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of the `count` highest scores; NaN is lowest, ties go to the lower index."""
    ranked = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    return np.sort(ranked[:count])
