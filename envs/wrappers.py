"""Environments made from other environments, and what all adapters share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.errors import nearest
from jaxrl.types import Array, Discrete, Env, PyTree, TimeStep

# Of every environment, through `make`, in the order in which they are put on.
OPTIONS = ("max_steps", "hide", "sticky", "normalise_obs", "normalise_reward")

Carry = Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]


def time_limit(env: Env, steps: int) -> Env:
    """Truncates episodes after `steps` steps. State (inner state, t [] int32).

    A limit of the environment's own still holds where it comes first.
    """
    limit = positive(steps, f"the time limit of {env.spec.name}")

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return (state, jnp.int32(0)), obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, t = state
        inner, ts = env.step(key, inner, action, params)
        t = t + 1
        truncated = (ts.truncated | (t >= limit)) & ~ts.terminated
        return (inner, t), ts._replace(truncated=truncated)

    bound = min(limit, env.spec.max_steps or limit)
    spec = dataclasses.replace(env.spec, max_steps=bound)
    return dataclasses.replace(env, spec=spec, reset=reset, step=step, persist=persist_inner(env))


def sticky_actions(env: Env, probability: float = 0.25) -> Env:
    """Repeats the last action instead of the chosen one, with `probability` at every step.

    What is repeated is the action that was carried out, so repetitions may go on. The first action
    of an episode is always carried out as chosen; MinAtar's own would repeat action 0 there. With
    probability 0 it is the very environment, bit for bit.

    State (inner state, last action, first [] bool).
    """
    number = isinstance(probability, (int, float)) and not isinstance(probability, bool)
    if not number or not 0 <= probability <= 1:
        raise EnvError(f"sticky of {env.spec.name} must lie in 0 .. 1, got {probability!r}")
    if probability == 0:
        return env
    space = env.spec.action
    kind = jnp.int32 if isinstance(space, Discrete) else jnp.float32

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return (state, jnp.zeros(space.shape, kind), jnp.ones((), bool)), obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, last, first = state
        key_repeat, key_step = jax.random.split(key)
        repeat = jax.random.bernoulli(key_repeat, float(probability)) & ~first
        action = jnp.where(repeat, last, action.astype(kind))
        inner, ts = env.step(key_step, inner, action, params)
        return (inner, action, jnp.zeros((), bool)), ts

    persist = persist_inner(env)
    return dataclasses.replace(env, reset=reset, step=step, persist=persist, outcome=None)


def hide(env: Env, indices: Sequence[int]) -> Env:
    """Takes elements out of observations: those with `indices` along the last axis.

    So CartPole's velocities, [1, 3], or whole channels of an image. The order of the others stays.
    """
    name, size = env.spec.name, env.spec.obs_shape[-1]
    whole = isinstance(indices, Sequence) and all(
        isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in indices
    )
    if not whole or not all(0 <= i < size for i in indices):
        raise EnvError(f"hide of {name} must list numbers of 0 .. {size - 1}, got {indices!r}")
    seen = np.setdiff1d(np.arange(size), np.asarray(indices, int))
    if not len(seen):
        raise EnvError(f"hide={list(indices)} leaves nothing of the observations of {name}")
    if env.persist is not None:  # which needs whole observations
        raise EnvError(f"hide elements of {name} before what outlives its episodes is added")

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return state, obs[..., seen]

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        state, ts = env.step(key, state, action, params)
        return state, ts._replace(next_obs=ts.next_obs[..., seen])

    spec = dataclasses.replace(env.spec, obs_shape=(*env.spec.obs_shape[:-1], len(seen)))
    return dataclasses.replace(env, spec=spec, reset=reset, step=step, outcome=None)


def persist_inner(env: Env) -> Carry | None:
    """`persist` of a wrapper of `env` with state (state of `env`, what begins anew, ...)."""
    inner = env.persist
    if inner is None:
        return None

    def persist(last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
        state, obs = inner(last[0], fresh[0], obs)
        return (state, *fresh[1:]), obs

    return persist


def with_params(env: Env, also: Iterable[str] = (), /, **values: Any) -> Env:
    """The same environment with other default parameters, for environments whose params are a dict.

    Values keep the dtype and shape of what they replace. `also` are options of another kind, for
    the message about an unknown one.
    """
    params = dict(env.params) if isinstance(env.params, dict) else {}
    for name, value in values.items():
        if name not in params:
            raise unknown_option(env.spec.name, name, {*params, *also, *OPTIONS})
        params[name] = _like(params[name], value, f"{name} of {env.spec.name}")
    return dataclasses.replace(env, params=params) if values else env


def strong(tree: PyTree) -> PyTree:
    """Numbers of any kind as float32, int32 or bool arrays without weak types.

    A weak type makes the state that comes out of a step another type than the one that went in,
    which a scan refuses, and the second call of a jitted function compile again.
    """

    def one(x: Any) -> Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return x.astype(jnp.float32)
        return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.signedinteger) else x

    return jax.tree.map(one, tree)


def positive(value: Any, what: str) -> int:
    """A positive whole number, or one line that says it is none."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 < value < 2**31:
        raise EnvError(f"{what} must be a positive whole number, got {value!r}")
    return int(value)


def unknown_option(env_name: str, option: str, options: Iterable[str]) -> EnvError:
    known = sorted(options)
    hint = nearest(option, known) or f"; it has {', '.join(known)}"
    return EnvError(f"{env_name} has no option {option!r}{hint}")


def _like(old: Any, value: Any, what: str) -> Array:
    kinds = {"f": ("a number", "iuf"), "i": ("a whole number", "iu"), "b": ("true or false", "b")}
    old = jnp.asarray(old)
    noun, allowed = kinds[old.dtype.kind]
    try:
        given = np.asarray(value)
    except ValueError:  # ragged lists
        given = np.asarray(None)
    if given.dtype.kind not in allowed or (given.dtype.kind == "f" and np.isnan(given).any()):
        raise EnvError(f"{what} must be {noun}, got {value!r}")
    if given.shape != old.shape:
        raise EnvError(f"{what} must have shape {old.shape}, got {value!r} of shape {given.shape}")
    return jnp.asarray(given, old.dtype)
