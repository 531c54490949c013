"""CPU seconds of the stages of a planned run, from a few updates in the middle of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from jaxrl import drive, population
from jaxrl.evaluate import Evaluator
from jaxrl.experiments import train_loop
from jaxrl.experiments.plan import Plan
from jaxrl.program import Stage
from jaxrl.types import Episodes

FEW = 2  # updates of the shorter launch
SHORT_BLOCK = 16  # updates between refreshes, which then count as parts of the updates


class Rates(NamedTuple):
    """CPU seconds of the parts of a stage, of all members together.

    Attributes:
      compile: compilation, and initialisation with the warm-up of a replay buffer.
      update: one update; with the refreshes of the source if there are many.
      refresh: one refresh of the source, or without such the start of a launch.
      evaluation: one interim evaluation whose episodes last to the time limit.
    """

    compile: float
    update: float
    refresh: float
    evaluation: float


class Counts(NamedTuple):
    """How often a stage does what `Rates` has the cost of; the last evaluation may count more."""

    updates: int
    refreshes: int
    evaluations: int

    def seconds(self, rates: Rates) -> float:
        """Expected CPU seconds of the stage."""
        repeated = zip(self, rates[1:], strict=True)
        return rates.compile + sum(count * cost for count, cost in repeated)


def counts_of(stage: Stage, rates: Rates) -> Counts:
    """The counts of a whole stage, which is launched anew after each evaluation and `PACE_S`."""
    looks, play, source = len(stage.chunks), stage.evaluate, stage.source
    paced = stage.updates * rates.update / max(train_loop.PACE_S - rates.refresh, 1.0)
    refreshes = max(looks, int(paced))
    if source.refresh is not None:
        refreshes = 0 if source.every <= SHORT_BLOCK else -(-stage.updates // source.every)
    more = play.episodes // play.interim - 1 if isinstance(play, Evaluator) else 0
    return Counts(stage.updates, refreshes, 0 if play is None else looks + more)


def rates_of(plan: Plan, seconds: float) -> list[Rates]:
    """The rates of each stage; the timed updates of a stage take about `seconds`.

    The members of the first tile are run. Tiles follow each other, so the times of all members are
    those of the tile times the number of tiles.
    """
    found: list[Rates] = []
    count = min(plan.layout.width, plan.members)
    tiles = -(-plan.members // count)

    def short(run: drive._Run, index: int, resume: Any) -> Iterator[drive.Report]:
        rates = _measured(run, index, plan.env.spec.max_steps, seconds)
        times = 1 if run.program.stages[index].shared else tiles
        repeated = {name: times * x for name, x in rates._asdict().items() if name != "compile"}
        found.append(rates._replace(**repeated))
        yield from ()

    with mock.patch.object(drive._Run, "train", short):
        hp, own = jax.tree.map(lambda x: x[:count], (plan.hp, plan.own))
        sides = {"own": own, "ids": plan.seeds[:count], "run_hp": jax.tree.map(lambda x: x[0], hp)}
        layout = population.layout(count, width=count)
        list(drive.drive(plan.program, layout, plan.key, hp, plan.inputs, **sides))
    return found


def _measured(run: drive._Run, index: int, limit: int | None, seconds: float) -> Rates:
    """Rates of one stage, whose learner is left to the later stages."""
    stage = run.program.stages[index]
    (state, _), begun = timed(run.begin, index, None)
    _, built = timed(run.compile, index, state)
    update = refresh = evaluation = 0.0
    if stage.updates:
        middle = stage.updates // 2 // stage.source.every * stage.source.every

        def launch(count: int) -> float:
            nonlocal state
            (state, _), spent = timed(run.advance, index, state, middle, count, True)
            return spent

        update, refresh = fitted(launch, stage.updates - middle, stage.source.every, seconds)
    if stage.evaluate is not None:
        found, evaluation = timed(run.evaluate, index, state, 0)
        if limit is not None and isinstance(found, Episodes):
            evaluation *= limit / max(1.0, float(np.max(found.lengths, -1).mean()))
    run.inputs[stage.shared][stage.name] = state.learner
    return Rates(begun + built, update, refresh, evaluation)


def fitted(
    launch: Callable[[int], float], room: int, every: int, seconds: float
) -> tuple[float, float]:
    """Seconds of an update and of a refresh, from launches of at most `room` updates.

    Args:
      launch: seconds of a launch of so many updates, which begins with a refresh.
      every: number of updates between refreshes.
    """
    few = min(FEW, room)
    once = launch(few)  # the first launch is slower
    if room == few:
        return once / few, 0.0
    # Within a block, so that both launches have one refresh, unless blocks are short.
    limit = min(room, every) if every > SHORT_BLOCK else room
    short, many, spent = launch(few), few, 0.0
    while many < limit and spent < seconds or many == few:
        growth = min(max(seconds / max(spent, 1e-6), 2.0), 16.0) if spent else 2.0
        many = min(limit, int(many * growth) // few * few)
        spent = launch(many) - short
    update = max(0.0, spent / (many - few))
    return update, max(0.0, short - few * update)


def timed(fn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result of `fn`, and its CPU seconds."""
    begin = time.process_time()
    found = jax.block_until_ready(fn(*args))
    return found, time.process_time() - begin
