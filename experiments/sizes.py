"""States, evaluations and sizes in bytes from abstract values, before anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.evaluate import HostEvaluator
from jaxrl.experiments.plan import Plan
from jaxrl.inputs import SHAPES
from jaxrl.population import lift
from jaxrl.program import Stage, StageFn, evaluate_fn
from jaxrl.runs.device_memory import tree_bytes
from jaxrl.snapshot import RunState, abstract_state, rows
from jaxrl.types import Array, PyTree


def abstract_states(ready: Plan) -> list[RunState]:
    """The state in each stage, as shapes and dtypes. Tracing finds errors before compilation.

    Raises:
      UserError: a size is too large for int32.
    """
    try:
        return [
            abstract_state(ready.program, ready.hp, ready.inputs, index, ready.own, ready.layout)
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
    """As initialisation and updates call the source, so that they reuse its trace."""

    def batch(carry: PyTree, members: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        own, inputs = members["state"], shared["inputs"] | members["inputs"]
        if stage.source.host is not None:
            inputs = {SHAPES: ()} | inputs
        args = (own.source, own.learner, own.hp, inputs, own.key, jnp.int32(0))
        return carry, stage.next(*args)[1]

    found, count = _abstract(ready, stage, state, stage.precision.within(batch))
    return tree_bytes(found) // count


def measured(ready: Plan, states: Sequence[RunState]) -> tuple[str, ...]:
    """Names of further results of the last stage's evaluation, see `Episodes.measured`."""
    stage, state = ready.program.stages[-1], states[-1]
    if isinstance(stage.evaluate, HostEvaluator | None):
        return ()
    found, _ = _abstract(ready, stage, state, evaluate_fn(stage), step=jnp.int32(0))
    return tuple(found.measured)


def _abstract(
    ready: Plan, stage: Stage, state: RunState, fn: StageFn, **more: Array
) -> tuple[PyTree, int]:
    """Outputs of a stage function, as shapes and dtypes, and the number of members in them.

    Args:
      more: what `fn` takes from `shared` beside inputs.
    """
    shared = {each.name: each.shared for each in ready.program.stages}
    inputs = ready.inputs | {name: x for name, x in state.results.items() if shared[name]}
    members, count = {"state": state.member, "inputs": {}}, 1
    if not stage.shared:
        count = ready.layout.padded(ready.members)
        members["inputs"] = ready.own | {
            name: x for name, x in state.results.items() if not shared[name]
        }
        members = rows(members, count)
    lifted = lift(ready.layout)(fn, stage)
    return jax.eval_shape(lifted, (), members, {"inputs": inputs, **more})[1], count
