"""Training programs: stages of (learner, source) and the loops that run them.

Two drivers use the same functions. `train` composes them into one pure function of (key, hp,
inputs), to be jitted, vmapped, exported or embedded. `jaxrl.drive.drive` calls them from the
host in chunks, with progress, checkpoints and resume. Both compile the same loops, so the results
are bitwise equal.

All functions of a stage have one calling convention, so that one `lift` maps any of them over a
population:

    fn(carry, members, shared) -> (carry, outputs)

`carry` and `members` belong to one member (a population adds a leading axis P); `shared` is common
to all members.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrl.errors import UserError
from jaxrl.evaluate import Evaluator, HostEvaluator
from jaxrl.inputs import RESERVED, SHAPES, SOURCE
from jaxrl.precision import Precision
from jaxrl.ranges import ranges_of
from jaxrl.sums import add_trees
from jaxrl.types import (
    Array,
    Batch,
    HyperParams,
    Learner,
    Mean,
    PyTree,
    Source,
    Transition,
    as_float,
    as_hyperparams,
    as_mean,
    opaque,
)

StageFn = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
Lift = Callable[[StageFn, "Stage"], StageFn]


def _nothing(key, learner_state, hp, inputs):
    return ()


def _no_batch(src, learner_state, hp, inputs, key, step):
    raise ValueError("a stage without a source must have updates=0")


NO_SOURCE = Source(init=_nothing, next=_no_batch)


def chunk_ends(updates: int, evals: int, every: int, first: bool = False) -> list[int]:
    """The updates after which a stage is evaluated, see `Stage`; [0] for one without updates."""
    if not updates:
        return [0]
    blocks = updates / every
    ends = {round(blocks * i / evals) * every for i in range(1, evals)}
    begin = [0] if first else []
    return [*begin, *sorted({updates} | {end for end in ends if 0 < end < updates})]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """`updates` updates of one learner from one source.

    Attributes:
      name: name of the stage, and of its result in the `inputs` of later stages.
      updates: number of updates; 0 only evaluates the initial state of the learner.
      source: source of the batches; required if there are updates.
      evals: number of evaluations, evenly spaced, the last at the end of the stage. Their intervals
        are multiples of `source.every` updates, so a short stage may have fewer.
      first: one more evaluation, before the first update; its training metrics are NaN.
      shared: train one learner for all members instead of one per member.
      reads: the agent's hyperparameters that a shared stage reads. They must be equal in all
        members; see `check_shared`.
      unshared: what to do for several values of these hyperparameters; ends the error message.
      start: None, or the name of an earlier stage whose final state is the initial state.
      evaluate: None, or (learner_state, hp, inputs, key) -> pytree of arrays, called after each
        chunk, with the state of the source as inputs["source"]. The host calls a `HostEvaluator`.
      precision: that of initialisation, updates and evaluations.
    """

    name: str
    learner: Learner
    source: Source = NO_SOURCE
    updates: int
    evals: int = 1
    first: bool = False
    shared: bool = False
    reads: tuple[str, ...] = ()
    unshared: str = "start one run per value"
    start: str | None = None
    evaluate: Callable[..., PyTree] | None = None
    precision: Precision = Precision()

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ValueError(f"stage {self.name!r} cannot make {self.updates} updates")
        if self.updates and self.source is NO_SOURCE:
            raise ValueError(f"stage {self.name!r} needs a source for its updates")
        if self.evals < 1:
            raise ValueError(f"stage {self.name!r} needs at least one evaluation, at its end")
        if self.name in RESERVED:
            raise ValueError(f"a stage cannot be called {self.name!r}: the name is reserved")

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """(first update, number of updates) of each chunk; a chunk ends with an evaluation."""
        ends = chunk_ends(self.updates, self.evals, self.source.every, self.first)
        return [(a, b - a) for a, b in zip([0, *ends], ends, strict=False)]

    @functools.cached_property  # one trace for `update` and for the size of batches
    def next(self) -> Callable[..., tuple[PyTree, Batch, dict[str, PyTree]]]:
        """`source.next`, traced once."""
        return jax.jit(self.source.next, inline=True)

    @functools.cached_property  # so that `initialise` and `advance` share one trace
    def update(self) -> Callable[..., tuple[tuple[PyTree, PyTree], dict[str, Mean]]]:
        """One update: (learner state, source state, hp, inputs, key, step) -> (states, metrics)."""

        @jax.jit
        def update(
            learner: PyTree, src: PyTree, hp: HyperParams, inputs: PyTree, key: Array, step: Array
        ) -> tuple[tuple[PyTree, PyTree], dict[str, Mean]]:
            key_source, key_learner, *_ = streams(key, step)
            src, batch, seen = self.next(src, learner, hp, inputs, key_source, step)
            learner, learnt = self.learner.update(learner, hp.agent, batch, key_learner, step)
            return (learner, src), {name: as_mean(value) for name, value in (seen | learnt).items()}

        return update


@dataclasses.dataclass(frozen=True)
class Program:
    """A sequence of stages. Later stages receive a stage's final learner state under its name."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: dict[str, bool] = {}
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            if stage.start is not None and stage.start not in seen:
                raise ValueError(f"stage {stage.name!r} starts from unknown {stage.start!r}")
            if stage.shared and not seen.get(stage.start or "", True):
                raise ValueError(f"stage {stage.name!r} is shared but starts from one per member")
            seen[stage.name] = stage.shared

    def with_precision(self, precision: Precision) -> Program:
        """The program computed with another precision."""
        change = lambda stage: dataclasses.replace(stage, precision=precision)
        return Program(tuple(map(change, self.stages)))

    def from_the_start(self) -> Program:
        """The program with an evaluation before the first update of the first evaluated stage.

        Raises:
          UserError: this stage acts on the host.
        """
        stages = list(self.stages)
        for index, stage in enumerate(stages):
            if stage.updates and stage.evaluate is not None:
                if stage.source.host is not None:
                    raise UserError(
                        f"stage {stage.name!r} acts on the host, where an evaluation before the "
                        "first update is not supported: remove --eval-first"
                    )
                stages[index] = dataclasses.replace(stage, first=True)
                break
        return Program(tuple(stages))

    def with_interim(self, episodes: int) -> Program:
        """The program with fewer episodes at evaluations before the last one of a stage.

        Their number is the smallest divisor of a stage's episodes that is at least `episodes`.
        Results of the other episodes are NaN, with length 0. Evaluations that are not from
        `jaxrl.evaluate.evaluator` stay as they are.
        """
        stages = []
        for stage in self.stages:
            play = stage.evaluate
            play = play.fewer(episodes) if isinstance(play, Evaluator | HostEvaluator) else play
            stages.append(dataclasses.replace(stage, evaluate=play))
        return Program(tuple(stages))

    def exploring(self) -> Program:
        """The program with evaluations that act as in training instead of greedily.

        Raises:
          UserError: a stage has an evaluation of its own, not from `jaxrl.evaluate.evaluator`.
        """
        stages = []
        for stage in self.stages:
            play = stage.evaluate
            if isinstance(play, Evaluator | HostEvaluator):
                play = dataclasses.replace(play, explore=True)
            elif play is not None:
                raise UserError(f"stage {stage.name!r} has its own evaluation, without exploration")
            stages.append(dataclasses.replace(stage, evaluate=play))
        return Program(tuple(stages))


def check_shared(program: Program, hp: PyTree) -> None:
    """Raises UserError if members of a population differ in what a shared stage reads.

    Args:
      hp: the agent's hyperparameters, leaves [P, ...] on the host or on devices.
    """
    for stage in program.stages:
        for name in stage.reads if stage.shared else ():
            if len(np.unique(np.asarray(getattr(hp, name)))) > 1:
                raise UserError(
                    f"{name} differs between members, but they share their {stage.name}: "
                    f"{stage.unshared}"
                )


def check_ranges(hp: PyTree) -> None:
    """Raises UserError for a hyperparameter out of its declared range; tracers are not checked.

    Args:
      hp: an agent's hyperparameters, leaves of any shape.
    """
    for name, allowed in ranges_of(hp).items():
        value = getattr(hp, name)
        if isinstance(value, Tracer):
            continue
        for number in np.unique(np.asarray(value)).tolist():
            if what := allowed.refusal(number):
                raise UserError(f"{name} must be {what}, not {number:g}")


class Sum(NamedTuple):
    """A metric summed over updates, with compensation; see `jaxrl.sums`."""

    total: Mean
    rest: Mean


class MemberState(NamedTuple):
    """State of one member in a stage."""

    learner: PyTree
    source: PyTree
    hp: HyperParams  # part of the state, since population-based training changes it
    key: Array  # key of the stage; update s uses fold_in(key, s)
    metrics: dict[str, Sum]  # since the last evaluation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a run of one member or, with an axis P, of a population.

    Attributes:
      states: final learner state of each stage, by name.
      metrics: sums of the training metrics of each stage, one row per chunk.
      evals: results of each stage's `evaluate`, one row per chunk.
      hp: the hyperparameters of the run.
      program: the program that was run.
    """

    states: dict[str, PyTree]
    metrics: dict[str, dict[str, Mean]]
    evals: dict[str, PyTree]
    hp: HyperParams
    program: Program = dataclasses.field(metadata={"static": True})

    @property
    def state(self) -> PyTree:
        """Final state of the last stage's learner."""
        return self.states[self.program.stages[-1].name]

    @property
    def returns(self) -> Array:
        """Returns [C, K] of the K episodes of each of the last stage's C evaluations."""
        return self.evals[self.program.stages[-1].name].returns


# --- the three functions of a stage --------------------------------------------------------------


def streams(key: Array, step: Array) -> Array:
    """Four independent keys [4] for update `step`: source, learner, refresh, evaluation.

    One split, since a split and a fold_in of the same key can give equal keys.
    """
    return jax.random.split(jax.random.fold_in(key, step), 4)


def acting_key(key: Array, step: Array) -> Array:
    """The key of actions on the host before update `step`; such sources have no `refresh`."""
    return streams(key, step)[2]


def eval_key(key: Array, step: Array | int) -> Array:
    """The evaluation key of a member with stage key `key` after `step` updates."""
    return streams(key, jnp.int32(step))[3]


def initialise_fn(stage: Stage) -> StageFn:
    """members {key, hp, inputs}, shared {inputs} -> outputs MemberState."""

    def init(carry: PyTree, members: PyTree, shared: PyTree) -> tuple[PyTree, MemberState]:
        hp, inputs = members["hp"], shared["inputs"] | members["inputs"]
        if stage.source.host is not None:
            inputs = {SHAPES: ()} | inputs
        key, key_learner, key_source = member_streams(members["key"])
        if stage.start is not None:
            learner = inputs[stage.start]
        else:
            learner = stage.learner.init(key_learner, hp.agent, inputs)
        source = stage.source.init(key_source, learner, hp, inputs)
        metrics = {}
        if stage.updates:
            step = jnp.int32(0)
            shapes = jax.eval_shape(stage.update, learner, source, hp, inputs, key, step)[1]
            zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
            metrics = {name: Sum(zeros(mean), zeros(mean)) for name, mean in shapes.items()}
        return carry, MemberState(learner, source, hp, key, metrics)

    return stage.precision.within(init)


def member_streams(key: Array) -> Array:
    """Keys [3] of a member in a stage: its `MemberState.key`, of the learner, of the source."""
    return jax.random.split(key, 3)


def advance_fn(stage: Stage) -> StageFn:
    """carry MemberState, members {inputs}, shared {inputs, step, n, fresh}: n updates from `step`.

    Outputs are the metrics as `Mean`s, summed since the last call with `fresh`, so the split of a
    chunk into calls does not change bits. `n` is traced: calls of any length share one program.
    `step` and `n` have no member axis, so loops over refreshes do not become selects under vmap.
    """
    source = stage.source

    def run(state: MemberState, members: PyTree, shared: PyTree) -> tuple[MemberState, PyTree]:
        hp, inputs = state.hp, shared["inputs"] | members["inputs"]
        first, end = shared["step"], shared["step"] + shared["n"]

        def body(step: Array, loop: PyTree) -> PyTree:
            carry, totals = loop
            carry, metrics = stage.update(*carry, hp, inputs, state.key, step)
            return carry, {
                name: Sum(*add_trees(totals[name].total, totals[name].rest, metric))
                for name, metric in metrics.items()
            }

        def block(index: Array, loop: PyTree) -> PyTree:
            (learner_state, src), totals = loop
            step = index * source.every
            assert source.refresh is not None
            key = streams(state.key, step)[2]
            src = source.refresh(src, learner_state, hp, inputs, key, step)
            last = jnp.minimum(step + source.every, end)
            return jax.lax.fori_loop(step, last, body, ((learner_state, src), totals))

        totals = jax.tree.map(lambda x: jnp.where(shared["fresh"], 0, x), state.metrics)
        loop = ((state.learner, state.source), totals)
        if stage.updates and source.refresh is None:
            loop = jax.lax.fori_loop(first, end, body, loop)
        elif stage.updates:
            blocks = (end + source.every - 1) // source.every
            loop = jax.lax.fori_loop(first // source.every, blocks, block, loop)
        (learner_state, src), metrics = loop
        finite = Mean(_finite(learner_state).astype(jnp.float32), jnp.float32(1))
        state = MemberState(learner_state, src, hp, state.key, metrics)
        return state, {name: each.total for name, each in metrics.items()} | {"finite": finite}

    return stage.precision.within(run)


def evaluate_fn(stage: Stage) -> StageFn:
    """members {state: MemberState, inputs}, shared {inputs, step} -> outputs of stage.evaluate.

    Raises:
      ValueError: the evaluator runs on the host, so only `drive` can call it.
    """
    assert stage.evaluate is not None
    fn = stage.evaluate
    if isinstance(fn, HostEvaluator):
        raise ValueError(f"stage {stage.name!r} is evaluated on the host: use jaxrl.drive.drive")

    def run(carry: PyTree, members: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        state, inputs = members["state"], shared["inputs"] | members["inputs"]
        inputs, step = inputs | {SOURCE: state.source}, shared["step"]
        last = (step == stage.updates,) if isinstance(fn, Evaluator) else ()
        return carry, fn(state.learner, state.hp, inputs, eval_key(state.key, step), *last)

    return stage.precision.within(run)


def _finite(tree: PyTree) -> Array:
    """Whether all floats are finite. Arrays of equal shape share one reduction, which is compiled
    as three kernels."""
    both, found = jax.lax.bitwise_and, {}
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            here = jax.lax.is_finite(x)
            found[x.shape] = both(found[x.shape], here) if x.shape in found else here
    return functools.reduce(both, map(jnp.all, found.values()), jnp.bool_(True))


# --- one pure function ---------------------------------------------------------------------------


def train(program: Program) -> Callable[..., Result]:
    """The whole run of one member, evaluations included, as a pure function.

    The function takes (key, hypers=None, data=None, inputs=None) and returns a `Result`. It can be
    jitted, vmapped over keys and hypers, exported, or embedded in a larger program.

      key: a typed random key. Seed s of the command line uses
        `jax.random.fold_in(jax.random.key(0), s)`.
      hypers: the agent's `Hypers` (numbers, converted to float32); the agent's defaults if None.
        As arguments of the compiled function they give the bits of the command line; XLA rounds
        constants differently.
        `HyperParams` sets the physical parameters of the environment as well.
      data: for offline agents, a `Transition` of rows [D, ...].
      inputs: further inputs of the stages, by name.

    Raises:
      UserError: `hypers` are those of another agent or out of their ranges (unless traced), or
        None for a learner without defaults.
    """
    run = compose(program, lambda fn, stage: fn)
    defaults = program.stages[-1].learner.hypers

    def whole(
        key: Array,
        hypers: PyTree = None,
        data: Transition | None = None,
        inputs: dict[str, PyTree] | None = None,
    ) -> Result:
        if hypers is None and defaults is None:
            raise UserError("this program has no default hyperparameters: pass hypers")
        hp = as_hyperparams(opaque(defaults) if hypers is None else hypers)
        if defaults is not None and not isinstance(hp.agent, type(defaults)):
            wrong, right = (type(x) for x in (hp.agent, defaults))
            raise UserError(f"hypers are {named(wrong)}, this program takes {named(right)}")
        check_ranges(hp.agent)
        hp = jax.tree.map(as_float, hp)
        inputs = dict(inputs or {}) | ({} if data is None else {"data": data})
        return run(key, key, hp, hp, inputs, {})

    return whole


def named(kind: type) -> str:
    """Short name of a class, such as pqn.Hypers."""
    return f"{kind.__module__.split('.')[-1]}.{kind.__qualname__}"


def compose(program: Program, lift: Lift) -> Callable[..., Result]:
    """The whole run as a pure function (run_key, keys, run_hp, hp, inputs, own).

    keys, hp and the inputs `own` are those of one member or of a population, depending on `lift`.
    Shared stages use `run_key` and `run_hp`.
    """

    def run(
        run_key: Array, keys: Array, run_hp: PyTree, hp: PyTree, inputs: PyTree, own: PyTree
    ) -> Result:
        shared, members = dict(inputs), dict(own)
        metrics, evals = {}, {}
        for index, stage in enumerate(program.stages):
            each = {} if stage.shared else members
            start = {
                "key": stage_key(run_key if stage.shared else keys, index),
                "hp": run_hp if stage.shared else hp,
                "inputs": each,
            }
            _, state = lift(initialise_fn(stage), stage)((), start, {"inputs": shared})
            state, (metrics[stage.name], evals[stage.name]) = _run_chunks(
                stage, lift, state, each, dict(shared)
            )
            (shared if stage.shared else members)[stage.name] = state.learner
        states = {stage.name: (shared | members)[stage.name] for stage in program.stages}
        return Result(states, metrics, evals, hp, program)

    return run


def _run_chunks(stage: Stage, lift: Lift, state: PyTree, own: PyTree, shared: PyTree) -> PyTree:
    if stage.source.host is not None:
        raise ValueError(f"stage {stage.name!r} acts on the host: use jaxrl.drive.drive")
    step_fn = lift(advance_fn(stage), stage)
    eval_fn = lift(evaluate_fn(stage), stage) if stage.evaluate is not None else None

    def chunk(state: PyTree, span: Array) -> tuple[PyTree, PyTree]:
        step, n = span
        args = {"inputs": shared, "step": step, "n": n, "fresh": jnp.array(True)}
        state, metrics = step_fn(state, {"inputs": own}, args)
        if eval_fn is None:
            return state, (metrics, ())
        args = {"inputs": shared, "step": step + n}
        _, outcome = eval_fn((), {"state": state, "inputs": own}, args)
        return state, (metrics, outcome)

    return jax.lax.scan(chunk, state, jnp.asarray(np.array(stage.chunks, np.int32)))


def stage_key(key: Array, index: Array | int) -> Array:
    """The key of stage `index` of one member ([]) or of each member of a population ([P])."""
    fold = lambda k: jax.random.fold_in(k, index)
    return jax.vmap(fold)(key) if key.ndim else fold(key)
