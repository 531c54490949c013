"""Responses of a batch as the arrays that the objectives of `jaxrl.objectives.table` read."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.objectives import (
    SpoTracker,
    batch_normalised,
    spo_begin,
    spo_forgetting,
    spo_track,
)
from jaxrl.objectives.table import Objective, Tokens, chosen
from jaxrl.sequence import SequenceModel, SequenceParams
from jaxrl.types import Array, EnvSpec, Transition

SAMPLES = 8  # OTR's draws per position


class Last(NamedTuple):
    """The last response to each prompt of the pool, for SPO's tracker."""

    obs: Array  # [Q, T, *obs]
    action: Array  # [Q, T]
    log_prob: Array  # [Q, T]
    mask: Array  # [Q, T] bool; False everywhere before the first response


class Tracked(NamedTuple):
    tracker: SpoTracker  # [Q]
    last: Last


class Responses(NamedTuple):
    """G groups of R responses of up to T tokens: K own ones, then expert traces.

    The last five fields are None for objectives that do not use them.
    """

    obs: Array  # [G, R, T, *obs]
    action: Array  # [G, R, T]
    log_prob: Array  # [G, R, T] of the policy that responded
    forced: Array  # [G, R, T] bool: tokens of the expert
    mask: Array  # [G, R, T] bool
    reward: Array  # [G, R] sums over the response
    advantage: Array  # [G, R]; 0 in expert traces
    expert: Array | None  # [G, R, T, A] probabilities
    proximal: Array | None  # [G, R, T] log-probabilities at the start of the update
    guide: Array | None  # [G, R, T, A] log-probabilities of a teacher that is constant
    hidden: Array | None  # [G, R, T, embedding + H] normal noise
    draws: Array | None  # [G, R, T, SAMPLES, A] Gumbel noise


def responses(
    cfg: Any,
    objective: Objective,
    model: SequenceModel,
    state: Any,
    hp: Any,
    t: Transition,
    key: Array,
) -> tuple[Responses, Tracked | None]:
    """The responses of a window [T, N] of `groups`, and the tracker after them."""
    split = lambda x: x.reshape(x.shape[0], cfg.prompts, -1, *x.shape[2:])
    grouped = lambda x: jnp.moveaxis(split(x), 0, 2)
    found: Transition = jax.tree.map(grouped, t)
    extras = found.extras
    key_drop, key_hidden, key_draws = jax.random.split(key, 3)
    mask = extras["valid"]
    reward = jnp.sum(jnp.where(mask, found.reward, 0.0), -1)
    log_prob = chosen(extras["log_probs"], found.action)
    own = reward[:, : cfg.group]
    if state.tracked is None:
        advantage = objective.advantage(own, hp, jax.random.uniform(key_drop, own.shape))
        tracked = None
    else:
        last = Last(*(x[:, 0] for x in (found.obs, found.action, log_prob, mask)))
        index = extras["group"][:, 0, 0]
        value, tracked = track(model, state.params, state.tracked, index, last, own)
        advantage = batch_normalised(own - value[:, None])
    traces = reward.shape[1] - cfg.group
    expert, guide, proximal = extras.get("expert"), None, None
    if objective.proximal:
        log_probs = by_response(model.log_probs, state.params, found.obs)
        proximal = chosen(log_probs, found.action)
    if objective.guide == "expert":
        assert expert is not None
        noise = hp.teacher_noise
        guide = jnp.log((1 - noise) * expert + noise / expert.shape[-1])
    elif objective.guide == "reference":
        guide = by_response(model.log_probs, state.reference, found.obs, expert)
    size, actions = mask.shape, model.net.actions
    width = cfg.embedding + cfg.memory
    data = Responses(
        found.obs,
        found.action,
        log_prob,
        extras["forced"],
        mask,
        reward,
        jnp.pad(advantage, ((0, 0), (0, traces))),
        expert if objective.guide == "itself" else None,
        proximal,
        guide,
        jax.random.normal(key_hidden, (*size, width)) if objective.perturbed else None,
        jax.random.gumbel(key_draws, (*size, SAMPLES, actions)) if objective.draws else None,
    )
    return data, tracked


def by_response(function: Any, params: SequenceParams, *arrays: Array | None) -> Array:
    """function(params, arrays [B, ...]) of arrays [G, R, ...], as [G, R, ...]."""
    out = function(params, *(None if x is None else merge(x) for x in arrays))
    first = arrays[0]
    assert first is not None
    return out.reshape(*first.shape[:2], *out.shape[1:])


def merge(x: Array) -> Array:
    """[G, R, ...] as [G * R, ...]."""
    return x.reshape(-1, *x.shape[2:])


def tokens_of(
    cfg: Any,
    objective: Objective,
    model: SequenceModel,
    params: SequenceParams,
    part: Responses,
    progress: Array,
) -> Tokens:
    """The record that losses read, with the log-probabilities under `params`."""
    rows = part.mask.shape[1]
    own = jnp.broadcast_to((jnp.arange(rows) < cfg.group)[None], part.reward.shape)
    column = lambda x: x.reshape(-1, 1)
    x: Responses = jax.tree.map(merge, part)
    guide = x.guide
    if objective.guide == "itself":
        guide = model.log_probs(params, x.obs, x.expert)
    return Tokens(
        log_probs=model.log_probs(params, x.obs, None, x.hidden),
        action=x.action,
        behaviour=x.log_prob,
        advantage=column(part.advantage),
        reward=column(part.reward),
        mask=x.mask,
        group=rows,
        own=column(own),
        forced=x.forced,
        proximal=x.proximal,
        guide=guide,
        progress=progress,
        noise=x.draws,
    )


# --- SPO's tracker -------------------------------------------------------------------------------


def fresh_tracker(spec: EnvSpec, pool: int, objective: Objective) -> Tracked | None:
    """Success rates 1/2 of all prompts of the pool; None if the objective has no tracker."""
    if not objective.tracked:
        return None
    shape = (pool, spec.max_steps or 1)
    obs, action = jnp.zeros((*shape, *spec.obs_shape)), jnp.zeros(shape, jnp.int32)
    last = Last(obs, action, jnp.zeros(shape), jnp.zeros(shape, bool))
    return Tracked(spo_begin(jnp.zeros(pool), 0), last)


def track(
    model: SequenceModel,
    params: SequenceParams,
    tracked: Tracked,
    index: Array,
    new: Last,
    reward: Array,
) -> tuple[Array, Tracked]:
    """(values [G] before the rewards, tracker after them) of the prompts `index` [G].

    Args:
      new: responses [G, T, ...] to the prompts.
      reward: [G, K]; the tracker takes the mean over a group.
    """
    before: SpoTracker = jax.tree.map(lambda x: x[index], tracked.tracker)
    old: Last = jax.tree.map(lambda x: x[index], tracked.last)
    change = jnp.abs(chosen(model.log_probs(params, old.obs), old.action) - old.log_prob)
    count = jnp.maximum(jnp.sum(old.mask, -1), 1)
    distance = jnp.sum(jnp.where(old.mask, change, 0.0), -1) / count
    after = spo_track(before, jnp.mean(reward, -1), spo_forgetting(distance))
    place = lambda x, y: x.at[index].set(y)
    return before.value, jax.tree.map(place, tracked, Tracked(after, new))
