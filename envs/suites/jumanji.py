"""Adapter of Jumanji (pip install -e ".[jumanji]"): combinatorial tasks, "jumanji:Game2048-v1".

Jumanji: a Diverse Suite of Scalable Reinforcement Learning Environments in JAX. Clément Bonnet,
Daniel Luo, Donal Byrne et al. ICLR 2024, arXiv:2306.09884.

Differences from the suite:

  - Observations, records of arrays, become one vector of their entries in order. The action mask
    is left out of it and becomes the mask of the observation.
  - Several discrete actions at once become one: their joint index. With a mask per action a joint
    action is legal if all of its parts are. Tasks with more than `LARGEST` joint actions are
    refused.
  - Time limits truncate; in Jumanji most of them terminate.
  - Rewards of several agents are summed; their continuous actions become one vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.envs.suites.common import allowances, check_task, lenient, load, pictures
from jaxrl.envs.wrappers import positive, strong, time_limit
from jaxrl.masks import Masked
from jaxrl.types import Array, Box, Discrete, Env, EnvSpec, PyTree, TimeStep

LARGEST = 10_000  # joint actions
NEVER = 2**30  # a time limit that is not reached
SCALED = ("SearchAndRescue",)  # tasks whose rewards depend on their time limit


def make(task: str, *, max_steps: int | None = None) -> Env:
    """A task of Jumanji.

    Args:
      max_steps: time limit; None for the task's own, if it has one.

    Raises:
      EnvError: the suite is not installed, the task is unknown, has too many joint actions or
        cannot be made.
    """
    module = load("jumanji", "jumanji")
    check_task("jumanji", task, module.registered_environments())
    name = f"jumanji:{task}"
    try:
        with allowances():
            game = module.make(task)
    except Exception as error:  # Sokoban downloads its levels
        raise EnvError(f"{name} cannot be made: {error}") from error
    limit = getattr(game, "time_limit", None) if max_steps is None else max_steps
    limit = None if limit is None else positive(int(limit), f"max_steps of {name}")
    if hasattr(game, "time_limit") and not task.startswith(SCALED):
        game.time_limit = NEVER
    space, act, sizes = _actions(name, game.action_spec)

    def observe(seen: Any) -> Any:
        entries = dict(seen._asdict()) if hasattr(seen, "_asdict") else {"obs": seen}
        mask = entries.pop("action_mask", None)
        parts = [jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(list(entries.values()))]
        obs = jnp.concatenate(parts)
        if mask is None or not isinstance(space, Discrete):
            return obs
        return Masked(obs, joint_mask(jnp.asarray(mask, bool), sizes))

    @lenient
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Any]:
        state, ts = game.reset(jax.random.key_data(key))
        return strong(state), observe(ts.observation)

    @lenient
    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        state, ts = game.step(state, act(action))
        ended = ts.last() & jnp.all(ts.discount == 0)
        reward = jnp.sum(ts.reward).astype(jnp.float32)
        return strong(state), TimeStep(observe(ts.observation), reward, ended, ts.last() & ~ended)

    def render(states: PyTree, params: PyTree) -> np.ndarray:
        viewer = getattr(game, "_viewer", None)
        if not hasattr(viewer, "_display_rgb_array"):
            raise EnvError(f"{name} has no drawing")
        import matplotlib

        matplotlib.use("agg")
        viewer._display = viewer._display_rgb_array  # type: ignore[union-attr]
        return pictures(lambda state: game.render(state)[::2, ::2], states)

    _, seen = jax.eval_shape(reset, jax.random.key(0), {})
    masked = isinstance(seen, Masked)
    shape = seen.obs.shape if masked else seen.shape
    env = Env(EnvSpec(name, shape, space, masked=masked), {}, reset, step, render=render)
    return env if limit is None else time_limit(env, limit)


def joint_mask(mask: Array, sizes: tuple[int, ...]) -> Array:
    """[prod(sizes)] bool: the legal joint actions, of a mask of joint actions or of each action.

    Args:
      mask: [*sizes], or [len(sizes), sizes[0]] with a row per action.
    """
    if mask.size == math.prod(sizes):
        return mask.reshape(-1)
    rows = [mask[i, :size] for i, size in enumerate(sizes)]
    both = lambda a, b: (a[:, None] & b[None]).reshape(-1)
    return functools.reduce(both, rows)


def _actions(
    name: str, spec: Any
) -> tuple[Discrete | Box, Callable[[Array], Array], tuple[int, ...]]:
    """The action space, the function to Jumanji's actions, and the sizes of its parts."""
    if hasattr(spec, "num_values"):
        sizes = tuple(int(x) for x in np.asarray(spec.num_values).reshape(-1))
        count = math.prod(sizes)
        if count > LARGEST:
            raise EnvError(f"{name} has {count:.2g} joint actions; at most {LARGEST} are supported")

        def act(action: Array) -> Array:
            parts = jnp.unravel_index(action, sizes)
            return jnp.stack(parts).reshape(spec.shape).astype(spec.dtype)

        return Discrete(count), act, sizes
    low, high = (np.ravel(np.broadcast_to(x, spec.shape)) for x in (spec.minimum, spec.maximum))
    if not np.issubdtype(spec.dtype, np.floating):
        raise EnvError(f"{name} has actions of whole numbers in a box, which are not supported")
    bounds = [tuple(float(x) for x in bound) for bound in (low, high)]
    clip = lambda action: jnp.clip(action, low, high).reshape(spec.shape).astype(spec.dtype)
    return Box(bounds[0], bounds[1], low.shape), clip, ()
