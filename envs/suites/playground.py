"""Adapter of MuJoCo Playground (pip install -e ".[playground]"): "playground:CartpoleBalance".

MuJoCo Playground. Kevin Zakka, Baruch Tabanpour, Qiayuan Liao et al. 2025, arXiv:2502.08844.

The tasks of the DeepMind Control Suite come with the package. Those of locomotion and manipulation
need the models of mujoco_menagerie, which Playground clones with git when such a task is made.
Differences from the suite:

  - Environments do not reset themselves; `next_obs` is the true successor. (Playground's wrapper
    replaces it at the end of an episode, and repeats the same initial state.)
  - Episodes are truncated after `episode_length` simulated control steps; `terminated` is `done`.
  - Actions lie in [-1, 1] and are clipped.
  - Of observations with several entries one is used, `obs`, and with `critic_obs` another one by
    value functions in training.
"""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.names import EnvError
from jaxrl.envs.suites.common import allowances, check_task, lenient, load
from jaxrl.envs.wrappers import positive, strong, time_limit
from jaxrl.masks import Views, unmask
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep


def make(
    task: str,
    *,
    impl: str = "jax",
    obs: str = "state",
    critic_obs: str | None = None,
    max_steps: int | None = None,
) -> Env:
    """An environment of MuJoCo Playground.

    Args:
      impl: implementation of the physics: "jax" (MJX), or "warp" on NVIDIA GPUs.
      obs: entry of observations with several, such as "state" or "privileged_state".
      critic_obs: entry that value functions see in training (`jaxrl.masks.Views`), such as
        "privileged_state"; None for that of the policy.
      max_steps: time limit; None for Playground's own, mostly 1000.

    Raises:
      EnvError: the suite is not installed, the task or an entry is unknown, or models cannot be
        downloaded.
    """
    registry = load("mujoco_playground", "playground").registry
    state_of = load("mujoco_playground._src.mjx_env", "playground").State
    check_task("playground", task, registry.ALL_ENVS)
    environment, config = _load(registry, task, impl)
    repeat = int(config.get("action_repeat", 1))
    steps = -(-int(config.episode_length) // repeat) if max_steps is None else max_steps
    limit = positive(steps, f"max_steps of playground:{task}")

    def entry(found: Any, option: str, name: str) -> Array:
        told = f"{option}={name}"
        if hasattr(found, "keys"):
            if name not in found:
                raise EnvError(f"playground:{task} has no {told}: it has {', '.join(found)}")
            found = found[name]
        elif name != "state":
            raise EnvError(f"observations of playground:{task} have one entry: remove {told}")
        return jnp.asarray(found, jnp.float32)

    def observe(found: Any) -> Any:
        own = entry(found, "obs", obs)
        return own if critic_obs is None else Views(own, entry(found, "critic_obs", critic_obs))

    def keep(state: Any) -> PyTree:
        # Steps of some tasks read the last observation and write into `metrics`.
        return strong((state.data, state.obs, state.metrics, state.info))

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Any]:
        state = environment.reset(jax.random.key_data(key))
        return keep(state), observe(state.obs)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        data, seen, metrics, info = state
        zero = jnp.zeros(())
        # Copies of the dicts, since steps write into what they get.
        now = state_of(data, seen, zero, zero, dict(metrics), dict(info))
        action = jnp.clip(action.astype(jnp.float32), -1.0, 1.0)
        total, done = zero, jnp.zeros((), bool)
        for _ in range(repeat):
            now = environment.step(now, action)
            total = total + jnp.where(done, 0.0, now.reward)
            done = done | (now.done > 0.5)
        ts = TimeStep(observe(now.obs), jnp.asarray(total, jnp.float32), done, jnp.zeros((), bool))
        return keep(now), ts

    def render(states: PyTree, params: PyTree) -> str:
        """An HTML page with brax's interactive viewer, which browsers load from a CDN."""
        load_model = load("brax.io.mjcf", "playground").load_model
        transform = load("brax.base", "playground").Transform
        page = load("brax.io.html", "playground")
        data = states[0]
        place = lambda i: transform(pos=data.xpos[i, 1:], rot=data.xquat[i, 1:])
        every = [SimpleNamespace(x=place(i)) for i in range(len(data.xpos))]
        try:
            with allowances():
                system = load_model(environment.mj_model)
                return page.render(system.tree_replace({"opt.timestep": environment.dt}), every)
        except (NotImplementedError, AssertionError) as error:
            raise EnvError(f"brax's viewer cannot show playground:{task}: {error}") from error

    size = int(environment.action_size)
    _, seen = jax.eval_shape(reset, jax.random.key(0), {})
    box = Box((-1.0,) * size, (1.0,) * size, (size,))
    critic = None if critic_obs is None else seen.critic.shape
    spec = EnvSpec(f"playground:{task}", unmask(seen)[0].shape, box, critic_shape=critic)
    return time_limit(Env(spec, {}, reset, step, render=render), limit)


def _load(registry: Any, task: str, impl: str) -> tuple[Any, Any]:
    """Playground's environment and its config."""
    try:
        with allowances():
            config = registry.get_default_config(task)
            if "impl" in config:
                config.impl = impl
            return registry.load(task, config=config), config
    except (subprocess.CalledProcessError, OSError) as error:
        raise EnvError(
            f"playground:{task} needs the models of mujoco_menagerie, which could not be cloned "
            f"from GitHub ({type(error).__name__}); tasks of the DeepMind Control Suite need none"
        ) from error
