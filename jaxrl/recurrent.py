"""Recurrent cells, and their unrolling over windows.

Cells are split for speed. The products with inputs are one matrix product over the whole window;
each step then needs one product with the recurrent kernel and elementwise operations. The kernel's
gradient is also one product over the whole window. A sum over steps would be most of the cost for
the small batches of recurrent reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets import orthogonal
from jaxrl.types import Array, PyTree


class Cell(NamedTuple):
    """step(projected [B, G], recurrent [B, G], carry) -> carry, with G = blocks * H.

    `projected` is the product with the input, `recurrent` the product with the last output.
    `output(carry)` is the output [B, H]; the carry is a pytree of [B, H].
    """

    blocks: int
    step: Callable[[Array, Array, PyTree], PyTree]
    output: Callable[[PyTree], Array]
    carry: Callable[[tuple[int, ...]], PyTree]


def _gru(projected: Array, recurrent: Array, h: Array) -> Array:
    (ir, iz, i_n), (hr, hz, hn) = jnp.split(projected, 3, -1), jnp.split(recurrent, 3, -1)
    r, z = jax.nn.sigmoid(ir + hr), jax.nn.sigmoid(iz + hz)
    n = jnp.tanh(i_n + r * hn)
    return (1 - z) * n + z * h


def _lstm(projected: Array, recurrent: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    i, f, g, o = jnp.split(projected + recurrent, 4, -1)
    c = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


CELLS = {
    "gru": Cell(3, _gru, lambda h: h, jnp.zeros),
    "lstm": Cell(4, _lstm, lambda carry: carry[1], lambda shape: (jnp.zeros(shape),) * 2),
}


class Recurrent(nn.Module):
    """A GRU (Cho et al. 2014, in the form of cuDNN) or an LSTM of `size` units.

    Initial recurrent kernels are orthogonal per gate, input kernels LeCun normal, biases zero.
    """

    kind: str
    size: int

    @nn.compact
    def __call__(self, carry: PyTree, inputs: Array, start: Array) -> tuple[PyTree, Array]:
        """Carries after each step, leaves [T, B, H], and outputs [T, B, H].

        Args:
          carry: before the window, leaves [B, H].
          inputs: [T, B, F].
          start: [T, B] bool: steps before which the carry is reset to zero.
        """
        cell, gates = CELLS[self.kind], CELLS[self.kind].blocks * self.size
        kernel = self.param("input", nn.initializers.lecun_normal(), (inputs.shape[-1], gates))
        recurrent = self.param("recurrent", _orthogonal_blocks, (self.size, gates))
        bias = self.param("bias", nn.initializers.zeros, (2, gates))
        length, batch, features = inputs.shape
        projected = inputs.reshape(-1, features) @ kernel + bias[:1]
        projected = projected.reshape(length, batch, gates)
        carries = unroll(cell, recurrent, bias[1], projected, start, carry)
        return carries, cell.output(carries)


def _orthogonal_blocks(key: Array, shape: tuple[int, int]) -> Array:
    size, gates = shape
    make = lambda key: orthogonal()(key, (size, size))
    return jnp.concatenate([make(k) for k in jax.random.split(key, gates // size)], -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def unroll(
    cell: Cell, kernel: Array, bias: Array, projected: Array, start: Array, carry: PyTree
) -> PyTree:
    """Carries [T, B, H] after each step of `cell`.

    Args:
      kernel: [H, G] recurrent.
      bias: [G] added to the recurrent product.
      projected: [T, B, G] products with the inputs.
      start: [T, B] bool: steps before which the carry is reset to zero.
      carry: before the first step, leaves [B, H].
    """
    return _forward(cell, kernel, bias, projected, start, carry)[0]


def _forward(
    cell: Cell, kernel: Array, bias: Array, projected: Array, start: Array, carry: PyTree
) -> tuple[PyTree, PyTree]:
    def step(carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        projected, start = xs
        before = forget(carry, start)
        recurrent = cell.output(before) @ kernel + bias[None]
        after = cell.step(projected, recurrent, before)
        return after, (after, before, recurrent)

    _, (carries, before, recurrent) = jax.lax.scan(step, carry, (projected, start))
    return carries, (kernel, projected, start, before, recurrent)


def _backward(cell: Cell, saved: PyTree, cotangent: PyTree) -> tuple:
    kernel, projected, start, before, recurrent = saved

    def step(later: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        direct, projected, recurrent, before, start = xs
        total = jax.tree.map(jnp.add, later, direct)
        _, pull = jax.vjp(cell.step, projected, recurrent, before)
        d_projected, d_recurrent, d_before = pull(total)
        _, pull = jax.vjp(cell.output, before)
        (through,) = pull(d_recurrent @ kernel.T)
        d_before = forget(jax.tree.map(jnp.add, d_before, through), start)
        return d_before, (d_projected, d_recurrent)

    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), before)
    xs = (cotangent, projected, recurrent, before, start)
    d_carry, (d_projected, d_recurrent) = jax.lax.scan(step, nothing, xs, reverse=True)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    d_kernel = flat(cell.output(before)).T @ flat(d_recurrent)
    return d_kernel, jnp.sum(d_recurrent, (0, 1)), d_projected, None, d_carry


unroll.defvjp(_forward, _backward)


def forget(carry: PyTree, start: Array) -> PyTree:
    """The carry [B, ...], zero where a sequence starts, `start` [B] bool."""
    empty = lambda x: jnp.where(start.reshape(start.shape + (1,) * (x.ndim - 1)), 0.0, x)
    return jax.tree.map(empty, carry)
