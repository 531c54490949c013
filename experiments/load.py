"""Trained agents out of a run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from jaxrl import drive, population
from jaxrl.errors import UserError
from jaxrl.experiments import agents, jax_setup
from jaxrl.experiments.console import print_line, short_path
from jaxrl.experiments.options import Options, Settings, retype
from jaxrl.experiments.plan import Plan, make_plan
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.runs import records, shards, stats
from jaxrl.runs.shards import Range
from jaxrl.types import Agent, PyTree


class Loaded(NamedTuple):
    """A member of a run: `policy.act(state, hp, ...)` acts as it does."""

    policy: Agent
    state: PyTree
    hp: PyTree


def settings_of(run: records.RunDir) -> Settings:
    """The settings that a run was made with, from its config.json."""
    stored = dict(run.config()["config"])
    # Of files a hash is stored; where they lay, the context says.
    if "data" in stored:
        stored["data"] = Path(run.config()["context"]["data"])
    if "base" in stored:
        stored["base"] = tuple(map(Path, run.config()["context"]["base"]))
    name, own = stored.pop("agent"), stored.pop("settings")
    module = agents.load(name)
    cfg, hp = retype(module.Config(), own), retype(module.Hypers(), own)
    # Infinities are texts in JSON.
    number = lambda x: float(x) if isinstance(x, str) else x
    points = tuple({k: number(x) for k, x in each.items()} for each in stored.get("points", [{}]))
    return Settings(name, retype(Options(stored["env"]), stored), cfg, hp, points)


def restore(ready: Plan, run: records.RunDir, members: Range | None = None) -> drive.RunState:
    """The newest checkpoint of a run, which may be in progress: of all members, or of a range."""
    first, last = members or (0, ready.members)

    def target(meta: dict[str, Any], part: Range) -> drive.RunState:
        hp = jax.tree.map(lambda x: x[slice(*part)], ready.hp)
        return drive.abstract_state(ready.program, hp, ready.inputs, meta["stage"])

    found = shards.newest(run.checkpoints, (first, last), target)
    if found is None:
        raise UserError(f"{short_path(run.path)} has no checkpoint yet")
    stage, step = found.meta["stage"], found.meta["step"]
    return drive.assemble(ready.program, stage, step, found.parts, (first, last))


def load(path: str | Path, member: int = 0) -> Loaded:
    """(policy, state, hp) of one member of a run, from its newest checkpoint."""
    jax_setup.start()
    run = open_run_folder(Path(path))
    ready = make_plan(settings_of(run))
    if not 0 <= member < ready.members:
        raise UserError(f"member {member}: the run has members 0 to {ready.members - 1}")
    found = restore(ready, run, (member, member + 1))
    row = lambda tree: jax.tree.map(lambda x: jnp.asarray(x[0]), tree)
    policy = ready.program.stages[found.stage].learner
    if not isinstance(policy, Agent):
        raise UserError(f"{short_path(run.path)} has not come to its policy yet")
    return Loaded(policy, row(found.member.learner), row(found.member.hp.agent))


def evaluate(
    path: Path, episodes: int, seed: int, eval_steps: int | None = None
) -> tuple[Plan, Any]:
    """Fresh episodes of every member: the plan of the run and `Episodes` [P, episodes].

    `eval_steps` takes the place of the agent's own setting. One seed gives the same episodes.

    Raises:
      UserError: the agent has no such setting, or no checkpoint yet.
    """
    run = open_run_folder(path)
    settings = settings_of(run)
    if eval_steps is not None:
        if not hasattr(settings.cfg, "eval_steps"):
            raise UserError(f"{settings.agent} has no setting eval_steps, so no --eval-steps")
        cfg = dataclasses.replace(settings.cfg, eval_steps=eval_steps)
        settings = dataclasses.replace(settings, cfg=cfg)
    options = dataclasses.replace(settings.options, eval_episodes=episodes)
    ready = make_plan(dataclasses.replace(settings, options=options))
    state = restore(ready, run)
    width = run.config()["context"]["width"]
    layout = population.Layout(ready.layout.mesh, width)
    key = jax.random.fold_in(jax.random.key(1), seed)
    return ready, drive.evaluate(ready.program, layout, state, key, ready.inputs, ids=ready.seeds)


def print_steps(path: Path, episodes: int, seed: int, steps: Sequence[int]) -> None:
    """A row per number of steps in which actions are sampled, of the same fresh episodes."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("eval_steps", "mean", "IQM", "95 % interval"):
        table.add_column(name, justify="right")
    for count in steps:
        found = stats.summarise(evaluate(path, episodes, seed, count)[1].returns)
        low, high = found["ci95"]
        numbers = (f"{found[name]:.4g}" for name in ("mean", "iqm"))
        table.add_row(str(count), *numbers, f"{low:.4g} to {high:.4g}")
    print_line(table)
