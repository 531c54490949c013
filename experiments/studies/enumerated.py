"""Exact expectations of token policies, over all prompts and responses of a small task."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.envs import tokens
from jaxrl.objectives.distillation import kl
from jaxrl.objectives.table import chosen
from jaxrl.sequence import SequenceModel, SequenceParams
from jaxrl.types import Array


class Listed(NamedTuple):
    """All Q prompts and R responses of T tokens, in lexical order."""

    prompts: Array  # [Q, P]
    action: Array  # [Q, R, T]
    obs: Array  # [Q, R, T, F]
    right: Array  # [Q, R] bool: accepted
    expert: Array  # [Q, 1, T, A] probabilities of the expert


def listed(rule: tokens.TokenTask) -> Listed:
    """The enumeration of a task without physical parameters.

    Raises:
      EnvError: there are more than 10^6 prompts or responses.
    """
    prompts = jnp.asarray(tokens.enumerate_tokens(rule.alphabet, rule.prompt_length))
    every = jnp.asarray(tokens.enumerate_tokens(rule.alphabet, rule.length))
    at = jnp.arange(rule.length)

    def observed(prompt: Array, response: Array) -> Array:
        last = jnp.concatenate([jnp.full(1, -1, jnp.int32), response[:-1]])
        see = lambda last, t: rule.observe(tokens.TokenState(prompt, jnp.bool_(True), last, t))
        return jax.vmap(see)(last, at)

    pairs = lambda f: jax.vmap(jax.vmap(f, (None, 0)), (0, None))(prompts, every)
    expert = jax.vmap(lambda prompt: jax.vmap(lambda t: rule.expert(prompt, t, {}))(at))(prompts)
    return Listed(
        prompts,
        jnp.broadcast_to(every, (len(prompts), *every.shape)),
        pairs(observed),
        pairs(lambda prompt, response: rule.verify(prompt, response, {})),
        expert[:, None],
    )


def every_log_prob(model: SequenceModel, params: SequenceParams, task: Listed) -> Array:
    """log π [Q, R, T, A] along all responses."""
    flat = task.obs.reshape(-1, *task.obs.shape[2:])
    return model.log_probs(params, flat).reshape(*task.action.shape, -1)


def probability(log_probs: Array, task: Listed) -> Array:
    """π [Q, R] of whole responses."""
    return jnp.exp(jnp.sum(chosen(log_probs, task.action), -1))


def success(log_probs: Array, task: Listed) -> Array:
    """p [Q], the probability that a response to each prompt is accepted."""
    return jnp.sum(jnp.where(task.right, probability(log_probs, task), 0.0), -1)


def pass_at(k: int, success: Array) -> Array:
    """The probability 1 - (1 - p)^k that one of k responses is accepted, mean over prompts []."""
    return jnp.mean(1 - (1 - success) ** k)


def divergence(log_probs: Array, task: Listed, noise: Array | float) -> Array:
    """E Σ_t KL(π ‖ π_T) [] over responses of π, mean over prompts.

    The teacher π_T is the expert that errs with probability `noise`.
    """
    guide = jnp.broadcast_to(tokens.teacher(task.expert, noise), log_probs.shape)
    each = jnp.sum(kl(log_probs, guide), -1)
    return jnp.mean(jnp.sum(probability(log_probs, task) * each, -1))
