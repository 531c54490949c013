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

    def init(key: Array) -> PyTree:
        examples = [jnp.zeros((1, *shape)) for shape in shapes]
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
        shape = (1,) * (x.ndim - 1) + scale.shape  # silent broadcasts are errors in the tests
        return centred * inverse * scale.reshape(shape) + bias.reshape(shape)


class Conv3x3(nn.Module):
    """3x3 convolution without padding, [B, H, W, C] -> [B, H-2, W-2, features].

    Written as nine shifted slices and one matrix product: the same numbers as `nn.Conv`, several
    times faster on CPUs, and still one product when every member of a population has its own
    kernel, where `lax.conv` becomes a grouped convolution.
    """

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width, channels = x.shape[1] - 2, x.shape[2] - 2, x.shape[3]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = jnp.concatenate(shifted, -1)  # [B, H-2, W-2, 9 C]
        out = patches.reshape(-1, 9 * channels) @ kernel.reshape(9 * channels, self.features)
        return (out + bias[None]).reshape(x.shape[0], height, width, self.features)


class Torso(nn.Module):
    """[Conv3x3 -> (LayerNorm) -> activation] per entry of `conv`, then the same with Dense per
    entry of `hidden`: observations [B, *obs] to features [B, hidden[-1]].

    Weights begin as in the authors' PQN networks: He normal behind convolutions, else LeCun normal.
    """

    hidden: tuple[int, ...]
    conv: tuple[int, ...] = ()
    norm: bool = False
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features in self.conv:
            x = self._finish(Conv3x3(features)(x))
        x = x.reshape(x.shape[0], -1)
        init = nn.initializers.he_normal() if self.conv else nn.initializers.lecun_normal()
        for width in self.hidden:
            x = self._finish(nn.Dense(width, kernel_init=init)(x))
        return x

    def _finish(self, x: Array) -> Array:
        return self.activation(LayerNorm()(x) if self.norm else x)


class MLP(nn.Module):
    """A `Torso` and a linear layer to `out` outputs."""

    hidden: tuple[int, ...]
    out: int
    conv: tuple[int, ...] = ()
    norm: bool = False
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Torso(self.hidden, self.conv, self.norm, self.activation)(x)
        return nn.Dense(self.out)(x)
