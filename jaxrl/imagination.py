"""Rollouts in a model: the `Model` record, the environment as a model, and the source of batches.

A `Model` is a record of functions, so that a learned ensemble (`jaxrl.dynamics.model`) and the
environment itself (`true_model`) are interchangeable. `imagined` makes k-step rollouts of the
current policy from states of the data, as in MBPO: When to Trust Your Model. Michael Janner, Justin
Fu, Marvin Zhang, Sergey Levine. NeurIPS 2019, arXiv:1906.08253.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError, at_least
from jaxrl.sources import below, gather, take, write
from jaxrl.types import (
    Array,
    Batch,
    Env,
    HyperParams,
    Mean,
    Policy,
    PyTree,
    Source,
    Transition,
    mean_where,
)


class Outcome(NamedTuple):
    """A model's prediction of n steps."""

    next_obs: Array  # [n, *obs]
    reward: Array  # [n] float32
    terminated: Array  # [n] bool
    truncated: Array  # [n] bool
    uncertainty: Array  # [n] float32; 0 if the model is the environment itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model of an environment, for n rows at once.

    start(data [n]) -> world: the model's state, beside observations, at the states of `data`
    step(inputs, hp, world, obs [n, *obs], action [n, ...], key) -> (world, Outcome)

    `inputs` and `hp` are those of a source.
    """

    start: Callable[[Transition], PyTree]
    step: Callable[..., tuple[PyTree, Outcome]]


Rule = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(obs [n, *obs], action [n, ...], next_obs [n, *obs]) -> (reward [n], terminated [n])"""


def known_outcomes(env: Env, option: str) -> Rule:
    """`Env.outcome` of rows.

    Args:
      option: what to pass where there is none, for the message.

    Raises:
      UserError: the environment has no `Env.outcome`.
    """
    if (rule := env.outcome) is None:
        raise UserError(f"{env.spec.name} has no Env.outcome: pass {option}")
    rows = jax.vmap(rule, (0, 0, 0, None))
    return lambda obs, action, after: rows(obs, action, after, env.params)


def true_model(env: Env) -> Model:
    """`env.step` from the simulator states in `extras["state"]` of the data.

    `start` raises UserError if the data have no states, or states of another environment.
    """

    def start(data: Transition) -> PyTree:
        shapes = jax.eval_shape(lambda: env.reset(jax.random.key(0), env.params)[0])
        leaves, tree = jax.tree.flatten(shapes)
        stored: Any = data.extras.get("state", ())
        if [x.shape[1:] for x in stored] != [x.shape for x in leaves]:
            raise UserError(
                f"the true dynamics of {env.spec.name} need data with simulator states: "
                "make them with `jaxrl data make`"
            )
        typed = [x.astype(leaf.dtype) for x, leaf in zip(stored, leaves, strict=True)]
        return jax.tree.unflatten(tree, typed)

    def step(
        inputs: PyTree, hp: HyperParams, world: PyTree, obs: Array, action: Array, key: Array
    ) -> tuple[PyTree, Outcome]:
        keys = jax.random.split(key, obs.shape[0])
        params = hp.env_params(env)
        world, ts = jax.vmap(env.step, (0, 0, 0, None))(keys, world, action, params)
        return world, Outcome(*ts[:4], uncertainty=jnp.zeros(obs.shape[0]))

    return Model(start=start, step=step)


def penalised(model: Model) -> Model:
    """`model` with rewards r - λ u, λ = hp.agent.penalty and u the uncertainty, as in MOPO."""

    def step(
        inputs: PyTree, hp: HyperParams, world: PyTree, obs: Array, action: Array, key: Array
    ) -> tuple[PyTree, Outcome]:
        world, out = model.step(inputs, hp, world, obs, action, key)
        return world, out._replace(reward=out.reward - hp.agent.penalty * out.uncertainty)

    return dataclasses.replace(model, step=step)


class Imagination(NamedTuple):
    """Rows of the last `retain` refreshes, one slot each; the first `filled` rows are valid."""

    ring: Transition  # [retain, steps * starts, ...]
    filled: Array  # [retain] int32
    seen: dict[str, Mean]  # metrics of the last refresh


def imagined(
    model: Model,
    policy: Policy,
    *,
    starts: int,
    steps: int,
    every: int,
    retain: int,
    batch_size: int,
    name: str = "data",
) -> Source:
    """Batches [B] of steps of the policy in a model, drawn with replacement.

    Each refresh makes rollouts of `steps` steps of the current policy, with exploration, from
    `starts` rows of inputs[name], drawn with replacement. A rollout ends at termination or
    truncation. All rows made are equally likely to be drawn, whatever the lengths of the rollouts.
    extras["rollout_end"] marks the last steps of rollouts, whose successors begin no row.

    Metrics of the latest refresh: `uncertainty_first` and `uncertainty_last`, means of the model's
    uncertainty in first and last steps.

    Args:
      every: updates between refreshes.
      retain: refreshes whose rows are kept.
    """
    at_least(1, starts=starts, steps=steps, every=every, retain=retain, batch_size=batch_size)

    def play(
        learner_state: PyTree, hp: HyperParams, inputs: PyTree, key: Array
    ) -> tuple[Transition, Array, Array]:
        """Steps, their uncertainty, and whether they are before their rollout's end [K, n]."""
        key_rows, key_steps = jax.random.split(key)
        data: Transition = inputs[name]
        begin = gather(data, below(key_rows, starts, jnp.int32(data.reward.shape[0])))

        def act(carry: PyTree, xs: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
            world, obs, start, memory, alive = carry
            key, end = xs
            key_noise, key_step = jax.random.split(key)
            action, memory, _ = policy.act(
                learner_state, hp.agent, obs, start, memory, policy.noise(key_noise, starts), True
            )
            world, out = model.step(inputs, hp, world, obs, action, key_step)
            extras = {"rollout_end": jnp.broadcast_to(end, (starts,))}
            made = Transition(
                obs,
                action,
                out.reward,
                out.next_obs,
                out.terminated,
                out.truncated,
                start,
                extras,
            )
            on = alive & ~made.done
            after = (world, out.next_obs, jnp.zeros_like(start), memory, on)
            return after, (made, out.uncertainty, alive)

        # Memory is reset here, also in the middle of an episode.
        first = jnp.ones(starts, bool)
        carry = (model.start(begin), begin.obs, first, policy.memory(starts), first)
        xs = (jax.random.split(key_steps, steps), jnp.arange(steps) == steps - 1)
        return jax.lax.scan(act, carry, xs)[1]

    def summary(uncertainty: Array, alive: Array) -> dict[str, Mean]:
        return {
            "uncertainty_first": mean_where(uncertainty[0], alive[0]),
            "uncertainty_last": mean_where(uncertainty[-1], alive[-1]),
        }

    def init(key, learner_state, hp, inputs):
        made, *told = jax.eval_shape(play, learner_state, hp, inputs, key)
        empty = lambda x: jnp.zeros((retain, steps * starts, *x.shape[2:]), x.dtype)
        seen = jax.tree.map(jnp.zeros_like, jax.eval_shape(summary, *told))
        return Imagination(jax.tree.map(empty, made), jnp.zeros(retain, jnp.int32), seen)

    def refresh(src, learner_state, hp, inputs, key, step):
        made, uncertainty, alive = play(learner_state, hp, inputs, key)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)
        kept = jnp.flatnonzero(alive, size=steps * starts, fill_value=0)
        slot = step // every % retain
        filled = src.filled.at[slot].set(jnp.sum(alive, dtype=jnp.int32))
        return Imagination(
            write(src.ring, take(rows, kept), slot), filled, summary(uncertainty, alive)
        )

    def next(src, learner_state, hp, inputs, key, step):
        ends = jnp.cumsum(src.filled)
        number = below(key, batch_size, ends[-1])
        slot = jnp.sum(number[:, None] >= ends[None], -1)
        row = number - (ends - src.filled)[slot]
        return src, Batch(jax.tree.map(lambda x: x[slot, row], src.ring)), src.seen

    return Source(init=init, next=next, refresh=refresh, every=every)
