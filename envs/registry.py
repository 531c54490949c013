"""`make` and `check_env`: environments by name, and the check of their contract."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from jaxrl import contract
from jaxrl.envs import dmsd, lock, maze, names, probes, reach, tokens
from jaxrl.envs.names import EnvError, check_name
from jaxrl.envs.normalise import normalise
from jaxrl.envs.wrappers import (
    OPTIONS,
    absorbing,
    british,
    hide,
    positive,
    sticky_actions,
    strong,
    time_limit,
    unknown_option,
    with_params,
    without_masks,
)
from jaxrl.errors import UserError
from jaxrl.own_code import load_attribute
from jaxrl.types import Discrete, Env, EnvSpec


def make(name: str, /, **options: Any) -> Env:
    """The environment `name` with options.

    Args:
      name: one of
        "CartPole-v1" and other names of gymnax (`jaxrl.envs.gymnax`);
        "brax:hopper", or with a backend "brax:hopper:mjx" (`jaxrl.envs.brax`);
        "craftax:Craftax-Symbolic-v1" and other tasks of suites (`jaxrl.envs.suites`);
        "dmsd", "lock", "reach", "reach:sparse", "maze:large" (`jaxrl.envs.dmsd`, `.lock`, `.reach`,
        `.maze`);
        "probe:delay" (`jaxrl.envs.probes`);
        "tokens:modsum" (`jaxrl.envs.tokens`);
        "gymnasium:HalfCheetah-v5", "envpool:Pong-v5", which run on the host
          (`jaxrl.envs.gymnasium`, `.envpool`);
        "module", "module:attribute", "file.py" or "file.py:attribute" for an `Env` of your own or
        a function that returns one; the attribute is `make` by default (`jaxrl.own_code`).
      options: for all environments
        max_steps: time limit; None for the environment's own;
        masks: False to play without the environment's action masks;
        hide: indices of the elements to remove from observations, as [1, 3];
        hide_from: "policy" to leave these elements to value functions; by default "all";
        sticky: probability that the previous action is repeated;
        absorbing: True for an absorbing state in place of terminations, up to the time limit;
        normalise_obs: True to standardise observations by running statistics;
        normalise_reward: discount γ; rewards are divided by the running deviation of γ-discounted
          sums;
        reset_pool: initial states drawn per rollout for all environments of a member; 0 draws one
          per environment and step; the default depends on the size of states (`jaxrl.rollout`);
        further constructor arguments of gymnax and brax, arguments of suites' adapters or of your
        own function, and entries of `Env.params`.

    Raises:
      EnvError: unknown names (`UnknownEnv`) and options, invalid values, or an environment of your
        own that cannot be imported or violates the contract of `Env`.
    """
    check_name(name)
    options = {british(k): v for k, v in options.items()}
    options = {k: v for k, v in options.items() if not (k in OPTIONS and v is None)}
    if name in names.GYMNAX or name.startswith("brax:"):
        if name in names.GYMNAX:
            from jaxrl.envs import gymnax as adapter
        else:
            from jaxrl.envs import brax as adapter
        wrap = {key: options.pop(key) for key in OPTIONS[1:] if key in options}
        return _with_options(adapter.make(name, **options), wrap)
    if name.startswith(names.ON_HOST):
        adapter = importlib.import_module(f"jaxrl.envs.{name.partition(':')[0]}")
        return adapter.make(name, **options)
    suite, _, task = name.partition(":")
    if suite in names.SUITES:
        adapter = importlib.import_module(f"jaxrl.envs.suites.{suite}")
        return _call(name, functools.partial(adapter.make, task), options)
    own = probes.PROBES | maze.MAZES | tokens.TOKENS
    own |= {"dmsd": dmsd.make, "lock": lock.make}
    own |= {"reach": reach.make, "reach:sparse": reach.sparse}
    if name in own:
        return _call(name, own[name], options)
    try:
        found = load_attribute(name)
    except UserError as error:
        raise EnvError(str(error)) from error
    if isinstance(found, Env):
        env = _with_options(found, options)
    elif callable(found):
        env = _call(name, found, options)
    else:
        raise EnvError(
            f"{name} is of type {type(found).__name__}, not an Env or a function that returns one"
        )
    env = dataclasses.replace(env, params=strong(env.params))
    check_env(env)
    return env


def describe(spec: EnvSpec) -> str:
    """Shape of observations, actions and time limit in one line, as in `jaxrl list envs`."""
    space = spec.action
    action = f"{space.n} actions" if isinstance(space, Discrete) else f"actions {space.shape}"
    limit = spec.max_steps
    steps = "no time limit" if limit is None else "1 step" if limit == 1 else f"{limit} steps"
    team = "" if spec.agents is None else f", team of {spec.agents}"
    views = "" if spec.critic_shape is None else f", critic obs {spec.critic_shape}"
    return f"obs {spec.obs_shape}{views}, {action}, {steps}{team}"


def check_env(env: Env) -> None:
    """Checks results of `reset`, `step` and `persist`, by abstract evaluation.

    Raises:
      EnvError: the environment violates the contract of `jaxrl.types.Env`; see `jaxrl.contract`.
    """
    try:
        contract.check_env(env)
    except UserError as error:
        raise EnvError(str(error)) from error


def _call(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Env:
    """The `Env` that `function` returns; other options than its arguments go to `_with_options`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise EnvError(f"{name} has no signature, so its options are unknown") from error
    parameters = signature.parameters
    own = {key: value for key, value in options.items() if key in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _check_spelling(name, options, parameters)
        own |= {key: value for key, value in options.items() if key not in OPTIONS}
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
        raise EnvError(f"{name} returned an object of type {type(env).__name__}, not an Env")
    rest = {key: value for key, value in options.items() if key not in own}
    return _with_options(env, rest, known=parameters)


def _check_spelling(name: str, options: Iterable[str], parameters: Iterable[str]) -> None:
    """Refuses misspelt options of a function with **kwargs, which would swallow them.

    Other names that the function does not list are its own matter.
    """
    known = {*OPTIONS, *parameters}
    for option in options:
        if option not in known and difflib.get_close_matches(option, known, n=1, cutoff=0.8):
            raise unknown_option(name, option, known)


def _with_options(env: Env, options: dict[str, Any], known: Iterable[str] = ()) -> Env:
    """`env` with other parameters and with wrappers; `known` is `also` of `with_params`."""
    options = dict(options)
    own = (options.pop(k, None) for k in OPTIONS)
    steps, masks, hidden, hidden_from, sticky, absorbs, obs, reward, pool = own
    if hidden_from not in (None, "all", "policy") or (hidden_from and hidden is None):
        raise EnvError(
            f"hide_from={hidden_from} of {env.spec.name} must be all or policy, and needs hide"
        )
    if not (absorbs is None or isinstance(absorbs, bool)):
        raise EnvError(f"absorbing of {env.spec.name} must be true or false, got {absorbs!r}")
    if not (masks is None or isinstance(masks, bool)):
        raise EnvError(f"masks of {env.spec.name} must be true or false, got {masks!r}")
    env = with_params(env, known, **options)
    env = env if steps is None else time_limit(env, steps)
    env = without_masks(env) if masks is False else env
    env = env if hidden is None else hide(env, hidden, hidden_from == "policy")
    env = env if sticky is None else sticky_actions(env, sticky)
    env = absorbing(env) if absorbs else env
    env = normalise(env, obs, reward)
    if pool is None:
        return env
    size = 0 if pool == 0 else positive(pool, f"reset_pool of {env.spec.name}")
    return dataclasses.replace(env, reset_pool=size)
