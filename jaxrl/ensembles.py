"""Ensembles of critics: targets from M random ones of N (RED-Q).

Randomized Ensembled Double Q-Learning: Learning Fast Without a Model. Xinyue Chen, Che Wang, Zijian
Zhou, Keith Ross. ICLR 2021, arXiv:2101.05982.
"""

from __future__ import annotations

import jax

from jaxrl.errors import UserError
from jaxrl.minibatch import permutation
from jaxrl.types import Array, PyTree


def random_critics(critics: PyTree, key: Array, count: int) -> PyTree:
    """`count` different critics of a stack of N, leaves [N, ...], drawn uniformly.

    All of them in their order, without a draw, if `count` is N.
    """
    total = jax.tree.leaves(critics)[0].shape[0]
    if count == total:
        return critics
    chosen = permutation(key, total)[:count]
    return jax.tree.map(lambda x: x[chosen], critics)


def check_ensemble(critics: int, target_critics: int) -> None:
    """Raises UserError unless 1 <= target_critics <= critics."""
    if not 1 <= target_critics <= critics:
        raise UserError(
            f"target_critics={target_critics} must be between 1 and critics={critics}, "
            "of which they are drawn"
        )
