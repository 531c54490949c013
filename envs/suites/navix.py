"""Adapter of NAVIX (pip install -e ".[navix]", Python 3.12): MiniGrid, "navix:Navix-Empty-8x8-v0".

NAVIX: Scaling MiniGrid Environments with JAX. Eduardo Pignatelli, Jarek Liesen, Robert Tjarko
Lange, Chris Lu, Pablo Samuel Castro, Laura Toni. 2024, arXiv:2407.19396.

Observations are symbolic, [H, W, 3] integers (tag, colour, state) as floats divided by 10, of what
the agent sees. Environments do not reset themselves; time limits truncate.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.envs.suites.common import allowances, check_task, lenient, load, pictures
from jaxrl.envs.wrappers import positive, strong
from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep


def make(task: str, *, max_steps: int | None = None) -> Env:
    """A task of NAVIX.

    Args:
      max_steps: time limit; None for the task's own.

    Raises:
      EnvError: Python is older than 3.12, the suite is not installed, or the task is unknown.
    """
    if sys.version_info < (3, 12):
        raise EnvError("navix needs Python 3.12 or newer; xminigrid has MiniGrid tasks too")
    module = load("navix", "navix")
    check_task("navix", task, module.registry())
    name = f"navix:{task}"
    symbolic = module.observations.symbolic_first_person
    options = (
        {} if max_steps is None else {"max_steps": positive(max_steps, f"max_steps of {name}")}
    )
    with allowances():
        environment = module.make(task, observation_fn=symbolic, **options)
    kinds = module.environments.environment.StepType

    def observe(ts: Any) -> Array:
        return jnp.asarray(ts.observation, jnp.float32) / 10.0

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        ts = environment.reset(jax.random.key_data(key))
        return strong(ts), observe(ts)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        ts = environment._step(state, action)  # `step` would reset after an end
        ended = ts.step_type == kinds.TERMINATION
        cut = (ts.step_type == kinds.TRUNCATION) & ~ended
        return strong(ts), TimeStep(observe(ts), jnp.asarray(ts.reward, jnp.float32), ended, cut)

    def render(states: PyTree, params: PyTree) -> np.ndarray:
        return pictures(lambda ts: module.observations.rgb(ts.state), states)

    _, obs = jax.eval_shape(reset, jax.random.key(0), {})
    actions = Discrete(len(environment.action_set))
    spec = EnvSpec(name, obs.shape, actions, int(environment.max_steps))
    return Env(spec, {}, reset, step, render=render)
