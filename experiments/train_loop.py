"""Training loop of one or several processes: launches, metrics, checkpoints and stops."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxrl import drive
from jaxrl.drive import Compiled, Report
from jaxrl.errors import Stopped
from jaxrl.experiments.interrupts import Signals, Watchdog
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.progress import SHOWN, Display
from jaxrl.runs import device_memory, memory, records, stats
from jaxrl.runs.metrics import part_name
from jaxrl.runs.processes import Processes
from jaxrl.runs.shards import Range, Shards
from jaxrl.snapshot import abstract_state, assemble
from jaxrl.types import PyTree

PACE_S = 5.0  # duration of one launch: the wait of a signal, and the precision of checkpoint times
GO_ON, SAVE = 0, -1  # decisions after a launch; a signal number means save and stop


class Within(NamedTuple):
    """Hooks of a search into one of its runs.

    Attributes:
      built: programs compiled by earlier runs of the same shapes.
      adapt, select: change the population between chunks, see `jaxrl.drive.Hooks`.
      members: (stage, update) -> the members of this process that are still trained from there.
      done: (stage, update) -> `Plan.progress` of all members so far.
    """

    built: drive.Built
    adapt: drive.Adapt | None = None
    select: drive.Select | None = None
    members: Callable[[int, int], np.ndarray] | None = None
    done: Callable[[int, int], int] | None = None

    def progress(self, ready: Plan, stage: int, step: int) -> int:
        """Progress of all members together, up to this update."""
        if self.done is not None:
            return self.done(stage, step)
        return ready.progress(stage, step) * ready.members


def run(
    ready: Plan,
    folder: records.RunDir,
    processes: Processes,
    display: Display,
    within: Within | None = None,
    written: Callable[[bool], None] | None = None,
) -> dict[str, float]:
    """Trains the members of this process to the end, from the newest checkpoint if there is one.

    Args:
      within: None for a run that is not part of a search.
      written: called after metrics are written; the argument says whether those of all members are
        there, which a process alone knows.

    Returns:
      {"wall_s", "compile_s"}, including the time before a restart.

    Raises:
      Stopped: a signal arrived in any process; the state has been saved.
    """
    options = ready.settings.options
    first, last = ready.ranges[processes.index]
    idle = first == last
    if idle:  # trains a copy of the first member, to take part in all decisions; writes nothing
        first, last = 0, 1
    some = lambda tree, a, b: jax.tree.map(lambda x: x[a:b], tree)

    def target(meta: dict[str, int], members: Range) -> PyTree:
        hp, own = some((ready.hp, ready.own), *members)
        return abstract_state(ready.program, hp, ready.inputs, meta["stage"], own, ready.layout)

    shards = Shards(
        folder.checkpoints, ready.identity, ready.ranges, options.keep, processes, display.say
    )
    watchdog, signals = Watchdog(options.watchdog), Signals(processes.request_stop)
    with shards, watchdog, signals, display:
        alone, within = within is None, within or Within({})
        found, resume, at = shards.restore(target, (first, last)), None, (0, 0)
        times = _Times(found.meta if found else {}, display)
        if found is not None:
            at = found.meta["stage"], found.meta["step"]
            display.begin_at(within.progress(ready, *at))
            display.say(f"continuing from update {at[1]} of stage {at[0] + 1}")
            resume = assemble(ready.program, *at, found.parts, (first, last))
        saved, decision = time.perf_counter(), GO_ON

        def asked() -> int:
            return signals.received or processes.stop_requested()

        def decide(stage: int, step: int, last: bool) -> bool:
            """One decision for all processes, so that all save the same checkpoints."""
            nonlocal decision
            # Also at the end of a stage, since compiling the next one may be interrupted.
            ends = last or step == ready.program.stages[stage].updates
            late = time.perf_counter() - saved >= options.checkpoint_seconds
            decision = processes.broadcast_int(asked() or (SAVE if ends or late else GO_ON))
            return decision != GO_ON

        def compiling(what: str) -> None:
            watchdog.pause()
            display.compiling(what)

        def compiled(program: Compiled) -> None:
            watchdog.beat()
            display.compiled(program.what, program.seconds, program.temporary_bytes)
            memory.release_freed()
            what = SHOWN[program.what]
            device_memory.check_temporary(what, program.temporary_bytes, ready.layout)
            if number := processes.broadcast_int(asked()):  # everything is saved
                shards.wait()
                raise Stopped(number)

        def record(report: Report, stage: int) -> dict[str, np.ndarray] | None:
            """Writes and returns the metrics of a report."""
            columns = metrics_of(report)
            if columns is not None and not idle:
                index = {"stage": report.stage, "member": np.arange(first, last)}
                index |= {"update": report.step, "env_steps": ready.env_steps(stage, report.step)}
                folder.write_part(part_name(stage, report.step, first), index | columns)
                if written is not None:
                    written(processes.count == 1)
            return columns

        def save(report: Report, stage: int) -> None:
            """Starts writing the snapshot of a report."""
            nonlocal saved
            order = sum(s.updates + 1 for s in ready.program.stages[:stage]) + report.step
            meta = {"stage": stage, "step": report.step, **times.so_far()}
            shards.save(order, report.snapshot, meta)
            memory.release_freed()
            saved = time.perf_counter()

        reports = drive.drive(
            ready.program,
            ready.layout,
            ready.key,
            some(ready.hp, first, last),
            ready.inputs,
            own=some(ready.own, first, last),
            ids=ready.seeds[first:last],
            run_hp=jax.tree.map(lambda x: x[0], ready.hp),
            resume=resume,
            hooks=drive.Hooks(
                pace=PACE_S,
                agree=processes.broadcast_int,
                adapt=within.adapt,
                select=within.select,
                members=within.members and within.members(*at),
                built=within.built,
                snapshot=decide,
                compiling=compiling,
                compiled=compiled,
            ),
        )
        with contextlib.closing(reports):  # and with it the environments of the host
            for report in reports:
                watchdog.beat()
                stage = [s.name for s in ready.program.stages].index(report.stage)
                columns = record(report, stage)
                if report.snapshot is not None:
                    save(report, stage)
                done = within.progress(ready, stage, report.step)
                display.advance(done, None if columns is None else shown(columns))
                if report.snapshot is not None and decision > 0:
                    shards.wait()
                    raise Stopped(decision)
                if alone and columns is not None and stage == len(ready.program.stages) - 1:
                    if processes.all_true(not np.any(columns["finite"] == 1)):
                        break  # all members have failed: more updates change nothing
        shards.wait()
        return times.so_far()


class _Times:
    """Wall and compile seconds of a run, including the time before a restart."""

    def __init__(self, before: dict[str, float], display: Display) -> None:
        self._before, self._display, self._start = before, display, time.perf_counter()

    def so_far(self) -> dict[str, float]:
        wall = self._before.get("wall_s", 0.0) + time.perf_counter() - self._start
        compiling = self._before.get("compile_s", 0.0) + self._display.compile_s
        return {"wall_s": wall, "compile_s": compiling}


def metrics_of(report: Report) -> dict[str, np.ndarray] | None:
    """One column [P] per metric; evaluations add return, length and risk of their episodes.

    None for a report within a chunk.
    """
    if report.metrics is None:
        return None
    columns = dict(report.metrics)
    if report.evals is not None:
        # A network with NaN weights still produces actions; its returns are not results.
        sound = columns["finite"] == 1
        evals = report.evals.played()
        found = {"return": evals.returns.mean(1), "length": evals.lengths.mean(1)}
        found |= stats.risk(evals.returns) | evals.measured
        columns |= {name: np.where(sound, value, np.nan) for name, value in found.items()}
    return columns


def shown(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Numbers of the progress line: the IQM of the return, over members with a return."""
    for name in ("return", "episode_return"):
        values = columns.get(name, np.array([]))
        values = values[np.isfinite(values)]
        if values.size:
            return {"return": stats.iqm(values)}
    return {}
