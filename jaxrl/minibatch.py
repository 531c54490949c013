"""Shuffled minibatches, and epochs of gradient steps on them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl.rows import split
from jaxrl.types import Array, PyTree


def permutation(key: Array, n: int) -> Array:
    """A random permutation [n] int32 of 0 .. n-1.

    Words of random high bits and the index in the low bits are sorted. Elements with equal high
    bits keep their order: on average n² / 2^(33 - log2 n) pairs, fewer than n up to 2^16 elements.
    Above, the result is shuffled once more, which leaves n² / 2^(65 - 2 log2 n) pairs, fewer than n
    up to 2^21. `jax.random.permutation`, for more elements, is slower, since it sorts pairs and
    several times.
    """
    bits = max(n - 1, 1).bit_length()
    if bits > 21:
        return jax.random.permutation(key, n).astype(jnp.int32)
    low = jnp.uint32((1 << bits) - 1)

    def shuffled(key: Array) -> Array:
        words = jax.random.bits(key, (n,), jnp.uint32) & ~low | jnp.arange(n, dtype=jnp.uint32)
        return (jnp.sort(words) & low).astype(jnp.int32)

    if bits <= 16:
        return shuffled(key)
    first, second = jax.random.split(key)
    return shuffled(first)[shuffled(second)]


def minibatches(key: Array, data: PyTree, count: int) -> PyTree:
    """Leaves [B, ...] in random order as [count, B / count, ...]; not shuffled if count is 1."""
    if count == 1:
        return split(jax.tree.map(lambda x: x[None], data), 1)
    size = jax.tree.leaves(data)[0].shape[0]
    order = permutation(key, size).reshape(count, size // count)
    return split(jax.tree.map(lambda x: x[order], data), 1)


def scan_epochs(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    key: Array,
    data: PyTree,
    epochs: int,
    count: int,
) -> tuple[PyTree, PyTree]:
    """Scans `fn(carry, part) -> (carry, out)` over `epochs` passes of `data`, shuffled each time.

    Args:
      data: leaves [D, ...].
      count: minibatches per pass, leaves [D / count, ...]; divides D.

    Returns:
      (the last carry, outputs with leaves [epochs, count, ...]).
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
    """Gradient steps on `loss(params, part) -> (loss, metrics)` over minibatches of `data`.

    Args:
      start: parameters, and the optimiser's state on the flat parameters.
      data: leaves [D, ...].
      epochs, count: passes of `count` minibatches each, see `scan_epochs`.

    Returns:
      ((parameters, optimiser's state), means of the metrics over all steps).
    """
    # Flat parameters: the overhead of many small leaves exceeds their computation.
    flat, unravel = ravel_pytree(start[0])
    step = gradient_step(loss, unravel, transform)
    (flat, opt), metrics = scan_epochs(step, (flat, start[1]), key, data, epochs, count)
    return (unravel(flat), opt), jax.tree.map(jnp.mean, metrics)


def sgd_until(
    loss: Callable[[PyTree, PyTree], tuple[Array, dict[str, Array]]],
    start: tuple[PyTree, optax.OptState],
    transform: optax.GradientTransformation,
    key: Array,
    data: PyTree,
    epochs: int,
    count: int,
    stop: Callable[[dict[str, Array]], Array],
) -> tuple[tuple[PyTree, optax.OptState], dict[str, Array]]:
    """`sgd_epochs` that ends early: an epoch is the last if `stop` of the metrics of its last
    minibatch is True. Metrics are means over the epochs made."""
    flat, unravel = ravel_pytree(start[0])
    step = gradient_step(loss, unravel, transform)

    def epoch(carry: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        before, over = carry
        after, metrics = jax.lax.scan(step, before, minibatches(key, data, count))
        kept = jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after)
        enough = stop({name: x[-1] for name, x in metrics.items()})
        return (kept, over | enough), (jax.tree.map(jnp.mean, metrics), ~over)

    begin = ((flat, start[1]), jnp.zeros((), bool))
    carry, (metrics, made) = jax.lax.scan(epoch, begin, jax.random.split(key, epochs))
    (flat, opt), _ = carry
    mean = lambda x: jnp.sum(jnp.where(made, x, 0.0)) / jnp.sum(made)
    return (unravel(flat), opt), jax.tree.map(mean, metrics)


def gradient_step(
    loss: Callable[[PyTree, PyTree], tuple[Array, dict[str, Array]]],
    unravel: Callable[[Array], PyTree],
    transform: optax.GradientTransformation,
) -> Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Array]]]:
    """((flat parameters, optimiser's state), part) -> (the same after a step, metrics)."""

    def minibatch(carry: PyTree, part: PyTree) -> tuple[PyTree, dict[str, Array]]:
        flat, opt = carry
        of_vector = lambda flat: loss(unravel(flat), part)
        grads, metrics = jax.grad(of_vector, has_aux=True)(flat)
        updates, opt = transform.update(grads, opt)
        return (optax.apply_updates(flat, updates), opt), metrics

    return minibatch
