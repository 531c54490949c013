"""Networks: orthogonal weights, convolutions of any side and stride, flat parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from jaxrl import nets
from jaxrl.errors import UserError
from jaxrl.types import Discrete, EnvSpec


@pytest.mark.parametrize("shape", [(64, 64), (7, 3), (3, 7), (3, 3, 4, 5), (1, 6)])
def test_orthogonal_kernels(shape: tuple[int, ...]) -> None:
    kernel = nets.orthogonal(1.5)(jax.random.key(0), shape)
    assert kernel.shape == shape
    flat = np.asarray(kernel, np.float64).reshape(-1, shape[-1])
    gram = flat.T @ flat if flat.shape[0] >= flat.shape[1] else flat @ flat.T
    np.testing.assert_allclose(gram, 1.5**2 * np.eye(len(gram)), atol=1e-5)


def test_orthogonal_kernels_are_those_of_a_qr_with_positive_diagonal() -> None:
    key = jax.random.key(1)
    q, r = np.linalg.qr(np.asarray(jax.random.normal(key, (5, 9)), np.float64).T)
    np.testing.assert_allclose(nets.orthogonal()(key, (9, 5)), q * np.sign(np.diag(r)), atol=1e-5)


@pytest.mark.parametrize("side, stride", [(3, 1), (2, 2), (6, 3), (4, 2), (3, 2), (1, 2)])
def test_convolution_equals_flax(side: int, stride: int) -> None:
    """Values and all gradients; images of 9 x 8 pixels, some of which no patch covers."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, 9, 8, 3))
    params = {
        "kernel": jax.random.normal(keys[1], (side, side, 3, 6)),
        "bias": jax.random.normal(keys[2], (6,)),
    }
    theirs = nn.Conv(6, (side, side), stride, padding="VALID")
    target = jax.random.normal(keys[3], jax.eval_shape(theirs.apply, {"params": params}, x).shape)

    def gradients(module: nn.Module) -> Any:
        loss = lambda params, x: jnp.sum((module.apply({"params": params}, x) - target) ** 2)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    found, expected = gradients(nets.Conv(6, side, stride)), gradients(theirs)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_convolutions_of_the_atari_network() -> None:
    torso = nets.Torso((16,), (8, 4, 4), kernels=(8, 4, 3), strides=(4, 2, 1), norm=True)
    x = jax.random.uniform(jax.random.key(0), (2, 44, 44, 4))
    params = torso.init(jax.random.key(1), x)["params"]
    shapes = {k: v["kernel"].shape for k, v in params.items() if "kernel" in v}
    assert shapes == {
        "Conv_0": (8, 8, 4, 8),
        "Conv_1": (4, 4, 8, 4),
        "Conv_2": (3, 3, 4, 4),
        "Dense_0": (2 * 2 * 4, 16),  # sides 44 -> 10 -> 4 -> 2
    }
    out = torso.apply({"params": params}, x)
    assert out.shape == (2, 16)


@pytest.mark.parametrize(
    ("shape", "sizes", "told"),
    [
        ((44, 44, 4), ((8, 4, 4), (8, 4, 3), (4, 2, 1)), None),
        ((27, 27, 4), ((8, 4, 4), (8, 4, 3), (4, 2, 1)), "larger images"),  # 27 -> 5 -> 1 -> -1
        ((4, 4, 1), ((2,),), None),
        ((2, 9, 1), ((2,),), "larger images"),
        ((64,), ((2,),), "larger images"),
        ((64,), ((),), None),
        ((9, 9, 1), ((2, 2), (3,)), "kernels=.* for each of conv"),
        ((9, 9, 1), ((2,), (3,), (0,)), "strides=.* for each of conv"),
    ],
)
def test_images_have_to_be_large_enough(
    shape: tuple[int, ...], sizes: tuple[tuple[int, ...], ...], told: str | None
) -> None:
    spec = EnvSpec("pictures", shape, Discrete(2))
    if told is None:
        return nets.check_images(spec, *sizes)
    with pytest.raises(UserError, match=told):
        nets.check_images(spec, *sizes)


def test_splitter_is_the_inverse_of_ravel_pytree() -> None:
    net = nets.from_linen(nets.MLP((5, 3), 2), (6,))
    vector, split = ravel_pytree(net.init(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, nets.splitter(net)(vector), split(vector))


@pytest.mark.slow
def test_gradients_of_a_large_flat_network_are_put_together_without_sums() -> None:
    """`nets.unfused`: no fused loop of XLA sums rows while it concatenates; the numbers stay."""
    net = nets.from_linen(nets.MLP((128, 128), 2), (6,))
    flat = nets.flat(net)
    x, params = jnp.ones((256, 6)), net.init(jax.random.key(0))
    vector, split = ravel_pytree(params)

    def loss(apply: Any) -> Any:
        return lambda params, x: jnp.mean(apply(params, x) ** 2)

    compiled = jax.jit(jax.grad(loss(flat.apply))).lower(vector, x).compile()
    for fusion in compiled.as_text().split("\n\n"):
        assert not (" concatenate(" in fusion and " reduce(" in fusion and "ENTRY" not in fusion)
    np.testing.assert_array_equal(flat.apply(vector, x), net.apply(params, x))
    plain = ravel_pytree(jax.grad(loss(net.apply))(params, x))[0]
    np.testing.assert_allclose(compiled(vector, x), plain, rtol=1e-5, atol=1e-8)
    both = jax.vmap(jax.grad(loss(flat.apply)), (0, None))(jnp.stack([vector, 2 * vector]), x)
    np.testing.assert_allclose(both[0], plain, rtol=1e-5, atol=1e-8)
    slope = jax.jvp(lambda p: flat.apply(p, x), (vector,), (vector,))[1]
    expected = jax.jvp(lambda p: net.apply(split(p), x), (vector,), (vector,))[1]
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_joint_networks_share_one_vector() -> None:
    """Parameters are one after another, by name; each network begins as with its own key."""
    make = lambda inputs, out: nets.flat(nets.from_linen(nets.MLP((3,), out), (inputs,)))
    parts = {"wide": make(4, 2), "narrow": make(1, 1)}
    joint = nets.joint(parts)
    params = joint.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0))
    split = joint.split(params)
    assert list(split) == ["wide", "narrow"]
    assert params.shape == ((4 + 1) * 3 + (3 + 1) * 2 + (1 + 1) * 3 + (3 + 1) * 1,)
    for (name, net), key in zip(parts.items(), keys, strict=True):
        np.testing.assert_array_equal(split[name], net.init(key))
    np.testing.assert_array_equal(jnp.concatenate(list(split.values())), params)
