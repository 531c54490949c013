"""Adapter of gymnasium for the evaluation of offline agents, as in "gymnasium:HalfCheetah-v5".

The environments run on the host, between the compiled chunks of a run, so agents cannot collect
training experience in them. Options are keyword arguments of `gymnasium.make`.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.types import Box, Discrete, Env, EnvSpec, PyTree


def make(name: str, /, **options: Any) -> Env:
    """The environment "gymnasium:ID" as an `Env` with `host`, whose `reset` and `step` refuse.

    Raises:
      EnvError: gymnasium is not installed or cannot make the environment, or its observations or
        actions are not arrays of numbers.
    """
    try:
        import gymnasium
    except ImportError:
        raise EnvError(f'{name} needs gymnasium: pip install "jaxrl[gymnasium]"') from None
    host = functools.partial(gymnasium.make, name.removeprefix("gymnasium:"), **options)
    try:
        env = host()
    except ImportError as error:
        hint = 'pip install "jaxrl[gymnasium]" installs what MuJoCo\'s tasks need'
        raise EnvError(f"{name} cannot be made: {error}; {hint}") from None
    except Exception as error:  # gymnasium and constructors of environments raise all kinds
        raise EnvError(f"{name} cannot be made: {error}") from error
    spec = env.spec
    limit = None if spec is None else spec.max_episode_steps
    found = EnvSpec(name, _obs_shape(name, env), _actions(name, env), limit)
    env.close()
    refuse = functools.partial(_refuse, name)
    return Env(found, {}, refuse, refuse, host)


def _obs_shape(name: str, env: Any) -> tuple[int, ...]:
    space = env.observation_space
    if space.shape is None or space.dtype is None or space.dtype.kind not in "fiub":
        raise EnvError(f"{name}: observations must be an array of numbers, not {space}")
    return tuple(space.shape)


def _actions(name: str, env: Any) -> Discrete | Box:
    space = env.action_space
    if hasattr(space, "n") and not space.shape and not getattr(space, "start", 0):
        return Discrete(int(space.n))
    if not hasattr(space, "low"):
        raise EnvError(f"{name}: actions must be a Box or a Discrete from 0 on, not {space}")
    bound = lambda x: tuple(float(v) for v in np.ravel(x))
    return Box(bound(space.low), bound(space.high), tuple(space.shape))


def _refuse(name: str, *_: PyTree) -> NoReturn:
    raise EnvError(f"{name} runs on the host: it can only evaluate agents that learn from --data")
