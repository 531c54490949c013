"""Sources of batches beside rollouts: a dataset, a replay buffer, a mixture."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Batch, PyTree, Source, Transition


def uniform(batch_size: int, name: str = "data") -> Source:
    """Batches [B] drawn with replacement from the `Transition` of rows [D] in inputs[name]."""

    def init(key: Array, learner_state: PyTree, hp: PyTree, inputs: PyTree) -> PyTree:
        return ()

    def next(
        src: PyTree, learner_state: PyTree, hp: PyTree, inputs: PyTree, key: Array, step: Array
    ) -> tuple[PyTree, Batch, dict[str, Any]]:
        data: Transition = inputs[name]
        rows = jax.random.randint(key, (batch_size,), 0, data.reward.shape[0])
        return src, Batch(take(data, rows)), {}

    return Source(init=init, next=next)


class ReplayState(NamedTuple):
    """A ring of windows: slot i holds the window i, i + slots, ... of the inner source."""

    inner: PyTree
    ring: Transition  # [slots, T, N, ...]


def replay(inner: Source, capacity: int, batch_size: int, warmup: int = 1) -> Source:
    """Batches [B] drawn with replacement from the last `capacity` transitions of `inner`.

    Each update first draws one window from `inner`, a rollout, and writes it over the oldest. The
    ring holds whole windows, so its capacity is rounded down to a multiple of theirs. `warmup`
    windows are drawn by `init`.
    """

    def init(key: Array, learner_state: PyTree, hp: PyTree, inputs: PyTree) -> ReplayState:
        key_inner, key_fill = jax.random.split(key)
        src = inner.init(key_inner, learner_state, hp, inputs)
        draw = lambda src, key, i: inner.next(src, learner_state, hp, inputs, key, i)
        shape = jax.eval_shape(draw, src, key_fill, jnp.int32(0))[1].transitions
        slots = max(capacity // shape.reward.size, 1)
        if warmup > slots:
            raise ValueError(f"a warm-up of {warmup} windows does not fit into {slots} slots")
        ring = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), shape)

        def fill(i: Array, carry: PyTree) -> PyTree:
            src, ring = carry
            src, batch, _ = draw(src, jax.random.fold_in(key_fill, i), i)
            return src, write(ring, batch.transitions, i)

        src, ring = jax.lax.fori_loop(0, warmup, fill, (src, ring))
        return ReplayState(src, ring)

    def next(
        src: ReplayState, learner_state: PyTree, hp: PyTree, inputs: PyTree, key: Array, step: Array
    ) -> tuple[ReplayState, Batch, dict[str, Any]]:
        key_inner, key_rows = jax.random.split(key)
        state, batch, metrics = inner.next(src.inner, learner_state, hp, inputs, key_inner, step)
        slots, *window = src.ring.reward.shape
        # Slot and filling follow from the unbatched counter: under vmap the write stays a slice.
        ring = write(src.ring, batch.transitions, (step + warmup) % slots)
        filled = jnp.minimum(step + warmup + 1, slots) * math.prod(window)
        rows = jax.random.randint(key_rows, (batch_size,), 0, filled)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), ring)
        return ReplayState(state, ring), Batch(take(flat, rows)), metrics

    return Source(init=init, next=next, env_steps=inner.env_steps)


def mix(first: Source, second: Source, share: float, batch_size: int) -> Source:
    """Batches [B] of which round(share * B) rows come from `first` and the others from `second`.

    Both give flat batches of at least their part; the rows beyond it are left out. `second` may be
    refreshed.
    """
    part = round(share * batch_size)

    def init(key: Array, learner_state: PyTree, hp: PyTree, inputs: PyTree) -> PyTree:
        keys = jax.random.split(key)
        return tuple(
            s.init(k, learner_state, hp, inputs) for s, k in zip((first, second), keys, strict=True)
        )

    def next(
        src: PyTree, learner_state: PyTree, hp: PyTree, inputs: PyTree, key: Array, step: Array
    ) -> tuple[PyTree, Batch, dict[str, Any]]:
        keys = jax.random.split(key)
        one, a, seen = first.next(src[0], learner_state, hp, inputs, keys[0], step)
        two, b, seen_too = second.next(src[1], learner_state, hp, inputs, keys[1], step)
        rows = jax.tree.map(
            lambda x, y: jnp.concatenate([x[:part], y[: batch_size - part]]),
            a.transitions,
            b.transitions,
        )
        return (one, two), Batch(rows), seen | seen_too

    def refresh(
        src: PyTree, learner_state: PyTree, hp: PyTree, inputs: PyTree, key: Array, step: Array
    ) -> PyTree:
        assert second.refresh is not None
        return src[0], second.refresh(src[1], learner_state, hp, inputs, key, step)

    return Source(
        init=init,
        next=next,
        refresh=refresh if second.refresh is not None else None,
        every=second.every,
        env_steps=first.env_steps + second.env_steps,
    )


def take(data: PyTree, rows: Array) -> PyTree:
    """Rows [B] of every leaf [D, ...]."""
    return jax.tree.map(lambda x: x[rows], data)


def write(ring: PyTree, window: PyTree, slot: Array) -> PyTree:
    """Every leaf of `window` into `slot` of the ring's leaves [slots, ...], in place."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), slot, 0),
        ring,
        window,
    )
