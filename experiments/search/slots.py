"""A slot of a search: trials trained as one population, in an ordinary run folder.

Slots with the same static values have the same number of members and so share one compiled
program. All metrics of members stopped early (`halving`) are NaN from then on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl import drive
from jaxrl.errors import UserError, nearest
from jaxrl.experiments import tracking, train_loop
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.progress import Display
from jaxrl.experiments.restore import prepare
from jaxrl.experiments.run_folders import open_together
from jaxrl.experiments.search.objective import Objective
from jaxrl.experiments.settings import Settings
from jaxrl.experiments.sizes import abstract_states, batch_bytes, measured, state_bytes
from jaxrl.experiments.summary import context, last_trained, summarise
from jaxrl.ope.during import NAME as OPE
from jaxrl.runs import device_memory, metrics, records, stats
from jaxrl.runs.processes import Processes
from jaxrl.snapshot import RunState


class Outcome(NamedTuple):
    """Results of Q trials.

    Attributes:
      members: [Q, S] scores of the seeds.
      values: [Q] objective, NaN for failed trials.
      stopped: [Q] updates after which a trial was stopped, 0 if it was not stopped.
      env_steps: environment steps of all members together.
      final: settings of the trials at the end, if they changed during training.
    """

    members: np.ndarray
    values: np.ndarray
    stopped: np.ndarray
    env_steps: int
    final: list[dict[str, Any]] | None = None


class Engine(NamedTuple):
    """State shared by all slots of a search.

    `built` holds the compiled functions of each (static values, members).
    """

    objective: Objective
    processes: Processes
    built: dict[tuple[str, int], drive.Built]
    width: int | None  # members per tile; None applies the default rule

    @property
    def compiles(self) -> int:
        return sum(map(len, self.built.values()))


def train(engine: Engine, settings: Settings, path: Path, size: int) -> Outcome:
    """Trains all points of `settings` to the end, in one run padded to `size` trials.

    Padding repeats the last trial; a smaller population would need another compilation.
    """
    return run(engine, filled(settings, size), path, len(settings.points))


def run(
    engine: Engine,
    settings: Settings,
    path: Path,
    trials: int,
    within: Callable[[Plan], train_loop.Within] | None = None,
) -> Outcome:
    """Trains or continues one run to the end; returns the results of the first `trials` points.

    Args:
      within: (plan of the run) -> hooks into training; their `built` is replaced.
    """
    count = len(settings.points) * settings.options.seeds
    width = engine.width and min(engine.width, count)
    its = dataclasses.replace(settings.options, out=path, width=width)
    settings = dataclasses.replace(settings, options=its)
    processes = engine.processes
    ready = prepare(settings, processes)
    with contextlib.ExitStack() as stack:
        opened = records.open_run(path, ready.identity, context(ready))
        open_together(processes, path, "run", lambda: stack.enter_context(opened))
        folder = records.RunDir(path.resolve()).as_found()
        if not folder.finished:
            static = repr((settings.cfg, its.env_options))
            built = engine.built.setdefault((static, ready.members), {})
            changes = within(ready) if within is not None else train_loop.Within({})
            changes = changes._replace(built=built)
            total = changes.progress(ready, *ready.end)
            display = Display(total, silent=not processes.leads, unit=ready.unit)
            with tracking.live(folder, tracking.target(its, processes.leads)) as tracked:
                times = train_loop.run(ready, folder, processes, display, changes, tracked.update)
                if processes.leads:
                    folder.write_summary(summarise(ready, folder, say=display.say, **times))
            processes.all_true(True)
    told = ""
    if processes.leads:
        history = records.read_metrics(folder, ready.program.stages[-1].name)
        history = metrics.by_chunk(history, count)
        members = engine.objective.members(history).reshape(-1, its.seeds)[:trials]
        row = last_trained(history["finite"])[:: its.seeds][:trials]
        stopped = np.where(row < len(history["finite"]) - 1, history["update"][row, 0], 0)
        env_steps = (folder.summary() or {})["env_steps"]
        told = json.dumps([members.tolist(), stopped.tolist(), env_steps])
    members, stopped, env_steps = json.loads(processes.broadcast(told))
    members = np.array(members, np.float64).reshape(trials, -1)
    values = engine.objective.trials(members)
    return Outcome(members, values, np.array(stopped, int), env_steps)


def everywhere(ready: Plan, processes: Processes, rows: np.ndarray) -> np.ndarray:
    """Rows [P, V] of all members, in every process, from the rows [p, V] of each process."""
    first, last = ready.ranges[processes.index]
    own = np.asarray(rows, np.float64)[: last - first]
    parts = [json.loads(text) for text in processes.gather(json.dumps(own.tolist()))]
    return np.concatenate([np.array(x, np.float64).reshape(-1, rows.shape[1]) for x in parts])


def check(engine: Engine, settings: Settings, size: int) -> int:
    """The tile width of a slot of `size` trials.

    Raises:
      UserError: the slot does not fit into memory, or the objective is not a metric of the run.
    """
    its = dataclasses.replace(settings.options, width=engine.width)
    padded = filled(dataclasses.replace(settings, options=its), size)
    ready = prepare(padded, engine.processes)
    states = abstract_states(ready)
    check_metric(engine.objective.metric, ready, states)
    first, end = ready.ranges[engine.processes.index]
    free = device_memory.available(ready.layout.mesh.devices.flat[0])
    device_memory.check(state_bytes(ready, states), end - first, ready.layout, free)
    device_memory.check_temporary("a batch", batch_bytes(ready, states), ready.layout)
    return ready.layout.width


def check_metric(metric: str, ready: Plan, states: Sequence[RunState]) -> None:
    """Raises UserError if the metrics of a run's last stage have no such column.

    See `train_loop.metrics_of`. The evaluation is traced only for a column that may be one of its
    measured results.
    """
    if metric == OPE and not ready.settings.options.ope_updates:
        raise UserError("--objective ope:fqe needs --ope-updates, for example --ope-updates 5000")
    known = {"finite", *states[-1].member.metrics}
    if ready.program.stages[-1].evaluate is not None:
        known |= {"return", "length", *stats.RISKS}
    if metric not in known:
        known |= {*measured(ready, states)}
    if metric not in known:
        raise UserError(
            f"--objective metric:{metric}: unknown metric{nearest(metric, known)}; known: "
            f"{', '.join(sorted(known))}"
        )


def filled(settings: Settings, size: int) -> Settings:
    """Settings with `size` points: the last point is repeated."""
    more = [settings.points[-1]] * (size - len(settings.points))
    return dataclasses.replace(settings, points=(*settings.points, *more))


def sizes(trials: int, batch: int, combinations: int, programs: int) -> tuple[int, int]:
    """(trials per slot, slots per batch): batches of nearly equal size, with one slot for each
    program that may be compiled."""
    batches = -(-trials // batch)
    count = min(programs, combinations)
    return -(-trials // (batches * count)), count


def members_of(trials: np.ndarray, seeds: int) -> np.ndarray:
    """Indices [Q S] of the members of trials [Q]; each trial has S consecutive members."""
    return (np.asarray(trials)[:, None] * seeds + np.arange(seeds)).reshape(-1)
