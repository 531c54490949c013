"""Adversarial imitation: losses of discriminators, and replay weighted by a boosted mixture.

Boosting (AILBoost, arXiv:2404.08513): the learner of round t is the mixture π_mix,t of the policies
of rounds 0 .. t with weights

  w_0 = (1 - α)^t,  w_i = α (1 - α)^(t - i) for i = 1 .. t,

which sum to 1, since π_mix,t = (1 - α) π_mix,t-1 + α π_t. `mixture` draws rows of a replay buffer
with these weights of their rounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.sources import below, take
from jaxrl.types import Array, Source


def logistic_loss(expert: Array, policy: Array) -> Array:
    """-mean log D(expert) - mean log (1 - D(policy)) [] of logits [B] each, D = sigmoid."""
    return jnp.mean(jax.nn.softplus(-expert)) + jnp.mean(jax.nn.softplus(policy))


def reverse_kl_loss(expert: Array, policy: Array) -> Array:
    """mean exp g(expert) - mean g(policy) [] of values [B] each.

    Its minimum over g is at log d_policy / d_expert, where it is 1 - KL(d_policy || d_expert).
    """
    return jnp.mean(jnp.exp(expert)) - jnp.mean(policy)


def gradient_penalty(
    value_of: Callable[[Array], Array], expert: Array, policy: Array, key: Array
) -> Array:
    """Mean of (‖∇f(x)‖ - 1)² [] at random points between rows [B, F] of expert and policy.

    Gulrajani et al., Improved Training of Wasserstein GANs, NeurIPS 2017, arXiv:1704.00028.

    Args:
      value_of: inputs [B, F] -> values [B], row by row.
    """
    share = jax.random.uniform(key, (expert.shape[0], 1))
    between = share * expert + (1 - share) * policy
    slopes = jax.grad(lambda x: jnp.sum(value_of(x)))(between)
    norm = jnp.sqrt(jnp.sum(slopes**2, -1) + 1e-12)  # the root has no gradient at 0
    return jnp.mean((norm - 1) ** 2)


# --- boosting ------------------------------------------------------------------------------------


def mixture_weights(alpha: Array | float, current: Array, rounds: int) -> Array:
    """Weights [rounds] of the policies of rounds 0 .. current; 0 for later rounds."""
    i = jnp.arange(rounds)
    share = jnp.where(i == 0, 1.0, alpha)
    age = jnp.maximum(current - i, 0)
    return jnp.where(i <= current, share * (1 - jnp.asarray(alpha, jnp.float32)) ** age, 0.0)


class Rounds(NamedTuple):
    """Windows of each round that are in a ring, numbered from the first ever written."""

    weight: Array  # [rounds] probability of the round; sums to 1
    first: Array  # [rounds] int32
    end: Array  # [rounds] int32, the window after the last


def rounds_in_ring(
    alpha: Array | float, step: Array, slots: int, warmup: int, every: int, rounds: int
) -> Rounds:
    """The rounds after the window of update `step` was written.

    Args:
      slots: windows that the ring holds; rounds that have left it have weight 0.
      warmup: windows of the warm-up, which belong to round 0.
      every: windows per round.
      rounds: number of rounds of the whole run.
    """
    written, i = step + warmup + 1, jnp.arange(rounds)
    begin = jnp.where(i == 0, 0, warmup + i * every)
    end = jnp.minimum(warmup + (i + 1) * every, written)
    first = jnp.maximum(begin, written - slots)
    weight = jnp.where(first < end, mixture_weights(alpha, step // every, rounds), 0.0)
    return Rounds(weight / jnp.sum(weight), first, end)


def mixture(inner: Source, batch_size: int, updates: int, warmup: int, every: int) -> Source:
    """The rows of `inner`, a replay, followed by `batch_size` rows with the weights of the mixture.

    Rows of one round are equally likely. hp.agent.alpha is the weight α of a new policy.

    Args:
      updates, warmup: updates of the run, and windows of the replay's warm-up.
      every: updates per round.
    """
    rounds = math.ceil(updates / every)

    def next(src, learner_state, hp, inputs, key, step):
        key_inner, key_round, key_window, key_row = jax.random.split(key, 4)
        src, batch, seen = inner.next(src, learner_state, hp, inputs, key_inner, step)
        slots, *window = src.ring.reward.shape
        found = rounds_in_ring(hp.agent.alpha, step, slots, warmup, every, rounds)
        number = jax.random.categorical(key_round, jnp.log(found.weight), shape=(batch_size,))
        length = (found.end - found.first)[number]
        place = jax.random.uniform(key_window, (batch_size,))
        offset = jnp.minimum((place * length).astype(jnp.int32), length - 1)
        slot = (found.first[number] + offset) % slots
        rows = slot * math.prod(window) + below(key_row, batch_size, jnp.int32(math.prod(window)))
        drawn = take(jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), src.ring), rows)
        join = lambda x, y: jnp.concatenate([x, y])
        return src, batch._replace(transitions=jax.tree.map(join, batch.transitions, drawn)), seen

    return dataclasses.replace(inner, next=next)
