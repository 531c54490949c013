"""Bytes of states and batches, from abstract values alone, before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.experiments.plan import Plan
from jaxrl.hosted import SHAPES
from jaxrl.program import Stage
from jaxrl.runs.device_memory import tree_bytes
from jaxrl.snapshot import RunState, abstract_state
from jaxrl.types import PyTree


def abstract_states(ready: Plan) -> list[RunState]:
    """The state in each stage, as shapes and dtypes. Tracing finds errors before compilation.

    Raises:
      UserError: a size is too large for int32.
    """
    try:
        return [
            abstract_state(ready.program, ready.hp, ready.inputs, index, ready.own)
            for index in range(len(ready.program.stages))
        ]
    except (OverflowError, TypeError) as error:
        sizes = vars(ready.settings.cfg)
        large = [name for name, x in sizes.items() if isinstance(x, int) and x >= 2**31]
        if not large:
            raise
        raise UserError(
            f"--agent.{large[0].replace('_', '-')} {sizes[large[0]]} is too large: sizes of arrays "
            "must be less than 2^31"
        ) from error


def state_bytes(ready: Plan, states: Sequence[RunState]) -> int:
    """Bytes of one member's state in its largest stage, with its inputs and earlier results."""
    own = {stage.name for stage in ready.program.stages if not stage.shared}
    found = []
    for stage, state in zip(ready.program.stages, states, strict=True):
        here = tree_bytes(state.member) // (ready.members if stage.name in own else 1)
        left = tree_bytes([ready.own, *(x for name, x in state.results.items() if name in own)])
        found.append(here + left // ready.members)
    return max(found)


def batch_bytes(ready: Plan, states: Sequence[RunState]) -> int:
    """Bytes of the largest batch of one member."""
    pairs = zip(ready.program.stages, states, strict=True)
    return max((_batch_bytes(ready, *pair) for pair in pairs if pair[0].updates), default=0)


def _batch_bytes(ready: Plan, stage: Stage, state: RunState) -> int:
    def first(tree: PyTree) -> PyTree:
        """The first member's part of leaves [P, ...]."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)

    shared = {each.name: each.shared for each in ready.program.stages}
    member, inputs = state.member, {SHAPES: (), **ready.inputs}
    inputs |= {name: x for name, x in state.results.items() if shared[name]}
    if not stage.shared:
        own = {name: x for name, x in state.results.items() if not shared[name]}
        member, inputs = first(member), inputs | first(ready.own | own)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    args = (member.source, member.learner, member.hp, inputs, member.key, step)
    return tree_bytes(jax.eval_shape(stage.source.next, *args)[1])
