"""EDAC: the diversity term and targets by numpy, SAC as its limit, the probe with known answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, rows, table

from jaxrl.agents import edac, sac
from jaxrl.errors import UserError
from jaxrl.policies import sum_log_probs
from jaxrl.types import Batch, Box, EnvSpec

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,)}


def test_similarity_by_pairs() -> None:
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(4, 3, 2))
    total = 0.0
    for b in range(3):
        for i in range(4):
            for j in range(4):
                g, h = slope[i, b], slope[j, b]
                total += (i != j) * (g @ h) / np.linalg.norm(g) / np.linalg.norm(h) / 3
    np.testing.assert_allclose(edac.similarity(jnp.float32(slope)), total / 3, rtol=1e-5)


def test_similarity_at_its_ends() -> None:
    """N where all slopes agree, -N / (N - 1) where they cancel, and no NaN where one is 0."""
    angles = 2 * np.pi * np.arange(5) / 5
    fan = jnp.float32(np.stack([np.cos(angles), np.sin(angles)], -1))[:, None]
    np.testing.assert_allclose(edac.similarity(fan), -5 / 4, rtol=1e-5)
    np.testing.assert_allclose(edac.similarity(jnp.ones((5, 1, 2))), 5, rtol=1e-5)
    dead = jax.grad(edac.similarity)(fan.at[0].set(0.0))
    assert np.isfinite(dead).all() and not dead[0].any()


def test_similarity_of_one_dimension_moves_nothing() -> None:
    """What is left of a slope is its sign."""
    slope = jnp.float32(np.random.default_rng(0).normal(size=(4, 3, 1)))
    assert not np.isclose(edac.similarity(slope), 4)
    np.testing.assert_allclose(jax.grad(edac.similarity)(slope), 0, atol=1e-6)


def test_slopes_are_gradients() -> None:
    """Q and ∇_a Q of each critic against differences, in units of half the box."""
    head = edac.head_of(edac.Config(**SIZES), BOX)
    critic = jax.lax.map(head.critic, jax.random.split(jax.random.key(0), 3))
    critic = critic + 0.3 * jax.random.normal(jax.random.key(1), critic.shape)
    t = jax.tree.map(jnp.asarray, rows(BOX))
    q, slope = jax.jit(lambda c: edac.slopes(head, c, t.obs, t.action))(critic)
    value = jax.jit(lambda c, action: jax.vmap(lambda p: head.value(p, t.obs, action))(c))
    np.testing.assert_allclose(q, value(critic, t.action), rtol=1e-5)
    near = 1e-2 * np.eye(2, dtype=np.float32)[:, None]
    for i in range(2):
        ahead, behind = (value(critic, t.action + sign * near[i]) for sign in (1, -1))
        steady = np.abs(ahead + behind - 2 * q) < 1e-4  # away from kinks
        assert steady.mean() > 0.7
        difference = (ahead - behind) / 0.02
        np.testing.assert_allclose(difference[steady], slope[..., i][steady], atol=2e-3)


def test_weights_begin_as_the_authors() -> None:
    """Hidden biases 0.1, kernels within 1 / √inputs; outputs within 3e-3 and, of actors, 1e-3."""
    net = edac.Layers((50,), 7, 3e-3)
    params = net.init(jax.random.key(0), jnp.zeros((1, 16)))["params"]
    assert (params["Dense_0"]["bias"] == np.float32(0.1)).all()
    for layer, bound in (("Dense_0", 0.25), ("Dense_1", 3e-3)):
        kernel = np.abs(params[layer]["kernel"])
        assert 0.95 * bound < kernel.max() <= bound
        assert abs(kernel.mean() - bound / 2) < 0.1 * bound
    head = edac.head_of(edac.Config(hidden=(50,)), BOX)
    dist = head.policy(head.actor(jax.random.key(0)), jnp.ones((1, 3)))
    assert np.abs(dist.mean).max() < 51e-3 and np.abs(dist.log_std).max() < 51e-3


@pytest.mark.parametrize("diversity", [False, True])
def test_update_by_hand(diversity: bool) -> None:
    """Least of five target critics at the new actor's action; time limits bootstrap."""
    t, cfg = rows(BOX), edac.Config(**SIZES, critics=5, diversity=diversity)
    agent, head = edac.make(cfg, BOX), edac.head_of(cfg, BOX)
    hp = edac.Hypers(lr=0.01, gamma=0.9, tau=0.25, temperature=0.3, reward_scale=2.0, eta=0.5)
    state = jax.jit(agent.init)(jax.random.key(0), numbers(hp), {"data": t})
    np.testing.assert_array_equal(state.critic, state.target)
    assert state.reward == 2 * np.abs(t.reward).max()
    noise = jax.random.normal(jax.random.key(1), state.critic.shape)
    state = state._replace(critic=state.critic + 0.5 * noise, target=state.target + noise)
    key = jax.random.key(5)
    new, metrics = jax.jit(agent.update)(state, numbers(hp), Batch(t), key, jnp.int32(0))

    @jax.jit
    def parts() -> Any:
        noise = [head.noise(k, 8) for k in jax.random.split(key)]
        now = head.samples(head.policy(state.actor, t.obs), noise[0])
        ahead = head.samples(head.policy(new.actor, t.next_obs), noise[1])
        q_now = [head.values(c, t.obs, now.action)[:, 0] for c in state.critic]
        q_ahead = [head.values(c, t.next_obs, ahead.action)[:, 0] for c in state.target]
        taken, slope = edac.slopes(head, state.critic, t.obs, t.action)
        log_p = [sum_log_probs(x.log_prob)[:, 0] for x in (now, ahead)]
        return log_p, jnp.stack(q_now), jnp.stack(q_ahead), taken, slope

    (log_now, log_ahead), q_now, q_ahead, taken, slope = jax.tree.map(np.asarray, parts())
    entropy = -log_now.mean()
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)
    log_temperature = np.log(0.3) - 0.01 * np.sign(entropy + 2)
    np.testing.assert_allclose(new.log_temperature, log_temperature, rtol=1e-4)
    alpha = np.exp(log_temperature)
    loss_pi = np.mean(alpha * log_now - q_now.min(0))
    np.testing.assert_allclose(metrics["actor_loss"], loss_pi, rtol=1e-4)
    value = q_ahead.min(0) - alpha * log_ahead
    y = 2 * t.reward + 0.9 * np.where(t.terminated, 0, value)
    np.testing.assert_allclose(metrics["critic_loss"], np.sum((taken - y) ** 2) / 8, rtol=1e-4)
    np.testing.assert_allclose(metrics["q_std"], q_ahead.std(0).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["q_largest"], np.abs(taken).max(), rtol=1e-5)
    np.testing.assert_allclose(new.target, 0.75 * state.target + 0.25 * new.critic, atol=1e-5)

    def loss(critic: jax.Array) -> jax.Array:
        q, slope = edac.slopes(head, critic, t.obs, t.action)
        alike = edac.similarity(slope * jnp.array([[[1.0, 2.0]]])) if diversity else 0.0
        return edac.critic_loss(q, jnp.float32(y)) + 0.5 * alike

    moved = -0.01 * np.sign(jax.jit(jax.grad(loss))(state.critic))
    off = np.abs(new.critic - state.critic - moved) > 1e-4
    assert off.mean() < 0.05  # where gradients are next to 0
    alike = edac.similarity(jnp.float32(slope * np.array([1.0, 2.0]))) / 5 if diversity else 0.0
    np.testing.assert_allclose(metrics["similarity"], alike, atol=1e-5)


def test_two_critics_without_diversity_are_sac() -> None:
    """The same critic targets, from the same numbers: SAC's loss is half of this one's."""
    t = rows(BOX)
    cfg = edac.Config(**SIZES, critics=2, diversity=False)
    twin = sac.Config(**SIZES, total_steps=1, warmup=1, learn_temperature=False)
    head = edac.head_of(cfg, BOX)
    hp = edac.Hypers(lr=0.0, gamma=0.9, temperature=0.3)
    state = jax.jit(edac.make(cfg, BOX).init)(jax.random.key(0), numbers(hp), {"data": t})
    state = state._replace(target=2 * state.target)
    key = jax.random.key(5)
    update = jax.jit(edac.make(cfg, BOX).update)
    _, ours = update(state, numbers(hp), Batch(t), key, jnp.int32(0))

    # SAC's key for the noise of successors is the first of its own split: draw what EDAC drew.
    ahead = head.noise(jax.random.split(key)[1], 8)
    given = sac.dataclasses.replace(head, noise=lambda key, n: ahead)
    opt = tuple(sac.optax.adam(0.0).init(x) for x in (state.actor, state.critic, jnp.zeros(())))
    theirs = sac.State(state.actor, state.critic, state.target, jnp.zeros(()), opt)
    objective = lambda now, obs, q, temperature: sac.actor_loss(now, q, temperature)
    _, metrics = jax.jit(
        lambda state: sac.learn(
            twin,
            given,
            state,
            numbers(sac.Hypers(lr=0.0, gamma=0.9, temperature=0.3)),
            Batch(jax.tree.map(jnp.asarray, t)),
            key,
            objective,
            sum_log_probs,
        )
    )(theirs)
    np.testing.assert_allclose(metrics["critic_loss"], 0.5 * ours["critic_loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], ours["q"], rtol=1e-5)


def test_diverged_is_beyond_twice_the_largest_return() -> None:
    cfg = edac.Config(**SIZES, critics=2, diversity=False)
    agent, t = edac.make(cfg, BOX), rows(BOX)
    hp = numbers(edac.Hypers(gamma=0.9))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    update = jax.jit(agent.update)
    after, _ = update(state, hp, Batch(t), jax.random.key(0), jnp.int32(0))
    assert after.bonus > 0  # the policy's entropy counts too, at α = 1 here
    limit = 2 * (np.abs(t.reward).max() + after.bonus) / 0.1
    for share, reward in [(0.99, 1), (1.01, 1), (1e9, 0)]:
        seen = state._replace(largest=share * limit, reward=reward * state.reward)
        _, metrics = update(seen, hp, Batch(t), jax.random.key(0), jnp.int32(0))
        assert metrics["diverged"] == (share == 1.01)  # no verdict on rewards that are all 0


def test_climbs_to_the_best_action() -> None:
    """One step of reward 1 - (a - s/2)², actions all over the box: the best one is s/2."""
    rng: Any = np.random.default_rng(0)
    sign, action = rng.choice([-1.0, 1.0], 128), rng.uniform(-1, 1, size=(128,))
    reward, yes = 1 - (action - sign / 2) ** 2, np.ones(128, bool)
    data = table(sign, action[:, None].astype(np.float32), reward, sign, yes, ~yes)
    spec = EnvSpec("aim", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent = edac.make(edac.Config(critics=3, batch_size=128, hidden=(24,)), spec)
    hp = numbers(edac.Hypers(lr=0.005, temperature=0.1, eta=0.01))
    state = jax.jit(logged.fit(agent, 1000))(hp, data)
    np.testing.assert_allclose(
        logged.mode(agent, state, hp, [[-1.0], [1.0]])[:, 0], [-0.5, 0.5], atol=0.1
    )


def test_sizes() -> None:
    with pytest.raises(UserError, match="critics=1 must be at least 2"):
        edac.make(edac.Config(critics=1), BOX)
    edac.make(edac.Config(critics=1, diversity=False), BOX)
