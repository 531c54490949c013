"""Sources of batches: datasets, replay buffers and mixtures.

Rollouts are in `jaxrl.rollout`, rollouts in a learned model in `jaxrl.imagination`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.rows import split
from jaxrl.types import Array, Batch, PyTree, Source, Transition


def uniform(batch_size: int, name: str = "data", *, n_step: int = 1) -> Source:
    """Batches [B] drawn with replacement from inputs[name], a `Transition` of rows [D].

    Args:
      n_step: largest number of consecutive rows folded into one, see `fold`; more than 1 needs
        rows in the order of their episodes, with observations that are not compact images.
    """

    def init(key, learner_state, hp, inputs):
        return ()

    def next(src, learner_state, hp, inputs, key, step):
        data: Transition = inputs[name]
        rows = below(key, batch_size, jnp.int32(data.reward.shape[0]))
        if n_step == 1:
            return src, Batch(gather(data, rows)), {}
        if is_compact(data):
            raise UserError("n-step targets need observations that are not images: use n_step=1")
        ring = jax.tree.map(lambda x: x[None, :, None], data)  # one window of one environment
        return src, Batch(fold(ring, rows, jnp.int32(0), n_step, hp.agent.gamma)), {}

    return Source(init=init, next=next)


def following(batch_size: int) -> Source:
    """`uniform` with extras of the next row: "next_action" [B, ...], and "next_row" [B] bool, False
    where the episode ends or the data do, so that the next row is no successor."""

    def init(key, learner_state, hp, inputs):
        return ()

    def next(src, learner_state, hp, inputs, key, step):
        data: Transition = inputs["data"]
        count = data.reward.shape[0]
        rows = below(key, batch_size, jnp.int32(count))
        t, ahead = gather(data, rows), jnp.minimum(rows + 1, count - 1)
        own = {"next_action": data.action[ahead], "next_row": ~t.done & (rows + 1 < count)}
        return src, Batch(t._replace(extras=t.extras | own)), {}

    return Source(init=init, next=next)


def whole(name: str = "data") -> Source:
    """Batches of all rows [D] of inputs[name], a `Transition`: an update is an epoch."""

    def init(key, learner_state, hp, inputs):
        return ()

    def next(src, learner_state, hp, inputs, key, step):
        return src, Batch(expand(inputs[name])), {}

    return Source(init=init, next=next)


def labelled(source: Source, **extras: Any) -> Source:
    """`source` with further extras, each a constant in all rows [B]."""

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

    Each update first draws one window [T, N] from `inner`, a rollout, and overwrites the oldest
    window in the ring. The ring holds whole windows: the capacity is rounded down to a multiple of
    the window's size. A learner with several gradient steps per window draws the rows of all steps
    at once and separates them with `split_batch`.

    Args:
      warmup: windows drawn by `init`, before the first batch.
      first: source of the warm-up windows, with the state and transitions of `inner`: a rollout of
        `random_policy` in the same environments. The policy of `inner` then must have no memory and
        record no extras. By default `inner` itself.
      n_step: largest number of steps folded into one row, see `fold`. hp.agent.gamma is the
        discount factor, and `extras["discount"]` the discount of the successor's value.

    Raises:
      ValueError: `inner` or `first` has `refresh`.
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
        # Slot and fill level follow from the unbatched counter: under vmap the write stays a slice.
        written = step + warmup + 1  # windows so far
        ring = write(src.ring, batch.transitions, (written - 1) % slots)
        rows = below(key_rows, batch_size, jnp.minimum(written, slots) * math.prod(window))
        if n_step == 1:
            drawn = take(jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), ring), rows)
        else:
            drawn = fold(ring, rows, written % slots, n_step, hp.agent.gamma)
        return ReplayState(state, ring), Batch(drawn), metrics

    host = inner.host
    if host is not None:
        policy = first.host.policy if first is not None else None
        host = dataclasses.replace(host, warmup=warmup, first=policy)
    return Source(init=init, next=next, env_steps=inner.env_steps, host=host)


def fold(ring: Transition, rows: Array, oldest: Array, n_step: int, gamma: Array) -> Transition:
    """n-step transitions [B] that start at `rows` of a ring [slots, T, N, ...] of windows.

    Row (slot * T + t) * N + i starts at step t of environment i and takes k ≤ `n_step` consecutive
    steps of that environment. k < n_step where the episode ends, by termination or time limit, or
    at the newest step. The transition has

      reward = Σ_{j<k} γ^j r_j;  next_obs, terminated and truncated of step k-1;
      extras["discount"] = γ^k;  everything else of the first step,

    and a learner's target is reward + discount (1 - terminated) V(next_obs), with
    discount = t.extras.get("discount", hp.gamma), since single steps have no such entry.

    Args:
      oldest: the slot that is written next; in a ring not yet full, the first empty slot.
    """
    slots, length, envs = ring.reward.shape
    total = slots * length
    steps = jax.tree.map(lambda x: x.reshape(total, envs, *x.shape[3:]), ring)
    when, env = rows // envs, rows % envs
    ahead = (oldest * length - when - 1) % total + 1  # steps up to the newest, both included
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
        next_obs=jax.tree.map(lambda x: x[last, env], steps.next_obs),
        terminated=steps.terminated[last, env],
        truncated=steps.truncated[last, env],
        extras=begin.extras | {"discount": power[count]},
    )


def mix(first: Source, second: Source, share: float, batch_size: int, parts: int = 1) -> Source:
    """Batches [B] with round(share * B) rows of `first` and the other rows of `second`.

    Both sources give flat batches with at least the rows needed; further rows are dropped. Extras
    that only one source has are dropped too. One or both sources may have `refresh`.

    Args:
      parts: number of parts of equal size, as `split_batch` makes them, each with the same share.

    Raises:
      ValueError: the sources are refreshed at different intervals.
    """
    size = batch_size // parts
    part = round(share * size)
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

        def join(x: Array, y: Array) -> Array:
            take = lambda z, count: z[: parts * count].reshape(parts, count, *z.shape[1:])
            both = jnp.concatenate([take(x, part), take(y, size - part)], 1)
            return both.reshape(-1, *x.shape[1:])

        rows = jax.tree.map(join, of(a.transitions), of(b.transitions))
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
        host=first.host or second.host,
    )


def take(data: PyTree, rows: Array) -> PyTree:
    """Rows [B] of every leaf [D, ...]."""
    return split(jax.tree.map(lambda x: x[rows], data))


def gather(data: Transition, rows: Array) -> Transition:
    """Rows [...] of a dataset [D, ...], bytes of observations as float32.

    In a compact dataset, obs are frames [F, *obs] uint8, the first D of them those of the rows, and
    next_obs is the index [D] int32 of each row's next frame.
    """
    t = take(data, rows)
    if is_compact(data):
        t = t._replace(next_obs=data.obs[t.next_obs])
    floats = lambda x: x.astype(jnp.float32) if x.dtype == jnp.uint8 else x
    return t._replace(obs=floats(t.obs), next_obs=floats(t.next_obs))


def expand(data: Transition) -> Transition:
    """All rows of a dataset, as `gather` gives them."""
    if data.obs.dtype != jnp.uint8:
        return data
    return gather(data, jnp.arange(data.reward.shape[0]))


def is_compact(data: Transition) -> bool:
    """Whether next_obs is an index of frames, see `gather`."""
    return data.obs.dtype == jnp.uint8 and data.next_obs.dtype == jnp.int32


def below(key: Array, count: int, end: Array) -> Array:
    """Random integers [count] int32 in 0 .. end-1, uniform up to a relative error of end / 2^32.

    Half the cost of `jax.random.randint`, which draws 64 bits per number.
    """
    return (jax.random.bits(key, (count,)) % end.astype(jnp.uint32)).astype(jnp.int32)


def merge_axes(data: PyTree) -> PyTree:
    """Leaves [T, N, ...] as [T * N, ...]: the rows of a window."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)


def split_batch(data: PyTree, count: int) -> PyTree:
    """Leaves [B, ...] as [count, B / count, ...]: minibatches for `count` gradient steps."""
    return split(jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), data), 1)


def write(ring: PyTree, window: PyTree, slot: Array) -> PyTree:
    """The ring, leaves [slots, ...], with `window` written to `slot` in place."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), slot, 0),
        ring,
        window,
    )


HELD = 20  # one row in HELD is held out


def held_out(batch_size: int) -> Source:
    """`uniform` with extras["held"] [B] bool: whether a row is held out from training."""
    inner = uniform(batch_size)

    def next(src, learner_state, hp, inputs, key, step):
        data: Transition = inputs["data"]
        held = jnp.arange(data.reward.shape[0]) % HELD == 0
        marked = data._replace(extras=data.extras | {"held": held})
        return inner.next(src, learner_state, hp, {"data": marked}, key, step)

    return dataclasses.replace(inner, next=next)


def known_rows(t: Transition) -> Array:
    """[B] bool: whether next_obs is the true successor, as extras["next_known"] says."""
    return t.extras.get("next_known", jnp.ones(t.reward.shape, bool))
