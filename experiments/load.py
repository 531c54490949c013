"""Trained agents out of a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import drive, population, records, shards
from jaxrl.errors import UserError
from jaxrl.experiments import agents, planning, session, train
from jaxrl.experiments.options import Options, Settings, retype
from jaxrl.experiments.report import open_for_reading
from jaxrl.shards import Range
from jaxrl.types import Agent, PyTree


class Loaded(NamedTuple):
    """A member of a run: `policy.act(state, hp, ...)` acts as it does."""

    policy: Agent
    state: PyTree
    hp: PyTree


def settings_of(run: records.RunDir) -> Settings:
    """The settings that a run was made with, from its config.json."""
    stored = dict(run.config()["config"])
    if "data" in stored:  # a hash of the contents; where they lay, the context says
        stored["data"] = Path(run.config()["context"]["data"])
    name, own = stored.pop("agent"), stored.pop("settings")
    module = agents.load(name)
    cfg, hp = retype(module.Config(), own), retype(module.Hypers(), own)
    # Infinities are texts in JSON.
    number = lambda x: float(x) if isinstance(x, str) else x
    points = tuple({k: number(x) for k, x in each.items()} for each in stored.get("points", [{}]))
    return Settings(name, retype(Options(stored["env"]), stored), cfg, hp, points)


def restore(
    ready: planning.Plan, run: records.RunDir, members: Range | None = None
) -> drive.RunState:
    """The newest checkpoint of a run, which may be in progress: of all members, or of a range."""
    first, last = members or (0, ready.members)

    def target(meta: dict[str, Any], part: Range) -> drive.RunState:
        hp = jax.tree.map(lambda x: x[slice(*part)], ready.hp)
        return drive.abstract_state(ready.program, hp, ready.inputs, meta["stage"])

    found = shards.newest(run.checkpoints, (first, last), target)
    if found is None:
        raise UserError(f"{train.shorten(run.path)} has no checkpoint yet")
    stage, step = found.meta["stage"], found.meta["step"]
    return drive.assemble(ready.program, stage, step, found.parts, (first, last))


def load(path: str | Path, member: int = 0) -> Loaded:
    """(policy, state, hp) of one member of a run, from its newest checkpoint."""
    session.start()
    run = open_for_reading(Path(path))
    ready = planning.plan(settings_of(run))
    if not 0 <= member < ready.members:
        raise UserError(f"member {member}: the run has members 0 to {ready.members - 1}")
    state = restore(ready, run, (member, member + 1)).member
    row = lambda tree: jax.tree.map(lambda x: jnp.asarray(x[0]), tree)
    policy = ready.module.make(ready.settings.cfg, ready.env.spec)
    return Loaded(policy, row(state.learner), row(state.hp["agent"]))


def evaluate(path: Path, episodes: int, seed: int) -> tuple[planning.Plan, Any]:
    """Fresh episodes of every member: the plan of the run and `Episodes` [P, episodes]."""
    run = open_for_reading(path)
    settings = settings_of(run)
    ready = planning.plan(settings)
    program = ready.module.program(
        settings.cfg, ready.env, evals=settings.options.evals, episodes=episodes
    )
    state = restore(ready, run)
    width = run.config()["context"]["width"]
    layout = population.Layout(ready.layout.mesh, width)
    key = jax.random.fold_in(jax.random.key(1), seed)
    return ready, drive.evaluate(program, layout, state, key, ready.inputs, ids=ready.seeds)
