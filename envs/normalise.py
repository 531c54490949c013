"""Observations standardised, and rewards scaled, by running statistics of each environment.

They are those of gymnasium's wrappers NormalizeObservation and NormalizeReward, as part of an
environment's state: every one of N environments has its own, in float32, and they outlive its
episodes (`Env.persist`). The agents' own normalisation (`jaxrl.normalise`) shares one set among all
environments, keeps it fixed while a window is learnt from, and is saved with the weights: prefer it
where an agent has it. These are for agents that have none, and for comparisons.

Rollouts report raw returns, and evaluations too. An evaluation goes on with the statistics of the
environments that are trained in, environment i with those of i modulo N; what it adds to them is
forgotten. Without such environments, as with agents that learn from data, each episode begins its
own statistics, which no agent should be judged by.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.names import EnvError
from jaxrl.normalise import Moments, include, moments, standardise
from jaxrl.types import Array, Env, PyTree, TimeStep


def normalised_observations(env: Env, clip: float = 10.0) -> Env:
    """Observations less their running mean over their running standard deviation, within ±clip.

    The statistics are of all observations so far, first ones and the one at hand included: what is
    seen first is zero. (gymnasium's begin at mean 0 and variance 1 with the weight of 1e-4 of an
    observation, and are not clipped.)

    State (inner state, `Moments`); those of a fresh state have seen its first observation only, so
    their mean is that observation.
    """

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return see(state, moments(env.spec.obs_shape), obs)

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, seen = state
        inner, ts = env.step(key, inner, action, params)
        state, obs = see(inner, seen, ts.next_obs)
        return state, ts._replace(next_obs=obs)

    def see(inner: PyTree, seen: Moments, obs: Array) -> tuple[PyTree, Array]:
        seen = include(seen, obs[None])
        return (inner, seen), standardise(seen, obs, clip)

    def persist(last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
        inner, raw = persisted(env, last[0], fresh[0], fresh[1].mean)
        return see(inner, last[1], raw)

    return dataclasses.replace(env, reset=reset, step=step, persist=persist, outcome=None)


def normalised_rewards(env: Env, gamma: float = 0.99, clip: float = 10.0) -> Env:
    """Rewards over the running standard deviation of returns, within ±clip; `score` is the raw one.

    Returns are discounted sums backwards, R_t = gamma R_{t-1} + r_t from 0 at the start of an
    episode. Their variance begins at 1 with the weight of 1e-4 of a step, as gymnasium's does
    (which does not clip), and includes the step at hand.

    State (inner state, R [], `Moments` of R).

    Raises:
      EnvError: gamma is not a number in 0 .. 1.
    """
    number = isinstance(gamma, (int, float)) and not isinstance(gamma, bool)
    if not number or not 0 <= gamma <= 1:
        raise EnvError(
            f"normalise_reward of {env.spec.name} is a discount in 0 .. 1, got {gamma!r}"
        )

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return (state, jnp.zeros(()), moments(())._replace(weight=jnp.float32(1e-4))), obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, total, returns = state
        inner, ts = env.step(key, inner, action, params)
        total = float(gamma) * total + ts.reward
        returns = include(returns, total[None])
        scaled = jnp.clip(ts.reward * jax.lax.rsqrt(returns.var + 1e-8), -clip, clip)
        score = ts.reward if ts.score is None else ts.score
        return (inner, total, returns), ts._replace(reward=scaled, score=score)

    def persist(last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
        inner, obs = persisted(env, last[0], fresh[0], obs)
        return (inner, fresh[1], last[2]), obs

    return dataclasses.replace(env, reset=reset, step=step, persist=persist, outcome=None)


def persisted(env: Env, last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
    """`env.persist`, or the fresh state as it is."""
    return (fresh, obs) if env.persist is None else env.persist(last, fresh, obs)


def normalise(env: Env, obs: Any = None, reward: Any = None) -> Env:
    """Both, as options give them: `obs` true or false, `reward` a discount; None for neither."""
    if not (obs is None or isinstance(obs, bool)):
        raise EnvError(f"normalise_obs of {env.spec.name} must be true or false, got {obs!r}")
    env = normalised_observations(env) if obs else env
    return env if reward is None else normalised_rewards(env, reward)
