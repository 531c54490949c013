"""One launch of updates of a population, compiled: what the speed measurements have in common."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, population
from jaxrl.compiling import compiled
from jaxrl.experiments import agents
from jaxrl.experiments.plan import hyper_table
from jaxrl.precision import Precision
from jaxrl.program import Stage, advance_fn, initialise_fn
from jaxrl.types import Box, Env, EnvSpec, HyperParams, PyTree, Transition


class Task(NamedTuple):
    """An agent with its sizes; an environment by name, or random data for offline agents.

    Attributes:
      config: values of the agent's `Config`; lists stand for tuples.
      obs, act: numbers of elements of observations and actions in random data; 0 with `env`.
      rows: rows of random data.
    """

    agent: str
    config: dict[str, Any]
    env: str = ""
    obs: int = 0
    act: int = 0
    rows: int = 100_000

    @property
    def offline(self) -> bool:
        return not self.env


class Launch(NamedTuple):
    """A compiled launch.

    Attributes:
      run: trains from the initial state and returns the state after `updates` updates.
      units: environment steps, or gradient steps of offline agents, of all members.
      compile_s: CPU seconds of tracing and compilation.
      memory: the compiler's analysis of the program; None if the backend does not report it.
      text: the optimised program, as XLA prints it.
    """

    run: Callable[[], PyTree]
    units: float
    compile_s: float
    memory: Any
    text: Callable[[], str]


def prepare(
    task: Task,
    members: int,
    updates: int,
    width: int | None = None,
    devices: Any = None,
    precision: Precision | None = None,
) -> Launch:
    """Compiles `updates` updates of each of `members` in the rule's layout, or tiles of `width`."""
    stage, env, hypers = stage_of(task)
    stage = dataclasses.replace(stage, precision=precision or Precision())
    plan = population.layout(members, devices, width, acting=not task.offline)
    spread = lambda tree: plan.split(plan.pad(tree, members))
    hp = spread(hyper_table(HyperParams(hypers, env.params), members))
    keys = spread(population.member_keys(jax.random.key(0), jnp.arange(members)))
    data = {"data": plan.share(random_rows(task.obs, task.act, task.rows))} if task.offline else {}
    lift, start = population.lift(plan), {"key": keys, "hp": hp, "inputs": {}}
    state = jax.jit(lift(initialise_fn(stage), stage))((), start, {"inputs": data})[1]
    counters = {"step": jnp.int32(0), "n": jnp.int32(updates), "fresh": jnp.array(True)}
    args = (state, {"inputs": {}}, {"inputs": data} | counters)
    begin = time.process_time()
    advance = compiled(lift(advance_fn(stage), stage), args, plan.platform)
    seconds = time.process_time() - begin
    per_update = 1 if task.offline else stage.source.env_steps
    return Launch(
        run=lambda: jax.block_until_ready(advance(*args)),
        units=updates * per_update * members,
        compile_s=seconds,
        memory=advance.memory_analysis(),
        text=advance.as_text,
    )


def stage_of(task: Task) -> tuple[Stage, Env, Any]:
    """The last stage of a task's program, its environment, and the agent's default `Hypers`."""
    algorithm = agents.load(task.agent)
    env = _unplayable(task.obs, task.act) if task.offline else envs.make(task.env)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in task.config.items()}
    stage = algorithm.program(algorithm.Config(**config), env, evals=1).stages[-1]
    return stage, env, algorithm.Hypers()


def random_rows(obs: int, act: int, rows: int = 100_000) -> Transition:
    """Random transitions [D]."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, (rows, *shape)), jnp.float32)
    never = jnp.zeros(rows, bool)
    return Transition(number(obs), number(act), number(), number(obs), never, never, never)


def _unplayable(obs: int, act: int) -> Env:
    """An environment for its spec alone."""
    spec = EnvSpec("random", (obs,), Box((-1.0,) * act, (1.0,) * act, (act,)), 1000)
    other = envs.make("Pendulum-v1")
    return Env(spec, {}, other.reset, other.step)
