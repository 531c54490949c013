"""Networks as (init, apply) pairs around flax.linen modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from jaxrl.errors import UserError
from jaxrl.precision import lowered, raised
from jaxrl.products import Dense, product
from jaxrl.types import Array, EnvSpec, PyTree


class Net(NamedTuple):
    """init(key) -> params; apply(params, *inputs) -> outputs. Params are plain dicts of arrays."""

    init: Callable[[Array], PyTree]
    apply: Callable[..., Any]


def from_linen(module: nn.Module, *shapes: tuple[int, ...]) -> Net:
    """A linen module as a `Net`; `shapes` are those of its inputs without batch axes."""

    @jax.jit  # traced once, for the sizes and for the values
    def init(key: Array) -> PyTree:
        examples = [jnp.zeros((1, *shape)) for shape in shapes]
        return module.init(key, *examples)["params"]

    def apply(params: PyTree, *inputs: Array) -> Any:
        seen = lowered(tuple(map(as_floats, inputs)))
        return raised(module.apply({"params": lowered(params)}, *seen))

    return Net(init, apply)


def as_floats(x: Array) -> Array:
    """Bytes, of images, as float32 in [0, 1]; other arrays are unchanged."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def flat(net: Net) -> Net:
    """`net` with its parameters as one vector.

    A training loop carries the parameters. One vector costs fewer operations than many leaves. XLA
    chooses the layout of leaves by the number of members on a device, and the layout decides the
    last bits of results; a vector has one layout only.
    """
    split = splitter(net)

    def unravel(params: Array) -> PyTree:
        short = params.size < 2**14
        return jax.tree.map(lambda x: x if short or x.ndim > 1 else unfused(x), split(params))

    return Net(
        init=lambda key: ravel_pytree(net.init(key))[0],
        apply=lambda params, *inputs: net.apply(unravel(params), *inputs),
    )


def splitter(net: Net) -> Callable[[Array], PyTree]:
    """The function from a vector to the parameters of `net`, the inverse of `ravel_pytree`."""
    shapes, tree = jax.tree.flatten(_shapes(net))
    ends = np.cumsum([x.size for x in shapes])

    def split(params: Array) -> PyTree:
        parts = zip(jnp.split(params, ends[:-1]), shapes, strict=True)
        return tree.unflatten([part.reshape(x.shape).astype(x.dtype) for part, x in parts])

    return split


def _shapes(net: Net) -> PyTree:
    """Shapes and dtypes of the parameters of `net`."""
    return jax.eval_shape(lambda: net.init(jax.random.key(0)))


PACKED = 2**16  # parameters from which one vector is slower than a tree


def packed(net: Net) -> Net:
    """`flat` for a network of less than 2^16 parameters, otherwise `net` itself.

    Small networks are bound by the number of operations, large ones by memory traffic: gathering
    all gradients in one vector costs another pass over the parameters (docs/decisions.md).
    """
    size = sum(x.size for x in jax.tree.leaves(_shapes(net)))
    return flat(net) if size < PACKED else net


def unpacked(net: Net, params: PyTree) -> PyTree:
    """The parameters of `net` from those of `packed(net)`."""
    return splitter(net)(params) if isinstance(params, jax.Array) else params


def init_stack(init: Callable[[Array], PyTree], key: Array, count: int = 2) -> PyTree:
    """Initial parameters of `count` networks, leaves [count, ...].

    A loop, not a vmap: if the result is used twice, for networks and for their targets, XLA
    computes a vmapped initialisation twice, and rounds the results differently.
    """
    return jax.lax.map(init, jax.random.split(key, count))


def init_twice(init: Callable[[Array], PyTree], key: Array) -> tuple[PyTree, PyTree]:
    """The same initial parameters for a network and its target, bit for bit; see `init_stack`."""
    pair = jax.lax.map(init, jnp.stack([key, key]))
    return pick(pair, 0), pick(pair, 1)


def pick(stack: PyTree, index: int | Array) -> PyTree:
    """The parameters at `index` of a stack of networks, leaves [N, ...]."""
    return jax.tree.map(lambda x: x[index], stack)


def each(apply: Callable[..., Any]) -> Callable[..., Any]:
    """(stack of parameters [N, ...], *inputs) to the outputs [N, ...] of `apply` for each network.

    Inputs of up to three axes are copied N times. A vmap over parameters alone computes the first
    layers as one product of N times the columns and then rearranges the result, which takes longer
    than the product. Images are shared: there, copies would cost more.
    """

    def outputs(stack: PyTree, *inputs: PyTree) -> Any:
        count = jax.tree.leaves(stack)[0].shape[0]
        copied = lambda x: x if x.ndim > 3 else jnp.broadcast_to(x[None], (count, *x.shape))
        axes = jax.tree.map(lambda x: None if x.ndim > 3 else 0, inputs)
        return jax.vmap(apply, (0, *axes))(stack, *jax.tree.map(copied, inputs))

    return outputs


class Joint(NamedTuple):
    """Several networks whose parameters are one vector, for one optimiser.

    init(key) -> parameters [size], one network after another.
    split(params [size]) -> the parameters [n] of each network, by name.
    """

    init: Callable[[Array], Array]
    split: Callable[[Array], dict[str, Array]]


def joint(parts: dict[str, Net]) -> Joint:
    """The networks of `parts`, each of flat parameters (`flat`), with one vector for all."""
    sizes = [_shapes(net).size for net in parts.values()]

    def init(key: Array) -> Array:
        keys = jax.random.split(key, len(parts))
        return jnp.concatenate([net.init(k) for net, k in zip(parts.values(), keys, strict=True)])

    def split(params: Array) -> dict[str, Array]:
        return dict(zip(parts, jnp.split(params, np.cumsum(sizes)[:-1]), strict=True))

    return Joint(init, split)


def unfused(x: Array) -> Array:
    """x [n], bit for bit, with a gradient that XLA does not fuse with other operations.

    For biases, whose gradients are sums over rows. On CPUs, XLA fuses the last part of such a sum
    with the loop that concatenates all gradients of a `flat` network. The fused loop loads the rows
    for every element of the result (docs/decisions.md). Here the gradient is a matrix product,
    which XLA computes separately.
    """
    halves = jax.lax.dot_general(jnp.full(2, 0.5, x.dtype), x, (((), ()), ((), ())))
    return jnp.sum(halves, 0)


def orthogonal(scale: float = 1.0) -> nn.initializers.Initializer:
    """Initialiser of kernels [..., out] with orthogonal columns, or rows if these are fewer, of
    length `scale`, drawn uniformly.

    Gram-Schmidt, run twice for precision. LAPACK's QR under vmap waits for threads of the pool that
    it occupies itself, and can deadlock on several CPU devices.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return scale * _orthogonal(key, shape, dtype)

    return init


@partial(jax.jit, static_argnums=(1, 2))  # kernels of one shape share one trace
def _orthogonal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    gauss = jax.random.normal(key, (min(rows, columns), max(rows, columns)), dtype)

    def step(i: Array, basis: Array) -> Array:
        v = gauss[i]
        for _ in range(2):  # rows of the basis that are not filled yet are zero
            v = v - (basis @ v) @ basis
        return basis.at[i].set(v * jax.lax.rsqrt(jnp.sum(v * v)))

    basis = jax.lax.fori_loop(0, gauss.shape[0], step, jnp.zeros_like(gauss))
    return (basis.T if rows >= columns else basis).reshape(shape)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis: flax's numbers (eps 1e-6), computed faster."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        dtype, x = x.dtype, x.astype(jnp.float32)
        mean = jnp.mean(x, -1, keepdims=True)
        centred = x - mean
        inverse = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + scale.shape  # silent broadcasts are errors in the tests
        return (centred * inverse * scale.reshape(shape) + bias.reshape(shape)).astype(dtype)


class Conv(nn.Module):
    """Convolution without padding, [B, H, W, C] -> [B, H', W', features].

    Shifted slices and one matrix product give the numbers of `nn.Conv`. On CPUs they are several
    times faster: XLA computes gradients of `lax.conv` in loops without its fast kernels. With a
    kernel per member of a population this is still one product, where `lax.conv` becomes a grouped
    convolution. Where the stride divides the side, blocks of the image become channels first, so
    that a kernel of 8 with stride 4 takes four slices instead of 64.
    """

    features: int
    side: int = 3
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        side, stride, features = self.side, self.stride, self.features
        rows, channels = x.shape[0], x.shape[3]
        height, width = ((size - side) // stride + 1 for size in x.shape[1:3])
        kernel = self.param("kernel", self.kernel_init, (side, side, channels, features))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        if side % stride == 0 and stride > 1:
            side, tall, wide = side // stride, height - 1, width - 1
            x = x[:, : (tall + side) * stride, : (wide + side) * stride]
            x = x.reshape(rows, tall + side, stride, wide + side, stride, channels)
            channels *= stride**2
            x = jnp.moveaxis(x, 3, 2).reshape(rows, tall + side, wide + side, channels)
            kernel = kernel.reshape(side, stride, side, stride, -1, features)
            kernel, stride = jnp.moveaxis(kernel, 2, 1), 1
        ends = [slice(i, i + (height - 1) * stride + 1, stride) for i in range(side)]
        across = [slice(j, j + (width - 1) * stride + 1, stride) for j in range(side)]
        patches = jnp.concatenate([x[:, i, j] for i in ends for j in across], -1)
        size = side * side * channels
        out = product(patches.reshape(-1, size), kernel.reshape(size, features))
        return (out + bias[None]).reshape(rows, height, width, features)


class Torso(nn.Module):
    """Observations [B, *obs] to features [B, hidden[-1]].

    [Convolution -> (norm) -> activation] per entry of `conv`, then [Dense -> (norm) -> activation]
    per entry of `hidden`. Weights are initialised as in the authors' PQN networks: He normal with
    convolutions, otherwise LeCun normal.

    Attributes:
      norm: True for LayerNorm, False for none, or a function that makes a layer.
      kernels, strides: sides and strides of the unpadded convolutions; 3 and 1 if empty.
      first: makes a layer in front of all others.
    """

    hidden: tuple[int, ...]
    conv: tuple[int, ...] = ()
    norm: bool | Callable[[], nn.Module] = False
    activation: Callable[[Array], Array] = nn.relu
    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    first: Callable[[], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.first is not None:
            x = self.first()(x)
        kernels = self.kernels or (3,) * len(self.conv)
        strides = self.strides or (1,) * len(self.conv)
        for features, side, stride in zip(self.conv, kernels, strides, strict=True):
            x = self._finish(Conv(features, side, stride)(x))
        x = x.reshape(x.shape[0], -1)
        init = nn.initializers.he_normal() if self.conv else nn.initializers.lecun_normal()
        for width in self.hidden:
            x = self._finish(Dense(width, kernel_init=init)(x))
        return x

    def _finish(self, x: Array) -> Array:
        layer = LayerNorm if self.norm is True else self.norm
        return self.activation(layer()(x) if layer else x)


def sinusoids(t: Array, size: int) -> Array:
    """[cos(f_k t), sin(f_k t)] [B, size] of times [B], f_k = 10⁴^(-2 k / size), k < size / 2.

    Times are not scaled. The usual factor 1000 for times in [0, 1] would multiply derivatives with
    respect to time by 1000.
    """
    phases = t[:, None] * (1e-4 ** (np.arange(size // 2) / (size // 2))).astype(np.float32)[None]
    return jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], -1)


def mish(x: Array) -> Array:
    """x tanh(log(1 + e^x)), as `jax.nn.mish`, with one exponential only.

    tanh(log(1 + w)) = w (w + 2) / (w (w + 2) + 2). Takes a fifth of the time on CPUs.
    """
    w = jnp.exp(jnp.minimum(x, 10.0))  # beyond 10 the fraction is 1 in float32
    inner = w * (w + 2)
    return x * (inner / (inner + 2))


class ConditionalMLP(nn.Module):
    """(x [B, ..., D], context [B, C], *times [B]) to [B, ..., out]: a Mish network.

    Each time is embedded by `sinusoids` of `embedding` numbers and two layers. Context and times
    may have one row for all of x. The first layer is a sum of products, one per input, so that the
    product of an input that many rows share is computed once. Weights are initialised as in torch.
    `norm` puts LayerNorm before the activations.
    """

    hidden: tuple[int, ...]
    out: int
    embedding: int = 64
    norm: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Array, *times: Array) -> Array:
        parts = [context]
        for t in times:
            wave = sinusoids(t, self.embedding)
            wave = mish(torch_dense(2 * self.embedding, self.embedding)(wave))
            parts.append(torch_dense(self.embedding, 2 * self.embedding)(wave))
        inputs = x.shape[-1] + sum(part.shape[-1] for part in parts)
        total = torch_dense(self.hidden[0], inputs)(x)
        for part in parts:
            share = torch_dense(self.hidden[0], inputs, use_bias=False)(part)
            total = total + share.reshape(-1, *(1,) * (x.ndim - 2), self.hidden[0])
        x = self._finish(total)
        for before, after in zip(self.hidden, self.hidden[1:], strict=False):
            x = self._finish(torch_dense(after, before)(x))
        return torch_dense(self.out, self.hidden[-1])(x)

    def _finish(self, x: Array) -> Array:
        return mish(LayerNorm()(x) if self.norm else x)


def torch_dense(features: int, inputs: int, use_bias: bool = True) -> Dense:
    """A linear layer with torch's initialisation: uniform within ±1 / √inputs."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Dense(features, use_bias, kernel_init=init, bias_init=init)


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


class MLP(nn.Module):
    """A `Torso` and a linear layer to `out` outputs, its kernel initialised by `end`."""

    hidden: tuple[int, ...]
    out: int
    conv: tuple[int, ...] = ()
    norm: bool | Callable[[], nn.Module] = False
    activation: Callable[[Array], Array] = nn.relu
    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    first: Callable[[], nn.Module] | None = None
    end: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        sizes = (self.kernels, self.strides)
        x = Torso(self.hidden, self.conv, self.norm, self.activation, *sizes, self.first)(x)
        return Dense(self.out, kernel_init=self.end)(x)
