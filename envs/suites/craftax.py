"""Adapter of Craftax (pip install -e ".[craftax]"), as in "craftax:Craftax-Symbolic-v1".

Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement Learning. Michael Matthews,
Michael Beukman, Benjamin Ellis, Mikayel Samvelyan, Matthew Jackson, Samuel Coward, Jakob Foerster.
ICML 2024, arXiv:2402.16801.

Four tasks: Craftax and Craftax-Classic, each with symbolic observations (a vector) or pixels
[H, W, 3] in [0, 1]. Differences from the suite:

  - Environments do not reset themselves; `next_obs` is the true successor.
  - Craftax's `done` includes its time limit. Here the limit truncates, and `terminated` is death
    or, in the full game, the defeat of the last boss.
  - The achievements unlocked in an episode are measured, as "achievement_collect_wood".

On a CPU a reset takes as long as 17 steps, so initial states are pooled by default, see
`rollout.pool_size`. At its first start the suite makes its textures, which takes minutes.
"""

from __future__ import annotations

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.suites import TASKS
from jaxrl.envs.suites.common import check_task, lenient, load, pictures
from jaxrl.envs.wrappers import positive, strong
from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep

NEVER = 2**30  # a time limit that is not reached


def make(task: str, *, max_steps: int | None = None) -> Env:
    """An environment of Craftax.

    Args:
      max_steps: time limit; None for Craftax's own: 10,000 in Classic, 100,000 in the full game.

    Raises:
      EnvError: the suite is not installed, the task is unknown, or max_steps is not positive.
    """
    check_task("craftax", task, TASKS["craftax"])
    factory = load("craftax.craftax_env", "craftax").make_craftax_env_from_name
    with contextlib.redirect_stdout(sys.stderr):  # it tells that it makes textures
        environment = factory(task, False)
    package = "craftax_classic" if "Classic" in task else "craftax"
    achievements = load(f"craftax.{package}.constants", "craftax").Achievement
    names = {each.value: f"achievement_{each.name.lower()}" for each in achievements}
    default = environment.default_params
    steps = default.max_timesteps if max_steps is None else max_steps
    limit = positive(steps, f"max_steps of craftax:{task}")
    params_of_suite = default.replace(max_timesteps=NEVER)

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        obs, state = environment.reset_env(key, params_of_suite)
        return strong(state), jnp.asarray(obs, jnp.float32)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        obs, state, reward, done, _ = environment.step_env(key, state, action, params_of_suite)
        unlocked = state.achievements.astype(jnp.float32)
        terminated = jnp.asarray(done, bool)
        ts = TimeStep(
            jnp.asarray(obs, jnp.float32),
            jnp.asarray(reward, jnp.float32),
            terminated,
            (state.timestep >= limit) & ~terminated,
            measured={name: unlocked[i] for i, name in names.items()},
        )
        return strong(state), ts

    def render(states: PyTree, params: PyTree) -> np.ndarray:
        module = load(f"craftax.{package}.renderer", "craftax")
        block = load(f"craftax.{package}.constants", "craftax").BLOCK_PIXEL_SIZE_IMG
        return pictures(jax.jit(lenient(module.make_craftax_pixel_renderer(block))), states)

    _, obs = jax.eval_shape(reset, jax.random.key(0), {})
    actions = Discrete(int(environment.num_actions))
    measures = tuple(names.values())
    spec = EnvSpec(f"craftax:{task}", obs.shape, actions, limit, measures=measures)
    return Env(spec, {}, reset, step, render=render)
