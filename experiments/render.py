"""An episode of a trained member as a GIF."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxrl import envs
from jaxrl.api import TrainedPolicy
from jaxrl.envs import draw
from jaxrl.errors import UserError
from jaxrl.experiments.plan import hypers_of
from jaxrl.experiments.restore import load, settings_of
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.runs.files import atomic_write
from jaxrl.types import Array, Env, PyTree


def episode(
    env: Env, member: TrainedPolicy, key: Array, limit: int = 1000
) -> tuple[np.ndarray, float]:
    """Observations [L + 1, *obs] of one greedy episode of L steps, and its return."""
    policy, state, hp = member
    steps = min(env.spec.max_steps or limit, limit)

    def step(carry: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        env_state, obs, memory, start, live = carry
        key_noise, key_env = jax.random.split(key)
        noise = policy.noise(key_noise, 1)
        action, memory, _ = policy.act(state, hp, obs[None], start, memory, noise, False)
        env_state, ts = env.step(key_env, env_state, action[0], env.params)
        after = (env_state, ts.next_obs, memory, jnp.zeros(1, bool))
        return (*after, live & ~(ts.terminated | ts.truncated)), (ts.next_obs, ts.reward, live)

    @jax.jit
    def play(key: Array) -> PyTree:
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = env.reset(key_reset, env.params)
        carry = (env_state, obs, policy.memory(1), jnp.ones(1, bool), jnp.bool_(True))
        return obs, jax.lax.scan(step, carry, jax.random.split(key_steps, steps))[1]

    first, (obs, reward, live) = jax.device_get(play(key))
    return np.concatenate([first[None], obs[live]]), float(reward[live].sum())


def render(path: Path, member: int, seed: int, out: Path | None) -> Path:
    """Renders one episode of a member as a GIF and prints its file, length and return."""
    settings = settings_of(open_run_folder(path))
    env = envs.make(settings.options.env, **settings.options.env_options)
    draw.frame(env.spec.name, np.zeros(env.spec.obs_shape))  # raises if there is no drawing
    if env.persist is not None:
        raise UserError(
            f"{env.spec.name} cannot be rendered with normalise_obs or normalise_reward: its "
            "drawing needs raw observations"
        )
    loaded = load(path, member)
    # A sweep may have changed the physical parameters of this member.
    own = jax.tree.map(lambda x: x[member], hypers_of(settings, env).env)
    env = dataclasses.replace(env, params=own)
    observations, total = episode(env, loaded, jax.random.key(seed))
    frames = [Image.fromarray(draw.frame(env.spec.name, obs)) for obs in observations]
    file = out or path / "plots" / f"member-{member}.gif"
    slow = 90 if env.spec.name.endswith("MinAtar") else 30  # milliseconds a frame
    atomic_write(
        file,
        lambda to: frames[0].save(
            to, "GIF", save_all=True, append_images=frames[1:], duration=slow, loop=0
        ),
    )
    print(f"{file}: member {member}, {len(frames) - 1} steps, return {total:.4g}")
    return file
