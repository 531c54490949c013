"""An episode of a trained member as a GIF or an HTML page."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.api import TrainedPolicy
from jaxrl.envs import draw
from jaxrl.errors import UserError
from jaxrl.experiments.console import print_line
from jaxrl.experiments.plan import hypers_of
from jaxrl.experiments.restore import read_member, settings_of
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.experiments.trust import NOBODY, Trust
from jaxrl.masks import Views, critic_shape, critic_view
from jaxrl.runs.files import atomic_write
from jaxrl.teams import check_single
from jaxrl.types import Array, Env, PyTree


class Played(NamedTuple):
    """One episode of L steps.

    Attributes:
      states: states of the environment, numpy, [L + 1, ...]; random keys as their data.
      observations: [L + 1, *obs]; what value functions see, if that is something else.
      returns: [L + 1] sum of rewards so far.
      cut: whether the episode goes on after these steps.
    """

    states: PyTree
    observations: np.ndarray
    returns: np.ndarray
    cut: bool = False


LONGEST = 1000  # steps, since every step is an image


def episode(env: Env, member: TrainedPolicy, key: Array, limit: int = LONGEST) -> Played:
    """One greedy episode of a member, of at most `limit` steps."""
    policy, state, hp = member
    steps = min(env.spec.max_steps or limit, limit)

    one = lambda tree: jax.tree.map(lambda x: x[None], tree)
    own = lambda obs: obs.obs if isinstance(obs, Views) else obs

    def step(carry: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        env_state, obs, memory, start, live = carry
        key_noise, key_env = jax.random.split(key)
        noise = policy.noise(key_noise, 1)
        action, memory, _ = policy.act(state, hp, one(own(obs)), start, memory, noise, False)
        env_state, ts = env.step(key_env, env_state, action[0], env.params)
        after = (env_state, ts.next_obs, memory, jnp.zeros(1, bool))
        ended = ts.terminated | ts.truncated
        seen = _plain((env_state, critic_view(ts.next_obs), ts.reward, live))
        return (*after, live & ~ended), seen

    @jax.jit
    def play(key: Array) -> PyTree:
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = env.reset(key_reset, env.params)
        carry = (env_state, obs, policy.memory(1), jnp.ones(1, bool), jnp.bool_(True))
        first = _plain((env_state, critic_view(obs), jnp.zeros(()), jnp.bool_(True)))
        carry, later = jax.lax.scan(step, carry, jax.random.split(key_steps, steps))
        return first, later, carry[-1]

    first, later, goes_on = jax.device_get(play(key))
    every = jax.tree.map(lambda x, y: np.concatenate([np.asarray(x)[None], y]), first, later)
    live = every[-1]
    states, observations, rewards, _ = jax.tree.map(lambda x: x[live], every)
    cut = bool(goes_on) and steps != env.spec.max_steps
    return Played(states, observations, np.cumsum(rewards), cut)


def host_episode(
    env: Env, member: TrainedPolicy, seed: int, limit: int = LONGEST
) -> tuple[list[np.ndarray], np.ndarray, bool]:
    """Images [H, W, 3] uint8 and sums of rewards [L + 1] of an episode in an environment of the
    host, which draws them as gymnasium does with render_mode="rgb_array", and whether it goes on.

    Raises:
      UserError: the environment cannot draw itself.
    """
    assert env.host is not None
    policy, state, hp = member
    act = jax.jit(functools.partial(policy.act, explore=False))
    game, memory, total = None, policy.memory(1), [0.0]
    steps = min(env.spec.max_steps or limit, limit)
    cut = steps != env.spec.max_steps
    try:
        game = env.host(render_mode="rgb_array")
        obs, _ = game.reset(seed=seed)
        images = [game.render()]
        for t in range(steps):
            noise = policy.noise(jax.random.fold_in(jax.random.key(seed), t), 1)
            seen = np.asarray(obs, env.spec.obs_dtype)[None]
            action, memory, _ = act(state, hp, seen, np.array([t == 0]), memory, noise=noise)
            obs, reward, terminated, truncated, _ = game.step(np.asarray(action)[0])
            images.append(game.render())
            total.append(total[-1] + float(reward))
            if terminated or truncated:
                cut = False
                break
    except Exception as error:  # missing packages, displays, arguments
        reason = str(error).partition("\n")[0]
        raise UserError(f"{env.spec.name} cannot be drawn: {reason}") from error
    finally:
        if game is not None:
            game.close()
    return [np.asarray(image, np.uint8) for image in images], np.array(total), cut


def _plain(tree: PyTree) -> PyTree:
    """Random keys as their data, since numpy has no such dtype."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def check_suffix(out: Path | None) -> None:
    """Raises UserError if episodes cannot be written to a file of this name."""
    if out is not None and out.suffix.lower() not in (".gif", ".html"):
        raise UserError(f"{out}: episodes are written as .gif files, those of Brax as .html files")


def render(path: Path, member: int, seed: int, out: Path | None, trust: Trust = NOBODY) -> Path:
    """Renders one episode of a member, of at most `LONGEST` steps, and prints its file, length and
    return.

    The file is a GIF, or an HTML page if the environment draws one (Brax).

    Raises:
      UserError: the environment has no drawing, or `out` has another suffix.
    """
    check_suffix(out)
    settings = settings_of(open_run_folder(path), trust)
    options = settings.options.env_options
    env = envs.make(settings.options.env, **options)
    check_single(env.spec, "render")
    if env.render is None and env.host is None:
        if "hide" in options:  # a drawing needs whole observations
            env = envs.make(settings.options.env, **options | {"hide_from": "policy"})
        draw.frame(env.spec.name, np.zeros(critic_shape(env.spec)))  # raises if there is no drawing
        if env.persist is not None:
            raise UserError(
                f"{env.spec.name} cannot be rendered with normalise_obs or normalise_reward: its "
                "drawing needs raw observations"
            )
    loaded, unfinished = read_member(path, member, trust)
    # A sweep may have changed the physical parameters of this member.
    own = jax.tree.map(lambda x: x[member], hypers_of(settings, env).env)
    env = dataclasses.replace(env, params=own)
    if env.host is not None:
        found, returns, cut = host_episode(env, loaded, seed)
    else:
        played = episode(env, loaded, jax.random.key(seed))
        found, returns, cut = pictures(env, played), played.returns, played.cut
    suffix = ".html" if isinstance(found, str) else ".gif"
    file = out or path / "plots" / f"member-{member}{suffix}"
    if file.suffix.lower() != suffix:
        raise UserError(f"{file}: {env.spec.name} is rendered as a {suffix} file")
    if isinstance(found, str):
        atomic_write(file, found.encode())
    else:
        write_gif(file, found, returns, 90 if env.spec.name.endswith("MinAtar") else 30)
    steps, total = len(returns) - 1, returns[-1]
    told = " so far; the episode goes on" if cut else ""
    told += unfinished and f"; {unfinished}"
    print_line(f"{file}: member {member}, {steps} steps, return {total:.4g}{told}")
    return file


def pictures(env: Env, played: Played) -> Sequence[np.ndarray] | np.ndarray | str:
    """Images [L + 1, H, W, 3] uint8 of an episode, or an HTML page, see `Env.render`.

    Raises:
      UserError: `env.render` returns something else.
    """
    if env.render is None:
        return [draw.frame(env.spec.name, obs) for obs in played.observations]
    found = env.render(played.states, env.params)
    if isinstance(found, str):
        return found
    found, count = np.asarray(found), len(played.returns)
    if found.ndim != 4 or found.shape[::3] != (count, 3) or found.dtype != np.uint8:
        raise UserError(
            f"render of {env.spec.name} must return uint8 images of shape [{count}, H, W, 3] or a "
            f"str, not {found.dtype} of shape {list(found.shape)}"
        )
    return found


def write_gif(file: Path, images: Iterable[np.ndarray], returns: np.ndarray, slow: int) -> None:
    """Writes images as a GIF with step and return below each; `slow` is in milliseconds a frame."""
    frames = [
        draw.captioned(image, f"step {step}   return {total:.4g}")
        for step, (image, total) in enumerate(zip(images, returns, strict=True))
    ]
    more = {"save_all": True, "append_images": frames[1:], "duration": slow, "loop": 0}
    atomic_write(file, lambda to: frames[0].save(to, "GIF", **more))
