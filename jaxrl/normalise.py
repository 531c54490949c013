"""Running normalisation of observations and rewards, as a wrapper of agents.

The statistics are part of the agent's state, so they are vmapped, checkpointed, and used in acting,
learning and evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.masks import Views, critic_shape, critic_view, map_obs, unmask
from jaxrl.sources import expand, known_rows
from jaxrl.sums import add
from jaxrl.teams import team_size
from jaxrl.types import Agent, Array, EnvSpec, PyTree, Transition


class Moments(NamedTuple):
    """Running mean and variance; weight 0 before the first rows."""

    mean: Array
    var: Array
    weight: Array  # [] float32, number of rows
    rest: PyTree = ()  # of running moments: rounding errors of the three, see `jaxrl.sums`


class Normalised(NamedTuple):
    inner: PyTree
    obs: Any  # Moments [*obs]; with `EnvSpec.critic_shape` two, the second of critics' observations
    returns: Moments  # [] of discounted sums of rewards
    running: Array  # [N], or [N * A] of teams: discounted sum of rewards in the episode so far


def moments(shape: tuple[int, ...]) -> Moments:
    """Running moments before the first rows: mean 0, variance 1, weight 0."""
    zeros = jnp.zeros(shape)
    return Moments(zeros, jnp.ones(shape), jnp.float32(0), (zeros, zeros, jnp.float32(0)))


def include(old: Moments, x: Array) -> Moments:
    """Running moments including rows x [B, ...] (Chan et al. 1979, pairwise update).

    The update is a small change, summed with compensation: otherwise rounding would stop the weight
    at 2^24 and inflate the variance. Changes of the variance that replace most of it are not small.
    """
    rest_mean, rest_var, rest_weight = old.rest
    weight, rest_weight = add(old.weight, rest_weight, jnp.float32(x.shape[0]))
    keep, share = old.weight / weight, x.shape[0] / weight
    delta = jnp.mean(x, 0) - old.mean - rest_mean
    added = share * (jnp.var(x, 0) + keep * delta**2)
    small = keep > 0.5
    base = jnp.where(small, old.var, 0.0)
    change = added + jnp.where(small, -share * (old.var + rest_var), keep * old.var)
    mean, rest_mean = add(old.mean, rest_mean, share * delta)
    var, rest_var = add(base, rest_var, change)
    return Moments(mean, var, weight, (rest_mean, rest_var, rest_weight))


def standardise(m: Moments, x: Array, clip: float) -> Array:
    """(x - mean) / std of x [..., *shape], clipped to ±clip."""
    extra = (1,) * (x.ndim - m.mean.ndim)
    mean, var = m.mean.reshape(extra + m.mean.shape), m.var.reshape(extra + m.var.shape)
    return jnp.clip((x - mean) * jax.lax.rsqrt(var + 1e-8), -clip, clip)


def discounted_sums(
    running: Array, reward: Array, done: Array, gamma: Array | float
) -> tuple[Array, Array]:
    """R_t = γ R_{t-1} + r_t within episodes: R after the window [N], and all of them [T, N]."""

    def step(running: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = xs
        total = gamma * running + reward
        return jnp.where(done, 0.0, total), total

    return jax.lax.scan(step, running, (reward, done))


def normalised(
    agent: Agent,
    spec: EnvSpec,
    num_envs: int,
    *,
    obs: bool = True,
    reward: bool = False,
    clip: float = 10.0,
) -> Agent:
    """`agent` with standardised observations, and rewards divided by the std of returns.

    An update uses the observation statistics of its rollout, so that values recorded in the rollout
    remain valid; the statistics include the window from the next rollout on. Reward statistics
    include the window at once. `hp.gamma` discounts the returns. Without `obs` and `reward` the
    result is `agent` itself.
    """
    if not (obs or reward):
        return agent
    if obs and spec.obs_dtype == "uint8":
        raise UserError(f"normalise_obs does not take the bytes of {spec.name}, which are scaled")
    rows = num_envs * team_size(spec)
    two = spec.critic_shape is not None  # observations may be `Views`

    def see(m: Any, x: Any) -> Any:
        if not obs:
            return x
        own = m[0] if two else m
        found = map_obs(lambda x: standardise(own, x, clip), x)
        if isinstance(found, Views):
            found = found._replace(critic=standardise(m[1], found.critic, clip))
        return found

    def first_moments() -> Any:
        own = moments(spec.obs_shape)
        return (own, moments(critic_shape(spec))) if two else own

    def observed(m: Any, x: Any) -> Any:
        """The moments with the rows of a window [T, N]."""
        rows = lambda m, x: include(m, x.reshape(-1, *m.mean.shape))
        own = unmask(x)[0]
        return (rows(m[0], own), rows(m[1], critic_view(x))) if two else rows(m, own)

    def init(key, hp, inputs):
        inner = agent.init(key, hp, inputs)
        return Normalised(inner, first_moments(), moments(()), jnp.zeros(rows))

    def act(state, hp, obs, start, memory, noise, explore):
        return agent.act(state.inner, hp, see(state.obs, obs), start, memory, noise, explore)

    def update(state, hp, batch, key, step):
        window = batch.transitions
        seen = window._replace(
            obs=see(state.obs, window.obs), next_obs=see(state.obs, window.next_obs)
        )
        running, returns = state.running, state.returns
        if reward:
            running, sums = discounted_sums(running, window.reward, window.done, hp.gamma)
            returns = include(returns, sums.reshape(-1))
            seen = seen._replace(reward=window.reward * jax.lax.rsqrt(returns.var + 1e-8))
        inner, metrics = agent.update(state.inner, hp, batch._replace(transitions=seen), key, step)
        known = observed(state.obs, window.obs) if obs else state.obs
        return Normalised(inner, known, returns, running), metrics

    return dataclasses.replace(agent, init=init, update=update, act=act)


def data_moments(cfg: Any, spec: EnvSpec, inputs: PyTree) -> Moments:
    """Moments [*obs] of the observations of inputs["data"]; mean 0, variance 1 if not normalised.

    As in the authors' code of TD3+BC, 1e-3 is added to each deviation, which bounds elements that
    hardly vary in the data.
    """
    if not cfg.normalise_obs:
        return moments(spec.obs_shape)._replace(rest=())
    data = expand(inputs["data"])
    scale = jnp.std(data.obs, 0) + 1e-3
    return Moments(jnp.mean(data.obs, 0), scale**2, jnp.float32(data.reward.shape[0]))


def row_moments(rows: Array) -> Moments:
    """Moments of rows [D, F] of a dataset; constant columns have variance 1.

    A column is constant if it varies by less than 1e-6 of its size, since the moments of a large
    constant in float32 have rounding errors of that order.
    """
    width = jnp.max(rows, 0) - jnp.min(rows, 0)
    var = jnp.var(rows, 0)
    constant = (width <= 1e-6 * jnp.max(jnp.abs(rows), 0)) | (var == 0)
    return Moments(jnp.mean(rows, 0), jnp.where(constant, 1.0, var), jnp.float32(len(rows)))


def change_moments(data: Transition) -> Moments:
    """Moments [S] of s' - s over rows with known successors, S the elements of an observation.

    As in `data_moments`, 1e-3 is added to each deviation.
    """
    data = expand(data)
    rows, known = data.reward.shape[0], known_rows(data)
    weight = known[:, None] / jnp.maximum(jnp.sum(known), 1)
    delta = (data.next_obs - data.obs).reshape(rows, -1)
    mean = jnp.sum(weight * delta, 0)
    scale = jnp.sqrt(jnp.sum(weight * (delta - mean[None]) ** 2, 0)) + 1e-3
    return Moments(mean, scale**2, jnp.float32(rows))


def standardise_obs(cfg: Any, seen: Moments, obs: Array) -> Array:
    """Observations [B, *obs] as input of networks."""
    return standardise(seen, obs, jnp.inf) if cfg.normalise_obs else obs


class Standardised(NamedTuple):
    """The state of an agent with standardised observations."""

    inner: PyTree
    obs: Moments  # [*obs] of the dataset


def standardised(agent: Agent, cfg: Any, spec: EnvSpec) -> Agent:
    """`agent`, which learns from data, with observations standardised by the dataset's statistics
    (`data_moments`) in acting and learning; without `cfg.normalise_obs` the agent itself."""
    if not cfg.normalise_obs:
        return agent

    def init(key, hp, inputs):
        return Standardised(agent.init(key, hp, inputs), data_moments(cfg, spec, inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        seen = standardise_obs(cfg, state.obs, obs)
        return agent.act(state.inner, hp, seen, start, memory, noise, explore)

    def update(state, hp, batch, key, step):
        t, see = batch.transitions, lambda x: standardise_obs(cfg, state.obs, x)
        seen = batch._replace(transitions=t._replace(obs=see(t.obs), next_obs=see(t.next_obs)))
        inner, metrics = agent.update(state.inner, hp, seen, key, step)
        return state._replace(inner=inner), metrics

    return dataclasses.replace(agent, init=init, update=update, act=act)


def standardised_log_prob(log_prob: Callable[..., Array], cfg: Any) -> Callable[..., Array]:
    """`log_prob(state, hp, obs, action)` of an agent, for the state of its `standardised` form."""
    if not cfg.normalise_obs:
        return log_prob
    see = lambda state, obs: standardise_obs(cfg, state.obs, obs)
    return lambda state, hp, obs, action: log_prob(state.inner, hp, see(state, obs), action)
