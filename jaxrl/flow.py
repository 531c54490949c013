"""Flow matching and mean flows: paths from data to noise, losses, samplers.

Mean Flows for One-step Generative Modeling. Zhengyang Geng, Mingyang Deng, Xingjian Bai, J. Zico
Kolter, Kaiming He. NeurIPS 2025, arXiv:2505.13447.

Time runs from data at t = 0 to noise at t = 1, along straight lines z_t = (1 - t) x + t e. A field
u(z, r, t) is the velocity of z averaged over [r, t], so that z_r = z_t - (t - r) u(z_t, r, t);
u(z, t, t) is the instantaneous velocity.

Shapes: x, noise, z [B, ...] float32; r, t [B] float32. A `Field` is called as
u(z, r, t, *context) -> [B, ...], where the context are arrays [B, ...] that condition the field.
Samplers pass one time for all rows, [1], so that its embedding is computed once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array

MANY = 20  # Euler steps of the reference samples in `one_step_fit`

Field = Callable[..., Array]

_SMALLEST = 1e-2  # c of the adaptive weight, as in the authors' code


def along(t: Array, x: Array) -> Array:
    """t [B] with as many axes as x [B, ...], for products with x."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(x: Array, noise: Array, t: Array) -> Array:
    """z_t = (1 - t) x + t e; the velocity given x and e is e - x at all times."""
    t = along(t, x)
    return (1 - t) * x + t * noise


def pair_times(
    key: Array, count: int, same: int, *, uniform: bool = False, corner: Array | float = 0.0
) -> tuple[Array, Array]:
    """Times r <= t [count] float32 for training a field; r = t in the first `same` rows.

    Both are logit-normal, sigmoid(-0.4 + n) with n ~ N(0, 1), or uniform over [0, 1].

    Args:
      corner: expected fraction of all rows with (r, t) = (0, 1), the times of one-step samples;
        taken from the rows after the first `same`, so at most 1 - same / count.
    """
    key_times, key_corner = jax.random.split(key)
    if uniform:
        times = jax.random.uniform(key_times, (2, count))
    else:
        times = jax.nn.sigmoid(-0.4 + jax.random.normal(key_times, (2, count)))
    r, t = jnp.min(times, 0), jnp.max(times, 0)
    apart = jnp.arange(count) >= same
    draw = jax.random.uniform(key_corner, (count,))
    forced = apart & (draw * (count - same) < corner * count)
    return jnp.where(forced, 0.0, jnp.where(apart, r, t)), jnp.where(forced, 1.0, t)


# --- losses --------------------------------------------------------------------------------------


def mean_flow_target(
    u: Field, z: Array, velocity: Array, r: Array, t: Array, *context: Array
) -> tuple[Array, Array]:
    """u(z, r, t) and its target v - (t - r) du/dt (eq. 6 and 10), a constant to the gradient.

    d/dt is the derivative along the path, with tangents (v, 0, 1) in (z, r, t). Both are equal if
    `velocity` is that of the marginal path and u its average. With velocity e - x, the target is
    unbiased.

    Returns:
      (u, target), both [B, ...].
    """
    # r and the context are closed over, so that JAX knows that their tangents are zero.
    average, change = jax.jvp(
        lambda z, t: u(z, r, t, *context), (z, t), (velocity, jnp.ones_like(t))
    )
    return average, jax.lax.stop_gradient(velocity - along(t - r, z) * change)


def mean_flow_loss(
    u: Field,
    x: Array,
    noise: Array,
    r: Array,
    t: Array,
    *context: Array,
    same: int = 0,
    power: Array | float = 0.0,
) -> Array:
    """E ‖u(z_t, r, t) - target‖² / D [], with constant weights (‖u - target‖² + c)^-power.

    The squared norm is a sum over all D elements of a row.

    Args:
      same: number of first rows with r = t, where the target is the velocity, without derivative.
      power: power of the weights; 0 for the unweighted loss.
    """
    z, velocity = interpolate(x, noise, t), noise - x
    head = lambda a: a[:same]
    tail = lambda a: a[same:]
    errors = []
    if same:
        errors.append(u(*map(head, (z, t, t, *context))) - head(velocity))
    if same < x.shape[0]:
        average, target = mean_flow_target(u, *map(tail, (z, velocity, r, t, *context)))
        errors.append(average - target)
    error = jnp.concatenate(errors).reshape(x.shape[0], -1)
    squares = jnp.sum(error**2, -1)
    weight = jax.lax.stop_gradient((squares + _SMALLEST) ** -jnp.asarray(power, jnp.float32))
    return jnp.mean(weight * squares) / error.shape[1]


# --- samplers ------------------------------------------------------------------------------------


def one_step(u: Field, noise: Array, *context: Array) -> Array:
    """e - u(e, 0, 1), a sample with one evaluation of the field."""
    return noise - u(noise, jnp.zeros(1), jnp.ones(1), *context)


def k_step(u: Field, noise: Array, steps: int, *context: Array) -> Array:
    """A sample with average velocities between times 1, 1 - 1/k, ..., 0; k = 1 is `one_step`."""
    return _down(lambda z, r, t: u(z, r, t, *context), noise, steps)


def euler(u: Field, noise: Array, steps: int, *context: Array) -> Array:
    """A sample with `steps` Euler steps of the velocity u(z, t, t)."""
    return _down(lambda z, r, t: u(z, t, t, *context), noise, steps)


def _down(step: Field, z: Array, steps: int) -> Array:
    if steps < 1:
        raise ValueError(f"a sample needs at least one step, got {steps}")
    time = lambda i: jnp.reshape(1 - i / steps, 1)

    def move(i: Array, z: Array) -> Array:
        return z - step(z, time(i + 1), time(i)) / steps

    return jax.lax.fori_loop(0, steps, move, z)


def one_step_fit(u: Field, action: Array, noise: Array, obs: Array) -> dict[str, Array]:
    """Fit of the flow for one-step sampling; unit actions [B, A].

    step_gap: mean distance between one-step and many-step samples of the same noise.
    corner_loss: mean-flow loss at (r, t) = (0, 1).
    """
    zeros = jnp.zeros(action.shape[0])
    gap = one_step(u, noise, obs) - euler(u, noise, MANY, obs)
    return {
        "step_gap": jnp.mean(jnp.linalg.norm(gap, axis=-1)),
        "corner_loss": mean_flow_loss(u, action, noise, zeros, zeros + 1, obs),
    }
