"""Groups of whole episodes: several from each initial state, with steps of an expert.

In the language-model setting an initial state is a prompt and an episode a response. Episodes begin
anew at every update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.contract import checked
from jaxrl.errors import UserError
from jaxrl.masks import check_policy
from jaxrl.rollout import limited, scored
from jaxrl.sources import write
from jaxrl.teams import check_single
from jaxrl.types import Array, Batch, Env, Policy, PyTree, Source, Transition, mean_where


class Steering(NamedTuple):
    """Which steps of a group an expert takes.

    Attributes:
      traces: episodes per group that the expert plays alone, after the policy's own ones.
      corrected: the last of a group's own episodes in which the expert takes over at the first
        action that rules out success; that action is replaced.
      prefix_share: agent's hp -> [] fraction of the groups that begin with 1 .. T-1 steps of the
        expert, the same in all of a group's episodes.
    """

    traces: int = 0
    corrected: int = 0
    prefix_share: Callable[[Any], Array] | None = None


def groups(
    env: Env,
    policy: Policy,
    count: int,
    size: int,
    *,
    steering: Steering | None = None,
    expert: bool = False,
    hints: bool = False,
    pool: int = 0,
    priority: Callable[[Any], Array] | None = None,
) -> Source:
    """Source of windows [T, count * (size + traces)], T being the time limit.

    Episodes of a group are adjacent. Their transitions have the extras of the policy and

      valid: [T, N] bool, False after the end of the episode
      forced: [T, N] bool, steps of the expert
      expert: [T, N, A] the expert's probabilities, where they are needed
      group: [T, N] int32, index of the initial state in the pool

    Metrics: `episode_return` and `episode_length` of the episodes without a step of the expert.

    Args:
      count, size: groups, and own episodes per group.
      expert: record the expert's probabilities.
      hints: the policy observes [obs, expert's probabilities], privileged context.
      pool: number of initial states, drawn once; 0 draws new ones in every update.
      priority: learner's state -> weights [pool] with which groups are drawn, each at most once;
        uniform by default.

    Raises:
      UserError: the environment has no time limit, no expert where one is needed, a team, action
        masks that the policy does not support, or state that outlives episodes.
    """
    check_policy(env, policy)
    check_single(env.spec, "a group of episodes")
    env, limit = checked(env), env.spec.max_steps
    if limit is None:
        raise UserError(f"{env.spec.name} needs a time limit: pass --env-options max_steps=N")
    if env.persist is not None:
        raise UserError(
            f"{env.spec.name} keeps running statistics, which groups of episodes do not: remove "
            "normalise_obs and normalise_reward"
        )
    plan = steering or Steering()
    steered = plan.traces or plan.corrected or plan.prefix_share is not None or hints or expert
    if steered and env.expert is None:
        raise UserError(f"{env.spec.name} has no expert, which this objective needs")
    if pool and count > pool:
        raise UserError(f"{count} groups need a pool of as many prompts, not {pool}")
    rows = size + plan.traces
    total = count * rows
    place = jnp.arange(total) % rows  # of a row in its group
    always = place >= size
    correctable = (place >= size - plan.corrected) & ~always
    reset_all = jax.vmap(env.reset, in_axes=(0, None))
    step_all = jax.vmap(env.step, in_axes=(0, 0, 0, None))
    repeat = lambda x: jnp.repeat(x, rows, 0, total_repeat_length=total)

    def init(key, learner_state, hp, inputs):
        return reset_all(jax.random.split(key, pool), hp.env_params(env)) if pool else ()

    def begin(src: PyTree, learner_state: PyTree, key: Array, params: PyTree) -> PyTree:
        """(state, obs) [count, ...] of the groups, and their indices [count] in the pool."""
        if not pool:
            fresh = reset_all(jax.random.split(key, count), params)
            return fresh, jnp.zeros(count, jnp.int32)
        weight = jnp.ones(pool) if priority is None else priority(learner_state)
        _, index = jax.lax.top_k(jnp.log(weight) + jax.random.gumbel(key, (pool,)), count)
        return jax.tree.map(lambda x: x[index], src), index.astype(jnp.int32)

    def next(src, learner_state, hp, inputs, key, step):
        params = hp.env_params(env)
        key_begin, key_noise, key_step, key_expert, key_prefix = jax.random.split(key, 5)
        (state, obs), index = begin(src, learner_state, key_begin, params)
        state, obs = jax.tree.map(repeat, (state, obs))
        noise = jax.vmap(lambda k: policy.noise(k, total))(jax.random.split(key_noise, limit))
        keys = jax.random.split(key_step, (limit, total))
        prefix = repeat(prefixes(hp.agent, key_prefix))

        def act(carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
            state, obs, memory, live, returns, correcting = carry
            t, noise, keys, key_expert = xs
            allowed, extras, seen = None, {}, obs
            if steered:
                assert env.expert is not None
                allowed = jax.vmap(env.expert, in_axes=(0, None))(state, params)
                extras["expert"] = allowed
                seen = jnp.concatenate([obs, allowed], -1) if hints else obs
            start = jnp.full(total, t == 0)
            args = (seen, start, memory, noise, True)
            action, memory, recorded = policy.act(learner_state, hp.agent, *args)
            forced = always | (t < prefix)
            if allowed is not None:
                possible = jnp.take_along_axis(allowed, action[:, None], -1)[:, 0] > 0
                correcting = correcting | (correctable & ~possible)
                forced = forced | correcting
                # One draw per group, so that a group's episodes share their prefix.
                gumbel = repeat(jax.random.gumbel(key_expert, (count, allowed.shape[-1])))
                best = jnp.argmax(jnp.log(allowed) + gumbel, -1).astype(action.dtype)
                action = jnp.where(forced, best, action)
            after, ts = step_all(keys, state, action, params)
            returns = returns + jnp.where(live, scored(ts), 0.0)
            ts = limited(ts, t + 1, limit)
            extras |= recorded | {"valid": live, "forced": forced, "group": repeat(index)}
            flags = (ts.terminated, ts.truncated)
            row = Transition(obs, action, ts.reward, ts.next_obs, *flags, start, extras)
            live = live & ~row.done
            return (after, ts.next_obs, memory, live, returns, correcting), row

        off = jnp.zeros(total, bool)
        carry = (state, obs, policy.memory(total), ~off, jnp.zeros(total), off)
        xs = (jnp.arange(limit), noise, keys, jax.random.split(key_expert, limit))
        carry, window = jax.lax.scan(act, carry, xs)
        alone = ~jnp.any(window.extras["forced"], 0)
        lengths = jnp.sum(window.extras["valid"], 0).astype(jnp.float32)
        metrics = {
            "episode_return": mean_where(carry[4], alone),
            "episode_length": mean_where(lengths, alone),
        }
        return src, Batch(window), metrics

    def prefixes(hp: Any, key: Array) -> Array:
        """Steps [count] of the expert at the beginning of each group."""
        if plan.prefix_share is None or limit == 1:
            return jnp.zeros(count, jnp.int32)
        key_length, key_which = jax.random.split(key)
        length = jax.random.randint(key_length, (count,), 1, limit)
        which = jax.random.uniform(key_which, (count,)) < plan.prefix_share(hp)
        return jnp.where(which, length, 0)

    return Source(init=init, next=next, env_steps=count * size * limit)


def delayed(
    inner: Source,
    count: int,
    delay: int,
    *,
    older: int = 0,
    share: Callable[[Any], Array] | None = None,
) -> Source:
    """Windows that `inner` made `delay` updates ago, with some groups that are older still.

    The batch of an update was made by the policy `delay` updates before; the first ones by the
    initial policy. A group is older by 1 .. `older` further updates with the probability `share`.

    Args:
      count: groups in a window [T, N] of `inner`, a divisor of N.
      share: agent's hp -> [] probability.
    """
    slots = delay + older + 1
    if slots == 1:
        return inner

    def init(key, learner_state, hp, inputs):
        key_inner, key_fill = jax.random.split(key)
        src = inner.init(key_inner, learner_state, hp, inputs)
        draw = lambda src, key, i: inner.next(src, learner_state, hp, inputs, key, i)
        shape = jax.eval_shape(draw, src, key_fill, jnp.int32(0))[1].transitions
        ring = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), shape)

        def fill(i: Array, carry: PyTree) -> PyTree:
            src, ring = carry
            src, batch, _ = draw(src, jax.random.fold_in(key_fill, i), i)
            return src, write(ring, batch.transitions, i)

        return jax.lax.fori_loop(0, slots, fill, (src, ring))

    def next(src, learner_state, hp, inputs, key, step):
        key_inner, key_age, key_which = jax.random.split(key, 3)
        state, ring = src
        state, batch, metrics = inner.next(state, learner_state, hp, inputs, key_inner, step)
        ring = write(ring, batch.transitions, step % slots)
        age = jnp.full(count, delay)
        if older and share is not None:
            further = jax.random.randint(key_age, (count,), 1, older + 1)
            chosen = jax.random.uniform(key_which, (count,)) < share(hp.agent)
            age = age + jnp.where(chosen, further, 0)
        slot = (step - age) % slots

        def pick(x: Array) -> Array:
            """[T, N, ...] of leaves [slots, T, N, ...]."""
            by_group = x.reshape(*x.shape[:2], count, -1, *x.shape[3:])
            found = by_group[slot, :, jnp.arange(count)]  # [count, T, N / count, ...]
            return jnp.swapaxes(found, 0, 1).reshape(x.shape[1:])

        return (state, ring), Batch(jax.tree.map(pick, ring)), metrics

    return Source(init=init, next=next, env_steps=inner.env_steps)
