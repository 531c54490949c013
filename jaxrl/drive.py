"""The host's driver: the stages of `jaxrl.program` in chunks, with snapshots to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.evaluate import HostEvaluator
from jaxrl.population import Layout, Seats, first, lift, member_keys, run_key
from jaxrl.program import (
    MemberState,
    Program,
    StageFn,
    advance_fn,
    eval_key,
    evaluate_fn,
    initialise_fn,
    stage_key,
)
from jaxrl.types import Array, Mean, PyTree, as_hyperparams


class RunState(NamedTuple):
    """All that a population needs to go on: on the host and unpadded, so it fits any layout.

    Leaves of `member`, and of results of stages of scope "member", have the axis P.
    """

    member: MemberState
    results: dict[str, PyTree]  # final learner states of finished stages
    stage: int  # index of the stage that `member` is in
    step: int  # updates made in that stage


class Report(NamedTuple):
    """What one launch brought; metrics and evaluations at the end of each chunk only."""

    stage: str
    step: int  # updates made in this stage, this launch included
    metrics: dict[str, Any] | None = None  # name -> [P] float32, NaN for nothing, or if stopped
    evals: Any = None  # outputs of stage.evaluate with the axis P
    snapshot: RunState | None = None


class Compiled(NamedTuple):
    """A program was compiled."""

    stage: int
    what: str  # "initialise", "advance" or "evaluate"
    seconds: float  # tracing included
    temporary_bytes: int  # on each device, beside arguments and results


Built = dict[tuple[int, str], Callable[..., PyTree]]
"""Compiled functions by (stage, what), to be used again by runs of one program and layout."""

Adapt = Callable[[int, MemberState, Report], MemberState]
"""(index of the stage, state [padded P] on the devices, report) -> state to go on with."""

Select = Callable[[Report], np.ndarray]
"""(report of the last stage) -> members [A] to train on; the others are stopped for good."""


def _at_the_end(stage: int, step: int, last: bool) -> bool:
    return last


def _silent(event: Any) -> None:
    pass


def _own(number: int) -> int:
    return number


def drive(
    program: Program,
    plan: Layout,
    key: Array,
    hp: PyTree,
    inputs: dict[str, PyTree],
    *,
    ids: np.ndarray | None = None,
    run_hp: PyTree = None,
    resume: RunState | None = None,
    pace: float | None = None,
    agree: Callable[[int], int] = _own,
    adapt: Adapt | None = None,
    select: Select | None = None,
    members: np.ndarray | None = None,
    built: Built | None = None,
    snapshot: Callable[[int, int, bool], bool] = _at_the_end,
    compiling: Callable[[str], None] = _silent,
    compiled: Callable[[Compiled], None] = _silent,
) -> Iterator[Report]:
    """Trains a population chunk by chunk and reports each; bitwise what `population.train` gives.

    A chunk is reported while the next one runs. Abandoning the iterator ends the run, and its last
    snapshot continues it.

    Args:
      key: root key; a member starts from fold_in(key, its id).
      hp: the agent's `Hypers`, or `HyperParams`; leaves [P, ...].
      inputs: arrays shared by all members, such as {"data": dataset}.
      ids: [P] int32, the members' ids; 0 .. P-1 by default.
      run_hp: hyperparameters of stages of scope "run"; the first member's by default.
      resume: the snapshot to go on from.
      pace: seconds that one launch should take: chunks are cut accordingly, which changes no bits,
        and each launch is reported. None launches whole chunks.
      agree: called with the number of updates to launch, returns what all processes launch.
      adapt: called between chunks, before a snapshot; what it returns is trained on.
      select: called between chunks of the last stage, before a snapshot. Tiles without a member
        that goes on are not computed any more. Metrics of members that were stopped are NaN; their
        state in snapshots is theirs at that point or a little after.
      members: [A] those that the last stage trains, all by default.
      built: what earlier calls with the same program, layout and shapes have compiled; what this
        one compiles is added.
      snapshot: (stage, step, last of the run) -> whether the report is to carry a snapshot, for
        which the host waits and copies the state. The last chunk's by default.
      compiling, compiled: told before and after each compilation.
    """
    hp = as_hyperparams(hp)
    count = len(jax.tree.leaves(hp)[0])
    ids = np.arange(count, dtype=np.int32) if ids is None else ids
    scopes = {stage.name: stage.scope for stage in program.stages}
    seats = plan.seat(count)
    place = {"run": plan.share, "member": lambda tree: plan.split(plan.pad(tree, count))}
    keys = {"run": run_key(key), "member": member_keys(key, jnp.asarray(ids))}
    keys = {scope: place[scope](value) for scope, value in keys.items()}
    hps = {
        "run": plan.share(first(hp) if run_hp is None else as_hyperparams(run_hp)),
        "member": place["member"](hp),
    }
    # What stages may read: shared arrays, and the axis-P results of earlier stages.
    inputs_of = {"run": plan.share(dict(inputs)), "member": {}}
    for name, result in (resume.results if resume else {}).items():
        inputs_of[scopes[name]][name] = place[scopes[name]](result)

    built = {} if built is None else built

    def build(index: int, what: str, fn: StageFn, args: PyTree) -> Callable[..., PyTree]:
        if (index, what) in built:
            return built[index, what]
        compiling(what)
        clock = time.perf_counter()
        donate = 0 if what == "advance" else ()
        jitted = jax.jit(lift(plan)(fn, program.stages[index]), donate_argnums=donate)
        executable = jitted.lower(*args).compile()
        memory = getattr(executable.memory_analysis(), "temp_size_in_bytes", 0)
        compiled(Compiled(index, what, time.perf_counter() - clock, memory))
        built[index, what] = executable
        return executable

    def take(index: int, step: int, state: PyTree, last: bool) -> RunState | None:
        if not snapshot(index, step, last):
            return None
        results = {
            s.name: _fetch(inputs_of[s.scope][s.name], seats.rows, s.scope)
            for s in program.stages[:index]
        }
        return RunState(
            _fetch(state, seats.rows, program.stages[index].scope), results, index, step
        )

    # Launched, its numbers still on the device, in the seats of then.
    waiting: tuple[Report, Seats] | None = None
    for index, stage in enumerate(program.stages):
        if resume is not None and index < resume.stage:
            continue
        scope, shared, every = stage.scope, inputs_of["run"], stage.source.every
        own = inputs_of["member"] if scope == "member" else {}
        if resume is not None and index == resume.stage:
            state, done = place[scope](resume.member), resume.step
        else:
            start = {"key": stage_key(keys[scope], index), "hp": hps[scope], "inputs": own}
            args = ((), start, {"inputs": shared})
            state, done = build(index, "initialise", initialise_fn(stage), args)(*args)[1], 0

        advance = evaluate = metrics = None
        rhythm = _Pace(pace)
        final = stage is program.stages[-1]
        if final and members is not None and scope == "member":
            state, inputs_of["member"], seats = _reseat(plan, state, own, seats, members)
            own = inputs_of["member"]
        for begin, count_of in stage.chunks:
            end = begin + count_of
            if end <= done:
                continue
            step = max(begin, done)
            while step < end:
                size = end - step if pace is None else agree(rhythm.size(end - step, every))
                counters = {"step": jnp.int32(step), "n": jnp.int32(size)}
                counters["fresh"] = jnp.array(step == begin)
                counters["tiles"] = jnp.asarray(seats.tiles, jnp.int32)
                args = (state, {"inputs": own}, {"inputs": shared, **counters})
                # Both before the first launch, so that nothing runs while compiling.
                if advance is None:
                    advance = build(index, "advance", advance_fn(stage), args)
                    if not isinstance(stage.evaluate, HostEvaluator | None):
                        look = _look(state, step, own, shared, seats)
                        evaluate = build(index, "evaluate", evaluate_fn(stage), look)
                state, metrics = advance(*args)
                rhythm.launched(size, metrics)
                step += size
                if waiting is not None:
                    yield _fetch_report(*waiting, scopes)
                    waiting = None
                if step == end:
                    break
                yield Report(stage.name, step, snapshot=take(index, step, state, False))
            evals = None
            if isinstance(stage.evaluate, HostEvaluator):
                evals = _on_host(stage.evaluate, scope, seats, state, end)
            elif evaluate is not None:
                evals = evaluate(*_look(state, end, own, shared, seats))[1]
            report, then = Report(stage.name, end, metrics, evals), seats
            if adapt is not None and end < stage.updates:
                state = adapt(index, state, _fetch_report(report, seats, scopes))
            if select is not None and final and end < stage.updates:
                members = select(_fetch_report(report, seats, scopes))
                if members.size < seats.members.size and scope == "member":
                    state, inputs_of["member"], seats = _reseat(plan, state, own, seats, members)
                    own = inputs_of["member"]
            # Before the next chunk is launched, since that overwrites the state in place.
            taken = take(index, end, state, final and end == stage.updates)
            waiting = report._replace(snapshot=taken), then
        inputs_of[scope][stage.name] = state.learner
    if waiting is not None:
        yield _fetch_report(*waiting, scopes)


def _reseat(
    plan: Layout, state: PyTree, own: PyTree, seats: Seats, members: np.ndarray
) -> tuple[PyTree, PyTree, Seats]:
    """State and results of earlier stages [padded P], moved to the seats of `members`, by way of
    the host, which has room for both."""
    new = plan.seat(len(seats.rows), members)
    rows = np.argsort(seats.order)[new.order]
    move = lambda tree: plan.split(_fetch(tree, rows, "member"))
    return move(state), move(own), new


class _Pace:
    """How many updates a launch should make, to take about `seconds`.

    A launch is measured when it is done, while the next one runs.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.rate, self.last = seconds, 0.0, 0
        self.running: tuple[int, PyTree] | None = None
        self.clock = 0.0

    def size(self, left: int, every: int) -> int:
        """Updates to launch next: whole multiples of `every`, or all that are left."""
        # No more than eight times the last: a first launch is slow for reasons of its own.
        wish = min(self.rate * (self.seconds or 0.0), 8 * self.last)
        return min(max(int(wish) // every, 1) * every, left)

    def launched(self, size: int, metrics: PyTree) -> None:
        """Waits for the launch before this one."""
        if self.seconds is None:
            return
        if self.running is not None:
            jax.block_until_ready(self.running[1])
            self.rate = self.running[0] / max(time.perf_counter() - self.clock, 1e-6)
        self.clock = time.perf_counter()
        self.running, self.last = (size, metrics), size


def _look(
    state: PyTree, step: int, own: PyTree, shared: PyTree, seats: Seats
) -> tuple[PyTree, PyTree, PyTree]:
    """The arguments of evaluate_fn."""
    at = {"step": jnp.int32(step), "tiles": jnp.asarray(seats.tiles, jnp.int32)}
    return (), {"state": state, "inputs": own}, {"inputs": shared, **at}


def _on_host(fn: HostEvaluator, scope: str, seats: Seats, state: MemberState, step: int) -> PyTree:
    """`fn` of one trained member after another, in the rows of the compiled one."""

    def one(state: MemberState) -> PyTree:
        return fn(state.learner, state.hp, {}, eval_key(state.key, step))

    # Without any, the first row, which shows the shapes.
    rows = seats.rows[seats.members] if seats.members.size else np.zeros(1, int)
    state = _fetch(state, rows, scope)
    if scope == "run":
        return one(state)
    found = [one(jax.tree.map(lambda x: x[i], state)) for i in range(rows.size)]  # noqa: B023

    def placed(*values: np.ndarray) -> np.ndarray:
        everywhere = np.zeros((seats.order.size, *values[0].shape), values[0].dtype)
        everywhere[rows] = values
        return everywhere

    return jax.tree.map(placed, *found)


def _fetch_report(report: Report, seats: Seats, scopes: dict[str, str]) -> Report:
    """The report with its numbers on the host, one row per member."""
    count, scope = len(seats.rows), scopes[report.stage]
    metrics, evals = _fetch((report.metrics, report.evals), seats.rows, scope)
    if scope == "run":
        metrics, evals = jax.tree.map(
            lambda x: np.broadcast_to(x, (count, *x.shape)), (metrics, evals)
        )
    trained = np.isin(np.arange(count), seats.members)
    columns = {k: np.where(trained, _mean(v), np.float32(np.nan)) for k, v in metrics.items()}
    return report._replace(metrics=columns, evals=evals)


def _mean(mean: Mean) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mean.weight > 0, mean.total / mean.weight, np.nan).astype(np.float32)


def _fetch(tree: PyTree, rows: np.ndarray, scope: str) -> PyTree:
    """A copy of some rows on the host; keys stay typed."""

    def one(x: Array) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return np.array(x) if scope == "run" else np.asarray(x)[rows]

    return jax.tree.map(one, tree)


def assemble(
    program: Program,
    stage: int,
    step: int,
    parts: Sequence[tuple[tuple[int, int], RunState]],
    members: tuple[int, int],
) -> RunState:
    """The state of `members` (first, last + 1) out of parts, each with the members it holds.

    Parts are in order, hold all that is asked for, and are all at `step` of `stage`.
    """
    scopes = {s.name: s.scope for s in program.stages}

    def joined(scope: str, trees: Sequence[PyTree]) -> PyTree:
        if scope == "run":
            return trees[0]
        rows = [slice(max(members[0] - a, 0), max(members[1] - a, 0)) for (a, _), _ in parts]
        some = [jax.tree.map(lambda x: x[r], t) for t, r in zip(trees, rows, strict=True)]  # noqa: B023
        return some[0] if len(some) == 1 else jax.tree.map(_concatenate, *some)

    states = [state for _, state in parts]
    results = {
        name: joined(scopes[name], [state.results[name] for state in states])
        for name in states[0].results
    }
    member = joined(program.stages[stage].scope, [state.member for state in states])
    return RunState(member, results, stage, step)


def _concatenate(*parts: Any) -> Any:
    """On the host, but for keys."""
    keys = jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key)
    return jnp.concatenate(parts) if keys else np.concatenate(parts)


def abstract_state(program: Program, hp: PyTree, inputs: dict[str, PyTree], stage: int) -> RunState:
    """The `RunState` of a snapshot taken in `stage`, as shapes and dtypes: what to restore into."""
    hp = as_hyperparams(hp)
    count = len(jax.tree.leaves(hp)[0])
    key = jax.eval_shape(lambda: jax.random.key(0))
    shared, members = dict(inputs), {}

    def start(index: int) -> MemberState:
        init = initialise_fn(program.stages[index])

        def one(key: Array, hp: PyTree, own: PyTree, shared: PyTree) -> MemberState:
            return init((), {"key": key, "hp": hp, "inputs": own}, {"inputs": shared})[1]

        if program.stages[index].scope == "run":
            return jax.eval_shape(one, key, jax.eval_shape(first, hp), {}, shared)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
        return jax.eval_shape(jax.vmap(one, (0, 0, 0, None)), keys, hp, members, shared)

    for index in range(stage):
        done = program.stages[index]
        (shared if done.scope == "run" else members)[done.name] = start(index).learner
    results = {s.name: (shared | members)[s.name] for s in program.stages[:stage]}
    return RunState(start(stage), results, stage, 0)


def evaluate(
    program: Program,
    plan: Layout,
    state: RunState,
    key: Array,
    inputs: dict[str, PyTree],
    *,
    ids: np.ndarray | None = None,
) -> PyTree:
    """What the stage of `state` evaluates, [P, ...]; every member has its own stream of `key`."""
    stage = program.stages[state.stage]
    count = len(jax.tree.leaves(state.member.hp)[0])
    scopes = {s.name: s.scope for s in program.stages}
    shared = dict(inputs) | {k: v for k, v in state.results.items() if scopes[k] == "run"}
    own = {k: v for k, v in state.results.items() if scopes[k] == "member"}
    ids = np.arange(count, dtype=np.int32) if ids is None else ids
    keys = member_keys(key, jnp.asarray(ids))
    members = {"state": state.member._replace(key=keys), "inputs": own}
    members = plan.split(plan.pad(members, count))
    seats = plan.seat(count)
    if isinstance(stage.evaluate, HostEvaluator):
        found = _on_host(stage.evaluate, stage.scope, seats, members["state"], state.step)
    else:
        run = jax.jit(lift(plan)(evaluate_fn(stage), stage))
        args = {"inputs": plan.share(shared), "step": jnp.int32(state.step)}
        found = run((), members, args)[1]
    return _fetch(found, seats.rows, stage.scope)
