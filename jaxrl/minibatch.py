"""Shuffled minibatches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree


def permutation(key: Array, n: int) -> Array:
    """A random order [n] int32 of 0 .. n-1; up to 2^16 elements by one sort of one operand.

    Random high bits with the index in the low bits are sorted and the index read off: faster than
    `jax.random.permutation`, which sorts pairs and more than once. Elements whose high bits agree
    keep their order, on average n² / 2^(33 - log2 n) pairs; beyond 2^16 elements these would be
    more than there are elements, so there JAX's own is used.
    """
    bits = max(n - 1, 1).bit_length()
    if bits > 16:
        return jax.random.permutation(key, n).astype(jnp.int32)
    low = jnp.uint32((1 << bits) - 1)
    words = jax.random.bits(key, (n,), jnp.uint32) & ~low | jnp.arange(n, dtype=jnp.uint32)
    return (jnp.sort(words) & low).astype(jnp.int32)


def minibatches(key: Array, data: PyTree, count: int) -> PyTree:
    """Leaves [B, ...] in random order as [count, B / count, ...]."""
    size = jax.tree.leaves(data)[0].shape[0]
    order = permutation(key, size).reshape(count, size // count)
    return jax.tree.map(lambda x: x[order], data)
