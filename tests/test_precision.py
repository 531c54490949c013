"""Precision of matrix products and of networks, as contexts around tracing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import batchnorm, nets
from jaxrl.errors import UserError
from jaxrl.experiments.restore import settle
from jaxrl.experiments.settings import identity, resolve
from jaxrl.precision import Precision
from jaxrl.runs import records

HALF = Precision(compute="bfloat16")


def dtypes(jaxpr, primitive):
    """Dtypes of the first operands of all equations of a primitive, and their precisions."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            found.append((str(equation.invars[0].aval.dtype), equation.params.get("precision")))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found += dtypes(inner, primitive) if hasattr(inner, "eqns") else []
    return found


def network():
    net = nets.from_linen(nets.MLP((8,), 2, norm=True), (3,))
    return net, net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 3))


def test_networks_compute_in_bfloat16_and_gradients_are_float32():
    net, params, x = network()
    loss = lambda params: jnp.sum(net.apply(params, x) ** 2)
    both = jax.value_and_grad(loss)
    half = HALF.within(both)
    products = dtypes(jax.make_jaxpr(half)(params).jaxpr, "dot_general")
    assert products and {dtype for dtype, _ in products} == {"bfloat16"}
    exact, rounded = both(params), half(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        scale = np.max(np.abs(a))
        assert 0 < np.max(np.abs(a - b)) < 0.05 * scale


def test_the_precision_is_that_of_the_trace():
    net, params, x = network()
    run = jax.jit(net.apply)
    before = run(params, x)
    assert not np.array_equal(before, HALF.within(run)(params, x))
    np.testing.assert_array_equal(before, run(params, x))
    traced = jax.make_jaxpr(Precision("bfloat16").within(net.apply))(params, x)
    found = dtypes(traced.jaxpr, "dot_general")
    assert found and all(dtype == "float32" and precision is not None for dtype, precision in found)
    assert Precision().within(run) is run


def test_batch_statistics_stay_float32():
    norm = lambda train: nets.MLP((4,), 1, norm=lambda: batchnorm.BatchNorm(train))
    net = batchnorm.from_linen(norm, (3,))
    params, statistics = net.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (8, 3))
    out, after = HALF.within(net.learn)(params, statistics, x)
    assert out.dtype == jnp.float32
    for old, new in zip(jax.tree.leaves(statistics), jax.tree.leaves(after), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)


def test_precision_belongs_to_the_identity_of_a_run(tmp_path):
    def config(**options):
        settings = resolve("pqn", {"env": "probe:match", **options})
        return identity(settings, {})

    assert not {"compute_dtype", "matmul_precision"} & set(config())
    half = config(compute_dtype="bfloat16", matmul_precision="default")
    assert half["compute_dtype"] == "bfloat16" and half["matmul_precision"] == "default"
    with records.open_run(tmp_path / "run", half, {}, False):
        pass
    with pytest.raises(UserError, match="compute_dtype"):
        with records.open_run(tmp_path / "run", config(matmul_precision="default"), {}, False):
            pass
    with pytest.raises(UserError, match="compute.dtype"):
        settle("pqn", {"env": "probe:match", "compute_dtype": "float16"})


@pytest.mark.slow
def test_a_run_in_bfloat16_learns_and_continues_only_so(tmp_path):
    more = {"env": "probe:match", "preset": "none", "out": str(tmp_path / "run"), "evals": 2}
    own = {"hidden": (32,), "total_steps": 32_768, "lr": 3e-3}
    summary = jaxrl.run("pqn", compute_dtype="bfloat16", agent=own, **more)
    assert summary["return"]["mean"] > 0.9
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["compute_dtype"] == "bfloat16"
    with pytest.raises(UserError, match="compute_dtype"):
        jaxrl.run("pqn", agent=own, **more)
