"""The records every part of jaxrl speaks in.

Axis letters, fixed across the project: P population (members), N parallel environments, T time,
B batch, D rows of a dataset. `key` is a typed JAX random key, `cfg` a frozen Config (static: a new
value is a new program), `hp` a record of traced numbers, `state` whatever a function carries on.

Environments, agents and sources are records of pure functions: everything a function needs comes in
as an argument, everything it changes goes out as a result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any


# --- spaces and environments ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 .. n-1, as int32 scalars."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class Box:
    """Float32 actions of `shape`; `low` and `high` are flat tuples, one bound per element."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        if len(self.low) != size or len(self.high) != size:
            raise ValueError(f"Box of shape {self.shape} needs {size} bounds on each side")


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What an agent may know of an environment when its networks are built. Hashable, static.

    `max_steps` is the time limit, or None where episodes may go on for ever.
    """

    name: str
    obs_shape: tuple[int, ...]
    action: Discrete | Box
    max_steps: int | None = None


class TimeStep(NamedTuple):
    """Outcome of one step of one environment."""

    next_obs: Array  # [*obs] float32: the true successor, also where the episode ends
    reward: Array  # [] float32
    terminated: Array  # [] bool: the task is over, so the successor has value zero
    truncated: Array  # [] bool: a time limit cut the episode, so the successor keeps its value
    score: Array | None = None  # [] float32: the reward to report, where it is not `reward`


@dataclasses.dataclass(frozen=True)
class Env:
    """One unbatched environment that never resets itself; callers vmap, sources reset.

    reset(key, params) -> (state, obs [*obs])
    step(key, state, action, params) -> (state, TimeStep)

    `params` are the default physical parameters, a pytree of numbers, traced.

    Most episodes begin with nothing of the last. Where something outlives an episode, as running
    statistics do, sources that reset put it back by

    persist(last state, fresh state, fresh obs [*obs]) -> (state, obs [*obs])

    Where reward and termination follow from observations, those who model its dynamics need not
    learn them:

    outcome(obs [*obs], action, next_obs [*obs], params) -> (reward [], terminated [])

    A wrapper that changes what is seen, done or paid puts None there.

    An environment that cannot run on a device has `host` instead, which makes one like gymnasium's:
    its `reset` and `step` refuse, and it serves for evaluations between chunks only.
    """

    spec: EnvSpec
    params: PyTree
    reset: Callable[[Array, PyTree], tuple[PyTree, Array]]
    step: Callable[[Array, PyTree, Array, PyTree], tuple[PyTree, TimeStep]]
    host: Callable[[], Any] | None = None
    persist: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]] | None = None
    outcome: Callable[[Array, Array, Array, PyTree], tuple[Array, Array]] | None = None


# --- experience ----------------------------------------------------------------------------------


class Transition(NamedTuple):
    """Experience; axes [T, N, ...] from rollouts, [B, ...] from data."""

    obs: Array
    action: Array
    reward: Array  # float32
    next_obs: Array  # true successors
    terminated: Array  # bool
    truncated: Array  # bool
    start: Array  # bool: obs is the first of its episode
    extras: dict[str, Array] = {}  # whatever the policy recorded when it acted

    @property
    def done(self) -> Array:
        return self.terminated | self.truncated


class Episodes(NamedTuple):
    """Whole episodes [K], in the order of their environments."""

    returns: Array | np.ndarray  # [K] float32, undiscounted
    lengths: Array | np.ndarray  # [K] int32
    finished: Array | np.ndarray  # [K] bool: False where the evaluation's step limit came first
    measured: dict[str, Array] = {}  # [] each: what else the evaluation found, by name


class Batch(NamedTuple):
    """What a source hands to a learner."""

    transitions: Transition
    memory: PyTree = ()  # recurrent memory at the start of the window, () without one


# --- learners and policies -----------------------------------------------------------------------


class InitFn(Protocol):
    """The first state of a learner.

    Args:
      key: used by this call only.
      hp: the agent's hyperparameters.
      inputs: what the run shares, such as inputs["data"], and results of earlier stages by name.
    """

    def __call__(self, key: Array, hp: Any, inputs: PyTree) -> PyTree: ...


class UpdateFn(Protocol):
    """One update of a learner: its new state, of the same shapes and dtypes, and metrics.

    Args:
      hp: the agent's hyperparameters.
      step: updates made so far, [] int32. It has no member axis: a decision that hangs on it stays
        a real branch under vmap.

    Returns:
      (state, metrics): metrics are scalars or `Mean`s by name.
    """

    def __call__(
        self, state: Any, hp: Any, batch: Batch, key: Array, step: Array
    ) -> tuple[PyTree, dict[str, Any]]: ...


class ActFn(Protocol):
    """Actions in n environments at once.

    Args:
      state: the state of a learner.
      hp: the agent's hyperparameters.
      obs: [n, *obs]
      start: [n] bool, where obs is the first of its episode, at which memory is reset.
      memory: of the n environments, as `Policy.memory` makes it.
      noise: random numbers of one call, as `Policy.noise` draws them.
      explore: static; False asks for the policy's best action.

    Returns:
      (action [n, ...], memory, extras [n, ...] by name, which rollouts record).
    """

    def __call__(
        self,
        state: Any,
        hp: Any,
        obs: Any,
        start: Array,
        memory: Any,
        noise: Any,
        explore: bool,
    ) -> tuple[Array, PyTree, dict[str, Array]]: ...


class SourceInitFn(Protocol):
    """The first state of a source, warm-ups included; `hp` is the run's `HyperParams`."""

    def __call__(self, key: Array, learner_state: Any, hp: HyperParams, inputs: Any) -> PyTree: ...


class NextFn(Protocol):
    """The batch of update `step`: (state of the source, batch, metrics by name).

    `hp` is the run's `HyperParams`, `learner_state` the learner's before the update.
    """

    def __call__(
        self, src: Any, learner_state: Any, hp: HyperParams, inputs: Any, key: Array, step: Array
    ) -> tuple[PyTree, Batch, dict[str, Any]]: ...


class RefreshFn(Protocol):
    """The state of a source made anew, before update `step`; arguments as in `NextFn`."""

    def __call__(
        self, src: Any, learner_state: Any, hp: HyperParams, inputs: Any, key: Array, step: Array
    ) -> PyTree: ...


def _no_memory(n: int) -> PyTree:
    return ()


def _key_only(key: Array, n: int) -> PyTree:
    return key


def _no_update(state, hp, batch, key, step):
    raise ValueError("a learner without `update` is for stages of no updates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """Anything that is trained: an agent, a dynamics ensemble, a score network.

    init(key, hp, inputs) -> state
    update(state, hp, batch, key, step) -> (state, metrics)

    Without `update` it serves stages of no updates, whose result is the state that `init` gives.
    `hypers` are the default hyperparameters, numbers; None without a default.
    """

    init: InitFn
    update: UpdateFn = _no_update
    hypers: PyTree = dataclasses.field(default=None, hash=False, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Something that acts in n environments at once.

    act(state, hp, obs [n, *obs], start [n], memory, noise, explore) -> (action, memory, extras)

    `memory(n)` is the initial memory of n environments. `noise(key, n)` draws the random numbers of
    one call of `act`: a rollout draws those of all its steps at once, which is faster than
    splitting keys step by step. By default `noise` is the key itself.
    """

    act: ActFn
    memory: Callable[[int], PyTree] = _no_memory
    noise: Callable[[Array, int], PyTree] = _key_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent(Learner, Policy):
    """A learner that is also a policy: `update` changes the very state `act` reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a learner's batches come from.

    init(key, learner_state, hp, inputs) -> src            (fills any warm-up)
    next(src, learner_state, hp, inputs, key, step) -> (src, batch, metrics)
    refresh(src, learner_state, hp, inputs, key, step) -> src
        called before update `step` whenever step is a multiple of `every`, step 0 included.

    `env_steps` is what one batch costs in environment steps.
    """

    init: SourceInitFn
    next: NextFn
    refresh: RefreshFn | None = None
    every: int = 1
    env_steps: int = 0


# --- hyperparameters -----------------------------------------------------------------------------


class HyperParams(NamedTuple):
    """The traced hyperparameters of a run.

    Attributes:
      agent: the record that the learner's and the policy's functions get as `hp`.
      env: the physical parameters of the environment; None for its defaults.
    """

    agent: PyTree
    env: PyTree = None

    def env_params(self, env: Env) -> PyTree:
        """The physical parameters that `env` runs with."""
        if self.env is not None:
            return self.env
        return opaque(env.params)


def as_float(x: Any) -> Array:
    """Python numbers and floats as float32; other arrays as they are."""
    weak = isinstance(x, int | float) or jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jnp.asarray(x, jnp.float32 if weak else None)


def opaque(numbers: PyTree) -> PyTree:
    """`as_float` of every leaf, hidden from the compiler.

    The compiler folds constants, which rounds differently from the same numbers as arguments.
    """
    return jax.lax.optimization_barrier(jax.tree.map(as_float, numbers))


def as_hyperparams(hp: PyTree) -> HyperParams:
    """`hp` itself, or a bare record of an agent's hyperparameters with the default environment."""
    return hp if isinstance(hp, HyperParams) else HyperParams(hp)


# --- metrics -------------------------------------------------------------------------------------


class Mean(NamedTuple):
    """A mean under way: `total / weight`; NaN where nothing was counted."""

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        return jnp.where(self.weight > 0, self.total / jnp.maximum(self.weight, 1e-9), jnp.nan)


def mean_where(values: Array, mask: Array) -> Mean:
    """Mean of `values` where `mask` holds, to be averaged on over updates by its count."""
    return Mean(
        jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32)
    )


def as_mean(value: Array | Mean) -> Mean:
    """A metric in its summable form: scalars weigh one."""
    if isinstance(value, Mean):
        return value
    return Mean(jnp.asarray(value, jnp.float32), jnp.float32(1))
