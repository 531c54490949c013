"""Compensated sums: float32 sums of millions of terms without lost digits.

Knuth's two-sum. Each sum has a rest, the rounding errors so far, which is added with the next term;
the error of the sum does not grow with the number of terms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree


def add(total: Array, rest: Array, x: Array) -> tuple[Array, Array]:
    """(total, rest) after adding `x`; total + rest is the sum up to an error of order ε²."""
    term = x + rest
    new = total + term
    part = new - total
    error = (total - (new - part)) + (term - part)
    return new, jnp.where(jnp.isfinite(error), error, 0.0)


def add_trees(totals: PyTree, rests: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
    """`add` for every leaf."""
    leaves, tree = jax.tree.flatten(totals)
    rows = zip(leaves, jax.tree.leaves(rests), jax.tree.leaves(xs), strict=True)
    sums, errors = zip(*(add(*row) for row in rows), strict=True)
    return tree.unflatten(sums), tree.unflatten(errors)
