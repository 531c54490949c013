"""Adapter of gymnax 1.x: classic control, MinAtar, bsuite and more.

Differences from gymnax, in all environments:
  - Environments do not reset themselves; `next_obs` is the true successor, also at episode ends.
  - An episode that terminates exactly at the time limit has `terminated` True, `truncated` False.
  - Observations and rewards are float32. Discrete observations (FrozenLake) are one-hot [n].
  - Continuous actions are clipped to the action space, as most of the environments do themselves.
  - Parameters are a dict of arrays without the time limit, which is static (`spec.max_steps`).

Peculiarities of gymnax that remain: CartPole's `total_mass` and `polemass_length` are separate
parameters and do not follow `masspole` and `length`; MemoryChain shows each state one step late;
the car of MountainCarContinuous keeps its speed at the left wall, where gymnasium's stops.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError, UnknownEnv
from jaxrl.envs.wrappers import positive, strong, with_params
from jaxrl.errors import nearest
from jaxrl.types import Array, Box, Discrete, Env, EnvSpec, PyTree, TimeStep

LIMIT = "max_steps_in_episode"


# Imported by gymnax's renderers; a package before its modules.
PLOTTING = (
    "seaborn",
    "matplotlib",
    "matplotlib.animation",
    "matplotlib.colors",
    "matplotlib.pyplot",
)


class _Deferred(types.ModuleType):
    """Stands for a module until one of its attributes is used, which imports it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _gymnax() -> Any:
    """The package gymnax, imported without its plotting packages, which would take two seconds."""
    if "gymnax" in sys.modules:
        return sys.modules["gymnax"]
    deferred = {name: _Deferred(name) for name in PLOTTING if name not in sys.modules}
    for name, module in deferred.items():
        package, _, attribute = name.rpartition(".")
        if package in deferred:
            setattr(deferred[package], attribute, module)
    sys.modules.update(deferred)
    try:
        return importlib.import_module("gymnax")
    finally:
        for name in deferred:
            sys.modules.pop(name, None)


def make(name: str, /, *, max_steps: int | None = None, **options: Any) -> Env:
    """A registered gymnax environment.

    Args:
      max_steps: time limit; None for the environment's own.
      options: static arguments of gymnax's constructor (`size` of DeepSea), or traced physical
        parameters (`gravity` of CartPole), which become the defaults in `env.params`.

    Raises:
      EnvError: an unknown name or option, a value that gymnax refuses, or a failed download.
    """
    gymnax = _gymnax()
    registration = gymnax.registration
    if name not in gymnax.registered_envs:
        raise UnknownEnv(f"gymnax has no {name!r}{nearest(name, gymnax.registered_envs)}")
    arguments = inspect.signature(registration._registry[name]).parameters
    static = {key: value for key, value in options.items() if key in arguments}
    physical = {key: value for key, value in options.items() if key not in arguments}
    try:
        environment, params = gymnax.make(name, **static)
    except OSError as error:
        raise EnvError(
            f"{name} downloads its data when it is made, and the download failed: {error}"
        ) from error
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in static.items())
        raise EnvError(f"gymnax cannot make {name}({given}): {error!r}") from error
    env = adapt(environment, params, name=name, max_steps=max_steps)
    if physical:  # adapt again, since action bounds may depend on the parameters
        numbers = with_params(env, arguments, **physical).params
        env = adapt(environment, params.replace(**numbers), name=name, max_steps=max_steps)
    return env


def adapt(environment: Any, params: Any, *, name: str, max_steps: int | None = None) -> Env:
    """`Env` of a gymnax environment object and its params, registered in gymnax or not.

    Raises:
      EnvError: the spaces of observations or actions are not supported.
    """
    default = getattr(params, LIMIT)
    limit = positive(int(default) if max_steps is None else max_steps, f"max_steps of {name}")
    static = {LIMIT: type(default)(limit)}  # BernoulliBandit's limit must be a float
    numbers = strong(
        {f.name: getattr(params, f.name) for f in dataclasses.fields(params) if f.name != LIMIT}
    )

    def full(numbers: PyTree) -> Any:
        return params.replace(**numbers, **static)

    # Some of gymnax's code relies on rank promotion (Swimmer), so it runs without the check.
    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        with jax.numpy_rank_promotion("allow"):
            obs, state = environment.reset_env(key, full(params))
            return strong(state), observe(obs)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        with jax.numpy_rank_promotion("allow"):
            given = full(params)
            obs, state, reward, terminated, _ = environment.step_env(key, state, act(action), given)
            terminated = jnp.asarray(terminated, bool)
            truncated = environment.is_truncated(state, given) & ~terminated
            ts = TimeStep(observe(obs), jnp.asarray(reward, jnp.float32), terminated, truncated)
            return strong(state), ts

    # Spaces are static: a bound that depends on a parameter keeps its value for the defaults.
    # Numbers of the host and abstract values, since each operation on arrays would be compiled.
    host = full(jax.tree.map(np.asarray, numbers))
    observe = _observer(_traced(lambda: environment.observation_space(host)), name)
    action, act = _actor(environment.action_space(host), name)
    _, obs = jax.eval_shape(lambda: reset(jax.random.key(0), numbers))
    return Env(EnvSpec(name, obs.shape, action, limit), numbers, reset, step)


def _traced(fn: Callable[[], Any]) -> Any:
    """The result of `fn`, in which arrays are abstract values."""
    found = []
    jax.eval_shape(lambda: found.append(fn()))
    return found[0]


def _observer(space: Any, name: str) -> Callable[[Any], Array]:
    """The function from gymnax's observation to a float32 array."""
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return lambda obs: jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
    if isinstance(space, spaces.Box):
        return lambda obs: jnp.asarray(obs, jnp.float32)
    raise EnvError(f"observations of {name} are a {type(space).__name__}, not a Box or Discrete")


def _actor(space: Any, name: str) -> tuple[Discrete | Box, Callable[[Array], Array]]:
    """The action space, and the function from an agent's action to gymnax's."""
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action: action.astype(jnp.int32)
    if not isinstance(space, spaces.Box):
        raise EnvError(f"actions of {name} are a {type(space).__name__}, not a Box or Discrete")
    shape = tuple(space.shape)
    low, high = (
        np.broadcast_to(np.asarray(bound, np.float32), shape) for bound in (space.low, space.high)
    )
    bounds = [tuple(float(x) for x in bound.reshape(-1)) for bound in (low, high)]
    clip = lambda action: jnp.clip(action.astype(jnp.float32), low, high)
    return Box(bounds[0], bounds[1], shape), clip
