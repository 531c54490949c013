"""Probe environments: tiny tasks with known optimal values, each of which detects one kind of bug.

The first five follow Andy Jones, "Debugging RL, Without the Agonizing Pain"
(andyljones.com/posts/rl-debugging.html). Observations have shape (1,); the second column is the
optimal value of observations with discount γ.

    constant   0 -> 1               reward 1, one step; tests the value loss
    obs       ±1 -> ±1              reward = observation; tests values that depend on observations
    delay      0 -> γ, 1 -> 1       reward 1 at the second step; tests discount and bootstrap
    action     0 -> 1               reward 1 for action 1, -1 for action 0; tests the policy loss
    match     ±1 -> 1               reward 1 if action = (observation > 0), else -1; tests policies
                                    that depend on observations
    aim       ±1 -> 1               reward 1 - (action - observation/2)², actions in [-1, 1]; tests
                                    continuous policies
    limit      0 -> 1/(1-γ)         reward 1 at each step, truncated; tests bootstrap at time limits
    cue       ±1 -> γ^(length-1)    `match` at the last step, by the first observation; tests memory
    gift      ±1 -> 1               two agents; action 1 costs its agent 1 and gives the other 2;
                                    tests sums over a team

An agent that treats truncation as termination learns too low a value in `limit`; with one-step
targets, 1/(1-γ(1-1/max_steps)). Policies without memory have mean return 0 in `cue`, and agents
that maximise their own rewards have 0 in `gift`.

The observation after a termination repeats the last one, so values show whether an agent bootstraps
past the end.
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
    t: Array  # [] int32, steps since the start of the episode
    sign: Array  # [] float32, -1 or 1, drawn by reset


def constant(continuous: bool = False) -> Env:
    """One step with reward 1 and observation 0. Value 1."""
    return _probe("constant", _blind, lambda t, sign, action: 1.0, continuous=continuous)


def obs(continuous: bool = False) -> Env:
    """One step; the reward is the observation, ±1. Value = observation."""
    return _probe("obs", _shown, lambda t, sign, action: sign, continuous=continuous)


def delay(length: int = 2, continuous: bool = False) -> Env:
    """Reward 1 at the last of `length` steps, 0 before; observation t. Value γ^(length-1-t)."""
    last = positive(length, "length of probe:delay") - 1

    def reward(t: Array, sign: Array, action: Array) -> Array:
        return t == last

    return _probe("delay", lambda t, sign: t, reward, length, continuous=continuous)


def action() -> Env:
    """One step; reward 1 for action 1, -1 for action 0. Value 1; 0 for the uniform policy."""
    return _probe("action", _blind, lambda t, sign, action: 2.0 * action - 1)


def match() -> Env:
    """One step; reward 1 if action = (observation > 0), else -1. Value 1.

    A policy that ignores the observation has value 0 on average.
    """
    return _probe("match", _shown, lambda t, sign, action: (2.0 * action - 1) * sign)


def aim() -> Env:
    """One step; actions [1] in [-1, 1], reward 1 - (action - observation/2)². Value 1.

    The optimal action ±0.5 lies inside the bounds, so a tanh policy can reach it.
    """

    def reward(t: Array, sign: Array, action: Array) -> Array:
        return 1 - (action[0] - sign / 2) ** 2

    return _probe("aim", _shown, reward, continuous=True)


def limit(max_steps: int = 5, continuous: bool = False) -> Env:
    """Reward 1 at each step, truncated after `max_steps` steps; observation 0. Value 1/(1-γ)."""
    steps = positive(max_steps, "max_steps of probe:limit")
    return _probe(
        "limit", _blind, lambda t, sign, action: 1.0, steps, continuous=continuous, truncates=True
    )


def cue(length: int = 4) -> Env:
    """The first observation is ±1, later ones are 0. Value γ^(length-1-t) with memory, 0 without.

    The last step has reward 1 if action = (first observation > 0), else -1; other rewards are 0.
    """
    last = positive(length, "length of probe:cue") - 1

    def show(t: Array, sign: Array) -> Array:
        return jnp.where(t == 0, sign, 0.0)

    def reward(t: Array, sign: Array, action: Array) -> Array:
        return jnp.where(t == last, (2.0 * action - 1) * sign, 0.0)

    return _probe("cue", show, reward, length)


def gift() -> Env:
    """Two agents, one step. Action 1 costs its agent 1 and gives the other one 2.

    Both give: rewards (1, 1); the better action for an agent's own reward is always 0, with which
    both earn 0. The observations -1 and 1 tell the agents apart. The return is the team's mean.
    """
    seen = jnp.array([[-1.0], [1.0]])

    def reset(key: Array, params: PyTree) -> tuple[Array, Array]:
        return jnp.int32(0), seen

    def step(key: Array, state: Array, action: Array, params: PyTree) -> tuple[Array, TimeStep]:
        reward = 2.0 * action[::-1] - action
        end, no = jnp.ones((), bool), jnp.zeros((), bool)
        return state, TimeStep(seen, reward, end, no, jnp.mean(reward))

    return Env(EnvSpec("probe:gift", (1,), Discrete(2), 1, agents=2), {}, reset, step)


PROBES: dict[str, Callable[..., Env]] = {
    f"probe:{function.__name__}": function
    for function in (constant, obs, delay, action, match, aim, limit, cue, gift)
}


def _blind(t: Array, sign: Array) -> Array:
    """Observation 0."""
    return jnp.zeros(())


def _shown(t: Array, sign: Array) -> Array:
    """Observation ±1."""
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
    """A probe with episodes of `length` steps.

    Args:
      show: (t, sign) -> observation [].
      reward: (t, sign, action) -> reward [].
      continuous: actions [1] in [-1, 1] instead of 0 and 1.
      truncates: episodes are truncated instead of terminated.
    """
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
