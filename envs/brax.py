"""Environments of brax 0.14: locomotion and manipulation by rigid bodies.

The bare environments are used, without brax's wrappers: those put the same initial state back at
the end of every episode, drop the last observation, and do not take typed keys in batches. Instead:

  - Nothing resets by itself; `next_obs` is the true successor, also where the episode ends.
  - Episodes are truncated after 1000 steps, as brax does; `terminated` is the environment's `done`.
  - Actions lie in [-1, 1] and are clipped, since some rewards charge for what is asked, not done.
  - The state is the physics and `info`; `metrics`, which no step reads, are dropped.

A rollout draws an initial state for every step by default. Of hopper on a CPU a reset takes a
quarter of the time of a step, and num_steps * num_envs states of 1 kB (ant 2.4 kB) are held: give
`rollout` a smaller `resets`. Physics that goes on past a termination may become NaN; sources
replace it, and no gradient goes through it.

brax is not actively maintained and uses names that later versions of mujoco-mjx may drop; this is
why the versions of all three are pinned. swimmer is left out: it calls what JAX has removed.
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

LIMIT = 1000  # brax's own default for all of them


def make(
    name: str, /, *, backend: str | None = None, max_steps: int | None = None, **options: Any
) -> Env:
    """The environment "brax:hopper", or "brax:hopper:mjx" with another backend than spring.

    `params` of the result are {}, since brax builds its physics when an environment is made.

    Args:
      backend: spring, positional, generalized or mjx, instead of one in the name. spring is the
        fastest by far and works everywhere; mjx is MuJoCo's physics.
      max_steps: the time limit; None is 1000.
      options: arguments of brax's constructor (`ctrl_cost_weight` of hopper) and `n_frames`, the
        steps of physics in one step of the environment. All static.
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
        return adapt(environment, name=name, max_steps=limit)
    except EnvError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise EnvError(f"brax cannot make {name} with ({given}): {error!r}") from error


def adapt(environment: Any, *, name: str, max_steps: int = LIMIT) -> Env:
    """`Env` of a brax environment object, without wrappers, for one that is not in the list.

    Its step may read `pipeline_state` and `info` of the state, and nothing else.
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
        # Fresh dicts, since brax's steps write into those they are given.
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
            raise EnvError(f"{name} observes a {type(obs).__name__}, jaxrl needs an array")
        return jnp.asarray(obs, jnp.float32)

    size = int(environment.action_size)
    key = jax.random.key(0)
    state, obs = jax.eval_shape(reset, key, {})
    jax.eval_shape(step, key, state, jnp.zeros(size), {})  # what fails in a step should fail here
    box = Box((-1.0,) * size, (1.0,) * size, (size,))
    return time_limit(Env(EnvSpec(name, obs.shape, box), {}, reset, step), max_steps)


def _import() -> Any:
    """`brax.envs`, without the lines that mujoco.mjx prints for want of the optional warp.

    They go to the standard output, where a command's own output belongs.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), _allowances():
            from brax import envs
    except ImportError as error:
        raise EnvError(
            f"brax cannot be imported ({error}): pip install brax==0.14.2 mujoco==4.0.0 "
            "mujoco-mjx==3.17.0"
        ) from error
    lines = printed.getvalue().splitlines(keepends=True)
    sys.stdout.writelines(line for line in lines if not line.startswith("Failed to import "))
    return envs


@contextlib.contextmanager
def _allowances() -> Iterator[None]:
    """What brax's own code needs: silent broadcasts, and warnings no user can act on ignored."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        # jaxopt, which brax imports, and brax itself say that they are not maintained.
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        warnings.filterwarnings("ignore", "Brax System, piplines and env", UserWarning)
        # Names of mjx's Data that brax reads.
        warnings.filterwarnings("ignore", "Accessing `.*` directly from `Data`", DeprecationWarning)
        yield


@contextlib.contextmanager
def _without_mujoco_log() -> Iterator[None]:
    """Drops the warning about `settotalmass`, which half_cheetah.xml of brax has.

    MuJoCo would write it into MUJOCO_LOG.TXT in the current directory. Others become warnings.
    """
    import mujoco as module

    mujoco: Any = module  # its functions are hidden from type checkers

    def warn(text: str) -> None:
        if "settotalmass" not in text:
            warnings.warn(f"MuJoCo: {text.strip()}", stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
