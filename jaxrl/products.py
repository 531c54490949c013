"""Matrix products whose gradients are fast on CPUs.

The gradient of a kernel W in y = x W is xᵀ dy. XLA's CPU backend computes x W and dy Wᵀ with one
library and xᵀ dy with another, which first copies x column by column. This copy takes long in two
cases, which `product` avoids (docs/decisions.md, record 56):

- Outputs are few. The copy takes up to 20 times as long as the product. Here (dyᵀ x)ᵀ is computed,
  so that the few columns of dy are copied.
- Rows of x take a multiple of 256 bytes, so that the elements of a column compete for the same
  lines of the cache. Here x has some columns of zeros more in this product.
"""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_derivatives import SymbolicZero

from jaxrl.types import Array

STRIDE = 64  # elements of 4 bytes
MORE = 4  # columns of zeros


@jax.custom_jvp
def product(x: Array, kernel: Array) -> Array:
    """x @ kernel, [..., in] and [in, out] to [..., out]; all derivatives exist."""
    return x @ kernel


@partial(product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = product(x, kernel)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(product(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_along_kernel(x, dkernel))
    return y, reduce(jnp.add, parts) if parts else jnp.zeros_like(y)


def _along_kernel(x: Array, dkernel: Array) -> Array:
    """x @ dkernel, in a form whose transpose with respect to `dkernel` is fast."""
    inputs, outputs = dkernel.shape
    rows = math.prod(x.shape[:-1])
    # Elements copied in the first form: dy, and the gradient twice. In the plain form: x.
    if 2 * (rows * outputs + 2 * inputs * outputs) <= rows * inputs:
        flipped = jax.lax.optimization_barrier(dkernel.T)  # without it, XLA restores x @ dkernel
        return jnp.einsum("...i,oi->...o", x, flipped)
    if inputs % STRIDE == 0 and inputs > STRIDE:
        columns = [(0, 0)] * (x.ndim - 1) + [(0, MORE)]
        return jnp.pad(x, columns) @ jnp.pad(dkernel, [(0, MORE), (0, 0)])
    return x @ dkernel


def _dot_general(x: Array, kernel: Array, axes: Any, precision: Any = None, **_: Any) -> Array:
    """`product` with the arguments that `nn.Dense` passes for the axes of a dense layer."""
    return product(x, kernel)


class Dense(nn.Dense):
    """`nn.Dense` with `product`."""

    dot_general: Any = _dot_general
