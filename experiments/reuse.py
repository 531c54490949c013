"""Stages that another run has finished (`--from RUN`): a model is trained once and used by many."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrl.errors import UserError
from jaxrl.program import Program, Stage
from jaxrl.sources import whole
from jaxrl.types import Array, Batch, Learner, PyTree

INPUT = "reused"  # the name of finished states among inputs


class Reused(NamedTuple):
    """Finished states of an earlier run: stage -> state, of the stages its members share."""

    path: Path
    states: dict[str, PyTree]


def reuse(
    earlier: Reused, program: Program, hp: PyTree, inputs: PyTree
) -> tuple[Program, dict[str, PyTree]]:
    """The program with the stages of scope "run" that a run has finished, and their states.

    They stay in the program as stages of one update that changes nothing, so that later ones have
    the random numbers they always have.

    Args:
      hp: hyperparameters [P].

    Raises:
      UserError: there is none to use, or one of another size.
    """
    mine = {stage.name: stage for stage in program.stages if stage.scope == "run"}
    states = {name: earlier.states[name] for name in mine if name in earlier.states}
    if not states:
        wanted = " or ".join(mine) or "anything, and here nothing is"
        raise UserError(f"{earlier.path} has not finished {wanted} shared by its members")
    for name, state in states.items():
        _check(earlier.path, mine[name], state, hp, inputs)
    stages = (_finished(s) if s.name in states else s for s in program.stages)
    return Program(tuple(stages)), states


def _check(path: Path, stage: Stage, state: PyTree, hp: PyTree, inputs: PyTree) -> None:
    own = jax.tree.map(lambda x: x[0], hp if stage.part is None else hp[stage.part])
    wanted = jax.eval_shape(stage.learner.init, jax.random.key(0), own, inputs)
    shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    if shapes(wanted) != shapes(state):
        raise UserError(f"{path} has a {stage.name} of another size than this run asks for")


def _finished(stage: Stage) -> Stage:
    """A stage that begins with the result, and ends with it."""

    def init(key: Array, hp: PyTree, inputs: PyTree) -> PyTree:
        return inputs[INPUT][stage.name]

    def update(
        state: PyTree, hp: PyTree, batch: Batch, key: Array, step: Array
    ) -> tuple[PyTree, dict[str, Any]]:
        return state, {}

    learner = Learner(init=init, update=update)
    return dataclasses.replace(stage, learner=learner, source=whole(), updates=1, evals=1)
