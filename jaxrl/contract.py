"""The contract of `jaxrl.types.Env`: one-line errors for environments that violate it."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.masks import Masked, Views, unmask
from jaxrl.types import Array, Discrete, Env, PyTree, TimeStep

STEP = "(state, TimeStep(next_obs, reward, terminated, truncated))"
TRACED = (jax.errors.ConcretizationTypeError, jax.errors.JAXTypeError)


def checked(env: Env) -> Env:
    """`env` with functions that check their results while they are traced.

    Compiled programs are the same. `rollout` and `evaluator` apply it to their environments.

    Raises (in its functions):
      UserError: a function fails, or returns other things, shapes or dtypes than `Env` says.
    """
    if env.host is not None:
        return env

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        found = _call(env, "reset(key, params)", env.reset, key, params)
        if not isinstance(found, tuple) or len(found) != 2:
            raise UserError(f"{env.spec.name}: reset must return (state, obs), got {_kind(found)}")
        if env.array_obs and _fits(env, found[0]) and not _fits(env, found[1]):
            raise UserError(f"{env.spec.name}: reset must return (state, obs), in this order")
        _check_obs(env, "reset's observation", found[1])
        return found

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        args = (key, state, action, params)
        found = _call(env, "step(key, state, action, params)", env.step, *args)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], TimeStep)):
            raise UserError(f"{env.spec.name}: step must return {STEP}, got {_kind(found)}")
        after, ts = found
        _check_obs(env, "next_obs", ts.next_obs)
        for field in ("reward", "terminated", "truncated"):
            dtype = "float32" if field == "reward" else "bool"
            shape = _team(env, ()) if field == "reward" else ()
            _expect(f"{env.spec.name}: {field}", getattr(ts, field), shape, dtype)
        if env.spec.agents is not None:
            _expect(f"{env.spec.name}: score", ts.score, (), "float32")
        if set(ts.measured) != set(env.spec.measures):
            raise UserError(f"{env.spec.name}: step must measure {sorted(env.spec.measures)}")
        for measure, value in ts.measured.items():
            _expect(f"{env.spec.name}: {measure}", value, (), "float32")
        _same_state(env, state, after, "step")
        return found

    def persist(last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
        assert env.persist is not None
        state, obs = env.persist(last, fresh, obs)
        _check_obs(env, "persist's observation", obs)
        _same_state(env, fresh, state, "persist")
        return state, obs

    def expert(state: PyTree, params: PyTree) -> Array:
        assert env.expert is not None
        found = _call(env, "expert(state, params)", env.expert, state, params)
        if not isinstance(env.spec.action, Discrete):
            raise UserError(f"{env.spec.name}: only discrete actions can have an expert")
        _expect(f"{env.spec.name}: expert's result", found, (env.spec.action.n,), "float32")
        return found

    hooks: Any = {
        "persist": None if env.persist is None else persist,
        "expert": None if env.expert is None else expert,
    }
    return dataclasses.replace(env, reset=reset, step=step, **hooks)


def check_env(env: Env) -> None:
    """Checks `env` by abstract evaluation; nothing is compiled.

    Raises:
      UserError: `checked` finds a mistake, a leaf of the state has a weak type, or `terminated` and
        `truncated` are the same expression.
    """
    sound, name = checked(env), env.spec.name
    key = jax.eval_shape(lambda: jax.random.key(0))
    kind = jnp.int32 if isinstance(env.spec.action, Discrete) else jnp.float32
    action = jax.ShapeDtypeStruct(_team(env, env.spec.action.shape), kind)
    state, obs = jax.eval_shape(sound.reset, key, env.params)
    after, _ = jax.eval_shape(sound.step, key, state, action, env.params)
    for each in (state, after):
        for path, leaf in jax.tree_util.tree_leaves_with_path(each):
            if leaf.weak_type:
                raise UserError(
                    f"{name}: state{jax.tree_util.keystr(path)} has a weak type (from a Python "
                    "number): give it a dtype"
                )
    if sound.persist is not None:
        jax.eval_shape(sound.persist, state, state, obs)
    if sound.expert is not None:
        jax.eval_shape(sound.expert, state, env.params)
    flags = lambda *args: env.step(*args)[1][2:4]
    if _same_flag(jax.make_jaxpr(flags)(key, state, action, env.params)):
        raise UserError(
            f"{name}: terminated and truncated are the same flag; truncated is for time limits, "
            "and is False where terminated is True"
        )


def _call(env: Env, signature: str, fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, with exceptions as a `UserError` that names the line of the user's code."""
    try:
        return fn(*args)
    except UserError:
        raise
    except Exception as error:
        name = signature.partition("(")[0]
        form = {"step": STEP, "expert": "probabilities [A]"}.get(name, "(state, obs)")
        frames = traceback.extract_tb(error.__traceback__)
        own = [x for x in frames if "site-packages" not in x.filename and x.filename != __file__]
        where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        if isinstance(error, TRACED):
            raise UserError(
                f"{env.spec.name}: {name} needs the value of a traced array{where}: replace "
                "Python's if, while, int(), float() and numpy by jnp.where, jax.lax and jax.numpy"
            ) from error
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{env.spec.name}: {name} failed{where}: {text}; the form is {signature} -> {form}"
        ) from error


def _kind(found: Any) -> str:
    """The type of a result, for messages."""
    if isinstance(found, jax.Array):
        return "an array"
    if type(found) is not tuple:
        return f"an object of type {type(found).__name__}"
    if len(found) != 2:
        return f"a tuple of {len(found)}"
    return f"({', '.join(type(x).__name__ for x in found)})"


def _fits(env: Env, x: Any) -> bool:
    """Whether `x` is one array, masked or not, with the shape and dtype of observations."""
    return _type(unmask(x)[0]) == (_team(env, env.spec.obs_shape), env.spec.obs_dtype)


def _check_obs(env: Env, what: str, obs: Any) -> None:
    what, space = f"{env.spec.name}: {what}", env.spec.action
    if env.spec.critic_shape is not None:
        if not isinstance(obs, Views):
            raise UserError(f"{what} must be Views(obs, critic), since the spec has a critic_shape")
        _expect(f"{what}, critic", obs.critic, _team(env, env.spec.critic_shape), "float32")
        obs = obs.obs
    if env.spec.masked:
        if not isinstance(obs, Masked) or not isinstance(space, Discrete):
            raise UserError(f"{what} must be Masked(obs, legal), with discrete actions")
        _expect(f"{what}, legal", obs.legal, _team(env, (space.n,)), "bool")
    if env.array_obs:
        obs = obs.obs if env.spec.masked else obs
        _expect(what, obs, _team(env, env.spec.obs_shape), env.spec.obs_dtype)


def _team(env: Env, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`, behind the axis of the agents if there is a team."""
    return shape if env.spec.agents is None else (env.spec.agents, *shape)


def _expect(what: str, x: Any, shape: tuple[int, ...], dtype: str) -> None:
    got = _type(x)
    if got != (shape, dtype):
        raise UserError(f"{what} must be {dtype} of shape {shape}, got {got[1]} of shape {got[0]}")


def _type(x: Any) -> tuple[Any, str]:
    """(shape, dtype) of an array or number; (None, the name of the type) of anything else."""
    try:
        found = jax.typeof(x)
        return found.shape, str(found.dtype)
    except (TypeError, AttributeError):
        return None, type(x).__name__


def _same_state(env: Env, state: PyTree, after: PyTree, function: str) -> None:
    # `scan` carries the state, so its structure, shapes and dtypes must not change.
    name = env.spec.name
    if jax.tree.structure(state) != jax.tree.structure(after):
        raise UserError(f"{name}: {function} returns a state of another structure than reset")
    paths = jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new in zip(paths, jax.tree.leaves(after), strict=True):
        leaf = f"{name}: state{jax.tree_util.keystr(path)}"
        _expect(f"{leaf} after a {function}", new, *_type(old))


def _same_flag(closed: Any) -> bool:
    """Whether both outputs of a jaxpr are the same expression of its inputs, and not constant."""
    jaxpr = closed.jaxpr
    one, two = jaxpr.outvars
    known = {x: (f"input {i}", True) for i, x in enumerate(jaxpr.invars)}
    known |= {x: (f"constant {i}", False) for i, x in enumerate(jaxpr.constvars)}
    numbers: dict[str, int] = {}  # of equal expressions

    def expression(x: Any) -> tuple[str, bool]:
        return (str(x.val), False) if hasattr(x, "val") else known[x]

    for equation in _needed(jaxpr.eqns, [one, two]):
        arguments = [expression(x) for x in equation.invars]
        text = f"{equation.primitive.name} {equation.params} {[x for x, _ in arguments]}"
        number, varies = numbers.setdefault(text, len(numbers)), any(x for _, x in arguments)
        known |= {x: (f"{number}, {i}", varies) for i, x in enumerate(equation.outvars)}
    return expression(one) == expression(two) and expression(one)[1]


def _needed(equations: list[Any], outputs: list[Any]) -> list[Any]:
    """The equations of a jaxpr that `outputs` depend on, in order."""
    needed, kept = {x for x in outputs if not hasattr(x, "val")}, []
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.outvars):
            kept.append(equation)
            needed |= {x for x in equation.invars if not hasattr(x, "val")}
    return kept[::-1]
