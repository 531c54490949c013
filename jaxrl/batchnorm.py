"""Batch normalisation and batch renormalisation, with running statistics beside parameters.

Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift. Sergey
Ioffe, Christian Szegedy. ICML 2015, arXiv:1502.03167. Batch Renormalization: Towards Reducing
Minibatch Dependence in Batch-Normalized Models. Sergey Ioffe. NeurIPS 2017, arXiv:1702.03275.

Learning normalises a batch by its own mean and variance, acting by running statistics. With
σ² = var + eps, r = σ_batch / σ_running and d = (mean_batch - mean_running) / σ_running, both
clipped and constant to the gradient,

    x̂ = (x - mean_batch) / σ_batch · r + d,

which equals the normalisation in acting if r and d are not clipped. Batch normalisation is r = 1,
d = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets import as_floats
from jaxrl.precision import lowered, raised
from jaxrl.types import Array, PyTree

COLLECTION = "statistics"  # name of the collection of flax variables


class Statistics(NamedTuple):
    """Running moments [F] and the number of batches seen."""

    mean: Array
    var: Array
    batches: Array  # [] int32


class Rule(NamedTuple):
    """Parameters of the normalisation; by default those of flax's BatchNorm (r = 1, d = 0)."""

    momentum: float = 0.99  # weight of the old running statistics
    eps: float = 1e-5  # added to variances
    r_max: float = 1.0  # r is clipped to 1 / r_max .. r_max
    d_max: float = 0.0  # d is clipped to ±d_max
    warmup: int = 0  # initial batches with r = 1 and d = 0, until running statistics are accurate


NORM = Rule()
RENORM = Rule(momentum=0.999, eps=1e-3, r_max=3.0, d_max=5.0, warmup=1000)  # of PQN's authors


def statistics(size: int) -> Statistics:
    return Statistics(jnp.zeros(size), jnp.ones(size), jnp.int32(0))


def by_running(rule: Rule, stats: Statistics, x: Array) -> Array:
    """x [..., F] normalised by the running statistics."""
    return _scale(x, stats.mean, stats.var, rule.eps)


def by_batch(rule: Rule, stats: Statistics, x: Array) -> tuple[Array, Statistics]:
    """x [..., F] normalised by its moments over all axes but the last, and the new statistics."""
    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.mean(x, axes), jnp.var(x, axes)
    r, d = correction(rule, stats, mean, var)
    out = _scale(x, mean, var, rule.eps) * _last(r, x) + _last(d, x)
    mix = lambda old, new: rule.momentum * old + (1 - rule.momentum) * jax.lax.stop_gradient(new)
    return out, Statistics(mix(stats.mean, mean), mix(stats.var, var), stats.batches + 1)


def correction(rule: Rule, stats: Statistics, mean: Array, var: Array) -> tuple[Array, Array]:
    """r and d [F] of a batch with moments [F], constant to the gradient."""
    mean, var = jax.lax.stop_gradient((mean, var))
    running = jax.lax.rsqrt(stats.var + rule.eps)
    r = jnp.clip(jnp.sqrt(var + rule.eps) * running, 1 / rule.r_max, rule.r_max)
    d = jnp.clip((mean - stats.mean) * running, -rule.d_max, rule.d_max)
    cold = stats.batches < rule.warmup
    return jnp.where(cold, 1.0, r), jnp.where(cold, 0.0, d)


def _scale(x: Array, mean: Array, var: Array, eps: float) -> Array:
    return (x - _last(mean, x)) * _last(jax.lax.rsqrt(var + eps), x)


def _last(each: Array, x: Array) -> Array:
    """[F] with as many axes as x [..., F]."""
    return each.reshape((1,) * (x.ndim - 1) + each.shape)


class BatchNorm(nn.Module):
    """x [..., F] normalised as above, times a learned `scale`, plus a learned `bias`.

    With `train` the batch's moments are used and the statistics updated, otherwise running
    statistics are used. The gradient of a bias before batch normalisation is rounding error only.
    Adam scales it to steps of full size, so such biases differ between machines, with almost no
    effect on outputs.
    """

    train: bool
    rule: Rule = NORM

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        stats = self.variable(COLLECTION, "running", statistics, x.shape[-1])
        dtype, x = x.dtype, x.astype(jnp.float32)
        if self.train:
            out, stats.value = by_batch(self.rule, stats.value, x)
        else:
            out = by_running(self.rule, stats.value, x)
        return (out * _last(scale, x) + _last(bias, x)).astype(dtype)


class Net(NamedTuple):
    """A network with statistics, which are {} without batch normalisation.

    init(key) -> (params, statistics)
    apply(params, statistics, *inputs) -> outputs, with running statistics
    learn(params, statistics, *inputs) -> (outputs, statistics), with batch statistics
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    apply: Callable[..., Any]
    learn: Callable[..., tuple[Any, PyTree]]


def from_linen(make: Callable[[bool], nn.Module], *shapes: tuple[int, ...]) -> Net:
    """`make(train)` as a `Net`; `shapes` are the input shapes without batch axes."""
    acting, learning = make(False), make(True)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        found = acting.init(key, *(jnp.zeros((1, *shape)) for shape in shapes))
        return found["params"], found.get(COLLECTION, {})

    def apply(params: PyTree, stats: PyTree, *inputs: Array) -> Any:
        return run(acting, params, stats, *map(as_floats, inputs))

    def learn(params: PyTree, stats: PyTree, *inputs: Array) -> tuple[Any, PyTree]:
        return run_learning(learning, params, stats, *map(as_floats, inputs))

    return Net(init, apply, learn)


def run(module: nn.Module, params: PyTree, stats: PyTree, *inputs: PyTree, **options: Any) -> Any:
    """Outputs of a module without `train`; `options` are those of flax's apply."""
    variables = {"params": lowered(params), COLLECTION: stats}
    return raised(module.apply(variables, *lowered(inputs), **options))


def run_learning(
    module: nn.Module, params: PyTree, stats: PyTree, *inputs: PyTree, **options: Any
) -> tuple[Any, PyTree]:
    """Outputs of a module with `train`, and the new statistics."""
    out, changed = run(module, params, stats, *inputs, mutable=[COLLECTION], **options)
    return out, changed.get(COLLECTION, {})
