"""Normalisation of observations and rewards by running statistics of each environment.

The wrappers correspond to gymnasium's NormalizeObservation and NormalizeReward. The statistics are
part of an environment's state: each of N environments has its own, in float32, and keeps them
across episodes (`Env.persist`). The agents' own normalisation (`jaxrl.normalise`) shares one set of
statistics among all environments, keeps it fixed during the update on a window and saves it with
the weights. Prefer it if an agent has it; these wrappers are for agents that have none, and for
comparisons.

Rollouts and evaluations report raw returns. An evaluation starts from the statistics of the
training environments, environment i from those of environment i modulo N, and discards its own
changes to them. Without training environments, as in offline learning, the statistics start anew in
each episode of an evaluation: do not judge agents by such evaluations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import inner_hooks
from jaxrl.masks import map_obs, unmask
from jaxrl.normalise import Moments, include, moments, standardise
from jaxrl.teams import check_single
from jaxrl.types import Array, Env, PyTree, TimeStep


def normalised_observations(env: Env, clip: float = 10.0) -> Env:
    """Standardises observations by their running mean and standard deviation, clipped to ±clip.

    The statistics include all observations so far, those of resets and the current one too, so the
    very first observation becomes zero. (gymnasium starts at mean 0 and variance 1 with a weight of
    1e-4 observations, and does not clip.)

    The state is (inner state, `Moments`). After `reset` the moments contain the first observation
    only, so their mean is the raw observation.
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
        seen = include(seen, unmask(obs)[0][None])
        return (inner, seen), map_obs(lambda x: standardise(seen, x, clip), obs)

    def persist(last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
        inner, raw = persisted(env, last[0], fresh[0], map_obs(lambda _: fresh[1].mean, obs))
        return see(inner, last[1], raw)

    hooks: Any = {"persist": persist, **inner_hooks(env)}
    return dataclasses.replace(env, reset=reset, step=step, outcome=None, **hooks)


def normalised_rewards(env: Env, gamma: float = 0.99, clip: float = 10.0) -> Env:
    """Divides rewards by the running standard deviation of R, clipped to ±clip.

    R_t = gamma R_{t-1} + r_t is the discounted sum of past rewards, 0 at the start of an episode.
    Its variance starts at 1 with a weight of 1e-4 steps, as in gymnasium (which does not clip), and
    includes the current step. `TimeStep.score` is the raw reward.

    The state is (inner state, R [], `Moments` of R).

    Raises:
      EnvError: gamma is not a number in [0, 1].
    """
    number = isinstance(gamma, (int, float)) and not isinstance(gamma, bool)
    if not number or not 0 <= gamma <= 1:
        raise EnvError(
            f"normalise_reward of {env.spec.name} must be a discount in [0, 1], got {gamma!r}"
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

    hooks: Any = {"persist": persist, **inner_hooks(env)}
    return dataclasses.replace(env, reset=reset, step=step, outcome=None, **hooks)


def persisted(env: Env, last: PyTree, fresh: PyTree, obs: Array) -> tuple[PyTree, Array]:
    """(state, obs) of `env.persist`, or the fresh state and observation if it is None."""
    return (fresh, obs) if env.persist is None else env.persist(last, fresh, obs)


def normalise(env: Env, obs: Any = None, reward: Any = None) -> Env:
    """Applies the options `normalise_obs` (bool) and `normalise_reward` (a discount).

    None leaves the environment as it is.

    Raises:
      EnvError: an option has a value of another kind.
    """
    if not (obs is None or isinstance(obs, bool)):
        raise EnvError(f"normalise_obs of {env.spec.name} must be true or false, got {obs!r}")
    if obs and env.spec.obs_dtype == "uint8":
        raise EnvError(f"normalise_obs does not take the bytes of {env.spec.name}")
    if obs and env.spec.critic_shape is not None:
        raise EnvError(
            f"normalise_obs does not take the two observations of {env.spec.name}: use "
            "--agent.normalise-obs"
        )
    if obs or reward is not None:
        check_single(env.spec, "normalise_obs or normalise_reward")
    env = normalised_observations(env) if obs else env
    return env if reward is None else normalised_rewards(env, reward)
