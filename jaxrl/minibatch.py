"""Shuffled minibatches, epochs of them, and gradient steps on them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

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
    """Leaves [B, ...] in random order as [count, B / count, ...]; a single part keeps its order."""
    if count == 1:
        return jax.tree.map(lambda x: x[None], data)
    size = jax.tree.leaves(data)[0].shape[0]
    order = permutation(key, size).reshape(count, size // count)
    return jax.tree.map(lambda x: x[order], data)


def scan_epochs(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    key: Array,
    data: PyTree,
    epochs: int,
    count: int,
) -> tuple[PyTree, PyTree]:
    """`fn(carry, part) -> (carry, out)` over `epochs` passes of `data`, each in a new random order.

    Args:
      data: leaves [D, ...].
      count: parts of a pass, leaves [D / count, ...]; divides D.

    Returns:
      the last carry, and outs as leaves [epochs, count, ...].
    """

    def epoch(carry: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(fn, carry, minibatches(key, data, count))

    return jax.lax.scan(epoch, carry, jax.random.split(key, epochs))


def sgd_epochs(
    loss: Callable[[PyTree, PyTree], tuple[Array, dict[str, Array]]],
    start: tuple[PyTree, optax.OptState],
    transform: optax.GradientTransformation,
    key: Array,
    data: PyTree,
    epochs: int,
    count: int,
) -> tuple[tuple[PyTree, optax.OptState], dict[str, Array]]:
    """Gradient steps on `loss(params, part) -> (loss, metrics)` over shuffled parts of `data`.

    Args:
      start: parameters, and the optimiser's state on one vector of them.
      data: leaves [D, ...].
      epochs, count: passes of `count` parts each, see `scan_epochs`.

    Returns:
      (parameters, optimiser's state), and the means of the metrics over all steps.
    """
    # One vector of parameters: a dozen small leaves cost more in overhead than in work.
    flat, unravel = ravel_pytree(start[0])

    def minibatch(carry: PyTree, part: PyTree) -> tuple[PyTree, dict[str, Array]]:
        flat, opt = carry
        of_vector = lambda flat: loss(unravel(flat), part)
        grads, metrics = jax.grad(of_vector, has_aux=True)(flat)
        updates, opt = transform.update(grads, opt)
        return (optax.apply_updates(flat, updates), opt), metrics

    (flat, opt), metrics = scan_epochs(minibatch, (flat, start[1]), key, data, epochs, count)
    return (unravel(flat), opt), jax.tree.map(jnp.mean, metrics)
