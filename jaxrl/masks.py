"""Observations with action masks, and with a view of their own for value functions.

An environment whose `EnvSpec.masked` is set gives `Masked` observations, in `reset` and as
`TimeStep.next_obs`. Sources carry them like any pytree, so a batch has the masks of observations
and of successors. Policies that never take an illegal action have `Policy.masks` set; others are
refused in such environments. Without masks all functions return their input: the same program.

An environment whose `EnvSpec.critic_shape` is set gives `Views`: what the policy sees, and what
value functions see in training, such as the hidden part of a simulator's state (asymmetric
actor-critic, Pinto et al. 2017, arXiv:1710.06542). A trained policy acts on its own view alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.types import Array, Env, EnvSpec, Policy

ILLEGAL_LOGIT = -1e9  # probability 0 in float32; finite, so that entropies and gradients are too


class Masked(NamedTuple):
    """An observation and the legal actions in it."""

    obs: Array  # [..., *obs] float32
    legal: Array  # [..., A] bool; one without any legal action counts as all legal


class Views(NamedTuple):
    """An observation of the policy and one of value functions."""

    obs: Any  # [..., *obs], or Masked: what the policy sees
    critic: Array  # [..., *critic] float32: what value functions see


def unmask(seen: Any) -> tuple[Any, Any]:
    """(observation, legal actions) of what the policy sees; None without a mask."""
    seen = seen.obs if isinstance(seen, Views) else seen
    return (seen.obs, seen.legal) if isinstance(seen, Masked) else (seen, None)


def critic_view(seen: Any) -> Any:
    """What value functions see of an observation."""
    return seen.critic if isinstance(seen, Views) else unmask(seen)[0]


def critic_shape(spec: EnvSpec) -> tuple[int, ...]:
    """The shape of `critic_view`, without the axis of rows."""
    return spec.obs_shape if spec.critic_shape is None else spec.critic_shape


def map_obs(function: Callable[[Array], Array], seen: Any) -> Any:
    """`function` of the policy's observation, with the same mask and the same view of critics."""
    if isinstance(seen, Views):
        return seen._replace(obs=map_obs(function, seen.obs))
    return seen._replace(obs=function(seen.obs)) if isinstance(seen, Masked) else function(seen)


def legal_only(values: Array, legal: Array | None, fill: float = -jnp.inf) -> Array:
    """Values [..., A] of actions, `fill` where an action is illegal.

    With -inf, the maximum and its index are those of legal actions. Logits get `ILLEGAL_LOGIT`
    (Huang and Ontañón 2020, arXiv:2006.14171).
    """
    return values if legal is None else jnp.where(some_legal(legal), values, fill)


def random_legal(uniform: Array, legal: Array) -> Array:
    """Uniformly random legal actions [n] int32 of numbers [n] in [0, 1) and masks [n, A]."""
    legal = some_legal(legal)
    count = jnp.sum(legal, -1, dtype=jnp.int32)
    rank = jnp.minimum((uniform * count).astype(jnp.int32), count - 1)
    return jnp.argmax(jnp.cumsum(legal, -1) > rank[..., None], -1).astype(jnp.int32)


def some_legal(legal: Array) -> Array:
    """Masks [..., A], all legal where none is, as after the end of a game."""
    return legal | ~jnp.any(legal, -1, keepdims=True)


def check_policy(env: Env, policy: Policy) -> None:
    """Raises UserError if `env` has action masks and `policy` may take illegal actions, or if
    observations are bytes or `Views`, which `policy` does not take."""
    if env.spec.critic_shape is not None and not policy.views:
        raise UserError(
            f"{env.spec.name} has an observation for critics alone, which this agent does not "
            "support: use ppo, trpo, mdpo or sac, or leave out hide_from or critic_obs"
        )
    if env.spec.obs_dtype == "uint8" and not policy.bytes:
        raise UserError(
            f"{env.spec.name} has observations of bytes, which this agent does not support: use "
            "pqn, dqn, ppo or mdpo"
        )
    if env.spec.masked and not policy.masks:
        raise UserError(
            f"{env.spec.name} has action masks, which this agent does not support: use pqn, dqn, "
            "ppo, trpo, mdpo or sac, or --env-options masks=false to play without them"
        )
