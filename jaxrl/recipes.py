"""Programs (on-policy, off-policy, offline, offline-to-online), and checks of their sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.exploration import random_policy
from jaxrl.program import Program, Stage
from jaxrl.rollout import rollout
from jaxrl.sources import mix, replay, split_batch, uniform
from jaxrl.types import Agent, Batch, Env, Policy, PyTree, Source, as_mean


def single_stage(
    cfg: Any,
    agent: Agent,
    source: Source,
    evaluate: Callable[..., PyTree],
    evals: int,
    after: tuple[Stage, ...] = (),
) -> Program:
    """`cfg.updates` updates of `agent` from `source`, with `evals` evaluations.

    Args:
      after: later stages; with them the first stage is called "offline" instead of "agent".
    """
    stage = Stage(
        name="offline" if after else "agent",
        learner=agent,
        source=source,
        updates=cfg.updates,
        evals=evals,
        evaluate=evaluate,
    )
    return Program((stage, *after))


def on_policy(cfg: Any, env: Env, agent: Agent, evals: int, episodes: int) -> Program:
    """Updates on windows of the agent's own rollouts."""
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps, resets=cfg.resets or None)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


def off_policy(cfg: Any, env: Env, agent: Agent, evals: int, episodes: int) -> Program:
    """Updates on batches from a replay buffer of the agent's own rollouts."""
    return single_stage(
        cfg, agent, replayed(cfg, env, agent), evaluator(env, agent, episodes), evals
    )


def offline_program(
    cfg: Any,
    env: Env,
    agent: Agent,
    evals: int,
    episodes: int,
    *,
    source: Source | None = None,
    explore: bool = False,
    after: tuple[Stage, ...] = (),
) -> Program:
    """Updates on batches of data; the environment is used for evaluation only.

    Args:
      source: source of the batches; by default uniform batches of inputs["data"].
      explore: evaluate with exploration, for agents that choose among sampled candidates.
      after: see `single_stage`.
    """
    evaluate = evaluator(env, agent, episodes, explore=explore)
    return single_stage(cfg, agent, source or uniform(cfg.batch_size), evaluate, evals, after)


def replayed(cfg: Any, env: Env, agent: Agent, first: Policy | None = None) -> Source:
    """A replay buffer of the agent's rollouts, warmed up by `first`, by default random actions."""
    acting = lambda policy: rollout(env, policy, cfg.num_envs, cfg.num_steps)
    return replay(
        acting(agent),
        cfg.capacity,
        cfg.gradient_steps * cfg.batch_size,
        warmup=math.ceil(cfg.warmup / cfg.window),
        first=acting(first or random_policy(env.spec.action, env.spec.masked)),
        n_step=cfg.n_step,
    )


def mixed(cfg: Any, env: Env, agent: Agent, first: Policy | None = None) -> Source:
    """Batches for `gradient_steps`, each with `data_share` rows of data and replay for the rest.

    Args:
      first: see `replayed`.
    """
    rows = cfg.gradient_steps * cfg.batch_size
    data = uniform(rows, n_step=cfg.n_step)
    return mix(data, replayed(cfg, env, agent, first), cfg.data_share, rows, cfg.gradient_steps)


def fine_tuning(
    cfg: Any,
    env: Env,
    agent: Agent,
    evals: int,
    episodes: int,
    *,
    data: Callable[[int], Source] = uniform,
    own: Callable[[Source], Source] = lambda replayed: replayed,
    explore: bool = False,
) -> tuple[Stage, ...]:
    """The stage "online" that goes on with the agent of the stage "offline"; () without it.

    Batches have `cfg.data_share` rows of data, the others are from a replay buffer of the agent's
    own steps. Each step of all environments is followed by `cfg.finetune_gradient_steps` updates.

    Args:
      data: source of the rows of data, by their number; by default `uniform`.
      own: changes the source of replayed rows.
      explore: evaluations act as in training.
    """
    if not cfg.finetune_steps:
        return ()
    count = cfg.finetune_gradient_steps
    rows = count * cfg.batch_size
    played = replay(rollout(env, agent, cfg.num_envs, 1), cfg.capacity, rows)
    online = Stage(
        name="online",
        learner=agent if count == 1 else several_steps(agent, count),
        source=mix(data(rows), own(played), cfg.data_share, rows, count),
        updates=cfg.finetune_steps // cfg.num_envs,
        evals=evals,
        start="offline",
        evaluate=evaluator(env, agent, episodes, explore=explore),
    )
    return (online,)


def several_steps(agent: Agent, count: int) -> Agent:
    """`agent` whose updates make `count` steps, each with an equal part of the batch."""

    def update(state, hp, batch, key, step):
        def one(state: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
            rows, key, i = xs
            state, metrics = agent.update(state, hp, Batch(rows), key, step * count + i)
            return state, {name: as_mean(value) for name, value in metrics.items()}

        xs = (split_batch(batch.transitions, count), jax.random.split(key, count))
        state, metrics = jax.lax.scan(one, state, (*xs, jnp.arange(count)))
        return state, jax.tree.map(jnp.sum, metrics)

    return dataclasses.replace(agent, update=update)


def check_fine_tuning(cfg: Any) -> None:
    """Raises UserError if the sizes of `fine_tuning` do not fit together."""
    at_least(0, finetune_steps=cfg.finetune_steps)
    at_least(1, num_envs=cfg.num_envs, finetune_gradient_steps=cfg.finetune_gradient_steps)
    at_least(1, capacity=cfg.capacity)
    check_share(cfg)
    if cfg.finetune_steps:
        at_least(cfg.num_envs, finetune_steps=cfg.finetune_steps, capacity=cfg.capacity)


def check_share(cfg: Any, option: str = "data_share") -> None:
    """Raises UserError if a fraction of batches is not in [0, 1]."""
    if not 0 <= (share := getattr(cfg, option)) <= 1:
        raise UserError(f"{option}={share} must be between 0 and 1")


def check_offline(cfg: Any) -> None:
    """Raises UserError if a size in an offline agent's `Config` is below one."""
    at_least(1, updates=cfg.updates, batch_size=cfg.batch_size, hidden=cfg.hidden)


def check_rollouts(cfg: Any, *layers: str, resets: int = 0) -> None:
    """Raises UserError if the sizes of a `Config` with rollouts do not fit together.

    Args:
      layers: names of the entries with widths of layers.
      resets: initial states per environment and rollout; 0 for one per step.
    """
    at_least(
        1,
        num_envs=cfg.num_envs,
        num_steps=cfg.num_steps,
        minibatches=cfg.minibatches,
        epochs=cfg.epochs,
        **{name: getattr(cfg, name) for name in layers},
    )
    if resets < 0 or (resets and cfg.num_steps % resets):
        raise UserError(f"resets={resets} does not divide num_steps={cfg.num_steps}")
    check_minibatches(cfg, "minibatches")
    check_length(cfg)


def check_minibatches(cfg: Any, option: str) -> None:
    """Raises UserError if a number of minibatches does not divide the rows of a rollout."""
    count, rows = getattr(cfg, option), cfg.num_envs * cfg.num_steps
    if rows % count:
        raise UserError(f"{option}={count} does not divide num_envs * num_steps = {rows}")


def check_replay(cfg: Any) -> None:
    """Raises UserError if the sizes of a `Config` with replay do not fit together."""
    at_least(
        1,
        num_envs=cfg.num_envs,
        num_steps=cfg.num_steps,
        gradient_steps=cfg.gradient_steps,
        batch_size=cfg.batch_size,
        n_step=getattr(cfg, "n_step", 1),
        warmup=cfg.warmup,
        capacity=cfg.capacity,
    )
    check_length(cfg)
    slots = cfg.capacity // cfg.window
    if slots < math.ceil(cfg.warmup / cfg.window):
        raise UserError(
            f"capacity={cfg.capacity} holds {slots} windows of {cfg.window} steps, too few for "
            f"warmup={cfg.warmup}"
        )


def check_length(cfg: Any) -> None:
    """Raises UserError if a run has fewer steps than one rollout of all environments."""
    if cfg.updates < 1:
        raise UserError(
            f"total_steps={cfg.total_steps} is less than one rollout of num_envs * num_steps = "
            f"{cfg.num_envs * cfg.num_steps}"
        )
