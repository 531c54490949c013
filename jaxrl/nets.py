"""Networks as (init, apply) pairs; flax.linen shows only here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.types import Array, PyTree


class Net(NamedTuple):
    """init(key) -> params; apply(params, *inputs) -> outputs. Params are plain dicts of arrays."""

    init: Callable[[Array], PyTree]
    apply: Callable[..., Any]


def from_linen(module: nn.Module, *shapes: tuple[int, ...]) -> Net:
    """A linen module as a `Net`; `shapes` are those of its inputs without batch axes."""
    examples = [jnp.zeros((1, *shape)) for shape in shapes]

    def init(key: Array) -> PyTree:
        return module.init(key, *examples)["params"]

    def apply(params: PyTree, *inputs: Array) -> Any:
        return module.apply({"params": params}, *inputs)

    return Net(init, apply)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, numbers as flax's (eps 1e-6), written for speed."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean = jnp.mean(x, -1, keepdims=True)
        centred = x - mean
        inverse = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + self.eps)
        return nn_affine(centred * inverse, scale, bias)


def nn_affine(x: Array, scale: Array, bias: Array) -> Array:
    shape = (1,) * (x.ndim - 1) + scale.shape
    return x * scale.reshape(shape) + bias.reshape(shape)


class MLP(nn.Module):
    """[Dense -> (LayerNorm) -> activation] per hidden width, then Dense to `out`.

    Observations of any shape are flattened: [..., *obs] has to come in as [B, *obs].
    """

    hidden: tuple[int, ...]
    out: int
    norm: bool = False
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dense(width)(x)
            if self.norm:
                x = LayerNorm()(x)
            x = self.activation(x)
        return nn.Dense(self.out)(x)
