"""Adapter of brax 0.14: rigid-body locomotion and manipulation.

The adapter uses the raw environments without brax's wrappers. The wrappers reset every episode to
the same cached initial state, drop the last observation, and do not accept batches of typed keys.
Differences from brax:

  - Environments do not reset themselves; `next_obs` is the true successor, also at episode ends.
  - Episodes are truncated after 1000 steps as in brax; `terminated` is the environment's `done`.
  - Actions lie in [-1, 1] and are clipped, since some rewards penalise the unclipped action.
  - The state is (`pipeline_state`, `info`); `metrics`, which no step reads, are dropped.

A rollout draws one initial state per step by default. For hopper on a CPU a reset takes a quarter
of the time of a step, and num_steps * num_envs states of 1 kB each (ant: 2.4 kB) are held in
memory; a smaller `resets` of `rollout` avoids both. Physics that continues past a termination may
become NaN; sources replace these states, and no gradient flows through them.

brax is an extra (pip install -e ".[brax]"). It is no longer actively maintained and uses names
that later versions of mujoco-mjx may remove, so the major versions of mujoco and mujoco-mjx are
bounded. swimmer is left out: it calls a function that JAX has removed.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs import names
from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import OPTIONS, positive, strong, time_limit, unknown_option
from jaxrl.types import Array, Box, Env, EnvSpec, PyTree, TimeStep

LIMIT = 1000  # brax's default `episode_length` of all environments


def make(
    name: str, /, *, backend: str | None = None, max_steps: int | None = None, **options: Any
) -> Env:
    """An environment such as "brax:hopper", or "brax:hopper:mjx" with a backend other than spring.

    `params` of the result are {}: brax fixes its physics when an environment is made.

    Args:
      backend: spring (the default), positional, generalized or mjx, unless `name` ends in one.
        spring is by far the fastest and works everywhere; mjx is MuJoCo's physics.
      max_steps: time limit; None for 1000.
      options: arguments of brax's constructor (`ctrl_cost_weight` of hopper) and `n_frames`, the
        number of physics steps per environment step. All are static.

    Raises:
      EnvError: brax is not installed, the name or an option is unknown, or brax refuses a value.
    """
    task, named = names.brax_parts(name if backend is None else f"{name}:{backend}")
    name = f"brax:{task}" if named == names.BACKENDS[0] else f"brax:{task}:{named}"
    limit = positive(LIMIT if max_steps is None else max_steps, f"max_steps of {name}")
    envs = _import()
    arguments = inspect.signature(envs._envs[task].__init__).parameters
    known = {*arguments, "n_frames"} - {"self", "kwargs"}
    for option in options:
        if option not in known:
            raise unknown_option(name, option, {*known, *OPTIONS})
    try:
        with _allowances(), _without_mujoco_log():
            environment = envs.get_environment(task, backend=named, **options)
        env = adapt(environment, name=name, max_steps=limit)
        if options:  # brax reads some of them in `step` only; a trace takes seconds
            state, _ = jax.eval_shape(env.reset, jax.random.key(0), {})
            action = jnp.zeros(env.spec.action.shape)
            jax.eval_shape(env.step, jax.random.key(0), state, action, {})
        return env
    except EnvError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise EnvError(f"brax cannot make {name} with ({given}): {error!r}") from error


def adapt(environment: Any, *, name: str, max_steps: int = LIMIT) -> Env:
    """`Env` of an unwrapped brax environment object, also of one that brax does not register.

    The object's `step` may read `pipeline_state` and `info` of the state only.

    Raises:
      EnvError: observations are not arrays.
    """
    _import()
    from brax.envs.base import State

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        with _allowances():
            state = environment.reset(key)
        return keep(state), observe(state.obs)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        physics, info = state
        action = jnp.clip(action.astype(jnp.float32), -1.0, 1.0)
        zero = jnp.zeros(())
        # A copy of `info`, since brax's steps write into the dict that they get.
        given = State(physics, None, zero, zero, {}, dict(info))  # type: ignore[arg-type]
        with _allowances():
            after = environment.step(given, action)
        ts = TimeStep(
            observe(after.obs),
            jnp.asarray(after.reward, jnp.float32),
            jnp.asarray(after.done, jnp.float32) > 0.5,
            jnp.zeros((), bool),
        )
        return keep(after), ts

    def keep(state: State) -> PyTree:
        return strong((state.pipeline_state, state.info))

    def observe(obs: Any) -> Array:
        if not hasattr(obs, "shape"):
            raise EnvError(f"observations of {name} are a {type(obs).__name__}, not an array")
        return jnp.asarray(obs, jnp.float32)

    def render(states: PyTree, params: PyTree) -> str:
        """An HTML page with brax's interactive viewer, which browsers load from a CDN."""
        from brax.io import html

        physics = states[0]
        count = len(jax.tree.leaves(physics)[0])
        every = [jax.tree.map(lambda x, i=i: x[i], physics) for i in range(count)]
        with _allowances():
            system = environment.sys.tree_replace({"opt.timestep": environment.dt})
            return html.render(system, every)

    size = int(environment.action_size)
    key = jax.random.key(0)
    _, obs = jax.eval_shape(reset, key, {})
    box = Box((-1.0,) * size, (1.0,) * size, (size,))
    return time_limit(Env(EnvSpec(name, obs.shape, box), {}, reset, step, render=render), max_steps)


def _import() -> Any:
    """`brax.envs`, without the lines that mujoco.mjx prints to stdout if warp is not installed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), _allowances():
            from brax import envs
    except ImportError as error:
        raise EnvError(
            f"brax cannot be imported ({error}): {names.install_hint('brax')}"
        ) from error
    lines = printed.getvalue().splitlines(keepends=True)
    sys.stdout.writelines(line for line in lines if not line.startswith("Failed to import "))
    return envs


@contextlib.contextmanager
def _allowances() -> Iterator[None]:
    """Allows rank promotion and ignores warnings of brax's own code that no user can act on."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        # jaxopt, imported by brax, and brax itself warn that they are not maintained.
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        warnings.filterwarnings("ignore", "Brax System, piplines and env", UserWarning)
        # brax reads attributes of mjx's Data that are deprecated.
        warnings.filterwarnings("ignore", "Accessing `.*` directly from `Data`", DeprecationWarning)
        yield


@contextlib.contextmanager
def _without_mujoco_log() -> Iterator[None]:
    """Drops MuJoCo's warning about `settotalmass` in brax's half_cheetah.xml.

    MuJoCo would write MUJOCO_LOG.TXT to the current directory. Other messages of MuJoCo become
    Python warnings.
    """
    import mujoco as module

    mujoco: Any = module  # type checkers do not see the functions of the extension module

    def warn(text: str) -> None:
        if "settotalmass" not in text:
            warnings.warn(f"MuJoCo: {text.strip()}", stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
