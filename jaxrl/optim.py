"""Gradient steps on flat vectors of parameters, target networks, and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.types import Array, PyTree


def linear(progress: Array, start: Array | float, end: Array) -> Array:
    """Linear from `start` at progress 0 to `end` at 1, constant from there."""
    return jnp.asarray(start + (end - start) * jnp.clip(progress, 0.0, 1.0), jnp.float32)


def clipped_radam(lr: Array, max_grad_norm: Array) -> optax.GradientTransformation:
    """Clipping by global norm, then RAdam."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.radam(lr))


def cosine(progress: Array, end: Array | float) -> Array:
    """From 1 at progress 0 along half a cosine to `end` at 1, constant from there."""
    half = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return end + (1 - end) * half


def warm_cosine(progress: Array) -> Array:
    """From 0.1 to 1 over the first tenth, then along half a cosine to 0."""
    up = 0.1 + 0.9 * progress / 0.1
    down = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((progress - 0.1) / 0.9, 0.0, 1.0)))
    return jnp.where(progress < 0.1, up, down)


def polyak(target: Array, params: Array, tau: Array) -> Array:
    """Polyak averaging: target + τ (params - target)."""
    return target + tau * (params - target)


def adam_step(params: Array, grads: Array, opt: PyTree, lr: Array) -> tuple[PyTree, PyTree]:
    """(params, opt) after one step of Adam on a vector, or stack of vectors, of parameters."""
    change, opt = optax.adam(lr).update(grads, opt)
    return optax.apply_updates(params, change), opt


class Trainable(NamedTuple):
    """Parameters, a vector or a stack of vectors, and the state of Adam."""

    params: Array
    opt: PyTree


def minimise(
    loss: Callable[[Array], tuple[Array, Any]],
    at: Trainable,
    lr: Array,
    max_grad_norm: Array | float | None = None,
) -> tuple[Trainable, Array, Any]:
    """One step of Adam on `loss`.

    Args:
      loss: parameters -> (loss [], auxiliary results).
      max_grad_norm: norm to which the gradient is clipped; None for no clipping.

    Returns:
      (parameters and optimiser after the step, loss before it, auxiliary results).
    """
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(at.params)
    if max_grad_norm is not None:
        grads = clip_norm(grads, max_grad_norm)
    return Trainable(*adam_step(at.params, grads, at.opt, lr)), value, aux


def clip_norm(grads: Array, largest: Array | float) -> Array:
    """`grads`, scaled down to norm `largest` if the norm is larger."""
    return grads * jnp.minimum(1.0, largest / jnp.linalg.norm(grads.reshape(-1)))
