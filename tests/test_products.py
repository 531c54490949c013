"""Products have the derivatives of x @ kernel, in the forms that CPUs compute fast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl import nets
from jaxrl.products import Dense, product

# few outputs; rows of 256 bytes and more; neither
SIZES = {"few": (256, 256, 3), "stride": (32, 128, 96), "plain": (16, 11, 64)}
FORMS = pytest.mark.parametrize("rows, inputs, outputs", SIZES.values(), ids=SIZES)


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(3), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def same(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), found, expected
    )


def loss(multiply):
    return lambda x, kernel: jnp.sum(jnp.tanh(multiply(x, kernel)) ** 2)


@FORMS
def test_values_have_the_same_bits(rows, inputs, outputs):
    x, kernel = arrays((rows, inputs), (inputs, outputs))
    assert (jax.jit(product)(x, kernel) == jax.jit(jnp.matmul)(x, kernel)).all()


@FORMS
def test_first_derivatives(rows, inputs, outputs):
    x, kernel, dx, dkernel = arrays(*[(rows, inputs), (inputs, outputs)] * 2)
    results = []
    for multiply in (product, jnp.matmul):
        f = loss(multiply)
        grads = jax.jit(jax.grad(f, (0, 1)))(x, kernel)
        tangents = [jax.jvp(f, (x, kernel), (dx, dkernel))]
        tangents += [jax.jvp(lambda k, f=f: f(x, k), (kernel,), (dkernel,))]
        tangents += [jax.jvp(lambda v, f=f: f(v, kernel), (x,), (dx,))]
        results.append((grads, tangents))
    same(*results)


@FORMS
def test_second_derivatives(rows, inputs, outputs):
    """Forward over reverse, as natural gradients need, and reverse over forward, as mean flows."""
    x, kernel, dx, dkernel = arrays(*[(rows, inputs), (inputs, outputs)] * 2)
    results = []
    for multiply in (product, jnp.matmul):
        f = loss(multiply)
        hessian = jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (dx, dkernel))[1]
        along = lambda k, f=f: jax.jvp(lambda v: f(v, k), (x,), (dx,))[1]
        results.append((hessian, jax.grad(along)(kernel)))
    same(*results)


@FORMS
def test_members_have_products_of_their_own(rows, inputs, outputs):
    x, kernel = arrays((2, rows, inputs), (2, inputs, outputs))
    many = jax.vmap(jax.grad(loss(product), (0, 1)))(x, kernel)
    one = [jax.grad(loss(jnp.matmul), (0, 1))(x[i], kernel[i]) for i in range(2)]
    same(many, jax.tree.map(lambda *parts: jnp.stack(parts), *one))


def test_inputs_of_three_axes():
    x, kernel = arrays((4, 64, 256), (256, 3))
    same(*(jax.grad(loss(f), (0, 1))(x, kernel) for f in (product, jnp.matmul)))


def test_a_tangent_of_the_input_alone_needs_one_more_product():
    x, kernel = arrays((32, 128), (128, 128))
    along = lambda v: jax.jvp(lambda u: product(u, kernel), (v,), (v,))
    assert str(jax.make_jaxpr(along)(x)).count("dot_general") == 2


def test_xla_keeps_both_forms():
    """The optimised program would be slow, but right, if XLA undid them."""
    shapes = {}
    for name, (rows, inputs, outputs) in SIZES.items():
        x, kernel = arrays((rows, inputs), (inputs, outputs))
        gradient = jax.jit(jax.grad(loss(product), 1)).lower(x, kernel).compile()
        text = gradient.as_text() or ""
        shapes[name] = re.findall(r"= f32\[(\d+),(\d+)\]\{(\d),\d\} dot\(", text)
    assert ("132", "96", "1") in shapes["stride"]
    assert ("3", "256", "1") in shapes["few"] or ("256", "3", "0") in shapes["few"]


def test_dense_is_that_of_flax():
    x = arrays((8, 128))[0]
    own, flax = Dense(96), nn.Dense(96)
    params = flax.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, own.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, params
    )
    np.testing.assert_array_equal(own.apply(params, x), flax.apply(params, x))


@pytest.mark.parametrize("shape", [(5, 4), (5, 6, 6, 2)], ids=["flat", "images"])
def test_each_network_of_a_stack(shape):
    def apply(kernel, x, scale):
        return x.reshape(len(x), -1) @ kernel * scale

    x, kernels = arrays(shape, (3, int(np.prod(shape[1:])), 2))
    found = nets.each(apply)(kernels, x, jnp.float32(2))
    same(found, jnp.stack([apply(kernel, x, 2.0) for kernel in kernels]))
    copies = str(jax.make_jaxpr(nets.each(apply))(kernels, x, jnp.float32(2)))
    assert "f32[3,5,6,6,2]" not in copies  # images are not copied
