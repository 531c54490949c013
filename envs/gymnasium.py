"""Adapter of gymnasium, as in "gymnasium:HalfCheetah-v5".

The environments run on the host (`jaxrl.hosted`). Options are keyword arguments of `gymnasium.make`
and

  max_steps: time limit, `max_episode_steps` of gymnasium;
  vector: "sync", the environments of a member are stepped one after the other, or "async", each in
    a process of its own, for slow environments.

Images, arrays of bytes with three axes, stay bytes (`EnvSpec.obs_dtype`). Discrete observations are
one-hot.

No autoreset of gymnasium is used: all of them, and its vector environments by default, would give
the first observation of the next episode, or an ignored action, in place of a true step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import positive
from jaxrl.errors import install_extra
from jaxrl.types import Box, Discrete, Env, EnvSpec, PyTree


class Processes:
    """N environments of gymnasium, each in a process of its own: a `hosted.HostEnvs`."""

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode

        # Forked processes would inherit the threads of JAX.
        self.games = AsyncVectorEnv(
            [make] * count, context="forkserver", autoreset_mode=AutoresetMode.DISABLED
        )

    def reset(self, seeds: list[int]) -> np.ndarray:
        return self.games.reset(seed=[*seeds])[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.games.step(action)[:4]

    def restart(self, ended: np.ndarray) -> np.ndarray:
        return self.games.reset(options={"reset_mask": ended})[0]

    def close(self) -> None:
        self.games.close()


def make(name: str, /, **options: Any) -> Env:
    """The environment "gymnasium:ID" as an `Env` with `host`, whose `reset` and `step` refuse.

    Raises:
      EnvError: gymnasium is not installed or cannot make the environment, its observations or
        actions are not arrays of numbers, or an option has no such value.
    """
    try:
        import gymnasium
    except ImportError:
        raise EnvError(f"{name} needs gymnasium: {install_extra('gymnasium')}") from None
    vector = options.pop("vector", "sync")
    if vector not in ("sync", "async"):
        raise EnvError(f"vector of {name} must be sync or async, not {vector!r}")
    if (limit := options.pop("max_steps", None)) is not None:
        options["max_episode_steps"] = positive(limit, f"max_steps of {name}")
    host = functools.partial(gymnasium.make, name.removeprefix("gymnasium:"), **options)
    try:
        env = host()
    except ImportError as error:
        hint = f"{install_extra('gymnasium')} installs what MuJoCo's tasks need"
        raise EnvError(f"{name} cannot be made: {error}; {hint}") from None
    except Exception as error:  # gymnasium and constructors of environments raise all kinds
        raise EnvError(f"{name} cannot be made: {error}") from error
    with contextlib.closing(env):
        limit = None if env.spec is None else env.spec.max_episode_steps
        space = env.observation_space
        if isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete):
            host, space = functools.partial(one_hot, host), gymnasium.spaces.flatten_space(space)
        shape, dtype = _obs_shape(name, space), "uint8" if is_image(space) else "float32"
        spec = EnvSpec(name, shape, actions_of(name, env), limit, obs_dtype=dtype)
    no = functools.partial(refuse, name)
    # The checker of gymnasium has seen the environment above.
    host = functools.partial(host, disable_env_checker=True)
    together = functools.partial(Processes, host) if vector == "async" else None
    return Env(spec, {}, no, no, host, together)


def one_hot(make: Callable[..., Any], **options: Any) -> Any:
    """The environment of gymnasium with its discrete observations as one-hot vectors."""
    from gymnasium.wrappers import FlattenObservation

    return FlattenObservation(make(**options))


def is_image(space: Any) -> bool:
    """Whether observations are images of bytes or stacks of them, with three axes."""
    return space.dtype == np.uint8 and len(space.shape) == 3


def _obs_shape(name: str, space: Any) -> tuple[int, ...]:
    if space.shape is None or space.dtype is None or space.dtype.kind not in "fiub":
        raise EnvError(f"{name}: observations must be an array of numbers, not {space}")
    return tuple(space.shape)


def actions_of(name: str, env: Any) -> Discrete | Box:
    """The action space of an environment of gymnasium.

    Raises:
      EnvError: it is neither a Box nor a Discrete from 0 on.
    """
    space = env.action_space
    if hasattr(space, "n") and not space.shape and not getattr(space, "start", 0):
        return Discrete(int(space.n))
    if not hasattr(space, "low"):
        raise EnvError(f"{name}: actions must be a Box or a Discrete from 0 on, not {space}")
    bound = lambda x: tuple(float(v) for v in np.ravel(x))
    return Box(bound(space.low), bound(space.high), tuple(space.shape))


def refuse(name: str, *_: PyTree) -> NoReturn:
    """`reset` and `step` of an environment of the host."""
    raise EnvError(f"{name} runs on the host: it has no step that a device could compile")
