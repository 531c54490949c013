"""Tiny environments whose answers are known, each to find one kind of mistake.

The first five follow Andy Jones, "Debugging RL, Without the Agonizing Pain"
(andyljones.com/posts/rl-debugging.html). `observation -> value` is the optimal value with discount
γ; observations have shape (1,).

    constant   0 -> 1                 reward 1, one step: can values be learnt at all?
    obs       ±1 -> ±1                reward is the observation: do values see it?
    delay      0 -> γ, 1 -> 1         reward 1 at the second step: discount and bootstrap
    action     0 -> 1                 action 1 gives 1, action 0 gives -1: does the policy learn?
    match     ±1 -> 1                 1 if action is (observation > 0), else -1: does it look?
    aim       ±1 -> 1                 actions in [-1, 1], reward 1 - (action - observation/2)²
    limit      0 -> 1/(1-γ)           reward 1 for ever, truncated: do time limits bootstrap?
    cue       ±1 -> γ^(length-1)      `match` with the first observation, at the last step: memory

Of `limit`, an agent that takes truncation for termination learns less: with one-step targets
1/(1-γ(1-1/max_steps)). Of `cue`, a policy without memory earns 0 on average, whatever it does.

The observation after a termination is the last one again, so that an agent which bootstraps past
the end shows it in its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import positive
from jaxrl.types import Array, Box, Discrete, Env, EnvSpec, PyTree, TimeStep

CONTINUOUS = Box((-1.0,), (1.0,), (1,))


class ProbeState(NamedTuple):
    t: Array  # [] int32, steps so far
    sign: Array  # [] float32, -1 or 1, drawn at the start


def constant(continuous: bool = False) -> Env:
    """One step of reward 1. Value 1."""
    return _probe("constant", _blind, lambda t, sign, action: 1.0, continuous=continuous)


def obs(continuous: bool = False) -> Env:
    """One step; observation ±1 is the reward. Value = observation."""
    return _probe("obs", _shown, lambda t, sign, action: sign, continuous=continuous)


def delay(length: int = 2, continuous: bool = False) -> Env:
    """Reward 1 at the last of `length` steps; observation t. Value γ^(length-1-t)."""
    last = positive(length, "length of probe:delay") - 1

    def reward(t: Array, sign: Array, action: Array) -> Array:
        return t == last

    return _probe("delay", lambda t, sign: t, reward, length, continuous=continuous)


def action() -> Env:
    """One step; action 1 gives 1, action 0 gives -1. Value 1; of the uniform policy 0."""
    return _probe("action", _blind, lambda t, sign, action: 2.0 * action - 1)


def match() -> Env:
    """One step; 1 if the action is (observation > 0), else -1. Value 1; of a blind policy 0."""
    return _probe("match", _shown, lambda t, sign, action: (2.0 * action - 1) * sign)


def aim() -> Env:
    """One step; actions [1] in [-1, 1], reward 1 - (action - observation/2)². Value 1.

    The best action lies inside the bounds, where a squashed policy can reach it.
    """

    def reward(t: Array, sign: Array, action: Array) -> Array:
        return 1 - (action[0] - sign / 2) ** 2

    return _probe("aim", _shown, reward, continuous=True)


def limit(max_steps: int = 5, continuous: bool = False) -> Env:
    """Reward 1 for ever, truncated after `max_steps` steps; observation 0. Value 1/(1-γ)."""
    steps = positive(max_steps, "max_steps of probe:limit")
    return _probe(
        "limit", _blind, lambda t, sign, action: 1.0, steps, continuous=continuous, truncates=True
    )


def cue(length: int = 4) -> Env:
    """The first observation is ±1, later ones 0; the last action earns 1 if it is (first > 0),
    else -1. Value γ^(length-1-t) with memory, 0 without.
    """
    last = positive(length, "length of probe:cue") - 1

    def show(t: Array, sign: Array) -> Array:
        return jnp.where(t == 0, sign, 0.0)

    def reward(t: Array, sign: Array, action: Array) -> Array:
        return jnp.where(t == last, (2.0 * action - 1) * sign, 0.0)

    return _probe("cue", show, reward, length)


PROBES: dict[str, Callable[..., Env]] = {
    f"probe:{function.__name__}": function
    for function in (constant, obs, delay, action, match, aim, limit, cue)
}


def optimal_values(name: str, gamma: float) -> dict[float, float]:
    """{observation: optimal value} of the probe `name` with its default options.

    Of `cue`, only first observations: later ones say nothing by themselves.
    """
    return {
        "probe:constant": {0.0: 1.0},
        "probe:obs": {-1.0: -1.0, 1.0: 1.0},
        "probe:delay": {0.0: gamma, 1.0: 1.0},
        "probe:action": {0.0: 1.0},
        "probe:match": {-1.0: 1.0, 1.0: 1.0},
        "probe:aim": {-1.0: 1.0, 1.0: 1.0},
        "probe:limit": {0.0: 1 / (1 - gamma)},
        "probe:cue": {-1.0: gamma**3, 1.0: gamma**3},
    }[name]


def _blind(t: Array, sign: Array) -> Array:
    return jnp.zeros(())


def _shown(t: Array, sign: Array) -> Array:
    return sign


def _probe(
    name: str,
    show: Callable[[Array, Array], Array],
    reward: Callable[[Array, Array, Array], Array | float],
    length: int = 1,
    *,
    continuous: bool = False,
    truncates: bool = False,
) -> Env:
    """Episodes of `length` steps that show show(t, sign) and pay reward(t, sign, action)."""
    if not isinstance(continuous, bool):
        raise EnvError(f"continuous of probe:{name} must be true or false, got {continuous!r}")

    def observe(state: ProbeState) -> Array:
        return show(state.t, state.sign).astype(jnp.float32).reshape(1)

    def reset(key: Array, params: PyTree) -> tuple[ProbeState, Array]:
        state = ProbeState(jnp.int32(0), jax.random.rademacher(key, (), jnp.float32))
        return state, observe(state)

    def step(
        key: Array, state: ProbeState, action: Array, params: PyTree
    ) -> tuple[ProbeState, TimeStep]:
        earned = jnp.asarray(reward(state.t, state.sign, action), jnp.float32)
        t = state.t + 1
        end, no = t >= length, jnp.zeros((), bool)
        shown = observe(ProbeState(jnp.minimum(t, length - 1), state.sign))
        ts = TimeStep(shown, earned, no if truncates else end, end if truncates else no)
        return ProbeState(t, state.sign), ts

    space = CONTINUOUS if continuous else Discrete(2)
    return Env(EnvSpec(f"probe:{name}", (1,), space, length), {}, reset, step)
