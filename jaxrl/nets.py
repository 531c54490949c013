"""Networks as (init, apply) pairs; flax.linen shows only here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from jaxrl.errors import UserError
from jaxrl.types import Array, EnvSpec, PyTree


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


def flat(net: Net) -> Net:
    """`net` with its parameters as one vector.

    With one gradient step per update the parameters are the carry of a short loop: one vector costs
    fewer operations than ten leaves, and no layout is left for XLA to choose, which it does by the
    number of members on a device, and with it the last bits.
    """
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))[1]
    return Net(
        init=lambda key: ravel_pytree(net.init(key))[0],
        apply=lambda params, *inputs: net.apply(unravel(params), *inputs),
    )


def orthogonal(scale: float = 1.0) -> nn.initializers.Initializer:
    """Initialiser of kernels [..., out] whose columns (or rows, if these are fewer) are orthogonal
    and of length `scale`, uniformly drawn.

    Gram-Schmidt, twice for precision, and not the QR of LAPACK: that one, vmapped, waits for
    threads of the pool that it occupies itself, and on several CPU devices it can wait for ever.
    """

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        gauss = jax.random.normal(key, (min(rows, columns), max(rows, columns)), dtype)

        def step(i: Array, basis: Array) -> Array:
            v = gauss[i]
            for _ in range(2):  # what is not filled yet is zero
                v = v - (basis @ v) @ basis
            return basis.at[i].set(v * jax.lax.rsqrt(jnp.sum(v * v)))

        basis = jax.lax.fori_loop(0, gauss.shape[0], step, jnp.zeros_like(gauss))
        return scale * (basis.T if rows >= columns else basis).reshape(shape)

    return init


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
    """[convolution -> (LayerNorm) -> activation] per entry of `conv`, then the same with Dense per
    entry of `hidden`: observations [B, *obs] to features [B, hidden[-1]].

    Convolutions are unpadded, of sides `kernels` and with `strides`, 3 and 1 where these are empty.
    Weights begin as in the authors' PQN networks: He normal behind convolutions, else LeCun normal.
    """

    hidden: tuple[int, ...]
    conv: tuple[int, ...] = ()
    norm: bool = False
    activation: Callable[[Array], Array] = nn.relu
    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernels, strides = (
            self.kernels or (3,) * len(self.conv),
            self.strides or (1,) * len(self.conv),
        )
        for features, side, stride in zip(self.conv, kernels, strides, strict=True):
            x = self._finish(_convolution(features, side, stride)(x))
        x = x.reshape(x.shape[0], -1)
        init = nn.initializers.he_normal() if self.conv else nn.initializers.lecun_normal()
        for width in self.hidden:
            x = self._finish(nn.Dense(width, kernel_init=init)(x))
        return x

    def _finish(self, x: Array) -> Array:
        return self.activation(LayerNorm()(x) if self.norm else x)


def check_images(
    spec: EnvSpec,
    conv: tuple[int, ...],
    kernels: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> None:
    """Raises UserError where the convolutions of a `Torso` do not fit the observations."""
    sizes = {"kernels": kernels or (3,) * len(conv), "strides": strides or (1,) * len(conv)}
    for name, values in sizes.items():
        if len(values) != len(conv) or min(values, default=1) < 1:
            raise UserError(f"{name}={values} has to be a positive number for each of conv={conv}")
    sides = spec.obs_shape[:2] if len(spec.obs_shape) == 3 else (0,)
    for kernel, stride in zip(*sizes.values(), strict=True):
        sides = tuple((side - kernel) // stride + 1 for side in sides)
    if conv and min(sides) < 1:
        raise UserError(
            f"conv={conv} with kernels={sizes['kernels']} needs larger images; observations of "
            f"{spec.name} are {spec.obs_shape}"
        )


def _convolution(features: int, side: int, stride: int) -> nn.Module:
    if (side, stride) == (3, 1):
        return Conv3x3(features)
    he = nn.initializers.he_normal()
    return nn.Conv(features, (side, side), stride, "VALID", kernel_init=he)


class MLP(nn.Module):
    """A `Torso` and a linear layer to `out` outputs."""

    hidden: tuple[int, ...]
    out: int
    conv: tuple[int, ...] = ()
    norm: bool = False
    activation: Callable[[Array], Array] = nn.relu
    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Torso(self.hidden, self.conv, self.norm, self.activation, self.kernels, self.strides)(x)
        return nn.Dense(self.out)(x)
