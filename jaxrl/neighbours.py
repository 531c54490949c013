"""Exact nearest neighbours among the rows of a dataset, on the device.

All distances of B queries and D points would take B x D numbers. Here the points are visited in
chunks, and only the nearest so far is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree

CHUNK = 4096  # points at a time


def nearest(
    query: Array,
    rows: PyTree,
    encode: Callable[[PyTree], Array] = lambda rows: rows,
    chunk: int = CHUNK,
) -> tuple[Array, Array]:
    """The nearest point of each query in Euclidean distance; the first of equals.

    Args:
      query: [B, d].
      rows: leaves [D, ...] of a dataset.
      encode: rows [n, ...] to points [n, d]; applied to one chunk at a time.
      chunk: points at a time; changes memory and speed, not the result.

    Returns:
      (indices [B] int32 of rows, squared distances [B]). Distances below about 1e-3 of the size of
      the points are rounding errors: they are computed as ‖x‖² - 2 x·y + ‖y‖².
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    size = min(chunk, count)

    def visit(best: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        slice_at = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)
        points = encode(jax.tree.map(slice_at, rows))
        inner = jnp.matmul(query, points.T, precision=jax.lax.Precision.HIGHEST)
        partial = jnp.sum(points * points, -1)[None] - 2 * inner
        here = jnp.argmin(partial, -1).astype(jnp.int32)
        least = jnp.min(partial, -1)
        closer = least < best[1]
        return (jnp.where(closer, start + here, best[0]), jnp.where(closer, least, best[1])), None

    # The last chunk overlaps the one before, so that all have the same size.
    starts = jnp.minimum(jnp.arange(0, count, size, dtype=jnp.int32), count - size)
    none = jnp.zeros(len(query), jnp.int32), jnp.full(len(query), jnp.inf)
    (index, least), _ = jax.lax.scan(visit, none, starts)
    return index, jnp.maximum(least + jnp.sum(query * query, -1), 0.0)
