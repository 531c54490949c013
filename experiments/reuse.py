"""Stages that another run has finished (`--from RUN`): a model is trained once and used by many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from jaxrl.errors import UserError
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.program import NO_SOURCE, Program, Stage
from jaxrl.types import Learner, PyTree

INPUT = "reused"  # the name of finished states among inputs


def reuse(
    path: Path, program: Program, env: str, hp: PyTree, inputs: PyTree
) -> tuple[Program, dict[str, PyTree]]:
    """The program with the shared stages that a run has finished, and their states.

    They stay in the program as stages of no updates, so that later ones have the random
    numbers they always have.

    Args:
      env: the name of the environment, which has to be that of the run.
      hp: hyperparameters [P].

    Raises:
      UserError: there is none to use, or one of another size.
    """
    from jaxrl.experiments import load
    from jaxrl.experiments.plan import make_plan  # which reuses stages itself

    run = open_run_folder(path)
    if run.config()["config"]["env"] != env:
        raise UserError(f"{path} was trained in another environment, not {env}")
    ready = make_plan(load.settings_of(run))
    found = load.restore(ready, run, (0, 1)).results
    shared = {stage.name for stage in ready.program.stages if stage.shared}
    mine = {stage.name: stage for stage in program.stages if stage.shared}
    names = [name for name in mine if name in found and name in shared]
    if not names:
        wanted = " or ".join(mine) or "anything, and here nothing is"
        raise UserError(f"{path} has not finished {wanted} shared by its members")
    states = {name: found[name] for name in names}
    for name, state in states.items():
        _check(path, mine[name], state, hp, inputs)
    stages = (_finished(s) if s.name in states else s for s in program.stages)
    return Program(tuple(stages)), states


def _check(path: Path, stage: Stage, state: PyTree, hp: PyTree, inputs: PyTree) -> None:
    own = jax.tree.map(lambda x: x[0], hp.agent)
    wanted = jax.eval_shape(stage.learner.init, jax.random.key(0), own, inputs)
    shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    if shapes(wanted) != shapes(state):
        raise UserError(f"{path} has a {stage.name} of another size than this run asks for")


def _finished(stage: Stage) -> Stage:
    """A stage of no updates that begins with the result."""
    learner = Learner(init=lambda key, hp, inputs: inputs[INPUT][stage.name])
    return dataclasses.replace(stage, learner=learner, source=NO_SOURCE, updates=0, evals=1)
