"""The records that all parts of jaxrl share.

Axis letters are the same across the project: P population (members), N parallel environments,
T time, B batch, D rows of a dataset. `key` is a typed JAX random key, `cfg` a frozen Config
(static: a new value compiles a new program), `hp` a record of traced hyperparameters, `state` the
state of a learner, source or environment.

Environments, agents and sources are records of pure functions: all inputs are arguments, and all
changes are results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError

Array = jax.Array
PyTree = Any


# --- spaces and environments ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 .. n-1, as int32 scalars."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"Discrete({self.n}): there must be at least one action")

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class Box:
    """Float32 actions of `shape`; `low` and `high` are flat tuples, one bound per element.

    Raises:
      UserError: another number of bounds, low > high, or NaN.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        if len(self.low) != size or len(self.high) != size:
            raise UserError(f"a Box of shape {self.shape} needs {size} bounds on each side")
        for low, high in zip(self.low, self.high, strict=True):
            if not low <= high:
                raise UserError(f"a Box needs low <= high, not low={low:g} and high={high:g}")

    def __str__(self) -> str:
        """Without the bounds of each element."""
        return f"Box(shape={self.shape})"


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Static description of an environment, from which agents build their networks. Hashable.

    `max_steps` is the time limit, or None if there is none. Rollouts and evaluations truncate
    episodes there, if the environment does not. `masked` says that observations are
    `jaxrl.masks.Masked`, with the legal ones of the discrete actions. `measures` are the names of
    `TimeStep.measured`. `agents` is the size of a team (`jaxrl.teams`): observations [A, *obs],
    actions [A, ...] and rewards [A]; None if there is one agent, without axis. `obs_dtype` is
    "uint8" for images that windows and replay buffers keep as bytes; networks divide them by 255.
    `critic_shape` says that observations are `jaxrl.masks.Views`, with another observation of this
    shape for value functions; None if they see the policy's.
    """

    name: str
    obs_shape: tuple[int, ...]
    action: Discrete | Box
    max_steps: int | None = None
    masked: bool = False
    measures: tuple[str, ...] = ()
    agents: int | None = None
    obs_dtype: Literal["float32", "uint8"] = "float32"
    critic_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.obs_shape):
            raise UserError(f"{self.name}: observations of shape {self.obs_shape} are empty")
        if self.max_steps is not None and (self.max_steps < 1 or self.max_steps % 1):
            raise UserError(
                f"{self.name}: max_steps={self.max_steps} must be an integer of at least 1, or None"
            )

    @property
    def obs_size(self) -> int:
        """Number of elements of an observation."""
        return math.prod(self.obs_shape)


class TimeStep(NamedTuple):
    """Outcome of one step of one environment.

    An episode ends if either flag is set. If both are, rollouts count a termination.
    """

    next_obs: Array  # [*obs] of spec.obs_dtype: the true successor, also at the end of an episode
    reward: Array  # [] float32
    terminated: Array  # [] bool: the task is over; the successor has value zero
    truncated: Array  # [] bool: the episode was cut, at any step; the successor keeps its value
    score: Array | None = None  # [] float32: the reward to report if not `reward`; teams need it
    measured: dict[str, Array] = {}  # [] float32 by name: of the episode so far, to be reported


@dataclasses.dataclass(frozen=True)
class Env:
    """One unbatched environment that never resets itself; callers vmap, sources reset.

    reset(key, params) -> (state, obs [*obs])
    step(key, state, action, params) -> (state, TimeStep)

    `params` are the default physical parameters, a pytree of numbers, traced.

    `persist` carries state across episodes, such as running statistics. Sources call it at each
    reset; None if no state outlives an episode:

    persist(last state, fresh state, fresh obs [*obs]) -> (state, obs [*obs])

    `outcome` computes reward and termination from observations, for models that then need not learn
    them; None if they do not follow from observations:

    outcome(obs [*obs], action, next_obs [*obs], params) -> (reward [], terminated [])

    Wrappers that change observations, actions or rewards set it to None.

    `host` makes a gymnasium-like environment, for environments that cannot run on a device. Their
    `reset` and `step` raise an error: `jaxrl.drive` steps them on the host (`jaxrl.hosted`).
    `host_envs(n)` makes n of them at once, a `hosted.HostEnvs`, where that is faster.

    `array_obs` is False if observations are pytrees instead of one array of `spec.obs_shape`.

    `reset_pool` is the number of initial states that rollouts draw per window for all environments
    of a member; 0 for one per environment and step, None for the rule of `rollout.pool_size`.

    `render` draws one episode of L steps for `jaxrl render`, on the host, from its states (numpy,
    [L + 1, ...]), as images or as the text of an HTML page:

    render(states, params) -> images [L + 1, H, W, 3] uint8, or str

    `expert` gives the probabilities with which an expert takes the discrete actions in a state.
    If success is still possible, exactly the actions that keep it possible have positive ones:

    expert(state, params) -> probabilities [A]
    """

    spec: EnvSpec
    params: PyTree
    reset: Callable[[Array, PyTree], tuple[PyTree, Array]]
    step: Callable[[Array, PyTree, Array, PyTree], tuple[PyTree, TimeStep]]
    host: Callable[..., Any] | None = None
    host_envs: Callable[[int], Any] | None = None
    persist: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]] | None = None
    outcome: Callable[[Array, Array, Array, PyTree], tuple[Array, Array]] | None = None
    array_obs: bool = True
    reset_pool: int | None = None
    render: Callable[[PyTree, PyTree], np.ndarray | str] | None = None
    expert: Callable[[PyTree, PyTree], Array] | None = None


# --- experience ----------------------------------------------------------------------------------


class Transition(NamedTuple):
    """Transitions, with axes [T, N, ...] in rollouts and [B, ...] in data."""

    obs: Array
    action: Array
    reward: Array  # float32
    next_obs: Array  # true successors
    terminated: Array  # bool
    truncated: Array  # bool
    start: Array  # bool: obs is the first of its episode
    extras: dict[str, Array] = {}  # further arrays by name, such as those the policy records

    @property
    def done(self) -> Array:
        return self.terminated | self.truncated


class Episodes(NamedTuple):
    """Whole episodes [K], in the order of their environments."""

    returns: Array | np.ndarray  # [K] float32, undiscounted
    lengths: Array | np.ndarray  # [K] int32
    finished: Array | np.ndarray  # [K] bool: False if the evaluation's step limit cut the episode
    measured: dict[str, Array] = {}  # [] each: further results of the evaluation, by name

    def played(self) -> Episodes:
        """Without the episodes that an evaluation before the last one did not play.

        For arrays [P, K] of the host, of one evaluation.
        """
        count = max(np.count_nonzero(np.any(self.lengths > 0, axis=0)), 1)  # 0 without members
        cut = lambda x: x[:, :count]
        return Episodes(cut(self.returns), cut(self.lengths), cut(self.finished), self.measured)


class Batch(NamedTuple):
    """Input of one update of a learner."""

    transitions: Transition
    memory: PyTree = ()  # recurrent memory at the start of the window; () for policies without


# --- learners and policies -----------------------------------------------------------------------


class InitFn(Protocol):
    """The initial state of a learner.

    Args:
      key: used by this call only.
      hp: the agent's hyperparameters.
      inputs: inputs of the run, such as inputs["data"], and of the member, and results of earlier
        stages, by name.
    """

    def __call__(self, key: Array, hp: Any, inputs: PyTree) -> PyTree: ...


class UpdateFn(Protocol):
    """One update of a learner.

    Args:
      hp: the agent's hyperparameters.
      step: updates made so far, [] int32. It has no member axis, so a `lax.cond` on it remains a
        branch under vmap.

    Returns:
      (state, metrics): the new state, of the same shapes and dtypes, and scalars or `Mean`s by
      name.
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
      start: [n] bool, whether obs is the first of its episode, where the memory is reset.
      memory: memory of the n environments, of the form that `Policy.memory` gives.
      noise: random numbers for one call, from `Policy.noise`.
      explore: static; False for the policy's best action.

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
    """The initial state of a source, after any warm-up; `hp` is the run's `HyperParams`."""

    def __call__(self, key: Array, learner_state: Any, hp: HyperParams, inputs: Any) -> PyTree: ...


class NextFn(Protocol):
    """The batch of update `step`: (state of the source, batch, metrics by name).

    `hp` is the run's `HyperParams`, `learner_state` the learner's state before the update.
    """

    def __call__(
        self, src: Any, learner_state: Any, hp: HyperParams, inputs: Any, key: Array, step: Array
    ) -> tuple[PyTree, Batch, dict[str, Any]]: ...


class RefreshFn(Protocol):
    """The refreshed state of a source before update `step`; arguments as in `NextFn`."""

    def __call__(
        self, src: Any, learner_state: Any, hp: HyperParams, inputs: Any, key: Array, step: Array
    ) -> PyTree: ...


def _no_memory(n: int) -> PyTree:
    return ()


def _key_only(key: Array, n: int) -> PyTree:
    return key


def _no_update(state, hp, batch, key, step):
    raise ValueError("a learner without `update` is for stages with updates=0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A trainable model: an agent, a dynamics ensemble, a score network.

    init(key, hp, inputs) -> state
    update(state, hp, batch, key, step) -> (state, metrics)

    A learner without `update` is for stages with updates=0, whose result is the initial state.
    `hypers` are the default hyperparameters, a record of numbers; None if there are no defaults.
    """

    init: InitFn
    update: UpdateFn = _no_update
    hypers: PyTree = dataclasses.field(default=None, hash=False, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy that acts in n environments at once.

    act(state, hp, obs [n, *obs], start [n], memory, noise, explore) -> (action, memory, extras)

    `memory(n)` is the initial memory of n environments. `noise(key, n)` draws the random numbers of
    one call of `act`. A rollout draws the numbers of all steps at once, which is faster than
    splitting keys step by step. By default `noise` returns the key itself.

    `masks` says that `act` takes `jaxrl.masks.Masked` observations and only legal actions, `bytes`
    that observations may be uint8, `views` that they may be `jaxrl.masks.Views`.
    """

    act: ActFn
    memory: Callable[[int], PyTree] = _no_memory
    noise: Callable[[Array, int], PyTree] = _key_only
    masks: bool = False
    bytes: bool = False
    views: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent(Learner, Policy):
    """A learner that is also a policy: `update` changes the state that `act` reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A source of batches for a learner.

    init(key, learner_state, hp, inputs) -> src            (includes any warm-up)
    next(src, learner_state, hp, inputs, key, step) -> (src, batch, metrics)
    refresh(src, learner_state, hp, inputs, key, step) -> src
        called before update `step` if step is a multiple of `every`, including step 0.

    `env_steps` is the number of environment steps per batch. `host` says how the host makes its
    windows (`jaxrl.hosted.HostRollout`); None for sources that need no host.
    """

    init: SourceInitFn
    next: NextFn
    refresh: RefreshFn | None = None
    every: int = 1
    env_steps: int = 0
    host: Any = None


# --- hyperparameters -----------------------------------------------------------------------------


class HyperParams(NamedTuple):
    """The traced hyperparameters of a run.

    Attributes:
      agent: the record that functions of learners and policies receive as `hp`.
      env: the physical parameters of the environment; None for its defaults.
    """

    agent: PyTree
    env: PyTree = None

    def env_params(self, env: Env) -> PyTree:
        """The physical parameters to run `env` with."""
        if self.env is not None:
            return self.env
        return opaque(env.params)


def as_float(x: Any) -> Array:
    """Python numbers and floats as float32; other arrays are unchanged."""
    weak = isinstance(x, int | float) or jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jnp.asarray(x, jnp.float32 if weak else None)


def opaque(numbers: PyTree) -> PyTree:
    """`as_float` of every leaf, behind an optimisation barrier.

    XLA folds constants, and the results are rounded differently from those of the same numbers
    passed as arguments.
    """
    return jax.lax.optimization_barrier(jax.tree.map(as_float, numbers))


def as_hyperparams(hp: PyTree) -> HyperParams:
    """`hp` itself, or a bare record of agent hyperparameters with default `env` parameters."""
    return hp if isinstance(hp, HyperParams) else HyperParams(hp)


# --- metrics -------------------------------------------------------------------------------------


class Mean(NamedTuple):
    """A running mean `total / weight`; NaN if the weight is 0."""

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        return jnp.where(self.weight > 0, self.total / jnp.maximum(self.weight, 1e-9), jnp.nan)


def mean_where(values: Array, mask: Array) -> Mean:
    """Mean of `values` where `mask` holds, weighted by their count when averaged over updates."""
    return Mean(
        jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32)
    )


def as_mean(value: Array | Mean) -> Mean:
    """A metric as a `Mean`; scalars have weight 1."""
    if isinstance(value, Mean):
        return value
    return Mean(jnp.asarray(value, jnp.float32), jnp.float32(1))
