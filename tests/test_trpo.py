"""TRPO: its core against dense algebra, an update written out, and what it learns in probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from logged import random_state
from scipy.special import softmax
from test_ppo import (
    AIM,
    ENVS,
    PROBES,
    SIZES,
    STEPS,
    check_values,
    learn_probes,
    random_window,
    spec,
)

from jaxrl.agents import ppo, trpo
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import UserError
from jaxrl.natural import Step, conjugate_gradient, hessian_product, natural_step
from jaxrl.types import Array, Batch

RNG = np.random.default_rng(0)


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def definite(size: int) -> np.ndarray:
    """A symmetric positive definite matrix."""
    half = RNG.normal(size=(size, size))
    return half @ half.T + 0.1 * np.eye(size)


# --- conjugate gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [6, 20], ids=["as many as unknowns", "more"])
def test_conjugate_gradients_solve(double: None, steps: int) -> None:
    matrix, b = definite(6), RNG.normal(size=6)
    got = conjugate_gradient(lambda v: jnp.array(matrix) @ v, jnp.array(b), steps, 1e-24)
    np.testing.assert_allclose(got, np.linalg.solve(matrix, b), rtol=1e-7)


def test_conjugate_gradients_stop_early(double: None) -> None:
    """Iterate k minimises ½ xᵀAx - bᵀx in span(b, Ab, ..., A^(k-1) b)."""
    matrix, b = definite(6), RNG.normal(size=6)
    for steps in (1, 3):
        span = np.stack([np.linalg.matrix_power(matrix, k) @ b for k in range(steps)], 1)
        expected = span @ np.linalg.solve(span.T @ matrix @ span, span.T @ b)
        got = conjugate_gradient(lambda v: jnp.array(matrix) @ v, jnp.array(b), steps)
        np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_nothing_to_solve() -> None:
    got = conjugate_gradient(lambda v: 2 * v, jnp.zeros(3), 4)
    np.testing.assert_array_equal(got, 0)


# --- Fisher's matrix -----------------------------------------------------------------------------


def test_product_with_fishers_matrix_of_categoricals(double: None) -> None:
    """E of (∂ log π)(∂ log π)ᵀ over states and actions, of a linear policy."""
    obs, weights = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 4))
    old = Categorical(jnp.array(obs @ weights))

    def kl(flat: Array) -> Array:
        return jnp.mean(old.kl(Categorical(jnp.array(obs) @ flat.reshape(3, 4))))

    dense = np.zeros((12, 12))
    for x in obs:
        p = softmax(x @ weights)
        for action in range(4):
            score = np.outer(x, np.eye(4)[action] - p).ravel()
            dense += p[action] * np.outer(score, score) / len(obs)
    product = hessian_product(kl, jnp.array(weights.ravel()))
    np.testing.assert_allclose(jax.vmap(product)(jnp.eye(12)), dense, atol=1e-14)


def test_product_with_fishers_matrix_of_normals(double: None) -> None:
    """1 / σ² for a mean and 2 for a log-std, independent of each other."""
    mean, log_std = RNG.normal(size=(7, 2)), RNG.normal(size=2)
    shape = lambda flat: Normal(flat[None, :2] + mean, jnp.broadcast_to(flat[None, 2:], (7, 2)))
    at = jnp.array([0.0, 0.0, *log_std])
    product = hessian_product(lambda flat: jnp.mean(shape(at).kl(shape(flat))), at)
    expected = np.diag([*np.exp(-2 * log_std), 2.0, 2.0])
    np.testing.assert_allclose(jax.vmap(product)(jnp.eye(4)), expected, atol=1e-12)


# --- steps ---------------------------------------------------------------------------------------


def test_a_quadratic_problem_is_solved_exactly(double: None) -> None:
    """sqrt(2 δ / gᵀF⁻¹g) F⁻¹g, whose divergence is δ; with damping the divergence is below δ."""
    matrix, g, at = definite(4), RNG.normal(size=4), RNG.normal(size=4)
    halves = lambda x: {"a": x[:1], "b": x[1:]}
    of = lambda tree: ravel_pytree(tree)[0]
    kl = lambda tree: 0.5 * (of(tree) - at) @ jnp.array(matrix) @ (of(tree) - at)
    gain = lambda tree: of(tree) @ jnp.array(g)
    # The whole step may exceed the limit by rounding, which would halve it.
    step = natural_step(gain, kl, halves(jnp.array(at)), 0.03 * (1 + 1e-9), 0.0)
    natural = np.linalg.solve(matrix, g)
    expected = at + np.sqrt(2 * 0.03 / (g @ natural)) * natural
    np.testing.assert_allclose(of(step.params), expected, rtol=1e-6)
    np.testing.assert_allclose(step.kl, 0.03, rtol=1e-6)
    np.testing.assert_allclose(step.gain, g @ (expected - at), rtol=1e-6)
    assert step.fraction == 1

    damped = natural_step(gain, kl, halves(jnp.array(at)), 0.03, 0.5)
    direction = np.linalg.solve(matrix + 0.5 * np.eye(4), g)
    size = np.sqrt(2 * 0.03 / (direction @ (matrix + 0.5 * np.eye(4)) @ direction))
    np.testing.assert_allclose(of(damped.params), at + size * direction, rtol=1e-6)
    assert damped.kl < 0.03


def scalar_step(gain: Any, kl: Any, backtracks: int = 10) -> Step:
    """One step of one parameter from 0, whose full length is sqrt(2 · 0.02) = 0.2."""
    return natural_step(gain, kl, jnp.zeros(()), 0.02, 0.0, backtracks=backtracks)


def test_the_step_is_halved_until_the_divergence_is_small_enough(double: None) -> None:
    """½ x² + 100 x⁴ ≤ .02 for x = .2, .1, .05: .18, .015: the second."""
    step = scalar_step(lambda x: x, lambda x: 0.5 * x**2 + 100 * x**4)
    np.testing.assert_allclose([step.params, step.fraction, step.kl], [0.1, 0.5, 0.015])


def test_the_step_is_halved_until_the_objective_increases(double: None) -> None:
    """x - 15 x² > 0 for x < 1 / 15: the third of .2, .1, .05."""
    step = scalar_step(lambda x: x - 15 * x**2, lambda x: 0.5 * x**2)
    np.testing.assert_allclose([step.params, step.fraction], [0.05, 0.25])
    np.testing.assert_allclose(step.gain, 0.05 - 15 * 0.05**2)


def test_parameters_are_kept_if_no_step_is_accepted(double: None) -> None:
    """After two halvings .05 is left; after three, 0.025, which is accepted."""
    gain = lambda x: x - 30 * x**2
    step = scalar_step(gain, lambda x: 0.5 * x**2, backtracks=2)
    assert [float(x) for x in step] == [0, 0, 0, 0]
    step = scalar_step(gain, lambda x: 0.5 * x**2, backtracks=3)
    np.testing.assert_allclose([step.params, step.fraction], [0.025, 0.125])


def test_without_gradient_there_is_no_step() -> None:
    step = natural_step(lambda x: jnp.sum(0 * x), lambda x: x @ x, jnp.ones(3), 0.01, 0.1)
    np.testing.assert_array_equal(step.params, 1)
    assert step.fraction == 0


# --- the agent -----------------------------------------------------------------------------------

CFG = trpo.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=2,
    epochs=1,
    actor=(5,),
    critic=(4,),
    cg_steps=60,
)


def hypers(**values: float) -> trpo.Hypers:
    return jax.tree.map(jnp.float32, trpo.Hypers(**values))


@pytest.mark.parametrize("space", ["continuous", "discrete"])
def test_policy_update_by_hand(space: str) -> None:
    """The step from the dense Fisher matrix, solved and halved by numpy; the limit is kept."""
    hp = hypers(gamma=0.9, lam=0.6, max_kl=0.5, damping=0.2, value_lr=0.01)
    t, agent = random_window(space), trpo.make(CFG, spec(space))
    state = random_state(agent, hp)
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(7))

    model = ppo.networks(CFG, spec(space))
    flat, unravel = ravel_pytree(state.params["actor"])
    rows = jax.jit(lambda t: ppo.experience(CFG, model, state.params, hp, t))(t)
    policy = lambda flat: model.actor.apply(unravel(flat), rows.obs)

    def objective(flat: Array) -> Array:
        return jnp.mean(
            jnp.exp(policy(flat).log_prob(rows.sample) - rows.log_prob) * rows.advantage
        )

    kl = jax.jit(lambda x: jnp.mean(policy(flat).kl(policy(x))))
    fisher, g = jax.jit(lambda x: (jax.hessian(kl)(x), jax.grad(objective)(x)))(flat)
    matrix, g = np.float64(fisher) + 0.2 * np.eye(len(flat)), np.float64(g)
    direction = np.linalg.solve(matrix, g)
    full = direction * np.sqrt(2 * 0.5 / (direction @ g))
    gain = jax.jit(objective)
    taken = next(
        0.5**k * full
        for k in range(11)
        if kl(flat + np.float32(0.5**k * full)) <= 0.5
        and gain(flat + np.float32(0.5**k * full)) > gain(flat)
    )
    moved = ravel_pytree(new.params["actor"])[0] - flat
    np.testing.assert_allclose(moved, taken, atol=2e-3 * np.max(np.abs(taken)))
    np.testing.assert_allclose(metrics["kl"], kl(flat + moved), rtol=1e-4)
    assert 0.01 < metrics["kl"] <= 0.5 and metrics["gain"] > 0
    change = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), new.params, state.params)
    assert min(jax.tree.leaves(change["critic"])) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cg_steps": 0}, "cg_steps=0 must be at least 1"),
        ({"backtracks": -1}, "backtracks=-1 must be at least 0"),
        ({"minibatches": 5}, "minibatches=5 does not divide"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trpo.make(dataclasses.replace(CFG, **change), spec("discrete"))


# --- probes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_probes() -> None:
    """Values, and the probability of the better action where there is one."""
    hp = trpo.Hypers(value_lr=0.01, gamma=0.8, lam=0.9)
    policy, values = learn_probes(trpo, trpo.Config(**SIZES), hp, PROBES)
    check_values(PROBES, values)
    kinds, p = list(PROBES), np.exp(np.asarray(policy.log_probs))
    assert np.all(p[kinds.index("action"), :, 1, 1] > 0.97)
    assert np.all(p[kinds.index("match"), :, [0, 2], [0, 1]] > 0.97)


@pytest.mark.slow
def test_aims() -> None:
    sizes: Any = SIZES | {"num_envs": 16, "total_steps": 400 * 128}
    policy, values = learn_probes(
        trpo, trpo.Config(**sizes), trpo.Hypers(value_lr=0.01, gamma=0.8), AIM
    )
    np.testing.assert_allclose(policy.mean[0, :, [0, 2], 0].T, [[-0.5, 0.5]] * 2, atol=0.1)
    assert np.all(np.exp(policy.log_std) < 0.3), policy.log_std
    check_values(AIM, values)
