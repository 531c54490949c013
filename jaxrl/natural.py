"""Natural policy gradients: curvature products, conjugate gradients, steps within a KL limit.

Kakade, A Natural Policy Gradient, NeurIPS 2001; Schulman et al., Trust Region Policy Optimization,
ICML 2015, arXiv:1502.05477, app. C. Functions of parameters only: any policy with a differentiable
KL divergence can use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrl.types import Array, PyTree

Product = Callable[[Array], Array]  # [size] to [size]


def hessian_product(loss: Callable[[Array], Array], at: Array) -> Product:
    """v [size] -> H v [size], H being the Hessian of `loss`: [size] -> [] at `at`.

    Of a mean KL(old || new) at new = old the Hessian is Fisher's information matrix. The gradient
    is linearised once, so that a product costs no further pass through the loss.
    """
    return jax.linearize(jax.grad(loss), at)[1]


def conjugate_gradient(product: Product, b: Array, steps: int, tolerance: float = 1e-10) -> Array:
    """Approximate solution x [size] of A x = b after `steps` iterations from x = 0.

    Args:
      product: v -> A v of a symmetric positive definite A.
      tolerance: squared norm of the residual at which x stays as it is.
    """

    def step(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        x, residual, direction, norm = carry
        going = norm > tolerance
        image = product(direction)
        rate = jnp.where(going, norm / jnp.where(going, direction @ image, 1.0), 0.0)
        x, residual = x + rate * direction, residual - rate * image
        after = residual @ residual
        direction = residual + after / jnp.where(going, norm, 1.0) * direction
        return (x, residual, direction, after), None

    return jax.lax.scan(step, (jnp.zeros_like(b), b, b, b @ b), length=steps)[0][0]


class Step(NamedTuple):
    """A step of the parameters, and what it does."""

    params: PyTree
    kl: Array  # [] divergence after the step
    gain: Array  # [] increase of the objective
    fraction: Array  # [] of the full step that was taken: 1, 1/2, 1/4, ...; 0 if none was accepted


def natural_step(
    objective: Callable[[PyTree], Array],
    kl: Callable[[PyTree], Array],
    params: PyTree,
    limit: Array | float,
    damping: Array | float,
    *,
    cg_steps: int = 10,
    backtracks: int = 10,
) -> Step:
    """One step of trust-region policy optimisation.

    The direction d solves (F + damping I) d = ∇ objective, F being the Hessian of `kl`. The full
    step is d sqrt(2 limit / dᵀ(F + damping I)d), which has the divergence `limit` to second order.
    It is halved until the divergence is at most `limit` and the objective has increased.

    Args:
      objective: params -> [], to be maximised.
      kl: params -> [], mean KL divergence from the policy of `params`, 0 there.
      limit: largest divergence of the step, in nats.
      cg_steps: iterations of conjugate gradients.
      backtracks: largest number of halvings; after them `params` are kept.
    """
    flat, unravel = ravel_pytree(params)
    before, grad = jax.value_and_grad(lambda x: objective(unravel(x)))(flat)
    fisher = hessian_product(lambda x: kl(unravel(x)), flat)
    product = lambda v: fisher(v) + damping * v
    direction = conjugate_gradient(product, grad, cg_steps)
    curvature = direction @ product(direction)
    moves = curvature > 0
    scale = jnp.where(moves, jnp.sqrt(2 * limit / jnp.where(moves, curvature, 1.0)), 0.0)
    full = scale * direction

    def search(carry: tuple[Array, Step, Array]) -> tuple[Array, Step, Array]:
        tried, _, _ = carry
        fraction = jnp.asarray(0.5, flat.dtype) ** tried
        after = unravel(flat + fraction * full)
        step = Step(after, kl(after), objective(after) - before, fraction)
        return tried + 1, step, (step.kl <= limit) & (step.gain > 0)

    none = jnp.zeros_like(before)
    stay = Step(unravel(flat), none, none, none)
    going = lambda carry: ~carry[2] & (carry[0] <= backtracks)
    _, step, accepted = jax.lax.while_loop(going, search, (jnp.int32(0), stay, jnp.array(False)))
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), step, stay)
