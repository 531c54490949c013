"""Driver on the host: runs the stages of `jaxrl.program` in chunks, with snapshots for resuming."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.compiling import compiled
from jaxrl.evaluate import HostEvaluator
from jaxrl.host_stage import HostStage
from jaxrl.population import Layout, Placement, first, lift, member_keys, run_key
from jaxrl.program import (
    MemberState,
    Program,
    Stage,
    StageFn,
    advance_fn,
    eval_key,
    evaluate_fn,
    initialise_fn,
    stage_key,
)
from jaxrl.snapshot import RunState, fetch
from jaxrl.types import Array, Mean, PyTree, as_hyperparams


class Report(NamedTuple):
    """Results of one launch; metrics and evaluations only at the end of a chunk."""

    stage: str
    step: int  # updates made in this stage, including this launch
    metrics: dict[str, Any] | None = None  # name -> [P] float32, NaN without values or if stopped
    evals: Any = None  # outputs of stage.evaluate with the axis P
    snapshot: RunState | None = None


class Compiled(NamedTuple):
    """Report of one compilation."""

    stage: int
    what: str  # "initialise", "advance" or "evaluate"; "act", "warm up" on the host
    seconds: float  # including tracing
    temporary_bytes: int  # per device, without arguments and results


Built = dict[tuple[int, str], Callable[..., PyTree]]
"""Compiled functions by (stage, what), for reuse in runs of the same program and layout."""

Adapt = Callable[[int, MemberState, Report], MemberState]
"""(index of the stage, state [padded P] on the devices, report) -> state to continue from."""

Select = Callable[[Report], np.ndarray]
"""(report of the last stage) -> members [A] that continue; the others are stopped for good."""


def _at_the_end(stage: int, step: int, last: bool) -> bool:
    return last


def _silent(event: Any) -> None:
    pass


def _own(number: int) -> int:
    return number


class Hooks(NamedTuple):
    """Callbacks and settings of `drive`.

    Attributes:
      pace: target duration of a launch in seconds. Chunks are split accordingly, which does not
        change bits, and each launch is reported. None launches whole chunks.
      agree: maps this process's number of updates to launch to the number that all processes
        launch.
      adapt: called between chunks, before a snapshot; returns the state to continue from.
      select: called between chunks of the last stage, before a snapshot. Tiles without continuing
        members are no longer computed. Metrics of stopped members are NaN; their state in snapshots
        is that at the stop or slightly later.
      members: [A] members that the last stage trains; all by default.
      built: functions compiled by earlier calls with the same program, layout and shapes; new ones
        are added.
      snapshot: (stage, step, last of the run) -> whether the report includes a snapshot, for which
        the host waits and copies the state. By default only the last report does.
      compiling: called before each compilation with the `what` of `Compiled`.
      compiled: called after each compilation.
    """

    pace: float | None = None
    agree: Callable[[int], int] = _own
    adapt: Adapt | None = None
    select: Select | None = None
    members: np.ndarray | None = None
    built: Built | None = None
    snapshot: Callable[[int, int, bool], bool] = _at_the_end
    compiling: Callable[[str], None] = _silent
    compiled: Callable[[Compiled], None] = _silent


def drive(
    program: Program,
    plan: Layout,
    key: Array,
    hp: PyTree,
    inputs: dict[str, PyTree],
    *,
    own: dict[str, PyTree] | None = None,
    ids: np.ndarray | None = None,
    run_hp: PyTree = None,
    resume: RunState | None = None,
    hooks: Hooks | None = None,
) -> Generator[Report]:
    """Trains a population chunk by chunk and reports each chunk.

    Results are bitwise equal to those of `population.train`. A chunk is reported while the next one
    runs. A run whose generator is closed can be resumed from its last snapshot.

    In environments of the host (`jaxrl.hosted`), each update is a launch of its own, between the
    host's steps. The members' environments are stepped one after the other. Snapshots do not
    contain them: a resumed run starts new episodes, so its bits differ.

    Args:
      key: root key; a member's key is fold_in(key, id).
      hp: the agent's `Hypers`, or `HyperParams`; leaves [P, ...].
      inputs: arrays shared by all members, such as {"data": dataset}.
      own: inputs of each member, leaves [P, ...], for stages that are not shared. Snapshots do not
        contain them, so a resumed run needs them again.
      ids: [P] int32, the members' ids; 0 .. P-1 by default.
      run_hp: hyperparameters of shared stages; the first member's by default.
      resume: the snapshot to continue from.
      hooks: callbacks and settings, see `Hooks`.
    """
    hp = as_hyperparams(hp)
    count = len(jax.tree.leaves(hp)[0])
    ids = np.arange(count, dtype=np.int32) if ids is None else ids
    run = _Run(program, plan, count, hooks or Hooks())
    run.hps[True] = plan.share(first(hp) if run_hp is None else as_hyperparams(run_hp))
    run.hps[False] = run.place(False, hp)
    run.root = key, np.asarray(ids, np.int32)
    run.inputs[True] = plan.share(dict(inputs))
    run.inputs[False] = run.place(False, dict(own or {}))
    return run.reports(resume)


@jax.jit  # one small program instead of one per operation
def _shared_key(key: Array, index: Array) -> Array:
    """The key of the shared stage `index`."""
    return stage_key(run_key(key), index)


@jax.jit
def _member_keys(key: Array, ids: np.ndarray, index: Array) -> Array:
    """The members' keys [P] in stage `index`."""
    return stage_key(member_keys(key, ids), index)


class _Run:
    """State of a run: arrays on the devices, compiled functions, the report not yet fetched.

    Arrays are stored under True if all members share them, under False if each member has its own
    (leaves [padded P, ...]).
    """

    def __init__(self, program: Program, plan: Layout, count: int, hooks: Hooks) -> None:
        self.program, self.plan, self.count, self.hooks = program, plan, count, hooks
        self.root: tuple[Array, np.ndarray]  # root key, ids [P]
        self.hps: dict[bool, PyTree] = {}
        # What `drive` was given, and results of earlier stages.
        self.inputs: dict[bool, dict[str, PyTree]] = {True: {}, False: {}}
        self.placement = plan.placement(count)
        self.built = {} if hooks.built is None else hooks.built
        self.hosted: HostStage | None = None  # of a stage that acts on the host
        # Launched, with numbers still on the devices, and the placement at launch.
        self.waiting: tuple[Report, Placement] | None = None

    def place(self, shared: bool, tree: PyTree) -> PyTree:
        """Arrays of the host, copied to the devices."""
        if shared:
            # Keys of a snapshot are arrays of a device, which a launch would take over and delete.
            return self.plan.share(fetch(tree, np.arange(self.count), shared=True))
        return self.plan.split(self.plan.pad(tree, self.count))

    # --- the sequence of launches ---

    def reports(self, resume: RunState | None) -> Generator[Report]:
        shared = {stage.name: stage.shared for stage in self.program.stages}
        for name, result in (resume.results if resume else {}).items():
            self.inputs[shared[name]][name] = self.place(shared[name], result)
        try:
            for index in range(resume.stage if resume else 0, len(self.program.stages)):
                yield from self.train(index, resume)
            yield from self.flush()
        finally:
            if self.hosted is not None:
                self.hosted.close()

    def train(self, index: int, resume: RunState | None) -> Iterator[Report]:
        """Reports of stage `index`, from its start or from `resume`."""
        yield from self.flush()  # saved before the first compilation, which may be interrupted
        stage = self.program.stages[index]
        state, done = self.begin(index, resume)
        chunks = [(start, size) for start, size in stage.chunks if start + size > done]
        if chunks and self.hosted is None:  # so that nothing runs while compiling
            self.compile(index, state)
        pace = _Pace(self.hooks.pace)
        for start, length in chunks:
            step, end = max(start, done), start + length
            while True:
                left = end - step
                size = left if pace.seconds is None else self.agreed(pace, left, stage)
                clock = time.perf_counter()
                state, metrics = self.advance(index, state, step, size, fresh=step == start)
                if self.hosted is None:
                    pace.launched(size, metrics)
                else:  # the host has waited for all but the last update
                    pace.ran(size, time.perf_counter() - clock)
                step += size
                yield from self.flush()
                if step == end:
                    break
                yield Report(stage.name, step, snapshot=self.snapshot(index, step, state, False))
            state = self.finish_chunk(index, state, end, metrics)
        self.inputs[stage.shared][stage.name] = state.learner

    def begin(self, index: int, resume: RunState | None) -> tuple[MemberState, int]:
        """The initial or resumed state, and the updates made; -1 before an evaluation at 0."""
        stage = self.program.stages[index]
        if self.hosted is not None:
            self.hosted.close()
        acts = stage.updates and stage.source.host is not None
        self.hosted = HostStage(stage, self.plan, partial(self.build, index)) if acts else None
        if resume is not None and index == resume.stage:
            state, done = self.place(stage.shared, resume.member), resume.step
            if self.hosted is not None:
                self.hosted.open(state.key, done, self.placement)
        else:
            key, hp = self.key(index), self.hps[stage.shared]
            own = self.own_inputs(stage)
            if self.hosted is not None:
                learner = () if stage.start is None else (self.inputs[True] | own)[stage.start]
                own = own | self.hosted.warm_up(key, learner, hp, self.placement)
            start = {"key": key, "hp": hp, "inputs": own}
            args = ((), start, {"inputs": self.inputs[True]})
            initialise = self.build(index, "initialise", initialise_fn(stage), args)
            state, done = initialise(*args)[1], -1
        if self.is_last(index) and self.hooks.members is not None and not stage.shared:
            state = self.rearrange(state, self.hooks.members)
        return state, done

    def agreed(self, pace: _Pace, left: int, stage: Stage) -> int:
        return self.hooks.agree(pace.size(left, stage.source.every))

    def finish_chunk(self, index: int, state: MemberState, end: int, metrics: PyTree) -> PyTree:
        """Evaluates, applies the hooks and takes a snapshot."""
        stage = self.program.stages[index]
        report = Report(stage.name, end, metrics, self.evaluate(index, state, end))
        then, over = self.placement, end == stage.updates
        if not over:
            state = self.changed(index, state, report)
        # Before the next launch, which overwrites the state in place.
        taken = self.snapshot(index, end, state, self.is_last(index) and over)
        self.waiting = report._replace(snapshot=taken), then
        return state

    def changed(self, index: int, state: MemberState, report: Report) -> MemberState:
        """The population after `adapt` and `select`."""
        stage, hooks = self.program.stages[index], self.hooks
        if hooks.adapt is not None:
            state = hooks.adapt(index, state, _fetch_report(report, self.placement, stage.shared))
        if hooks.select is not None and self.is_last(index):
            members = hooks.select(_fetch_report(report, self.placement, stage.shared))
            if members.size < self.placement.members.size and not stage.shared:
                state = self.rearrange(state, members)
        return state

    def flush(self) -> Iterator[Report]:
        """The waiting report, if any."""
        if self.waiting is not None:
            report, placement = self.waiting
            self.waiting = None
            shared = {stage.name: stage.shared for stage in self.program.stages}
            yield _fetch_report(report, placement, shared[report.stage])

    # --- single operations ---

    def is_last(self, index: int) -> bool:
        return index == len(self.program.stages) - 1

    def key(self, index: int) -> Array:
        """The keys of stage `index`, on the devices."""
        root, ids = self.root
        if self.program.stages[index].shared:
            return self.place(True, _shared_key(root, np.int32(index)))
        return self.place(False, _member_keys(root, ids, np.int32(index)))

    def own_inputs(self, stage: Stage) -> dict[str, PyTree]:
        return {} if stage.shared else self.inputs[False]

    def build(self, index: int, what: str, fn: StageFn, args: PyTree) -> Callable[..., PyTree]:
        """`fn` of stage `index`, compiled for arguments of the shapes of `args`."""
        if (index, what) in self.built:
            return self.built[index, what]
        self.hooks.compiling(what)
        clock = time.perf_counter()
        lifted = lift(self.plan)(fn, self.program.stages[index])
        donate = (0,) if what == "advance" else ()
        executable = compiled(lifted, args, self.plan.platform, donate)
        memory = getattr(executable.memory_analysis(), "temp_size_in_bytes", 0)
        self.hooks.compiled(Compiled(index, what, time.perf_counter() - clock, memory))
        self.built[index, what] = executable
        return executable

    def compile(self, index: int, state: MemberState) -> None:
        stage = self.program.stages[index]
        self.build(index, "advance", advance_fn(stage), self.to_advance(index, state, 0, 0, True))
        if not isinstance(stage.evaluate, HostEvaluator | None):
            self.build(index, "evaluate", evaluate_fn(stage), self.to_evaluate(index, state, 0))

    def to_advance(
        self,
        index: int,
        state: MemberState,
        step: int,
        size: int,
        fresh: bool,
        windows: PyTree = None,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """The arguments of `advance_fn`; `windows` are further inputs of the members."""
        # Numbers of the host: each conversion to an array of JAX would be compiled.
        counters = {"step": np.int32(step), "n": np.int32(size), "fresh": np.bool_(fresh)}
        counters["tiles"] = self.placement.tiles.astype(np.int32)
        own = self.own_inputs(self.program.stages[index]) | (windows or {})
        return state, {"inputs": own}, {"inputs": self.inputs[True], **counters}

    def to_evaluate(
        self, index: int, state: MemberState, step: int
    ) -> tuple[PyTree, PyTree, PyTree]:
        """The arguments of `evaluate_fn`."""
        at = {"step": np.int32(step), "tiles": self.placement.tiles.astype(np.int32)}
        own = self.own_inputs(self.program.stages[index])
        return (), {"state": state, "inputs": own}, {"inputs": self.inputs[True], **at}

    def advance(
        self, index: int, state: MemberState, step: int, size: int, fresh: bool
    ) -> tuple[MemberState, PyTree]:
        """Launches `size` updates from `step` on; `state` is overwritten in place."""
        if self.hosted is not None:
            return self.play(index, state, step, size, fresh)
        return self.built[index, "advance"](*self.to_advance(index, state, step, size, fresh))

    def play(
        self, index: int, state: MemberState, step: int, size: int, fresh: bool
    ) -> tuple[MemberState, PyTree]:
        """`advance` in environments of the host: a window and a launch per update."""
        assert self.hosted is not None
        metrics: PyTree = None
        for at in range(step, step + size):
            own = self.hosted.window(state, at, self.placement)
            args = self.to_advance(index, state, at, 1, fresh and at == step, own)
            advance = self.build(index, "advance", advance_fn(self.program.stages[index]), args)
            state, metrics = advance(*args)
        return state, metrics

    def evaluate(self, index: int, state: MemberState, step: int) -> PyTree:
        """Results of the stage's evaluation, [padded P, ...]; None without an evaluator."""
        stage = self.program.stages[index]
        if stage.evaluate is None:
            return None
        if isinstance(stage.evaluate, HostEvaluator):
            return _on_host(stage, self.placement, state, step)
        return self.built[index, "evaluate"](*self.to_evaluate(index, state, step))[1]

    def snapshot(self, index: int, step: int, state: PyTree, last: bool) -> RunState | None:
        if not self.hooks.snapshot(index, step, last):
            return None
        rows, stages = self.placement.rows, self.program.stages
        results = {
            s.name: fetch(self.inputs[s.shared][s.name], rows, s.shared) for s in stages[:index]
        }
        return RunState(fetch(state, rows, stages[index].shared), results, index, step)

    def rearrange(self, state: MemberState, members: np.ndarray) -> MemberState:
        """Moves state, inputs and results of earlier stages to the placement of `members`.

        The arrays pass through the host, which has room for both copies.
        """
        new = self.plan.placement(self.count, members)
        rows = np.argsort(self.placement.order)[new.order]
        move = lambda tree: self.plan.split(fetch(tree, rows, False))
        self.inputs[False], self.placement = move(self.inputs[False]), new
        return move(state)


class _Pace:
    """Chooses the number of updates per launch so that a launch takes about `seconds`.

    The time of a launch is measured when it ends, while the next one runs.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.rate, self.last = seconds, 0.0, 0
        self.running: tuple[int, PyTree] | None = None
        self.clock = 0.0

    def size(self, left: int, every: int) -> int:
        """Updates of the next launch: a multiple of `every`, or all remaining updates."""
        # At most eight times the last launch, since the first one is slower.
        wish = min(self.rate * (self.seconds or 0.0), 8 * self.last)
        return min(max(int(wish) // every, 1) * every, left)

    def ran(self, size: int, seconds: float) -> None:
        """Takes the time of a launch that has ended."""
        self.rate, self.last = size / max(seconds, 1e-6), size

    def launched(self, size: int, metrics: PyTree) -> None:
        """Waits for the previous launch."""
        if self.seconds is None:
            return
        if self.running is not None:
            jax.block_until_ready(self.running[1])
            self.rate = self.running[0] / max(time.perf_counter() - self.clock, 1e-6)
        self.clock = time.perf_counter()
        self.running, self.last = (size, metrics), size


def _on_host(stage: Stage, placement: Placement, state: MemberState, step: int) -> PyTree:
    """The evaluation of each trained member in turn, in the rows of a compiled evaluation."""
    fn, shared, last = stage.evaluate, stage.shared, step == stage.updates
    assert isinstance(fn, HostEvaluator)

    def one(state: MemberState) -> PyTree:
        return fn(state.learner, state.hp, {}, eval_key(state.key, step), last)

    # Without trained members, the first row gives the shapes.
    rows = placement.rows[placement.members] if placement.members.size else np.zeros(1, int)
    state = fetch(state, rows, shared)
    if shared:
        return one(state)
    found = [one(jax.tree.map(lambda x: x[i], state)) for i in range(rows.size)]  # noqa: B023

    def placed(*values: np.ndarray) -> np.ndarray:
        everywhere = np.zeros((placement.order.size, *values[0].shape), values[0].dtype)
        everywhere[rows] = values
        return everywhere

    return jax.tree.map(placed, *found)


def _fetch_report(report: Report, placement: Placement, shared: bool) -> Report:
    """The report with numbers on the host, one row per member."""
    count = len(placement.rows)
    metrics, evals = fetch((report.metrics, report.evals), placement.rows, shared)
    if shared:
        metrics, evals = jax.tree.map(
            lambda x: np.broadcast_to(x, (count, *x.shape)), (metrics, evals)
        )
    trained = np.isin(np.arange(count), placement.members)
    columns = {k: np.where(trained, _mean(v), np.float32(np.nan)) for k, v in metrics.items()}
    return report._replace(metrics=columns, evals=evals)


def _mean(mean: Mean) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mean.weight > 0, mean.total / mean.weight, np.nan).astype(np.float32)


def evaluate(
    program: Program,
    plan: Layout,
    state: RunState,
    key: Array,
    inputs: dict[str, PyTree],
    *,
    own: dict[str, PyTree] | None = None,
    ids: np.ndarray | None = None,
) -> PyTree:
    """Evaluation [P, ...] of the stage of `state`; each member has its own key.

    `inputs` and `own` are those of `drive`.
    """
    stage = program.stages[state.stage]
    count = len(jax.tree.leaves(state.member.hp)[0])
    is_shared = {s.name: s.shared for s in program.stages}
    shared = dict(inputs) | {k: v for k, v in state.results.items() if is_shared[k]}
    own = dict(own or {}) | {k: v for k, v in state.results.items() if not is_shared[k]}
    ids = np.arange(count, dtype=np.int32) if ids is None else ids
    keys = member_keys(key, ids)
    members = {"state": state.member._replace(key=keys), "inputs": own}
    members = plan.split(plan.pad(members, count))
    placement = plan.placement(count)
    if isinstance(stage.evaluate, HostEvaluator):
        found = _on_host(stage, placement, members["state"], state.step)
    else:
        args = ((), members, {"inputs": plan.share(shared), "step": np.int32(state.step)})
        found = compiled(lift(plan)(evaluate_fn(stage), stage), args, plan.platform)(*args)[1]
    return fetch(found, placement.rows, stage.shared)
