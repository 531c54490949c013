"""Merging of trained policies in weight space.

A policy that is fine-tuned on a new task forgets the old one. The mean of the weights before and
after may do both: θ = (1 - α) θ_a + α θ_b, as in Mitchell Wortsman et al. Robust Fine-Tuning of
Zero-Shot Models. CVPR 2022, arXiv:2109.01903. The networks have to share a history: weights of
independent seeds have no common order of units.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree


def merge(first: PyTree, second: PyTree, alpha: Array | float) -> PyTree:
    """(1 - α) first + α second of all floating-point leaves; the other leaves are those of first.

    Args:
      first, second: states of the same structure and shapes.
    """

    def each(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        # Exact at both ends, also for an infinite or equal number on both sides.
        mixed = (1 - alpha) * a + alpha * b
        return jnp.where(a == b, a, jnp.where(alpha == 0, a, jnp.where(alpha == 1, b, mixed)))

    return jax.tree.map(each, first, second)
