"""Flows: everything against the closed forms of normally distributed data.

Data N(M, S²), in each element its own, and z_t = (1 - t) x + t e. Then z_t is normal with mean
(1 - t) M and variance (1 - t)² S² + t², and the marginal flow only shifts and scales.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import flow, nets
from jaxrl.types import Array

M, S = np.float32([[0.7, -1.2]]), np.float32([[0.4, 1.5]])
ROWS = 6


def moved(z: Array, r: Array, t: Array) -> Array:
    """The flow's map from time t to time r."""
    r, t = flow.along(r, z), flow.along(t, z)
    std = lambda t: jnp.sqrt((1 - t) ** 2 * S**2 + t**2)
    return (1 - r) * M + std(r) / std(t) * (z - (1 - t) * M)


def velocity(z: Array, t: Array) -> Array:
    """E[e - x | z_t = z], by the regression of e - x on z_t."""
    t = flow.along(t, z)
    slope = (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)
    return -M + slope * (z - (1 - t) * M)


def average(z: Array, r: Array, t: Array) -> Array:
    """The exact field: (z_t - z_r) / (t - r), and the velocity where both times meet."""
    apart = t - r > 1e-3
    gap = flow.along(jnp.where(apart, t - r, 1.0), z)
    return jnp.where(flow.along(apart, z), (z - moved(z, r, t)) / gap, velocity(z, t))


def draw(seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Points and noise [ROWS, 2], times r < t [ROWS]."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x, noise = (jax.random.normal(key, (ROWS, 2)) for key in keys[:2])
    r, gap = (jax.random.uniform(key, (ROWS,), minval=0.1, maxval=0.45) for key in keys[2:])
    return x, noise, r, r + gap


def test_path() -> None:
    """Data at 0, noise at 1, and e - x is its slope."""
    x, noise, _, t = draw()
    at = lambda t: flow.interpolate(x, noise, jnp.full(ROWS, t))
    np.testing.assert_array_equal(at(0.0), x)
    np.testing.assert_array_equal(at(1.0), noise)
    z, slope = jax.jvp(lambda t: flow.interpolate(x, noise, t), (t,), (jnp.ones(ROWS),))
    np.testing.assert_allclose(slope, noise - x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z[2], (1 - t[2]) * x[2] + t[2] * noise[2], rtol=1e-5)


def test_the_velocity_of_the_closed_form() -> None:
    """It is the derivative of the flow's map, so the tests below rest on what they should."""
    z, _, _, t = draw()
    slope = jax.jvp(lambda r: moved(z, r, t), (t,), (jnp.ones(ROWS),))[1]
    np.testing.assert_allclose(velocity(z, t), slope, rtol=1e-4, atol=1e-5)


def test_the_exact_average_is_its_own_target() -> None:
    """The MeanFlow identity holds along the marginal path; at r = t it says u = v."""
    z, _, r, t = draw()
    u, target = jax.jit(lambda: flow.mean_flow_target(average, z, velocity(z, t), r, t))()
    np.testing.assert_allclose(u, target, rtol=1e-4, atol=1e-4)
    u, target = flow.mean_flow_target(average, z, velocity(z, t), t, t)
    np.testing.assert_allclose(target, velocity(z, t), rtol=1e-6)
    np.testing.assert_allclose(u, target, rtol=1e-6)


def test_the_target_is_right_on_average() -> None:
    """With e - x in place of the marginal velocity: its mean, given z_t, by regression."""
    count, r, t = 40_000, 0.2, 0.7
    keys = jax.random.split(jax.random.key(0))
    x, e = M + S * jax.random.normal(keys[0], (count, 2)), jax.random.normal(keys[1], (count, 2))
    times = jnp.full(count, r), jnp.full(count, t)
    z = flow.interpolate(x, e, times[1])
    u, target = jax.jit(lambda: flow.mean_flow_target(average, z, e - x, *times))()
    for i in range(2):
        slopes = [np.polyfit(z[:, i], y[:, i], 1) for y in (u, target)]
        np.testing.assert_allclose(*slopes, atol=0.02)
        assert np.std(target[:, i] - u[:, i]) > 0.2  # but only on average


def scaled(weight: Array, z: Array, r: Array, t: Array, shift: Array) -> Array:
    """A field with one parameter, of which every derivative is known."""
    return weight * (z * flow.along(t - r + t**2, z) + shift)


@pytest.mark.parametrize(("same", "power"), [(0, 0.0), (2, 0.0), (ROWS, 0.0), (2, 0.5)])
def test_loss_and_gradient_by_hand(same: int, power: float) -> None:
    """One row after another; nothing flows through target or weight, nor in from unused rows."""
    x, noise, r, t = draw()
    shift = jnp.arange(ROWS, dtype=jnp.float32)[:, None] / 5
    r = jnp.where(jnp.arange(ROWS) < same, t, r)

    @jax.jit
    def loss(weight: Array) -> Array:
        field = lambda z, r, t, shift: scaled(weight, z, r, t, shift)
        return flow.mean_flow_loss(field, x, noise, r, t, shift, same=same, power=power)

    got, slope = jax.value_and_grad(loss)(1.3)
    want = want_slope = 0.0
    for i in range(ROWS):
        a, b = float(r[i]), float(t[i])
        z, v = np.float64((1 - b) * x[i] + b * noise[i]), np.float64(noise[i] - x[i])
        inside = z * (b - a + b**2) + i / 5
        change = 1.3 * (v * (b - a + b**2) + z * (1 + 2 * b))
        error = 1.3 * inside - (v - (b - a) * change)
        weight = (np.sum(error**2) + 1e-2) ** -power
        want += weight * np.sum(error**2) / 2 / ROWS
        want_slope += weight * np.sum(2 * error * inside) / 2 / ROWS
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-4)


def test_exact_field_samples() -> None:
    """In one step, or any number, noise becomes M + S e; the velocity alone needs many."""
    noise = draw()[1]
    np.testing.assert_allclose(flow.one_step(average, noise), M + S * noise, rtol=1e-4, atol=1e-5)
    for steps in (1, 3):
        got = flow.k_step(average, noise, steps)
        np.testing.assert_allclose(got, M + S * noise, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(flow.k_step(average, noise, 1), flow.one_step(average, noise))
    errors = []
    for steps in (1, 20, 200):
        z = np.float64(noise)
        for i in range(steps):
            t = 1 - i / steps
            slope = (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)
            z = z - (-M + slope * (z - (1 - t) * M)) / steps
        got = flow.euler(average, noise, steps)
        np.testing.assert_allclose(got, z, rtol=1e-3, atol=1e-4)
        errors.append(np.abs(got - (M + S * noise)).max())
    np.testing.assert_allclose(flow.euler(average, noise, 1), np.tile(M, (ROWS, 1)), atol=1e-5)
    assert errors[2] < 0.2 * errors[1] < 0.1 * errors[0]
    with pytest.raises(ValueError, match="at least one step"):
        flow.euler(average, noise, 0)


@pytest.mark.parametrize("uniform", [True, False])
def test_pair_times(uniform: bool) -> None:
    """Minimum and maximum of two draws, equal in the first rows; quantiles by simulation."""
    count, same = 20_000, 5_000
    draw = jax.jit(flow.pair_times, static_argnums=(1, 2), static_argnames="uniform")
    r, t = (np.asarray(x) for x in draw(jax.random.key(0), count, same, uniform=uniform))
    np.testing.assert_array_equal(r[:same], t[:same])
    assert (r[same:] < t[same:]).all() and 0 < r.min() and t.max() < 1
    rng = np.random.default_rng(0)
    x = (
        rng.uniform(size=(2, 100_000))
        if uniform
        else 1 / (1 + np.exp(0.4 - rng.normal(size=(2, 100_000))))
    )
    levels = [0.1, 0.5, 0.9]
    for got, want in ((r[same:], x.min(0)), (t, x.max(0))):
        np.testing.assert_allclose(np.quantile(got, levels), np.quantile(want, levels), atol=0.015)


def test_share_of_the_corner() -> None:
    """So many of all rows, only where times differ, and the first rows are left alone."""
    r, t = flow.pair_times(jax.random.key(0), 20_000, 10_000, corner=0.25)
    forced = np.asarray((r == 0) & (t == 1))
    assert abs(forced.mean() - 0.25) < 0.01 and not forced[:10_000].any()
    r, t = flow.pair_times(jax.random.key(0), 10, 4, corner=1.0)
    np.testing.assert_array_equal(np.stack([r, t])[:, 4:], [[0] * 6, [1] * 6])


def test_scale_of_times() -> None:
    """Raw times give targets of the size of the velocity; times 1000, they are lost in dt."""
    net = nets.from_linen(nets.ConditionalMLP((32, 32), 2), (2,), (1,), (), ())
    params = net.init(jax.random.key(0))
    x, noise, r, t = draw()
    none = jnp.zeros((ROWS, 1))

    @jax.jit
    def spread(scale: Array) -> Array:
        u = lambda z, r, t: net.apply(params, z, none, scale * r, scale * t)
        z = flow.interpolate(x, noise, t)
        return jnp.std(flow.mean_flow_target(u, z, noise - x, r, t)[1] - (noise - x))

    assert spread(jnp.float32(1)) < 0.1
    assert spread(jnp.float32(1000)) > 50 * spread(jnp.float32(1))


def test_times_shared_by_all_rows() -> None:
    """One time for all rows is that time in every row; so is one context."""
    net = nets.from_linen(nets.ConditionalMLP((8, 8), 2), (2,), (3,), ())
    params, x = net.init(jax.random.key(0)), draw()[0]
    one = net.apply(params, x, jnp.ones((1, 3)), jnp.full(1, 0.3))
    each = net.apply(params, x, jnp.ones((ROWS, 3)), jnp.full(ROWS, 0.3))
    np.testing.assert_allclose(one, each, rtol=1e-4, atol=1e-6)
    angles = 0.3 * 1e-4 ** (np.arange(4) / 4)
    want = [np.append(np.cos(angles), np.sin(angles))]
    np.testing.assert_allclose(nets.sinusoids(jnp.full(1, 0.3), 8), want, rtol=1e-5)


def test_mish() -> None:
    """Values and slopes of JAX's own, also where an exponential would overflow."""
    x = jnp.linspace(-100, 100, 401)
    np.testing.assert_allclose(nets.mish(x), jax.nn.mish(x), rtol=2e-5, atol=2e-6)
    steep = [jax.jvp(f, (x,), (1e6 * x,))[1] for f in (nets.mish, jax.nn.mish)]
    np.testing.assert_allclose(*steep, rtol=1e-4, atol=10)
    slopes = [jax.vmap(jax.grad(f))(x) for f in (nets.mish, jax.nn.mish)]
    np.testing.assert_allclose(*slopes, rtol=2e-5, atol=2e-6)
