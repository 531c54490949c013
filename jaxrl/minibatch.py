"""Shuffled minibatches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree


def permutation(key: Array, n: int) -> Array:
    """A random order [n] int32 of 0 .. n-1, by one sort of one operand.

    Random high bits with the index in the low bits are sorted and the index read off: faster than
    `jax.random.permutation`, which sorts pairs and more than once. Ties between high bits, of
    probability about n² / 2^(33 - log2 n), keep their order.
    """
    bits = max(n - 1, 1).bit_length()
    if bits > 24:
        raise ValueError(f"permutation of {n} elements would leave too few random bits")
    low = jnp.uint32((1 << bits) - 1)
    words = jax.random.bits(key, (n,), jnp.uint32) & ~low | jnp.arange(n, dtype=jnp.uint32)
    return (jnp.sort(words) & low).astype(jnp.int32)


def minibatches(key: Array, data: PyTree, count: int) -> PyTree:
    """Leaves [B, ...] in random order as [count, B / count, ...]."""
    size = jax.tree.leaves(data)[0].shape[0]
    order = permutation(key, size).reshape(count, size // count)
    return jax.tree.map(lambda x: x[order], data)
