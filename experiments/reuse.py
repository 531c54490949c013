"""Reuse of stages that another run has finished (`--from RUN`), such as a world model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from jaxrl.errors import UserError
from jaxrl.inputs import REUSED
from jaxrl.program import NO_SOURCE, Program, Stage
from jaxrl.types import Learner, PyTree


class Reused(NamedTuple):
    """Finished shared stages of an earlier run: stage -> state."""

    path: Path
    states: dict[str, PyTree]


def reuse(
    earlier: Reused, program: Program, hp: PyTree, inputs: PyTree
) -> tuple[Program, dict[str, PyTree]]:
    """The program without the training of stages that an earlier run has finished; their states.

    These stages keep their places with zero updates, so that the random numbers of later stages
    do not change.

    Args:
      hp: hyperparameters [P].

    Raises:
      UserError: the earlier run has no reusable stage, or a stage of another size.
    """
    mine = {stage.name: stage for stage in program.stages if stage.shared}
    states = {name: earlier.states[name] for name in mine if name in earlier.states}
    if not states:
        if not mine:
            raise UserError("no stage of this run is shared by its members: leave out --from")
        raise UserError(f"{earlier.path} has no finished and shared stage {' or '.join(mine)}")
    for name, state in states.items():
        _check(earlier.path, mine[name], state, hp, inputs)
    stages = (_finished(s) if s.name in states else s for s in program.stages)
    return Program(tuple(stages)), states


def _check(path: Path, stage: Stage, state: PyTree, hp: PyTree, inputs: PyTree) -> None:
    own = jax.tree.map(lambda x: x[0], hp.agent)
    wanted = jax.eval_shape(stage.learner.init, jax.random.key(0), own, inputs)
    shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    if shapes(wanted) != shapes(state):
        raise UserError(f"{path} has a {stage.name} of another size than this run needs")


def _finished(stage: Stage) -> Stage:
    """A stage of zero updates whose initial state is the result."""
    learner = Learner(init=lambda key, hp, inputs: inputs[REUSED][stage.name])
    return dataclasses.replace(stage, learner=learner, source=NO_SOURCE, updates=0, evals=1)
