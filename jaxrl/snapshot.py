"""Snapshots of a population: the state of a run on the host, and its assembly from parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.population import Layout, first, layout, lift
from jaxrl.program import MemberState, Program, initialise_fn
from jaxrl.types import Array, PyTree, as_hyperparams


class RunState(NamedTuple):
    """The state from which a population continues, on the host and unpadded, for any layout.

    Leaves of `member`, and of results of stages that are not shared, have the axis P.
    """

    member: MemberState
    results: dict[str, PyTree]  # final learner states of finished stages
    stage: int  # index of the stage of `member`
    step: int  # updates made in that stage


def fetch(tree: PyTree, rows: np.ndarray, shared: bool) -> PyTree:
    """A copy on the host, of `rows` unless members share the tree; keys remain typed."""

    def one(x: Array) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return np.array(x) if shared else np.asarray(x)[rows]

    return jax.tree.map(one, tree)


def assemble(
    program: Program,
    stage: int,
    step: int,
    parts: Sequence[tuple[tuple[int, int], RunState]],
    members: tuple[int, int],
) -> RunState:
    """The state of `members` (first, last + 1), assembled from (members, state) parts.

    Parts are in order, contain all of `members`, and are all at `step` of `stage`.
    """
    is_shared = {s.name: s.shared for s in program.stages}

    def joined(shared: bool, trees: Sequence[PyTree]) -> PyTree:
        if shared:
            return trees[0]
        rows = [slice(max(members[0] - a, 0), max(members[1] - a, 0)) for (a, _), _ in parts]
        some = [jax.tree.map(lambda x: x[r], t) for t, r in zip(trees, rows, strict=True)]  # noqa: B023
        return some[0] if len(some) == 1 else jax.tree.map(_concatenate, *some)

    states = [state for _, state in parts]
    results = {
        name: joined(is_shared[name], [state.results[name] for state in states])
        for name in states[0].results
    }
    member = joined(program.stages[stage].shared, [state.member for state in states])
    return RunState(member, results, stage, step)


def _concatenate(*parts: Any) -> Any:
    """Concatenation on the host, except for keys."""
    keys = jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key)
    return jnp.concatenate(parts) if keys else np.concatenate(parts)


def abstract_learner(
    program: Program,
    hp: PyTree,
    inputs: dict[str, PyTree],
    stage: int,
    own: dict[str, PyTree] | None = None,
) -> PyTree:
    """Shapes and dtypes of the learner state of `stage`, [P, ...] unless members share it.

    Sources are not evaluated, so `inputs`, and `own` of each member [P, ...], need only the inputs
    of learners' `init`.
    """
    hp = as_hyperparams(hp)
    shared, members = dict(inputs), dict(own or {})

    def init(index: int) -> PyTree:
        each = program.stages[index]
        if each.start is not None:
            return (shared | members)[each.start]
        key = jax.eval_shape(lambda: jax.random.key(0))
        if each.shared:
            one = jax.eval_shape(first, hp.agent)
            return jax.eval_shape(each.learner.init, key, one, shared)
        fn = lambda hp, own, shared: each.learner.init(jax.random.key(0), hp, shared | own)
        return jax.eval_shape(jax.vmap(fn, (0, 0, None)), hp.agent, members, shared)

    for index in range(stage):
        done = program.stages[index]
        (shared if done.shared else members)[done.name] = init(index)
    return init(stage)


def rows(tree: PyTree, count: int) -> PyTree:
    """Shapes and dtypes of `count` rows of leaves [P, ...]."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), tree)


def abstract_state(
    program: Program,
    hp: PyTree,
    inputs: dict[str, PyTree],
    stage: int,
    own: dict[str, PyTree] | None = None,
    plan: Layout | None = None,
) -> RunState:
    """Shapes and dtypes of the `RunState` of a snapshot taken in `stage`, for restoring.

    Args:
      own: inputs of each member, leaves [P, ...].
      plan: the layout of the run, whose programs then reuse what is traced here.
    """
    hp = as_hyperparams(hp)
    count = len(jax.tree.leaves(hp)[0])
    plan = plan or layout(1)
    shared, members = dict(inputs), dict(own or {})

    def start(index: int) -> MemberState:
        each = program.stages[index]
        init = lift(plan)(initialise_fn(each), each)
        key = jax.eval_shape(lambda: jax.random.key(0))
        if each.shared:
            given = {"key": key, "hp": jax.eval_shape(first, hp), "inputs": {}}
            return jax.eval_shape(init, (), given, {"inputs": shared})[1]
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
        given = rows({"key": keys, "hp": hp, "inputs": members}, plan.padded(count))
        return rows(jax.eval_shape(init, (), given, {"inputs": shared})[1], count)

    for index in range(stage):
        done = program.stages[index]
        (shared if done.shared else members)[done.name] = start(index).learner
    results = {s.name: (shared | members)[s.name] for s in program.stages[:stage]}
    return RunState(start(stage), results, stage, 0)
