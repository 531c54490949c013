"""Exact nearest neighbours among the rows of a dataset, on the device.

All distances of B queries and D points would take B x D numbers. Here the points are visited in
chunks: a first pass finds the chunk with the nearest point of each query, a second one the point in
that chunk. The first needs minima only, which CPUs compute six times faster than their positions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree

CHUNK = 1024  # points at a time


def nearest(
    query: Array,
    rows: PyTree,
    encode: Callable[[PyTree], Array] = lambda rows: rows,
    chunk: int = CHUNK,
) -> tuple[Array, Array]:
    """The nearest point of each query in Euclidean distance; the first of equals.

    Chunks are compared by ‖y‖² - 2 x·y in float32: of points in different chunks whose squared
    distances differ by less than about 1e-6 of ‖y‖², either may be found.

    Args:
      query: [B, d].
      rows: leaves [D, ...] of a dataset.
      encode: rows [n, ...] to points [n, d]; applied to one chunk at a time.
      chunk: points at a time; changes memory and speed, not the result.

    Returns:
      (indices [B] int32 of rows, squared distances [B]).
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    size = min(chunk, count)

    def visit(best: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        slice_at = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)
        points = encode(jax.tree.map(slice_at, rows))
        inner = jnp.matmul(query, points.T, precision=jax.lax.Precision.HIGHEST)
        least = jnp.min(jnp.sum(points * points, -1)[None] - 2 * inner, -1)
        closer = least < best[1]
        return (jnp.where(closer, start, best[0]), jnp.where(closer, least, best[1])), None

    # The last chunk overlaps the one before, so that all have the same size.
    starts = jnp.minimum(jnp.arange(0, count, size, dtype=jnp.int32), count - size)
    none = jnp.zeros(len(query), jnp.int32), jnp.full(len(query), jnp.inf)
    (start, _), _ = jax.lax.scan(visit, none, starts)

    index = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None]  # [B, size]
    points = encode(jax.tree.map(lambda x: x[index.reshape(-1)], rows))
    offset = points.reshape(*index.shape, -1) - query[:, None]
    squared = jnp.sum(offset * offset, -1)
    here = jnp.argmin(squared, -1)
    return start + here.astype(jnp.int32), jnp.min(squared, -1)
