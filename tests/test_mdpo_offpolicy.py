"""Off-policy MDPO: its loss beside SAC's, its minimum, its divergence, and its refreshes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_sac
from test_sac import BOX, SIZES, SPECS, every_space, rows

from jaxrl.agents import mdpo_offpolicy as mdpo
from jaxrl.agents import sac
from jaxrl.distributions import Categorical
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.policies import ActionSamples
from jaxrl.types import Array, Batch

ACTIONS = 5
Q = jnp.array([[0.1, -0.4, 0.3, 0.0, -0.1]])
OLD = jnp.array([[0.5, 1.2, -0.3, 0.0, -1.0]])  # logits of π_k


def hypers(**values: float) -> mdpo.Hypers:
    return jax.tree.map(jnp.float32, mdpo.Hypers(**values))


# --- SAC inside ----------------------------------------------------------------------------------


@every_space
def test_at_c_equal_to_lambda_it_is_sac(kind: str) -> None:
    """Loss and gradient by the actor's parameters, whatever π_k is."""
    head = sac.head_of(mdpo.Config(**SIZES), SPECS[kind])
    actor, old = (head.actor(jax.random.key(i)) for i in (0, 1))
    obs = jax.random.normal(jax.random.key(2), (8, *SPECS[kind].obs_shape))
    noise, critic = head.noise(jax.random.key(3), 8), head.critic(jax.random.key(4))

    def both(actor: Array) -> tuple[Array, Array]:
        now = head.samples(head.policy(actor, obs), noise)
        q = head.values(critic, obs, now.action)
        before = head.log_prob(head.policy(old, obs), now.action)
        lam = jnp.float32(0.3)
        ours = mdpo.actor_loss(now, before, q, lam, lam, jnp.float32(1))
        return ours, sac.actor_loss(now, q, lam)

    ours, theirs = jax.jit(both)(actor)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    slope, expected = jax.jit(jax.jacrev(both))(actor)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-6)
    assert np.max(np.abs(expected)) > 0.01


@every_space
def test_whole_update_at_c_equal_to_lambda_is_sacs(kind: str) -> None:
    head, update, state = test_sac.made(kind, learn_temperature=False)
    t, key = Batch(rows(SPECS[kind])), jax.random.key(5)
    expected, _ = update(state, test_sac.hypers(lr=0.01, temperature=0.3), t, key, jnp.int32(3))
    start = mdpo.State(state, head.actor(jax.random.key(9)))
    hp = hypers(lr=0.01, temperature=0.3, divergence=0.3)
    got, _ = updater(kind)(start, hp, t, key, jnp.int32(3))
    for a, b in zip(jax.tree.leaves(got.sac), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    other, _ = updater(kind)(start, hypers(lr=0.01, temperature=0.3), t, key, jnp.int32(3))
    assert np.max(np.abs(other.sac.actor - expected.actor)) > 1e-3


@functools.cache
def updater(kind: str) -> Any:
    return jax.jit(mdpo.make(mdpo.Config(**SIZES, refresh=4), SPECS[kind]).update)


# --- the minimum of the loss ---------------------------------------------------------------------


def loss(logits: Array, old: Array, q: Array, lam: Any, c: Any, index: Any) -> Array:
    """The agent's loss of categorical policies given by their logits [1, A]."""
    new, before = Categorical(logits).log_probs[..., None], Categorical(old).log_probs[..., None]
    now = ActionSamples((), new, jnp.exp(new[..., 0]))
    return mdpo.actor_loss(now, before, q, *(jnp.float32(x) for x in (lam, c, index)))


def log_softmax(x: Array) -> Array:
    return jax.nn.log_softmax(x)


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
def test_minimum_is_the_mirror_descent_step(c: float) -> None:
    """π ∝ π_k^{1-λ/c} exp(Q/c): found by Adam from elsewhere, and with no slope there."""
    lam = 0.2
    best = log_softmax((1 - lam / c) * log_softmax(OLD) + Q / c)
    found = minimised(jnp.float32(c), jnp.float32(lam))
    np.testing.assert_allclose(log_softmax(found), best, atol=1e-4)
    slope = jax.jit(jax.grad(loss))(best, OLD, Q, lam, c, 1.0)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


@jax.jit
def minimised(c: Array, lam: Array) -> Array:
    """Logits after 2000 Adam steps from π_k, the rate falling to zero."""
    opt = optax.adam(optax.linear_schedule(0.05, 0.0, 2000))

    def step(carry: Any, _: None) -> Any:
        logits, state = carry
        change, state = opt.update(jax.grad(loss)(logits, OLD, Q, lam, c, 1.0), state)
        return (optax.apply_updates(logits, change), state), None

    return jax.lax.scan(step, (OLD, opt.init(OLD)), length=2000)[0][0]


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
def test_fixed_point_is_the_soft_optimal_policy(c: float) -> None:
    """Of iterating at fixed Q: the loss has no slope at π = π_k = softmax(Q/λ), but elsewhere."""
    slope = jax.jit(jax.grad(loss))
    soft = Q / 0.2
    np.testing.assert_allclose(slope(soft, soft, Q, 0.2, c, 1.0), 0, atol=1e-6)
    assert np.max(np.abs(slope(OLD, OLD, Q, 0.2, c, 1.0))) > 0.01


@pytest.mark.parametrize("index", [1.0, 1.2, 1.4, 2.0])
def test_first_slope_without_entropy_is_the_policy_gradient(index: float) -> None:
    """At π_k the divergence has no slope, so at λ = 0 what is left is that of -E[Q]."""
    slope = jax.jit(jax.grad(loss))(OLD, OLD, Q, 0.0, 0.7, index)
    expected = jax.grad(lambda x: -jnp.sum(jax.nn.softmax(x) * Q))(OLD)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


# --- Tsallis -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [1.2, 1.4, 2.0])
def test_tsallis_loss_is_a_bregman_divergence(index: float) -> None:
    """At λ = 0: c times that of Σ π^q / (q - 1), but for c (1 - Σ π_k^q), whatever π is."""
    c, old = 0.6, np.float64(jax.nn.softmax(OLD))[0]
    values = jax.jit(loss)
    for seed in range(8):
        logits = 2 * jax.random.normal(jax.random.key(seed), (1, ACTIONS))
        new = np.float64(jax.nn.softmax(logits))[0]
        got = values(logits, OLD, Q, 0.0, c, index) + np.sum(new * np.asarray(Q)[0])
        slope = index * old ** (index - 1) / (index - 1)
        bregman = np.sum((new**index - old**index) / (index - 1) - slope * (new - old))
        np.testing.assert_allclose(got - c * bregman, c * (1 - np.sum(old**index)), atol=1e-5)


def test_log_q() -> None:
    """(x^{q-1} - 1) / (q - 1), the logarithm at q = 1, and close to it nearby; slopes as well."""
    log_x = jnp.float32([-30.0, -3.0, -0.5, 0.0, 1.0, 4.0])
    x = np.exp(np.float64(log_x))
    both = jax.jit(jax.vmap(jax.value_and_grad(mdpo.log_q), (0, None)))
    for index in (1.2, 1.7, 2.0):
        value, slope = both(log_x, jnp.float32(index))
        # The bend to finite densities begins at x / 1e6, relative.
        expected = (x ** (index - 1) - 1) / (index - 1)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(slope, x ** (index - 1), rtol=2e-4, atol=1e-6)
    value, slope = both(log_x, jnp.float32(1))
    np.testing.assert_array_equal(value, log_x)
    np.testing.assert_array_equal(slope, np.ones(6))
    np.testing.assert_allclose(both(log_x, jnp.float32(1.0001))[0], log_x, rtol=3e-3, atol=1e-5)


@pytest.mark.parametrize("index", [1.0, 1.4, 2.0])
def test_log_q_of_densities_without_bound(index: float) -> None:
    """Towards `LARGEST` where q > 1; exp(200) is not a number of float32."""
    value, slope = jax.jit(jax.value_and_grad(mdpo.log_q))(jnp.float32(200), jnp.float32(index))
    if index == 1:
        assert (value, slope) == (200, 1)
    else:
        largest = (mdpo.LARGEST ** (index - 1) - 1) / (index - 1)
        np.testing.assert_allclose(value, largest, rtol=1e-4)
        assert slope == 0


# --- π_k -----------------------------------------------------------------------------------------


def test_old_policy_is_copied_by_the_update_counter() -> None:
    """Before updates 0, 4, 8, ..., and kept in between; the first copy makes any start good."""
    agent = mdpo.make(mdpo.Config(**SIZES, refresh=4), BOX)
    state = jax.jit(agent.init)(jax.random.key(0), hypers(), {})
    for step in range(6):
        actor, old = state.sac.actor, state.old
        t = Batch(rows(BOX, step))
        state, _ = updater("box")(state, hypers(lr=0.01), t, jax.random.key(step), jnp.int32(step))
        np.testing.assert_array_equal(state.old, actor if step % 4 == 0 else old)
        assert not np.array_equal(state.sac.actor, actor)


@pytest.mark.parametrize("refresh", [0, 6])
def test_refuses_refreshes_inside_a_window(refresh: int) -> None:
    with pytest.raises(UserError, match=f"refresh={refresh} must be a multiple of .* = 4"):
        mdpo.make(mdpo.Config(num_envs=4, refresh=refresh), BOX)


@pytest.mark.slow
def test_probes() -> None:
    """In the end π_k no longer matters: the policy is softmax(Q/λ), as SAC's."""
    lam, kinds = 0.5, [probes.action(), probes.match()]
    cfg = mdpo.Config(**test_sac.PROBE, total_steps=8_000, refresh=400)
    hp = mdpo.Hypers(lr=0.01, tau=0.1, temperature=lam, divergence=1.0)
    states = test_sac.learn(mdpo, cfg, kinds, hp)
    test_sac.check_softmax(sac.head_of(cfg, kinds[0].spec), states.sac.actor, lam)
