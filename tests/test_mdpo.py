"""On-policy MDPO: its loss against exact mirror descent, and what it learns in probes.

The exact tests go through the loss that `update` minimises, in double precision: one row per action
(and state) makes its mean over samples the expectation under π_k.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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

from jaxrl.agents import mdpo, ppo
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import UserError
from jaxrl.optim import linear
from jaxrl.types import Array, Batch, PyTree, Transition

ACTIONS = 10
RNG = np.random.default_rng(0)
LOGITS, ADVANTAGE = RNG.normal(size=ACTIONS), RNG.normal(size=ACTIONS)


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def exact_loss(
    logits: Array,
    old: Array,
    advantage: Array,
    t: Array | float,
    kl: Literal["new_old", "old_new"] = "new_old",
) -> Array:
    """Mean over states of -Σ_a π A + KL / t, by the agent's loss. Arrays [states, actions]."""
    states, actions = old.shape
    each = lambda x: Categorical(jnp.repeat(x, actions, 0))  # one row per state and action
    weight = actions * jax.nn.softmax(old)
    return mdpo.mirror_descent_loss(
        each(logits),
        each(old),
        jnp.tile(jnp.arange(actions), states),
        (weight * advantage).reshape(-1),
        t,
        kl,
    )


@functools.partial(jax.jit, static_argnames=("steps", "kl"))
def descend(old: Array, advantage: Array, t: float, *, steps: int, kl: Any = "new_old") -> Array:
    """Logits [states, actions] after `steps` of Adam at 1e-2 on the loss, from `old` on."""
    adam = optax.adam(1e-2)

    def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        logits, opt = carry
        updates, opt = adam.update(jax.grad(exact_loss)(logits, old, advantage, t, kl), opt)
        return (logits + updates, opt), None

    return jax.lax.scan(step, (old, adam.init(old)), length=steps)[0][0]


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * np.log(p / q)))


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["new_old", "old_new"])
def test_gradient_at_the_old_policy_is_the_policy_gradient(double: None, direction: Any) -> None:
    """Σ_a ∂π(a) A(a) = π (A - E A) for logits: the KL has no gradient there, whatever t_k."""
    old = jnp.array(LOGITS)[None]
    p = softmax(LOGITS)
    expected = p * (ADVANTAGE - p @ ADVANTAGE)
    for t in (0.01, 1.0):
        grad = jax.grad(exact_loss)(old, old, jnp.array(ADVANTAGE)[None], t, direction)
        np.testing.assert_allclose(-grad[0], expected, atol=1e-14)


def test_curvature_at_the_old_policy_is_fishers(double: None) -> None:
    """The loss without advantages is KL / t; its Hessian is diag(p) - p pᵀ, over t."""
    old, none = jnp.array(LOGITS)[None], jnp.zeros((1, ACTIONS))
    hessian = jax.hessian(exact_loss)(old, old, none, 0.5)[0, :, 0]
    p = softmax(LOGITS)
    np.testing.assert_allclose(hessian, (np.diag(p) - np.outer(p, p)) / 0.5, atol=1e-14)


def test_minimiser_is_exact_mirror_descent(double: None) -> None:
    """π_k exp(t A) up to a constant; ten small steps go a little of the way."""
    old, advantage = jnp.array(LOGITS)[None], jnp.array(ADVANTAGE)[None]
    exact = softmax(LOGITS + 0.5 * ADVANTAGE)
    begin = kl(softmax(LOGITS), exact)
    few, many = (softmax(descend(old, advantage, 0.5, steps=n)[0]) for n in (10, 2000))
    assert 0.2 * begin < kl(few, exact) < 0.95 * begin, (begin, kl(few, exact))
    np.testing.assert_allclose(many, exact, atol=1e-6)


def test_the_other_direction_has_another_minimiser(double: None) -> None:
    """KL(π_k || π): π = π_k / (ν - t A) with Σ π = 1, found here by bisection in ν."""
    old, advantage = jnp.array(LOGITS)[None], jnp.array(ADVANTAGE)[None]
    p, t = softmax(LOGITS), 0.5
    low, high = np.max(t * ADVANTAGE) + 1e-9, np.max(t * ADVANTAGE) + 10
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(p / (middle - t * ADVANTAGE)) > 1 else (low, middle)
    expected = p / (low - t * ADVANTAGE)
    got = softmax(descend(old, advantage, t, steps=2000, kl="old_new")[0])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert kl(got, softmax(LOGITS + t * ADVANTAGE)) > 1e-3


@pytest.mark.parametrize("direction", ["new_old", "old_new"])
def test_loss_of_normals(direction: Any) -> None:
    """Row by row: closed-form KL and density ratio of independent components."""
    rows, size = 5, 2
    mean, log_std = RNG.normal(size=(2, rows, size)), 0.3 * RNG.normal(size=(2, rows, size))
    sample, advantage, t = RNG.normal(size=(rows, size)), RNG.normal(size=rows), 0.3
    new, old = (Normal(jnp.float32(m), jnp.float32(s)) for m, s in zip(mean, log_std, strict=True))
    got = mdpo.mirror_descent_loss(
        new, old, jnp.float32(sample), jnp.float32(advantage), t, direction
    )
    total = 0.0
    for b in range(rows):
        ratio, divergence = 1.0, 0.0
        for i in range(size):
            (m, n), (s, r) = mean[:, b, i], np.exp(log_std[:, b, i])
            x = sample[b, i]
            ratio *= r / s * np.exp((x - n) ** 2 / (2 * r**2) - (x - m) ** 2 / (2 * s**2))
            if direction == "old_new":
                (m, n), (s, r) = (n, m), (r, s)
            divergence += np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5
        total += divergence / t - ratio * advantage[b]
    np.testing.assert_allclose(got, total / rows, rtol=1e-5)


# --- ten states ----------------------------------------------------------------------------------

STATES, CHOICES, GAMMA, ITERATIONS = 10, 4, 0.95, 50


@functools.partial(jax.jit, static_argnames=("inner", "exact"))
def gaps(model: Array, reward: Array, *, inner: int, exact: bool = False) -> Array:
    """J* - J(π_k) [ITERATIONS + 1] from the uniform policy on, J the mean value of all states.

    Advantages are exact and standardised as samples of π_k would be; t_k falls from 1 to 1 / K.
    model [S, A, S], reward [S, A].
    """

    def values(policy: Array) -> Array:
        moves = jnp.einsum("sa,sat->st", policy, model)
        return jnp.linalg.solve(jnp.eye(STATES) - GAMMA * moves, jnp.sum(policy * reward, -1))

    def optimum(v: Array, _: None) -> tuple[Array, None]:
        return jnp.max(reward + GAMMA * model @ v, -1), None

    best = jax.lax.scan(optimum, jnp.zeros(STATES), length=2000)[0]
    adam = optax.adam(0.1)
    cfg = mdpo.Config(total_steps=ITERATIONS, num_envs=1, num_steps=1)

    def iterate(carry: PyTree, k: Array) -> tuple[PyTree, Array]:
        old, opt = carry
        policy = jax.nn.softmax(old)
        v = values(policy)
        advantage = reward + GAMMA * model @ v - v[:, None]  # of mean 0 under the policy
        advantage /= jnp.sqrt(jnp.mean(jnp.sum(policy * advantage**2, -1))) + 1e-8
        t = mdpo.step_size(cfg, mdpo.Hypers(), k)

        def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
            logits, opt = carry
            updates, opt = adam.update(jax.grad(exact_loss)(logits, old, advantage, t), opt)
            return (logits + updates, opt), None

        after = (old + t * advantage, opt)
        if not exact:
            after, _ = jax.lax.scan(step, carry, length=inner)
        return after, jnp.mean(best - v)

    start = jnp.zeros((STATES, CHOICES))
    (last, _), found = jax.lax.scan(iterate, (start, adam.init(start)), jnp.arange(ITERATIONS))
    return jnp.append(found, jnp.mean(best - values(jax.nn.softmax(last))))


def test_ten_inner_steps_are_far_ahead_of_one(double: None) -> None:
    """At equal iterations, in a random problem of ten states; no iteration makes it worse."""
    rng = np.random.default_rng(0)
    model = jnp.array(rng.dirichlet(np.ones(STATES), (STATES, CHOICES)))
    reward = jnp.array(rng.random((STATES, CHOICES)))
    exact = gaps(model, reward, inner=0, exact=True)
    ten, one = gaps(model, reward, inner=10), gaps(model, reward, inner=1)
    for name, found in {"exact": exact, "m = 10": ten, "m = 1": one}.items():
        assert np.all(np.diff(found) < 1e-12), (name, found)
    assert exact[10] < 1e-9, exact[10]
    assert ten[10] < 0.01 * one[10] and ten[50] < 0.01 * one[50], (ten, one)


# --- the agent -----------------------------------------------------------------------------------

CFG = mdpo.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=2,
    epochs=1,
    actor=(5,),
    critic=(4,),
    policy_epochs=3,
)


def hypers(**values: float) -> mdpo.Hypers:
    return jax.tree.map(jnp.float32, mdpo.Hypers(**values))


def test_step_sizes() -> None:
    """1, 1 - 1/K, ..., 1/K in updates 0 .. K - 1, or always the same."""
    steps = jnp.arange(CFG.updates)
    got = jax.vmap(lambda k: mdpo.step_size(CFG, hypers(), k))(steps)
    np.testing.assert_allclose(got, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], rtol=1e-6)
    constant = dataclasses.replace(CFG, step_sizes="constant")
    got = jax.vmap(lambda k: mdpo.step_size(constant, hypers(step_size=0.3), k))(steps)
    np.testing.assert_allclose(got, 0.3)


def test_the_learning_rate_falls_with_the_step_size() -> None:
    """By default lr / t_k is constant, so that the last steps do not overshoot."""
    steps, hp = jnp.arange(CFG.updates), hypers()
    rates = jax.vmap(lambda k: linear(k / CFG.updates, 1.0, hp.lr_end))(steps)
    sizes = jax.vmap(lambda k: mdpo.step_size(CFG, hp, k))(steps)
    np.testing.assert_allclose(rates, sizes, rtol=1e-6)


@pytest.mark.parametrize("space", ["continuous", "discrete"])
def test_policy_update_by_hand(space: str) -> None:
    """m steps of Adam on the whole window from π_k on, and the KL that is reported."""
    hp = hypers(lr=0.02, lr_end=0.1, gamma=0.9, lam=0.6, step_size=0.5, max_grad_norm=0.2)
    t, agent = random_window(space), mdpo.make(CFG, spec(space))
    state = random_state(agent, hp)
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(7))

    model = ppo.networks(CFG, spec(space))

    @jax.jit
    def by_hand(actor: PyTree, t: Transition) -> tuple[PyTree, Array]:
        rows = ppo.experience(CFG, model, state.params, hp, t)
        old = model.actor.apply(actor, rows.obs)

        def loss(params: PyTree) -> Array:
            new = model.actor.apply(params, rows.obs)
            ratio = jnp.exp(new.log_prob(rows.sample) - old.log_prob(rows.sample))
            return jnp.mean(new.kl(old) / (0.5 * 0.3) - ratio * rows.advantage)

        rate = optax.linear_schedule(0.02, 0.002, 10)(7)
        chain: Any = optax.chain(optax.clip_by_global_norm(0.2), optax.adam(rate, eps=1e-5))
        params, opt = actor, chain.init(actor)
        for _ in range(CFG.policy_epochs):
            updates, opt = chain.update(jax.grad(loss)(params), opt, params)
            params = optax.apply_updates(params, updates)
        return params, jnp.mean(model.actor.apply(params, rows.obs).kl(old))

    actor, divergence = by_hand(state.params["actor"], t)
    for a, b in zip(*map(jax.tree.leaves, (new.params["actor"], actor)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["kl"], divergence, rtol=1e-3)
    assert divergence > 1e-4
    moved = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), new.params, state.params)
    assert min(jax.tree.leaves(moved["critic"])) > 0


def test_refuses_minibatches_that_do_not_divide() -> None:
    cfg = dataclasses.replace(CFG, policy_minibatches=5)
    with pytest.raises(UserError, match="policy_minibatches=5 does not divide"):
        mdpo.make(cfg, spec("discrete"))


def test_refuses_to_standardise_single_rows_of_the_policy_only() -> None:
    rows = CFG.num_envs * CFG.num_steps
    cfg = dataclasses.replace(CFG, advantages="minibatch", minibatches=rows)
    mdpo.make(cfg, spec("discrete"))
    cfg = dataclasses.replace(cfg, policy_minibatches=rows)
    with pytest.raises(UserError, match=f"policy_minibatches of at most {rows // 2}, not {rows}"):
        mdpo.make(cfg, spec("discrete"))


# --- probes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_probes() -> None:
    """Values, and the probability of the better action where there is one."""
    hp = mdpo.Hypers(lr=0.01, value_lr=0.01, gamma=0.8, lam=0.9)
    policy, values = learn_probes(mdpo, mdpo.Config(**SIZES), hp, PROBES)
    check_values(PROBES, values)
    kinds, p = list(PROBES), np.exp(np.asarray(policy.log_probs))
    assert np.all(p[kinds.index("action"), :, 1, 1] > 0.97)
    assert np.all(p[kinds.index("match"), :, [0, 2], [0, 1]] > 0.97)


@pytest.mark.slow
def test_aims() -> None:
    cfg = mdpo.Config(**SIZES | {"num_envs": 16, "total_steps": 400 * 128})
    hp = mdpo.Hypers(lr=0.01, value_lr=0.01, gamma=0.8)
    policy, values = learn_probes(mdpo, cfg, hp, AIM)
    np.testing.assert_allclose(policy.mean[0, :, [0, 2], 0].T, [[-0.5, 0.5]] * 2, atol=0.1)
    assert np.all(np.exp(policy.log_std) < 0.3), policy.log_std
    check_values(AIM, values)
