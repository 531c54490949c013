"""Environments of gymnax 1.x: classic control, MinAtar, bsuite and more.

What is changed on the way, the same for every environment:
  - Nothing resets by itself; `next_obs` is the true successor, also where the episode ends.
  - Where an episode terminates at its very time limit, `terminated` wins and `truncated` is False.
  - Observations and rewards are float32. A whole-number observation out of n (FrozenLake) is
    one-hot of shape (n,), which is what a network can read.
  - Continuous actions are clipped to the action space, as most of these environments do themselves.
  - Parameters are a dict of arrays without the time limit, which is static: `spec.max_steps`.

What is left as it is: CartPole's `total_mass` and `polemass_length` are parameters of their own, so
they do not follow `masspole` and `length`; MemoryChain shows each state one step late; the car of
MountainCarContinuous keeps its speed at the left wall, where gymnasium's stops.
"""

from __future__ import annotations

import dataclasses
import inspect
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


def make(name: str, /, *, max_steps: int | None = None, **options: Any) -> Env:
    """A registered gymnax environment.

    Args:
      max_steps: the time limit; None keeps the environment's own.
      options: arguments of gymnax's constructor (`size` of DeepSea), which are static, or physical
        parameters (`gravity` of CartPole), which become the defaults in `env.params`.
    """
    import gymnax
    from gymnax import registration

    if name not in gymnax.registered_envs:
        raise UnknownEnv(f"gymnax has no {name!r}{nearest(name, gymnax.registered_envs)}")
    arguments = inspect.signature(registration._registry[name]).parameters
    static = {key: value for key, value in options.items() if key in arguments}
    physical = {key: value for key, value in options.items() if key not in arguments}
    try:
        environment, params = gymnax.make(name, **static)
    except OSError as error:
        raise EnvError(
            f"{name} downloads its data when it is made, which failed: {error}"
        ) from error
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in static.items())
        raise EnvError(f"gymnax cannot make {name}({given}): {error!r}") from error
    env = adapt(environment, params, name=name, max_steps=max_steps)
    if physical:  # adapted once more, since the bounds of actions may depend on them
        numbers = with_params(env, arguments, **physical).params
        env = adapt(environment, params.replace(**numbers), name=name, max_steps=max_steps)
    return env


def adapt(environment: Any, params: Any, *, name: str, max_steps: int | None = None) -> Env:
    """`Env` of a gymnax environment object and its params, for one that is not registered."""
    default = getattr(params, LIMIT)
    limit = positive(int(default) if max_steps is None else max_steps, f"max_steps of {name}")
    static = {LIMIT: type(default)(limit)}  # BernoulliBandit's is a float, and has to be
    numbers = strong(
        {f.name: getattr(params, f.name) for f in dataclasses.fields(params) if f.name != LIMIT}
    )

    def full(numbers: PyTree) -> Any:
        return params.replace(**numbers, **static)

    # gymnax broadcasts ranks silently (Swimmer does): its own code runs without the check.
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

    # Spaces are static: a bound that follows a parameter stays where the default puts it.
    observe = _observer(environment.observation_space(full(numbers)), name)
    action, act = _actor(environment.action_space(full(numbers)), name)
    _, obs = jax.eval_shape(reset, jax.random.key(0), numbers)
    return Env(EnvSpec(name, obs.shape, action, limit), numbers, reset, step)


def _observer(space: Any, name: str) -> Callable[[Any], Array]:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return lambda obs: jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
    if isinstance(space, spaces.Box):
        return lambda obs: jnp.asarray(obs, jnp.float32)
    raise EnvError(f"{name} observes {type(space).__name__}, jaxrl needs arrays of fixed shape")


def _actor(space: Any, name: str) -> tuple[Discrete | Box, Callable[[Array], Array]]:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action: action.astype(jnp.int32)
    if not isinstance(space, spaces.Box):
        raise EnvError(f"{name} acts in {type(space).__name__}, jaxrl needs Discrete or Box")
    shape = tuple(space.shape)
    low, high = (
        np.broadcast_to(np.asarray(bound, np.float32), shape) for bound in (space.low, space.high)
    )
    bounds = [tuple(float(x) for x in bound.reshape(-1)) for bound in (low, high)]
    clip = lambda action: jnp.clip(action.astype(jnp.float32), low, high)
    return Box(bounds[0], bounds[1], shape), clip
