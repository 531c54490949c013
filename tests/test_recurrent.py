"""Recurrent cells: values as flax's, gradients as automatic differentiation's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl import recurrent
from jaxrl.types import Array, PyTree

T, B, F, H = 6, 3, 5, 4
FLAX = {
    "gru": (nn.GRUCell(H), ["ir", "iz", "in"], ["hr", "hz", "hn"]),
    "lstm": (nn.OptimizedLSTMCell(H), ["ii", "if", "ig", "io"], ["hi", "hf", "hg", "ho"]),
}


def case(kind: str) -> tuple[recurrent.Recurrent, PyTree, PyTree, Array, Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    net = recurrent.Recurrent(kind, H)
    inputs = jax.random.normal(keys[0], (T, B, F))
    start = jax.random.uniform(keys[1], (T, B)) < 0.3
    carry = jax.tree.map(lambda x: x + 0.5, recurrent.CELLS[kind].carry((B, H)))
    params = net.init(keys[2], carry, inputs, start)["params"]
    params["bias"] = jax.random.normal(keys[3], params["bias"].shape)
    return net, params, carry, inputs, start


def to_flax(kind: str, params: PyTree) -> PyTree:
    """Our parameters in flax's names; the two biases of a gate are one there, but for GRU's n."""
    _, inner, outer = FLAX[kind]
    blocks = lambda x: np.split(np.asarray(x), len(inner), -1)
    bias, rest = blocks(params["bias"].sum(0)), blocks(params["bias"])
    found = {}
    for i, (a, b) in enumerate(zip(inner, outer, strict=True)):
        found[a] = {"kernel": blocks(params["input"])[i]}
        found[b] = {"kernel": blocks(params["recurrent"])[i]}
        if kind == "lstm":
            found[b]["bias"] = bias[i]
        elif a == "in":
            found[a]["bias"], found[b]["bias"] = rest[i]
        else:
            found[a]["bias"] = bias[i]
    return {"params": found}


def test_recurrent_kernels_begin_orthogonal() -> None:
    params = case("gru")[1]
    blocks = np.split(np.asarray(params["recurrent"]), 3, -1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-6)
    assert not np.allclose(blocks[0], blocks[1])


@pytest.mark.parametrize("kind", FLAX)
def test_values_are_those_of_the_flax_cell(kind: str) -> None:
    net, params, carry, inputs, start = case(kind)
    assert np.any(start) and not np.all(start)
    carries, outs = net.apply({"params": params}, carry, inputs, start)
    for t in range(T):
        carry = jax.tree.map(lambda x: np.where(start[t][:, None], 0, x), carry)  # noqa: B023
        carry, out = FLAX[kind][0].apply(to_flax(kind, params), carry, inputs[t])
        np.testing.assert_allclose(outs[t], out, atol=1e-6)
        for ours, theirs in zip(jax.tree.leaves(carries), jax.tree.leaves(carry), strict=True):
            np.testing.assert_allclose(ours[t], theirs, atol=1e-6)


@pytest.mark.parametrize("kind", FLAX)
def test_gradients_are_those_of_backpropagation_step_by_step(kind: str) -> None:
    net, params, carry, inputs, start = case(kind)
    cell = recurrent.CELLS[kind]
    weights = jax.random.normal(jax.random.key(9), (T, B, H))

    def loss(params: PyTree, carry: PyTree, inputs: Array) -> Array:
        carries, _ = net.apply({"params": params}, carry, inputs, start)
        return sum(jnp.sum(x * x * weights) for x in jax.tree.leaves(carries))

    def plain(params: PyTree, carry: PyTree, inputs: Array) -> Array:
        def step(carry: PyTree, xs: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
            x, start = xs
            carry = recurrent.forget(carry, start)
            share = cell.output(carry) @ params["recurrent"] + params["bias"][1:]
            carry = cell.step(x @ params["input"] + params["bias"][:1], share, carry)
            return carry, carry

        carries = jax.lax.scan(step, carry, (inputs, start))[1]
        return sum(jnp.sum(x * x * weights) for x in jax.tree.leaves(carries))

    ours, theirs = (
        jax.value_and_grad(f, argnums=(0, 1, 2))(params, carry, inputs) for f in (loss, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    members = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    grads = jax.vmap(jax.grad(loss), in_axes=(0, None, None))(members, carry, inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5), grads, ours[1][0]
    )
