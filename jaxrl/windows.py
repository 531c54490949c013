"""Windows of a dataset: H consecutive steps of one episode."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.errors import at_least
from jaxrl.sources import below, gather
from jaxrl.types import Array, Batch, Source, Transition

HELD = 20  # every HELD-th episode is held out
RARE = 0.99  # quantile of the rewards from which on they are rare


class Windows(NamedTuple):
    """First rows of windows. The data themselves are not copied."""

    order: Array  # [D] int32: first rows of training windows, of held-out windows, other rows
    learned: Array  # [] int32: number of training windows
    held: Array  # [] int32: number of held-out windows
    rare: Array  # [] int32: training windows with a rare reward, the first of `order`; 0 if unasked


def find(data: Transition, length: int, stride: int, rare: bool = False) -> Windows:
    """The windows of `length` rows of a dataset [D].

    Windows begin at every `stride`-th row of an episode, including the first; further windows end
    at terminal rows. No window ends at a truncated row, which would look like the middle of an
    episode. One episode in twenty is held out.

    With `rare` the training windows with a rare reward come first: one above the median and not
    below the quantile `RARE` of the dataset's rewards.
    """
    rows = jnp.arange(data.reward.shape[0], dtype=jnp.int32)
    first = jax.lax.cummax(jnp.where(data.start, rows, 0))  # first row of the episode
    last = jnp.minimum(rows + length - 1, rows[-1])  # last row of the window
    whole = (rows + length - 1 == last) & (first[last] == first)
    regular = (rows - first) % stride == 0
    fits = whole & ~data.truncated[last] & (regular | data.terminated[last])
    held = fits & (jnp.cumsum(data.start) % HELD == 0)
    rank = jnp.where(held, 1, jnp.where(fits, 0, 2))
    marked = jnp.zeros_like(fits)
    if rare:
        middle, top = jnp.quantile(data.reward, jnp.array([0.5, RARE]))
        high = (data.reward >= top) & (data.reward > middle)
        before = jnp.cumsum(high) - high
        marked = fits & ~held & (before[last] + high[last] - before > 0)
        rank = jnp.where(marked, -1, rank)
    count = lambda mask: jnp.sum(mask, dtype=jnp.int32)
    order = jnp.argsort(rank).astype(jnp.int32)
    return Windows(order, count(fits & ~held), count(held), count(marked))


def windows(
    batch_size: int,
    length: int,
    stride: int,
    *,
    held: int = 0,
    rare: float = 0.0,
    name: str = "data",
) -> Source:
    """Batches [B, H] of windows of inputs[name], drawn with replacement.

    The last `held` of the B windows are held-out windows, for validation. The extras "learn" and
    "look" [B, H] bool mark training and held-out windows. If the data have no windows of one kind,
    other rows take their place with both marks False, so that means over them are NaN.

    Args:
      rare: fraction of the training windows that is drawn among those with a rare reward, see
        `find`, if there are any.
    """
    at_least(1, windows=batch_size - held, length=length, stride=stride)
    often = round(rare * (batch_size - held))

    def init(key, learner_state, hp, inputs):
        return find(inputs[name], length, stride, rare > 0)

    def next(src, learner_state, hp, inputs, key, step):
        key_learned, key_held = jax.random.split(key)
        draw = lambda key, count, end: below(key, count, jnp.maximum(end, 1))
        key_learned, key_rare = jax.random.split(key_learned) if often else (key_learned, key)
        learned = draw(key_learned, batch_size - held, src.learned)
        if often:
            end = jnp.where(src.rare > 0, src.rare, src.learned)
            learned = learned.at[:often].set(draw(key_rare, often, end))
        looked = src.learned + draw(key_held, held, src.held)
        begin = src.order[jnp.concatenate([learned, looked])]
        rows = begin[:, None] + jnp.arange(length)[None]
        first = (jnp.arange(batch_size) < batch_size - held)[:, None]
        spread = lambda mask: jnp.broadcast_to(mask, rows.shape)
        extras = {
            "learn": spread(first & (src.learned > 0)),
            "look": spread(~first & (src.held > 0)),
        }
        return src, Batch(gather(inputs[name], rows)._replace(extras=extras)), {}

    return Source(init=init, next=next)
