"""Wrappers of environments, and functions that all adapters share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.errors import nearest
from jaxrl.masks import Views, map_obs, unmask
from jaxrl.teams import check_single
from jaxrl.types import Array, Discrete, Env, PyTree, TimeStep

# Options of every environment in `registry.make`, in the order in which the wrappers are applied.
OPTIONS = (
    "max_steps",
    "masks",
    "hide",
    "hide_from",
    "sticky",
    "absorbing",
    "normalise_obs",
    "normalise_reward",
    "reset_pool",
)

Persist = Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]


def time_limit(env: Env, steps: int) -> Env:
    """Truncates episodes after `steps` steps. The state is (inner state, t [] int32).

    A shorter time limit of the environment itself still applies.

    Raises:
      EnvError: steps is not a positive whole number.
    """
    limit = positive(steps, f"max_steps of {env.spec.name}")

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
    hooks: Any = {"persist": persist_inner(env), **inner_hooks(env)}
    return dataclasses.replace(env, spec=spec, reset=reset, step=step, **hooks)


def sticky_actions(env: Env, probability: float = 0.25) -> Env:
    """Repeats the previous action instead of the chosen one with `probability` at each step.

    As in Machado et al. 2018 (arXiv:1709.06009), the previous action is the executed one, so it may
    be repeated several times. The first action of an episode is never replaced (MinAtar's own
    sticky actions may replace it by action 0). Probability 0 returns `env` itself.

    The state is (inner state, last action, first [] bool).

    Raises:
      EnvError: probability is not a number in [0, 1].
    """
    number = isinstance(probability, (int, float)) and not isinstance(probability, bool)
    if not number or not 0 <= probability <= 1:
        raise EnvError(f"sticky of {env.spec.name} must be in [0, 1], got {probability!r}")
    if probability == 0:
        return env
    check_single(env.spec, "sticky")
    if env.spec.masked:
        raise EnvError(f"sticky actions of {env.spec.name} may be illegal: set masks=false too")
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

    hooks: Any = {"persist": persist_inner(env), **inner_hooks(env), "expert": None}
    return dataclasses.replace(env, reset=reset, step=step, outcome=None, **hooks)


def absorbing(env: Env) -> Env:
    """`env` without terminations: an absorbing state follows, until the time limit, with reward 0.

    Observations [S] get one element more, [S + 1], that is 1 in the absorbing state, where the
    others are 0; elsewhere it is 0. As in Kostrikov et al., Discriminator-Actor-Critic, ICLR 2019,
    arXiv:1809.02925. The state is (inner state, absorbed [] bool).

    Raises:
      EnvError: no time limit, action masks, or observations of several axes.
    """
    spec = env.spec
    check_single(spec, "absorbing")
    two = spec.critic_shape is not None
    if spec.max_steps is None or spec.masked or two or len(spec.obs_shape) != 1:
        raise EnvError(
            "absorbing needs a time limit, no action masks and one observation of one axis; "
            f"{spec.name} has max_steps={spec.max_steps} and observations {spec.obs_shape}"
        )

    def seen(obs: Array, absorbed: Array) -> Array:
        mark = absorbed.astype(jnp.float32).reshape(1)
        return jnp.concatenate([jnp.where(absorbed, 0.0, obs), mark])

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        no = jnp.zeros((), bool)
        return (state, no), seen(obs, no)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, absorbed = state
        after, ts = env.step(key, inner, action, params)
        after = jax.tree.map(lambda old, new: jnp.where(absorbed, old, new), inner, after)
        gone = absorbed | ts.terminated
        return (after, gone), ts._replace(
            next_obs=seen(ts.next_obs, gone),
            reward=jnp.where(absorbed, 0.0, ts.reward),
            terminated=jnp.zeros((), bool),
            truncated=ts.truncated & ~gone,
        )

    spec = dataclasses.replace(spec, obs_shape=(spec.obs_shape[0] + 1,))
    hooks: Any = {"persist": None, **inner_hooks(env), "expert": None}
    return dataclasses.replace(env, spec=spec, reset=reset, step=step, outcome=None, **hooks)


def without_masks(env: Env) -> Env:
    """`env` without action masks; an illegal action does what the game does with it."""
    if not env.spec.masked:
        return env

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return state, unmask(obs)[0]

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        state, ts = env.step(key, state, action, params)
        return state, ts._replace(next_obs=unmask(ts.next_obs)[0])

    spec = dataclasses.replace(env.spec, masked=False)
    return dataclasses.replace(env, spec=spec, reset=reset, step=step)


def hide(env: Env, indices: Sequence[int], views: bool = False) -> Env:
    """Removes the elements `indices` of the last axis from observations.

    [1, 3] removes CartPole's velocities; of an image [H, W, C], `indices` are channels. The other
    elements keep their order.

    Args:
      views: remove them from what policies see, and not from what value functions see in training:
        observations are `jaxrl.masks.Views`.

    Raises:
      EnvError: indices are no list of valid indices, or nothing remains, or `env.persist` is set,
        since the normalising wrappers must come after this one; or `views` of bytes, of a team, or
        of an environment that has them.
    """
    name, size = env.spec.name, env.spec.obs_shape[-1]
    whole = isinstance(indices, Sequence) and all(
        isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in indices
    )
    if not whole or not all(0 <= i < size for i in indices):
        raise EnvError(f"hide of {name} must list indices in 0 .. {size - 1}, got {indices!r}")
    seen = np.setdiff1d(np.arange(size), np.asarray(indices, int))
    if not len(seen):
        raise EnvError(f"hide={list(indices)} removes all elements of the observations of {name}")
    if env.persist is not None:  # `persist` needs whole observations
        raise EnvError(f"hide elements of {name} before wrappers that keep state across episodes")

    if views:
        check_single(env.spec, "hide_from")
        if env.spec.critic_shape is not None or env.spec.obs_dtype == "uint8":
            raise EnvError(f"hide_from does not take the views or bytes of {name}")

    def part(obs: Any) -> Any:
        kept = map_obs(lambda x: x[..., seen], obs)
        return Views(kept, unmask(obs)[0]) if views else kept

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Any]:
        state, obs = env.reset(key, params)
        return state, part(obs)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        state, ts = env.step(key, state, action, params)
        return state, ts._replace(next_obs=part(ts.next_obs))

    spec = dataclasses.replace(env.spec, obs_shape=(*env.spec.obs_shape[:-1], len(seen)))
    if views:
        spec = dataclasses.replace(spec, critic_shape=env.spec.obs_shape)
    return dataclasses.replace(env, spec=spec, reset=reset, step=step, outcome=None)


def persist_inner(env: Env) -> Persist | None:
    """`persist` of a wrapper whose state is (state of `env`, leaves that restart, ...).

    None if `env.persist` is None.
    """
    inner = env.persist
    if inner is None:
        return None

    def persist(last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
        state, obs = inner(last[0], fresh[0], obs)
        return (state, *fresh[1:]), obs

    return persist


def inner_hooks(env: Env) -> dict[str, Any]:
    """`render` and `expert` of a wrapper whose state is (state of `env`, ...); None as in `env`."""

    def on_inner(hook: Callable[[PyTree, PyTree], Any] | None) -> Any:
        return None if hook is None else lambda state, params: hook(state[0], params)

    return {"render": on_inner(env.render), "expert": on_inner(env.expert)}


def with_params(env: Env, also: Iterable[str] = (), /, **values: Any) -> Env:
    """`env` with other default parameters, for environments whose `params` are a dict.

    Args:
      also: options of other kinds, listed in the message about an unknown option.
      values: numbers or arrays by name; they get the dtype of the parameter.

    Raises:
      EnvError: an unknown name, or a value of another shape or kind than the parameter.
    """
    params = dict(env.params) if isinstance(env.params, dict) else {}
    for name, value in values.items():
        if name not in params:
            raise unknown_option(env.spec.name, name, {*params, *also, *OPTIONS})
        params[name] = _like(params[name], value, f"{name} of {env.spec.name}")
    return dataclasses.replace(env, params=params) if values else env


def strong(tree: PyTree) -> PyTree:
    """Floats as float32 and signed integers as int32 arrays, all leaves without weak types.

    With a weak type the state after a step would have another type than the state before: `scan`
    refuses it, and the second call of a jitted function compiles again.
    """

    def one(x: Any) -> Array:
        x = x if isinstance(x, Array) else np.asarray(x)  # NumPy converts without compiling
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(x, jnp.float32)
        return jnp.asarray(x, jnp.int32 if jnp.issubdtype(x.dtype, jnp.signedinteger) else x.dtype)

    return jax.tree.map(one, tree)


def british(name: str) -> str:
    """The name of an option of `OPTIONS` that is spelt normalize; other names are unchanged."""
    spelt = name.replace("ize", "ise")
    return spelt if spelt in OPTIONS else name


def positive(value: Any, what: str) -> int:
    """`value` as an int.

    Raises:
      EnvError: the value is not a whole number in 1 .. 2³¹ - 1; the message begins with `what`.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 < value < 2**31:
        raise EnvError(f"{what} must be a positive whole number, got {value!r}")
    return int(value)


def unknown_option(env_name: str, option: str, options: Iterable[str]) -> EnvError:
    """The error for an unknown option; it names the nearest of `options`, or all of them."""
    known = sorted(options)
    hint = nearest(option, known) or f"; it has {', '.join(known)}"
    return EnvError(f"{env_name} has no option {option!r}{hint}")


def _like(old: Any, value: Any, what: str) -> Array:
    """`value` with the dtype and shape of `old`; an EnvError that names `what` if it has others."""
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
