"""Numeric precision: of matrix products, and of the numbers inside networks.

Both are contexts around tracing, like `jax.default_matmul_precision`, so that programs of different
precision can live in one process. Parameters, targets, losses, gradients and the optimiser's
moments are float32 in any case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxrl.types import PyTree

T = TypeVar("T")
_compute = jax.make_user_context("float32")


class Precision(NamedTuple):
    """Precision of a program.

    Attributes:
      matmul: precision of matrix products, as in `jax.default_matmul_precision`; "auto" leaves what
        JAX is set to. CPUs compute in float32 with any of them.
      compute: "float32" or "bfloat16", the dtype of activations in networks, and of the copies of
        parameters that they compute with.
    """

    matmul: str = "auto"
    compute: str = "float32"

    def within(self, fn: Callable[..., T]) -> Callable[..., T]:
        """`fn`, traced with this precision."""
        if self == Precision():
            return fn

        def run(*args: Any) -> T:
            with contextlib.ExitStack() as stack:
                if self.matmul != "auto":
                    stack.enter_context(jax.default_matmul_precision(self.matmul))
                if self.compute != "float32":
                    stack.enter_context(_compute(self.compute))
                return fn(*args)

        return run


def lowered(tree: PyTree) -> PyTree:
    """Parameters or inputs of a network, float32 leaves in the dtype of computation."""
    return _cast(tree, "float32", _compute.value)


def raised(tree: PyTree) -> PyTree:
    """Outputs of a network, in float32."""
    return _cast(tree, _compute.value, "float32")


def _cast(tree: PyTree, old: str, new: str) -> PyTree:
    if old == new:
        return tree
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == jnp.dtype(old) else x, tree)
