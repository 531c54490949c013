"""Sources of batches beside rollouts: a dataset, a replay buffer, a mixture.

Rollouts in a model are in `jaxrl.imagination`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Batch, PyTree, Source, Transition


def uniform(batch_size: int, name: str = "data") -> Source:
    """Batches [B] drawn with replacement from the `Transition` of rows [D] in inputs[name]."""

    def init(key, learner_state, hp, inputs):
        return ()

    def next(src, learner_state, hp, inputs, key, step):
        data: Transition = inputs[name]
        rows = below(key, batch_size, jnp.int32(data.reward.shape[0]))
        return src, Batch(take(data, rows)), {}

    return Source(init=init, next=next)


def whole(name: str = "data") -> Source:
    """All rows [D] of the `Transition` in inputs[name], in every batch: updates are epochs."""

    def init(key, learner_state, hp, inputs):
        return ()

    def next(src, learner_state, hp, inputs, key, step):
        return src, Batch(inputs[name]), {}

    return Source(init=init, next=next)


def labelled(source: Source, **extras: Any) -> Source:
    """`source` with numbers that are the same in all rows [B] as further extras."""

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = source.next(src, learner_state, hp, inputs, key, step)
        t = batch.transitions
        given = {name: jnp.full(t.reward.shape, value) for name, value in extras.items()}
        return src, batch._replace(transitions=t._replace(extras=t.extras | given)), seen

    return dataclasses.replace(source, next=next)


class ReplayState(NamedTuple):
    """A ring of windows: slot i holds the window i, i + slots, ... of the inner source."""

    inner: PyTree
    ring: Transition  # [slots, T, N, ...]


def replay(
    inner: Source,
    capacity: int,
    batch_size: int,
    *,
    warmup: int = 1,
    first: Source | None = None,
    n_step: int = 1,
) -> Source:
    """Batches [B] drawn with replacement from the last `capacity` transitions of `inner`.

    Each update first draws one window [T, N] from `inner`, a rollout, and writes it over the
    oldest. The ring holds whole windows, so its capacity is rounded down to a multiple of theirs. A
    learner of several gradient steps per window asks for all their rows at once and deals them out
    with `parts`.

    Args:
      warmup: windows drawn by `init`, so that the first batches have something to draw from.
      first: source of these windows, of the state and transitions of `inner`: a rollout of
        `random_policy` in the same environments, where the policy of `inner` has no memory and
        records no extras. By default `inner` itself.
      n_step: at most so many steps of one environment are folded into one row, see `fold`; then
        hp.agent.gamma discounts, and `extras["discount"]` says what the successor's value counts.

    Raises:
      ValueError: a source that is refreshed, which a ring of its windows has no use for.
    """
    if inner.refresh is not None or (first is not None and first.refresh is not None):
        raise ValueError("replay takes sources without `refresh`, such as rollouts")

    def init(key, learner_state, hp, inputs):
        key_inner, key_fill = jax.random.split(key)
        beginning = first or inner
        src = beginning.init(key_inner, learner_state, hp, inputs)
        draw = lambda src, key, i: beginning.next(src, learner_state, hp, inputs, key, i)
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

    def next(src, learner_state, hp, inputs, key, step):
        key_inner, key_rows = jax.random.split(key)
        state, batch, metrics = inner.next(src.inner, learner_state, hp, inputs, key_inner, step)
        slots, *window = src.ring.reward.shape
        # Slot and filling follow from the unbatched counter: under vmap the write stays a slice.
        written = step + warmup + 1  # windows so far
        ring = write(src.ring, batch.transitions, (written - 1) % slots)
        rows = below(key_rows, batch_size, jnp.minimum(written, slots) * math.prod(window))
        if n_step == 1:
            drawn = take(jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), ring), rows)
        else:
            drawn = fold(ring, rows, written % slots, n_step, hp.agent.gamma)
        return ReplayState(state, ring), Batch(drawn), metrics

    return Source(init=init, next=next, env_steps=inner.env_steps)


def fold(ring: Transition, rows: Array, oldest: Array, n_step: int, gamma: Array) -> Transition:
    """n-step transitions [B] that begin at `rows` of a ring [slots, T, N, ...] of windows.

    Row (slot * T + t) * N + i begins at step t of environment i and goes on with that environment's
    next steps, up to `n_step` in all: k of them, fewer where the episode ends, by termination or
    time limit, or where the newest step is reached. Then

      reward = Σ_{j<k} γ^j r_j;  next_obs, terminated and truncated of step k-1;
      extras["discount"] = γ^k;  everything else of the first step,

    so that the target of every learner is reward + discount (1 - terminated) V(next_obs). Rows
    without the entry are single steps, of discount γ: t.extras.get("discount", hp.gamma).

    Args:
      oldest: the slot that is written next; in a ring not yet full, the first that never was.
    """
    slots, length, envs = ring.reward.shape
    total = slots * length
    steps = jax.tree.map(lambda x: x.reshape(total, envs, *x.shape[3:]), ring)
    when, env = rows // envs, rows % envs
    ahead = (oldest * length - when - 1) % total + 1  # steps from here to the newest, both included
    j = jnp.arange(n_step)[None]
    at = (when[:, None] + j) % total  # [B, n_step]
    later = lambda x: x[at, env[:, None]]
    done = later(steps.terminated) | later(steps.truncated)
    ended = jnp.cumsum(done, -1) - done > 0  # before step j
    live = ~ended & (j < ahead[:, None])
    count = jnp.sum(live, -1)
    power = jnp.asarray(gamma, jnp.float32) ** jnp.arange(n_step + 1)
    last = (when + count - 1) % total
    begin: Transition = jax.tree.map(lambda x: x[when, env], steps)
    return begin._replace(
        reward=jnp.sum(jnp.where(live, power[None, :-1] * later(steps.reward), 0.0), -1),
        next_obs=steps.next_obs[last, env],
        terminated=steps.terminated[last, env],
        truncated=steps.truncated[last, env],
        extras=begin.extras | {"discount": power[count]},
    )


def mix(first: Source, second: Source, share: float, batch_size: int) -> Source:
    """Batches [B] of which round(share * B) rows come from `first` and the others from `second`.

    Both give flat batches of at least their part; the rows beyond it are left out, and so are
    extras that only one of them has. Either may be refreshed, or both as often as each other.

    Raises:
      ValueError: sources that are refreshed at different intervals.
    """
    part = round(share * batch_size)
    intervals = {source.every for source in (first, second) if source.refresh is not None}
    if len(intervals) > 1:
        raise ValueError(f"mixed sources are refreshed at different intervals: {intervals}")

    def init(key, learner_state, hp, inputs):
        keys = jax.random.split(key)
        return tuple(
            s.init(k, learner_state, hp, inputs) for s, k in zip((first, second), keys, strict=True)
        )

    def next(src, learner_state, hp, inputs, key, step):
        keys = jax.random.split(key)
        one, a, seen = first.next(src[0], learner_state, hp, inputs, keys[0], step)
        two, b, seen_too = second.next(src[1], learner_state, hp, inputs, keys[1], step)
        common = a.transitions.extras.keys() & b.transitions.extras.keys()
        of = lambda t: t._replace(extras={name: t.extras[name] for name in sorted(common)})
        rows = jax.tree.map(
            lambda x, y: jnp.concatenate([x[:part], y[: batch_size - part]]),
            of(a.transitions),
            of(b.transitions),
        )
        return (one, two), Batch(rows), seen | seen_too

    def refresh(src, learner_state, hp, inputs, key, step):
        one, two = src
        args = (learner_state, hp, inputs)
        if first.refresh is None:
            assert second.refresh is not None
            return one, second.refresh(two, *args, key, step)
        if second.refresh is None:
            return first.refresh(one, *args, key, step), two
        keys = jax.random.split(key)
        return first.refresh(one, *args, keys[0], step), second.refresh(two, *args, keys[1], step)

    return Source(
        init=init,
        next=next,
        refresh=refresh if intervals else None,
        every=max(intervals, default=1),
        env_steps=first.env_steps + second.env_steps,
    )


def take(data: PyTree, rows: Array) -> PyTree:
    """Rows [B] of every leaf [D, ...]."""
    return jax.tree.map(lambda x: x[rows], data)


def below(key: Array, count: int, end: Array) -> Array:
    """Numbers [count] int32 in 0 .. end-1, each as likely as another up to a share end / 2^32.

    For half of what `jax.random.randint` costs, which draws 64 bits per number.
    """
    return (jax.random.bits(key, (count,)) % end.astype(jnp.uint32)).astype(jnp.int32)


def split_batch(data: PyTree, count: int) -> PyTree:
    """Leaves [B, ...] as [count, B / count, ...]: batches for `count` gradient steps."""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), data)


def write(ring: PyTree, window: PyTree, slot: Array) -> PyTree:
    """Every leaf of `window` into `slot` of the ring's leaves [slots, ...], in place."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), slot, 0),
        ring,
        window,
    )


HELD = 20  # one row in so many is kept from the inverse dynamics, to judge them by


def held_out(batch_size: int) -> Source:
    """`uniform` with extras["held"] [B] bool: whether a row is kept from the inverse dynamics."""
    inner = uniform(batch_size)

    def next(src, learner_state, hp, inputs, key, step):
        data: Transition = inputs["data"]
        held = jnp.arange(data.reward.shape[0]) % HELD == 0
        marked = data._replace(extras=data.extras | {"held": held})
        return inner.next(src, learner_state, hp, {"data": marked}, key, step)

    return dataclasses.replace(inner, next=next)


def known_rows(t: Transition) -> Array:
    """[B] bool: where next_obs is the successor."""
    return t.extras.get("next_known", jnp.ones(t.reward.shape, bool))
