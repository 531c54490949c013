"""Adapter of EnvPool (pip install -e ".[envpool]", Linux), as in "envpool:Pong-v5".

EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine. Jiayi Weng et al.
NeurIPS 2022, arXiv:2206.10558.

The environments run on the host (`jaxrl.hosted`), in threads of C++. Options are those of
`envpool.make`, such as episodic_life and reward_clip of Atari, and `max_steps`, its
`max_episode_steps`. Differences from EnvPool:

  - A step never resets. EnvPool would ignore the action after an end; the adapter resets the ended
    environments instead, so that `next_obs` is the true successor.
  - Time limits truncate.
  - Images are [H, W, C] instead of [C, H, W], bytes as there.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl.envs.gymnasium import actions_of, is_image, refuse
from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import positive
from jaxrl.errors import install_extra
from jaxrl.types import Env, EnvSpec


def make(name: str, /, **options: Any) -> Env:
    """The environment "envpool:ID" as an `Env` with `host` and `host_envs`.

    Raises:
      EnvError: EnvPool is not installed or cannot make the environment, or its observations are not
        one array of numbers.
    """
    try:
        import envpool
    except ImportError as error:
        raise EnvError(f"{name} needs envpool ({error}): {install_extra('envpool')}") from None
    if (limit := options.pop("max_steps", None)) is not None:
        options["max_episode_steps"] = positive(limit, f"max_steps of {name}")
    task = name.removeprefix("envpool:")
    start = functools.partial(envpool.make, task, env_type="gymnasium", **options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds in float64
            pool: Any = start(num_envs=1)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise EnvError(f"{name} cannot be made: {error}") from error
    with contextlib.closing(pool):
        space = pool.observation_space
        if not getattr(space, "shape", None) or space.dtype.kind not in "fiub":
            raise EnvError(f"{name}: observations must be an array of numbers, not {space}")
        limit = int(pool.spec.config.max_episode_steps)
        shape = tuple(space.shape[i] for i in (1, 2, 0)) if is_image(space) else tuple(space.shape)
        dtype = "uint8" if is_image(space) else "float32"
        spec = EnvSpec(name, shape, actions_of(name, pool), limit, obs_dtype=dtype)
    no = functools.partial(refuse, name)
    return Env(spec, {}, no, no, functools.partial(One, start), functools.partial(Pool, start))


class Pool:
    """N environments, a `hosted.HostEnvs`."""

    def __init__(self, start: Callable[..., Any], count: int) -> None:
        self.start, self.count = start, count
        self.pool: Any = None

    def reset(self, seeds: list[int]) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pool = self.start(num_envs=self.count, seed=list(seeds))
            self.image = is_image(self.pool.observation_space)
        self.obs = self.seen(self.pool.reset()[0])
        return self.obs

    def seen(self, obs: np.ndarray) -> np.ndarray:
        """Observations [n, *obs]."""
        return np.moveaxis(obs, 1, -1) if self.image else obs.astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        obs, reward, terminated, truncated, _ = self.pool.step(np.ascontiguousarray(action))
        self.obs = self.seen(obs)
        return self.obs, reward, terminated, truncated

    def restart(self, ended: np.ndarray) -> np.ndarray:
        obs, info = self.pool.reset(np.flatnonzero(ended).astype(np.int32))
        fresh = self.obs.copy()
        fresh[np.asarray(info["env_id"])] = self.seen(obs)
        return fresh

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()


class One:
    """One environment with gymnasium's reset, step and close, for evaluations."""

    def __init__(self, start: Callable[..., Any]) -> None:
        self.pool = Pool(start, 1)

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.pool.close()
        return self.pool.reset([seed])[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated = (x[0] for x in self.pool.step(np.array(action)[None]))
        return obs, float(reward), bool(terminated), bool(truncated), {}

    def close(self) -> None:
        self.pool.close()
