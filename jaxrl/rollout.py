"""Rollouts: windows of experience from parallel environments."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.contract import checked
from jaxrl.errors import OnHost, UserError
from jaxrl.hosted import host_rollout
from jaxrl.masks import check_policy
from jaxrl.rows import split
from jaxrl.teams import per_agent, team_size, to_rows, to_teams
from jaxrl.types import (
    Array,
    Batch,
    Env,
    HyperParams,
    Policy,
    PyTree,
    Source,
    TimeStep,
    Transition,
    mean_where,
)

LARGE_STATE = 2**14  # bytes of one environment's state, from which resets are pooled by default
LARGE_WINDOW = 2**30  # bytes of one initial state per environment and step, likewise


class RolloutState(NamedTuple):
    """State of N environments, and of the policy in them."""

    env: PyTree  # [N, ...]
    obs: Array  # [N, *obs] current observations
    start: Array  # [N] bool: obs is the first of its episode
    memory: PyTree  # the policy's memory before obs, one per agent of a team
    returns: Array  # [N] float32, sum of rewards in the current episode
    lengths: Array  # [N] float32, steps in the current episode
    past: PyTree = ()  # [keep, N, ...] (transitions, memory before each) of the last `keep` steps


def rollout(
    env: Env,
    policy: Policy,
    num_envs: int,
    num_steps: int,
    *,
    resets: int | None = None,
    keep: int = 0,
) -> Source:
    """Source of windows [T, N] from N environments, whose episodes continue across windows.

    Steps that exceed `env.spec.max_steps` are truncated, and steps that terminate are not. Batches
    contain the policy's memory at the start of the window. Metrics, of the episodes that ended in
    the window: `episode_return`, `episode_length`, and `episode_NAME` per name of
    `TimeStep.measured`. In environments with teams of A agents, windows are [T, N * A].
    Environments of the host give the same windows, see `jaxrl.hosted`.

    Args:
      resets: initial states drawn per environment and window, a divisor of `num_steps`. The default
        draws one per step, so that every episode has its own, or a pool, see `pool_size`. A smaller
        number saves time if `env.reset` is slow; then episodes of one environment that end within
        num_steps / resets steps of each other may start from the same state.
      keep: number of previous steps in front of each window, which is then [keep + T, N]; at most
        num_steps.

    Raises:
      UserError: the policy does not support the action masks of `env`, `resets` and
        `env.reset_pool` are both set, or `keep` in an environment of the host.
    """
    if resets and env.reset_pool:
        raise UserError(f"resets={resets} and reset_pool={env.reset_pool}: set one of them")
    pooled = resets is None
    resets = resets or num_steps
    if num_steps % resets:
        raise ValueError(f"resets={resets} does not divide num_steps={num_steps}")
    if not 0 <= keep <= num_steps:
        raise ValueError(f"keep={keep} is not between 0 and num_steps={num_steps}")
    if env.host is not None:
        if keep:
            raise OnHost(f"{env.spec.name} runs on the host, where windows do not overlap")
        return host_rollout(env, policy, num_envs, num_steps)
    check_policy(env, policy)
    spec, rows = env.spec, num_envs * team_size(env.spec)
    env = checked(env)
    reset_all = jax.vmap(env.reset, in_axes=(0, None))
    step_all = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    def init(key, learner_state, hp, inputs):
        key_reset, key_past = jax.random.split(key)
        params = hp.env_params(env)
        env_state, obs = reset_all(jax.random.split(key_reset, num_envs), params)
        zeros = jnp.zeros(num_envs)
        start = jnp.ones(num_envs, bool)
        src = RolloutState(env_state, obs, start, policy.memory(rows), zeros, zeros)
        if keep:
            src, (window, memories), _ = unroll(src, learner_state, hp, key_past)
            src = src._replace(past=last((window, memories)))
        return src

    def next(src, learner_state, hp, inputs, key, step):
        memory = src.memory
        src, (window, memories), metrics = unroll(src, learner_state, hp, key)
        if keep:
            join = lambda old, new: jnp.concatenate([old, new])
            window, memories = jax.tree.map(join, src.past, (window, memories))
            memory = jax.tree.map(lambda x: x[0], memories)
            src = src._replace(past=last((window, memories)))
        return src, Batch(window, memory), metrics

    def unroll(
        src: RolloutState, learner_state: PyTree, hp: HyperParams, key: Array
    ) -> tuple[RolloutState, tuple[Transition, PyTree], dict[str, Any]]:
        """The state after T steps, (transitions, memory before each, if kept) [T, N], metrics."""
        params = hp.env_params(env)
        src = split(src._replace(past=()))._replace(past=src.past)
        # Random numbers and initial states of the whole window at once: faster than per step.
        key_noise, key_step, key_reset = jax.random.split(key, 3)
        noise = jax.vmap(lambda k: policy.noise(k, rows))(jax.random.split(key_noise, num_steps))
        step_keys = jax.random.split(key_step, (num_steps, num_envs))
        pool = pool_size(env, (src.env, src.obs), num_envs, num_steps) if pooled else 0
        if pool:
            fresh = reset_all(jax.random.split(key_reset, pool), params)
        else:
            reset_keys = jax.random.split(key_reset, (resets, num_envs))
            fresh = jax.vmap(reset_all, in_axes=(0, None))(reset_keys, params)

        def initial_states(t: Array, ended: Any, done: Array) -> PyTree:
            if pool:
                which = (ended + jnp.cumsum(done) - 1) % pool
                return jax.tree.map(lambda x: x[which], fresh)
            return jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, t * resets // num_steps, 0, False), fresh
            )

        def act(carry: tuple[RolloutState, Any], xs: PyTree) -> tuple[Any, PyTree]:
            (src, ended), (t, noise, keys) = carry, xs
            obs, start = to_rows(src.obs, spec), per_agent(src.start, spec)
            action, memory, extras = policy.act(
                learner_state, hp.agent, obs, start, src.memory, noise, True
            )
            env_state, ts = step_all(keys, src.env, to_teams(action, spec), params)
            returns, lengths = src.returns + scored(ts), src.lengths + 1
            ts = limited(ts, lengths, env.spec.max_steps)
            done = ts.terminated | ts.truncated
            initial = initial_states(t, ended, done)
            ended = ended + jnp.sum(done, dtype=jnp.int32) if pool else ()
            transition = Transition(
                obs,
                action,
                to_rows(ts.reward, spec),
                to_rows(ts.next_obs, spec),
                per_agent(ts.terminated, spec),
                per_agent(ts.truncated, spec),
                start,
                extras,
            )
            if env.persist is not None:
                initial = jax.vmap(env.persist)(env_state, *initial)
            env_state, obs = select(done, initial, (env_state, ts.next_obs))
            after = src._replace(
                env=env_state,
                obs=obs,
                start=done,
                memory=memory,
                returns=jnp.where(done, 0.0, returns),
                lengths=jnp.where(done, 0.0, lengths),
            )
            return (after, ended), (
                transition,
                src.memory if keep else (),
                returns,
                lengths,
                ts.measured,
            )

        begin = (src, jnp.int32(0) if pool else ())  # episodes that have ended in the window
        (src, _), (window, memories, returns, lengths, measured) = jax.lax.scan(
            act, begin, (jnp.arange(num_steps), noise, step_keys)
        )
        ended = {"return": returns, "length": lengths} | measured
        window = split(window, 1)
        done = window.done if spec.agents is None else window.done[:, :: spec.agents]
        metrics = {f"episode_{k}": mean_where(v, done) for k, v in ended.items()}
        return src, (window, memories), metrics

    def last(window: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[x.shape[0] - keep :], window)

    return Source(init=init, next=next, env_steps=num_envs * num_steps)


def pool_size(env: Env, states: PyTree, num_envs: int, num_steps: int) -> int:
    """Initial states drawn per window for all N environments; 0 for one per environment and step.

    The k-th episode that ends in a window is followed by one from state k modulo this number.
    `env.reset_pool`, or by default N if the state of an environment has more than 16 KiB or those
    of a window, T * N, more than 1 GiB: such states are slow to make, and few are used.

    Args:
      states: leaves [N, ...], states and observations of the environments.
    """
    if env.reset_pool is not None:
        return env.reset_pool
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    count = sum(x.size * (8 if is_key(x) else x.dtype.itemsize) for x in jax.tree.leaves(states))
    large = count > LARGE_STATE * num_envs or count * num_steps > LARGE_WINDOW
    return num_envs if large else 0


def limited(ts: TimeStep, lengths: Array, max_steps: int | None) -> TimeStep:
    """`ts` [N], truncated where episodes have `max_steps` steps, and only if not terminated.

    Args:
      lengths: [N] or [], steps of the episodes, including this one.
    """
    over = False if max_steps is None else lengths >= max_steps
    return ts._replace(truncated=(ts.truncated | over) & ~ts.terminated)


def scored(ts: TimeStep) -> Array:
    """The reward to report."""
    return ts.reward if ts.score is None else ts.score


def select(mask: Array, on: PyTree, off: PyTree) -> PyTree:
    """Leafwise `where` of a mask [N] and leaves [N, ...]."""

    def one(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    return jax.tree.map(one, on, off)
