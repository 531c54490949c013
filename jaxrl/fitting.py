"""Learners fitted to a dataset in one loop, and networks applied to many rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.sources import uniform
from jaxrl.types import Array, HyperParams, Learner, PyTree, Transition

PIECE = 4096  # rows on which a network is applied at a time


def fit(
    learner: Learner,
    hp: Any,
    data: Transition,
    key: Array,
    updates: int,
    batch_size: int,
    begin: PyTree = None,
) -> PyTree:
    """The state of a learner after `updates` batches [B] of the rows of `data` [D].

    Args:
      begin: the state to continue from; None for a new one.
    """
    source, inputs = uniform(batch_size), {"data": data}
    key_init, key_steps = jax.random.split(key)
    state = learner.init(key_init, hp, inputs) if begin is None else begin

    def update(step: Array, state: PyTree) -> PyTree:
        key_rows, key = jax.random.split(jax.random.fold_in(key_steps, step))
        _, batch, _ = source.next((), state, HyperParams(hp), inputs, key_rows, step)
        return learner.update(state, hp, batch, key, step)[0]

    return jax.lax.fori_loop(0, updates, update, state)


def by_pieces(function: Callable[..., PyTree], rows: PyTree, size: int = PIECE) -> PyTree:
    """`function` of rows, leaves [D, ...], applied to `size` rows at a time."""
    count = len(jax.tree.leaves(rows)[0])
    size = min(size, count)

    def split(x: Array) -> Array:
        fill = jnp.broadcast_to(x[:1], (-count % size, *x.shape[1:]))
        return jnp.concatenate([x, fill]).reshape(-1, size, *x.shape[1:])

    found = jax.lax.map(function, jax.tree.map(split, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)
