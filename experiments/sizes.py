"""Bytes of states and batches, from abstract values alone, before anything is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.experiments.plan import Plan
from jaxrl.runs import device_memory
from jaxrl.snapshot import abstract_state
from jaxrl.types import PyTree


def state_bytes(ready: Plan) -> int:
    """Bytes of one member's state in its largest stage, with its inputs and earlier results.

    Tracing the states also finds errors before compilation.

    Raises:
      UserError: a size is too large for int32.
    """
    try:
        return _state_bytes(ready)
    except (OverflowError, TypeError) as error:
        sizes = vars(ready.settings.cfg)
        large = [name for name, x in sizes.items() if isinstance(x, int) and x >= 2**31]
        if not large:
            raise
        raise UserError(
            f"--agent.{large[0].replace('_', '-')} {sizes[large[0]]} is too large: sizes of arrays "
            "must be less than 2^31"
        ) from error


def _state_bytes(ready: Plan) -> int:
    size = device_memory.tree_bytes
    own = {stage.name for stage in ready.program.stages if not stage.shared}
    found = []
    for index, stage in enumerate(ready.program.stages):
        state = abstract_state(ready.program, ready.hp, ready.inputs, index, ready.own)
        here = size(state.member) // (ready.members if stage.name in own else 1)
        left = size([ready.own, *(x for name, x in state.results.items() if name in own)])
        found.append(here + left // ready.members)
    return max(found)


def batch_bytes(ready: Plan) -> int:
    """Bytes of the largest batch of one member."""
    stages = range(len(ready.program.stages))
    return max(
        (_batch_bytes(ready, i) for i in stages if ready.program.stages[i].updates), default=0
    )


def _batch_bytes(ready: Plan, index: int) -> int:
    stage = ready.program.stages[index]
    own = {s.name for s in ready.program.stages if not s.shared}
    state = abstract_state(ready.program, ready.hp, ready.inputs, index, ready.own)

    def one(tree: PyTree) -> PyTree:
        """Of the first member."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)

    member, inputs = state.member, dict(ready.inputs)
    if not stage.shared:
        member = one(member)
        inputs |= one(ready.own)
    for name, result in state.results.items():
        if name not in own:
            inputs[name] = result
        elif not stage.shared:
            inputs[name] = one(result)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    batch = jax.eval_shape(
        stage.source.next,
        member.source,
        member.learner,
        member.hp,
        inputs,
        member.key,
        step,
    )[1]
    return device_memory.tree_bytes(batch)
