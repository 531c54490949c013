"""Gradient steps, target networks, and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.types import Array, Mean, PyTree, as_mean


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


def polyak(target: PyTree, params: PyTree, tau: Array) -> PyTree:
    """Polyak averaging: target + τ (params - target)."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), target, params)


def adam_step(params: PyTree, grads: PyTree, opt: PyTree, lr: Array) -> tuple[PyTree, PyTree]:
    """(params, opt) after one step of Adam."""
    change, opt = optax.adam(lr).update(grads, opt)
    return optax.apply_updates(params, change), opt


class Trainable(NamedTuple):
    """Parameters and the state of Adam."""

    params: PyTree
    opt: PyTree


def minimise(
    loss: Callable[[Any], tuple[Array, Any]],
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


def clip_norm(grads: PyTree, largest: Array | float) -> PyTree:
    """`grads`, scaled down to the global norm `largest` if the norm is larger."""
    scale = jnp.minimum(1.0, largest / optax.tree.norm(grads))
    return jax.tree.map(lambda x: x * scale, grads)


def update_if(
    due: Array, update: Callable[[], tuple[PyTree, dict[str, Any]]], kept: PyTree = ()
) -> tuple[PyTree, dict[str, Mean]]:
    """`update()`, a state and metrics, where `due` [] holds; otherwise `kept`, and metrics of
    weight 0, which running means leave out."""

    def improve() -> tuple[PyTree, dict[str, Mean]]:
        state, metrics = update()
        return state, {name: as_mean(x) for name, x in metrics.items()}

    def wait() -> tuple[PyTree, dict[str, Mean]]:
        nothing = lambda x: jnp.zeros(x.shape, x.dtype)
        return kept, jax.tree.map(nothing, jax.eval_shape(improve)[1])

    return jax.lax.cond(due, improve, wait)
