"""Networks: orthogonal weights, convolutions of any side and stride."""

from __future__ import annotations

import jax
import numpy as np
import pytest

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


def test_convolutions_of_the_atari_network() -> None:
    torso = nets.Torso((16,), (8, 4, 4), kernels=(8, 4, 3), strides=(4, 2, 1), norm=True)
    x = jax.random.uniform(jax.random.key(0), (2, 44, 44, 4))
    params = torso.init(jax.random.key(1), x)["params"]
    shapes = {k: v["kernel"].shape for k, v in params.items() if "kernel" in v}
    assert shapes == {
        "Conv_0": (8, 8, 4, 8),
        "Conv_1": (4, 4, 8, 4),
        "Conv3x3_0": (3, 3, 4, 4),
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
