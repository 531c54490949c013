"""Trials as one population: a slot of a search, trained in a folder of its own like any run.

Slots of one static combination have the same number of members and so share one compiled program.
With successive halving a slot is several runs, one per rung, each beginning from the checkpoint of
the best trials of the one before. With population-based training it is one run, in which trials
exchange weights and settings after every evaluation but the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import drive, evolution, fit, memory, records, stats
from jaxrl.envs.names import nearest
from jaxrl.errors import UserError
from jaxrl.experiments import load, planning, running
from jaxrl.experiments.options import Settings
from jaxrl.experiments.progress import Display
from jaxrl.experiments.ranges import Range
from jaxrl.experiments.summary import describe_device, summarise
from jaxrl.hosts import Hosts
from jaxrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a trial comes to.

    Attributes:
      metric: a column of the metrics, "return" that of evaluation episodes.
      mean: over all evaluations, not the last one.
      cvar: None for the IQM over seeds, else the share of the worst of them to average.
      minimise: less is better.
    """

    metric: str = "return"
    mean: bool = False
    cvar: float | None = None
    minimise: bool = False

    def members(self, history: Mapping[str, np.ndarray]) -> np.ndarray:
        """[P] from columns [C, P]; NaN for members that have failed."""
        values = history[self.metric]
        values = values.mean(0) if self.mean else values[-1]
        return np.where(history["finite"][-1] == 1, values, np.nan)

    def trials(self, members: np.ndarray) -> np.ndarray:
        """[Q] from members [Q, S]; NaN where a seed has none."""
        if self.cvar is None:
            return stats.iqm(members, axis=1)
        sign = -1 if self.minimise else 1
        found = [np.nan] * len(members)
        for i, row in enumerate(members):
            if np.isfinite(row).all():
                found[i] = sign * stats.cvar(sign * row, self.cvar)
        return np.array(found)

    def ranking(self, members: np.ndarray) -> np.ndarray:
        """[Q] from members [Q, S], higher is better."""
        return (-1 if self.minimise else 1) * self.trials(members)


class Outcome(NamedTuple):
    """What Q trials came to.

    Attributes:
      members: [Q, S] scores.
      values: [Q] objective, NaN where it failed.
      stopped: [Q] updates after which a trial was stopped, 0 where it was not.
      env_steps: of all members together.
      final: the trials' settings at the end, where they have changed.
    """

    members: np.ndarray
    values: np.ndarray
    stopped: np.ndarray
    env_steps: int
    final: list[dict[str, Any]] | None = None


class Engine(NamedTuple):
    """What all slots of a search share.

    `built` holds the compiled functions of each (static values, members).
    """

    objective: Objective
    hosts: Hosts
    built: dict[tuple[str, int], drive.Built]
    width: int | None  # members per tile; None leaves it to the rule

    @property
    def compiles(self) -> int:
        return sum(map(len, self.built.values()))


def train(engine: Engine, settings: Settings, path: Path, size: int) -> Outcome:
    """All points of `settings` to the end, in one run; filled up to `size` trials.

    A last slot that is smaller than the others repeats its last trial, so as to need no program of
    its own.
    """
    found, steps, _ = _run(engine, _filled(settings, size), path)
    found = found[: len(settings.points)]
    return Outcome(found, engine.objective.trials(found), np.zeros(len(found), int), steps)


def halve(engine: Engine, settings: Settings, path: Path, size: int, eta: int) -> Outcome:
    """Successive halving of one slot: rung after rung, the best `1/eta` of the trials go on."""
    ready = planning.plan(settings)
    chunks = ready.program.stages[-1].chunks
    rungs = evolution.rungs(chunks, size, eta)
    alive, seeds = np.arange(len(settings.points)), settings.options.seeds
    members = np.full((alive.size, seeds), np.nan)
    stopped, env_steps, before, state = np.zeros(alive.size, int), 0, 0, None
    for index, (end, count) in enumerate(rungs):
        points = tuple(settings.points[i] for i in alive)
        until = end if end < chunks[-1][0] + chunks[-1][1] else None
        its = _filled(dataclasses.replace(settings, points=points, until=until), count)
        rung = path / f"rung{index}"
        found, steps, state = _run(engine, its, rung, state, keep=until is not None)
        members[alive] = found[: alive.size]
        env_steps += steps - before * len(found) * seeds
        before = steps // (len(found) * seeds)
        if until is not None:
            least = min(rungs[index + 1][1], alive.size)
            kept = evolution.survivors(engine.objective.ranking(found[: alive.size]), least)
            stopped[np.delete(alive, kept)] = end
            filled = np.append(kept, [kept[-1]] * (rungs[index + 1][1] - kept.size)).astype(int)
            rows = evolution.members_of(filled, seeds)
            assert state is not None
            state = _rows(ready.program, state, rows)
            alive = alive[kept]
    return Outcome(members, engine.objective.trials(members), stopped, env_steps)


def evolve(
    engine: Engine,
    settings: Settings,
    path: Path,
    ranges: Mapping[str, Range],
    share: float,
) -> Outcome:
    """Population-based training of one slot: trials exchange weights and settings as they learn."""
    seeds, count = settings.options.seeds, len(settings.points)
    ready = planning.plan(settings)
    move = jax.jit(evolution.exchange)

    def adapt(stage: int, state: fit.MemberState, report: drive.Report) -> fit.MemberState:
        columns = running.metrics_of(report)
        if columns is None or stage < len(ready.program.stages) - 1:
            return state
        now = {name: x[None] for name, x in columns.items()}
        scores = engine.objective.ranking(engine.objective.members(now).reshape(count, seeds))
        rng = np.random.default_rng([settings.options.seed, stage, report.step])
        units = _units(state.hp, ranges, count, seeds)
        parents = evolution.truncation(rng, scores, share)
        units = evolution.perturb(rng, units, parents)
        values = {
            name: np.repeat(each.values(units[:, i]), seeds)
            for i, (name, each) in enumerate(ranges.items())
        }
        hp = {"agent": settings.hp, "env": ready.env.params}
        hp = planning.table(hp, ready.members, values)
        rows = evolution.members_of(parents, seeds).astype(np.int32)
        padding = np.arange(ready.members, len(state.key)).astype(np.int32)  # takes from itself
        more = lambda x: jnp.append(x, x[-1:].repeat(padding.size, 0), 0)
        moved = move(state, jnp.append(rows, padding), jax.tree.map(more, hp))
        return jax.device_put(moved, jax.tree.map(lambda x: x.sharding, state))

    found, steps, state = _run(engine, settings, path, keep=True, adapt=adapt)
    assert state is not None
    units = _units(state.member.hp, ranges, count, seeds)
    columns = {name: each.values(units[:, i]) for i, (name, each) in enumerate(ranges.items())}
    final = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    stopped = np.zeros(count, int)
    return Outcome(found, engine.objective.trials(found), stopped, steps, final)


def _run(
    engine: Engine,
    settings: Settings,
    path: Path,
    begin: drive.RunState | None = None,
    keep: bool = False,
    adapt: drive.Adapt | None = None,
) -> tuple[np.ndarray, int, drive.RunState | None]:
    """One run to its end, from wherever it is: scores [Q, S], environment steps of all members, and
    the final state, if it is to be kept."""
    count = len(settings.points) * settings.options.seeds
    width = engine.width and min(engine.width, count)
    its = dataclasses.replace(settings.options, out=path, width=width)
    settings = dataclasses.replace(settings, options=its)
    hosts, identity = engine.hosts, settings.identity()
    ready = planning.plan(settings, hosts)
    if hosts.leads:
        context = {"device": describe_device(), "command": sys.argv, "width": its.width}
        context |= {"versions": records.versions(), "git": records.git_hash()}
        context |= {"data": its.data.resolve()} if its.data else {}
        records.open_run(path, identity, context)
    hosts.all(True)
    run = records.RunDir(path.resolve()).as_found()
    if not run.finished:
        display = Display(
            ready.total_steps * ready.members, silent=not hosts.leads, unit=ready.unit
        )
        static = repr((settings.cfg, its.env_options))
        built = engine.built.setdefault((static, ready.members), {})
        with run.lock() if hosts.leads else contextlib.nullcontext():
            times = running.run(ready, run, hosts, display, running.Within(built, adapt, begin))
        if hosts.leads:
            run.write_summary(summarise(ready, run, **times))
        hosts.all(True)
    stage = ready.program.stages[-1].name
    history = records.read_metrics(run, stage) if hosts.leads else {}
    scores = np.zeros(0)
    if hosts.leads:
        columns = {k: x.reshape(-1, count) for k, x in history.items() if k != "stage"}
        scores = engine.objective.members(columns)
    scores = _said(hosts, scores).reshape(-1, settings.options.seeds)
    state = load.restore(ready, run) if keep else None
    return scores, ready.total_steps * ready.members, state


def check(engine: Engine, settings: Settings, size: int) -> None:
    """Raises UserError where a slot of `size` trials does not fit into memory, or has no metric
    that is the objective."""
    its = dataclasses.replace(settings.options, width=engine.width)
    filled = _filled(dataclasses.replace(settings, options=its), size)
    ready = planning.plan(filled, engine.hosts)
    last = len(ready.program.stages) - 1
    state = drive.abstract_state(ready.program, ready.hp, ready.inputs, last).member
    known = ["return", "length", *state.metrics]
    if engine.objective.metric not in known:
        raise UserError(
            f"--objective metric:{engine.objective.metric}: there is none"
            f"{nearest(engine.objective.metric, known)}; there are {', '.join(sorted(known))}"
        )
    first, end = ready.ranges[engine.hosts.index]
    free = memory.available(ready.layout.mesh.devices.flat[0])
    memory.check(planning.state_bytes(ready), end - first, ready.layout, free)


def _filled(settings: Settings, size: int) -> Settings:
    more = [settings.points[-1]] * (size - len(settings.points))
    return dataclasses.replace(settings, points=(*settings.points, *more))


def _rows(program: fit.Program, state: drive.RunState, rows: np.ndarray) -> drive.RunState:
    """The state of some members; stages of scope "run" have no rows."""
    some = lambda tree: jax.tree.map(lambda x: x[rows], tree)
    scopes = {stage.name: stage.scope for stage in program.stages}
    kept = {k: v if scopes[k] == "run" else some(v) for k, v in state.results.items()}
    alone = program.stages[state.stage].scope == "run"
    return state._replace(member=state.member if alone else some(state.member), results=kept)


def _units(
    hp: Mapping[str, PyTree], ranges: Mapping[str, Range], count: int, seeds: int
) -> np.ndarray:
    """Settings [Q, V] of the trials as they stand in a state, in the unit cube."""
    columns = []
    for name, each in ranges.items():
        part, _, field = name.partition(".")
        record = hp[part]
        values = record[field] if isinstance(record, Mapping) else getattr(record, field)
        columns.append(each.units(np.asarray(values)[: count * seeds : seeds].tolist()))
    return np.stack(columns, axis=1)


def _said(hosts: Hosts, values: np.ndarray) -> np.ndarray:
    """The leader's numbers, in every process."""
    return np.array([float(x) for x in hosts.say(" ".join(map(repr, values.tolist()))).split()])


def sizes(trials: int, batch: int, combinations: int, programs: int) -> tuple[int, int]:
    """(trials of a slot, slots of a batch): batches as equal as can be, in as many slots as
    programs may be compiled."""
    batches = -(-trials // batch)
    slots = min(programs, combinations)
    return -(-trials // (batches * slots)), slots
