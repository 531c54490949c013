"""Rows of one member, its environments and minibatches, split over several devices.

A mesh axis called ROWS means that several devices share each member. `split` then tells the
compiler which arrays to divide; it adds the communication, such as the sum of gradients, by itself.
The program computes the same numbers as on one device, up to rounding.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec as Spec

from jaxrl.types import Array, PyTree

ROWS = "rows"


def split(tree: PyTree, axis: int = 0) -> PyTree:
    """`tree` with `axis` of every leaf split over the devices of a member.

    The tree is unchanged where a member has one device. Leaves whose `axis` has a length that the
    number of devices does not divide stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if ROWS not in mesh.axis_names:
        return tree
    count = mesh.shape[ROWS]

    def one(x: Array) -> Array:
        if x.shape[axis] % count:
            return x
        spec: list[Any] = [Spec.UNCONSTRAINED] * x.ndim
        spec[axis] = ROWS
        return jax.lax.with_sharding_constraint(x, Spec(*spec))

    return jax.tree.map(one, tree)
