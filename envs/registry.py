"""Environments by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs import dmsd, maze, modules, names, probes, reach
from jaxrl.envs.names import EnvError, UnknownEnv, check_name
from jaxrl.envs.normalise import normalise
from jaxrl.envs.wrappers import OPTIONS, hide, sticky_actions, strong, time_limit, with_params
from jaxrl.errors import nearest
from jaxrl.types import Discrete, Env, EnvSpec, PyTree, TimeStep


def make(name: str, /, **options: Any) -> Env:
    """Environment by name; raises EnvError with one line that says what is wrong.

    Names are gymnax's ("CartPole-v1"), "brax:hopper" and the like, also with a backend as in
    "brax:hopper:mjx" (`jaxrl.envs.brax`), "dmsd", "reach", "maze:large" and the like
    (`jaxrl.envs.dmsd`, `jaxrl.envs.reach`, `jaxrl.envs.maze`), "probe:delay" and the like
    (`jaxrl.envs.probes`), "gymnasium:HalfCheetah-v5" and the like for evaluation on the host
    (`jaxrl.envs.gymnasium`), and "module:attribute" or "file.py:attribute" for an `Env` of your
    own or a function that returns one, `make` where no attribute is named (`jaxrl.envs.modules`).

    Args:
      options: for every environment `max_steps`, the time limit (None: its own), `hide=[1, 3]`,
        elements taken out of observations, and `sticky=0.25`, the probability that an action is
        repeated (both in `jaxrl.envs.wrappers`); `normalise_obs=true` and `normalise_reward=0.99`,
        by running statistics, the number being the discount (`jaxrl.envs.normalise`); gymnax's
        physical parameters and constructor arguments; those of brax's constructors; arguments of
        the function, where the name gives one; entries of `params`, where they are a dict.
    """
    check_name(name)
    options = {k: v for k, v in options.items() if not (k in OPTIONS and v is None)}
    if name in names.GYMNAX or name.startswith("brax:"):
        if name in names.GYMNAX:
            from jaxrl.envs import gymnax as adapter
        else:
            from jaxrl.envs import brax as adapter
        wrap = {key: options.pop(key) for key in OPTIONS[1:] if key in options}
        return _with_options(adapter.make(name, **options), wrap)
    if name.startswith("gymnasium:"):
        from jaxrl.envs import gymnasium

        return gymnasium.make(name, **options)
    own = probes.PROBES | maze.MAZES | {"dmsd": dmsd.make, "reach": reach.make}
    if name in own:
        return _call(name, own[name], options)
    found = _load(name)
    if isinstance(found, Env):
        env = _with_options(found, options)
    elif callable(found):
        env = _call(name, found, options)
    else:
        raise EnvError(f"{name} is a {type(found).__name__}, not an Env or a function giving one")
    env = dataclasses.replace(env, params=strong(env.params))
    check_env(env)
    return env


def describe(spec: EnvSpec) -> str:
    """One line on what an agent sees and does, as in `jaxrl list envs`."""
    action = spec.action
    does = f"{action.n} actions" if isinstance(action, Discrete) else f"actions {action.shape}"
    limit = spec.max_steps
    steps = "no time limit" if limit is None else "1 step" if limit == 1 else f"{limit} steps"
    return f"obs {spec.obs_shape}, {does}, {steps}"


def check_env(env: Env) -> None:
    """Raises EnvError unless shapes and dtypes are as `jaxrl.types` says. Computes nothing."""
    name, shape = env.spec.name, env.spec.obs_shape
    floats, bools = jnp.dtype("float32"), jnp.dtype("bool")
    key = jax.eval_shape(lambda: jax.random.key(0))
    kind = jnp.int32 if isinstance(env.spec.action, Discrete) else jnp.float32
    action = jax.ShapeDtypeStruct(env.spec.action.shape, kind)
    state, obs = jax.eval_shape(env.reset, key, env.params)
    _expect(f"{name}: reset's observation", obs, shape, floats)
    after, ts = jax.eval_shape(env.step, key, state, action, env.params)
    if not isinstance(ts, TimeStep):
        raise EnvError(f"{name}: step must return (state, TimeStep), got {type(ts).__name__}")
    _expect(f"{name}: next_obs", ts.next_obs, shape, floats)
    _expect(f"{name}: reward", ts.reward, (), floats)
    _expect(f"{name}: terminated", ts.terminated, (), bools)
    _expect(f"{name}: truncated", ts.truncated, (), bools)
    _same_state(name, state, after, "step")
    if env.persist is not None:
        after, obs = jax.eval_shape(env.persist, state, state, obs)
        _expect(f"{name}: persist's observation", obs, shape, floats)
        _same_state(name, state, after, "persist")


def _same_state(name: str, state: PyTree, after: PyTree, function: str) -> None:
    # A scan carries the state, so a step must return the very type that it took.
    if jax.tree.structure(state) != jax.tree.structure(after):
        raise EnvError(f"{name}: {function} returns another state structure than reset")
    paths = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new in zip(paths, jax.tree.leaves(after), strict=True):
        leaf = f"{name}: state{jax.tree_util.keystr(path)}"
        _expect(f"{leaf} after a {function}", new, old.shape, old.dtype)
        if old.weak_type or new.weak_type:
            raise EnvError(f"{leaf} is a Python number somewhere: give it a dtype")


def _expect(what: str, x: Any, shape: tuple[int, ...], dtype: Any) -> None:
    got = (getattr(x, "shape", None), getattr(x, "dtype", None))
    if got != (shape, dtype):
        raise EnvError(f"{what} must be {dtype} of shape {shape}, got {got[1]} of shape {got[0]}")


def _load(name: str) -> Any:
    """What `module:attribute` or `file.py:attribute` names; the attribute is `make` by default."""
    module_name, attribute = modules.split(name)
    attribute = attribute or "make"
    try:
        module = modules.load(module_name)
    except Exception as error:
        raise EnvError(f"{name}: importing {module_name} failed: {error!r}") from error
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        hint = nearest(attribute, public)
        raise UnknownEnv(f"module {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)


def _call(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Env:
    """The Env that `function` returns; options that it does not take go to `_with_options`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise EnvError(f"{name} is not a function whose arguments can be read") from error
    parameters = signature.parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        own = options
    else:
        own = {key: value for key, value in options.items() if key in parameters}
    try:
        signature.bind(**own)
    except TypeError as error:
        raise EnvError(f"{name}: {error}") from error
    try:
        env = function(**own)
    except EnvError:
        raise
    except Exception as error:
        raise EnvError(f"{name} failed: {error}") from error
    if not isinstance(env, Env):
        raise EnvError(f"{name} returned a {type(env).__name__}, not an Env")
    rest = {key: value for key, value in options.items() if key not in own}
    return _with_options(env, rest, known=parameters)


def _with_options(env: Env, options: dict[str, Any], known: Iterable[str] = ()) -> Env:
    options = dict(options)
    steps, hidden, sticky, obs, reward = (options.pop(each, None) for each in OPTIONS)
    env = with_params(env, known, **options)
    env = env if steps is None else time_limit(env, steps)
    env = env if hidden is None else hide(env, hidden)
    env = env if sticky is None else sticky_actions(env, sticky)
    return normalise(env, obs, reward)
