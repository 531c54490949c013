"""TD3+BC: targets and losses by hand, the delayed policy, and its two limits in α."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
from logged import BOX, numbers, relu_net, rows, table

from jaxrl.agents import bc, td3bc
from jaxrl.types import Batch, Box, EnvSpec

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,), "normalise_obs": False}


def test_critic_loss_by_hand() -> None:
    """Twins' minimum at the target policy's action; time limits bootstrap, terminations do not."""
    agent, t = td3bc.make(td3bc.Config(**SIZES), BOX), rows(BOX)
    hp = numbers(td3bc.Hypers(gamma=0.9, policy_noise=0.0, reward_scale=2.0, reward_shift=-0.5))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    np.testing.assert_array_equal(state.critic, state.critic_target)
    np.testing.assert_array_equal(state.actor, state.actor_target)
    noise = jax.random.normal(jax.random.key(1), state.critic.shape)
    state = state._replace(critic_target=state.critic + 0.3 * noise, actor_target=0.5 * state.actor)
    _, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(0))

    ahead = np.tanh(relu_net(np.asarray(state.actor_target), t.next_obs, 5, 2))
    unit = (t.action - np.array([[0.0, 2.0]])) / np.array([[1.0, 2.0]])
    q = lambda params, obs, action: relu_net(
        np.asarray(params), np.concatenate([obs, action], -1), 5, 1
    )[:, 0]
    value = np.minimum(*[q(c, t.next_obs, ahead) for c in state.critic_target])
    loss, errors, taken = 0.0, [], [q(c, t.obs, unit) for c in state.critic]
    for i in range(8):
        y = 2.0 * t.reward[i] - 0.5 + (0.0 if t.terminated[i] else 0.9 * value[i])
        loss += sum((each[i] - y) ** 2 for each in taken) / 8
        errors += [abs(each[i] - y) for each in taken]
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["td_error"], np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], np.mean(taken), rtol=1e-4, atol=1e-6)


def test_smoothing_noise_is_clipped() -> None:
    hp = numbers(td3bc.Hypers(policy_noise=0.2, noise_clip=0.3))
    noise = td3bc.smoothed(jnp.zeros((10_000, 1)), jax.random.key(0), hp)
    assert np.abs(noise).max() == np.float32(0.3)
    inner = np.asarray(noise)[np.abs(noise) < 0.3]
    assert abs(inner.size / 10_000 - 0.866) < 0.02  # within 1.5 deviations
    edge = td3bc.smoothed(jnp.full((100, 1), 0.95), jax.random.key(0), hp)
    assert edge.max() == 1 and edge.min() >= 0.65


def test_actor_loss_knows_no_scale_of_q() -> None:
    """λ = α / mean |Q|, through which no gradient goes."""
    rng = np.random.default_rng(0)
    q, chosen, action = rng.normal(size=6), rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    expected = np.mean((chosen - action) ** 2) - 2.5 * q.mean() / np.abs(q).mean()
    loss = lambda q: td3bc.actor_loss(q, jnp.float32(chosen), jnp.float32(action), 2.5)
    for scale in (1.0, 100.0):
        np.testing.assert_allclose(loss(jnp.float32(scale * q)), expected, rtol=1e-5)
    slope = np.full(6, -2.5 / np.abs(q).mean() / 6)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(q)), slope, rtol=1e-5)
    tuned = td3bc.actor_loss(jnp.float32(q), jnp.float32(chosen), jnp.float32(action), 2.5, 0.25)
    np.testing.assert_allclose(
        tuned, 0.25 * np.mean((chosen - action) ** 2) + 6 * slope[0] * q.mean(), rtol=1e-5
    )


def test_noise_in_fine_tuning() -> None:
    """Actions of training have noise in half ranges and stay in the box; others have none."""
    spec = dataclasses.replace(BOX, action=Box((-2.0,), (6.0,), (1,)))
    agent, t = td3bc.make(td3bc.Config(**SIZES), spec), rows(spec)
    hp = numbers(td3bc.Hypers(exploration=0.5))
    state = agent.init(jax.random.key(0), hp, {"data": t})
    act = lambda noise, explore: agent.act(state, hp, t.obs, None, None, noise, explore)[0]
    noise = agent.noise(jax.random.key(1), len(t.reward))
    plain = act(noise, False)
    np.testing.assert_allclose(act(noise, True), np.clip(plain + 2 * noise, -2, 6), rtol=1e-5)
    np.testing.assert_array_equal(act(jnp.full_like(noise, 100.0), True), 6)


def test_alpha_zero_is_cloning() -> None:
    t, updates = rows(BOX), 5
    agent = td3bc.make(td3bc.Config(**SIZES, policy_every=1), BOX)
    clone = bc.make(bc.Config(**SIZES), BOX)
    hp, hp_clone = numbers(td3bc.Hypers(alpha=0.0, lr=0.01)), numbers(bc.Hypers(lr=0.01))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    other = jax.jit(clone.init)(jax.random.key(0), hp_clone, {"data": t})
    other = other._replace(actor=state.actor)
    update, update_clone = jax.jit(agent.update), jax.jit(clone.update)
    for step in range(updates):
        key = jax.random.key(step)
        state, a = update(state, hp, Batch(t), key, jnp.int32(step))
        other, b = update_clone(other, hp_clone, Batch(t), key, jnp.int32(step))
        np.testing.assert_allclose(a["actor_loss"].value, b["actor_loss"], rtol=1e-5)
    np.testing.assert_allclose(state.actor, other.actor, rtol=1e-4, atol=1e-5)


def test_actor_and_targets_wait() -> None:
    """They move at every third update only, and waiting stays a branch under vmap."""
    agent, t = td3bc.make(td3bc.Config(**SIZES, policy_every=3), BOX), rows(BOX)
    hp = numbers(td3bc.Hypers())
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    update = jax.jit(agent.update)
    for step in range(6):
        new, metrics = update(state, hp, Batch(t), jax.random.key(step), jnp.int32(step))
        moves = (step + 1) % 3 == 0
        assert not np.array_equal(new.critic, state.critic)
        for name in ("actor", "actor_target", "critic_target"):
            assert np.array_equal(getattr(new, name), getattr(state, name)) != moves, name
        assert metrics["actor_loss"].weight == moves
        state = new
    many = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    vmapped = jax.vmap(agent.update, (0, None, None, None, None))
    told = jax.make_jaxpr(vmapped)(many, hp, Batch(t), jax.random.key(0), jnp.int32(0))
    assert any(eqn.primitive.name == "cond" for eqn in told.eqns)


def test_climbs_to_the_best_action() -> None:
    """One step of reward 1 - (a - s/2)², random actions in the data: BC gives 0, TD3+BC s/2."""
    rng: Any = np.random.default_rng(0)
    sign, action = rng.choice([-1.0, 1.0], 256), rng.uniform(-1, 1, size=(256,))
    reward, yes = 1 - (action - sign / 2) ** 2, np.ones(256, bool)
    data = table(sign, action[:, None].astype(np.float32), reward, sign, yes, ~yes)
    spec = EnvSpec("aim", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent = td3bc.make(td3bc.Config(hidden=(32,), normalise_obs=False), spec)
    alphas = jnp.float32([0.0, 50.0])
    hp = jax.vmap(lambda alpha: numbers(td3bc.Hypers(lr=0.003)).replace(alpha=alpha))(alphas)
    states = jax.jit(jax.vmap(logged.fit(agent, 1000), (0, None)))(hp, data)
    shown = [[-1.0], [1.0]]
    member = lambda i: jax.tree.map(lambda x: x[i], states)
    cloned, climbed = (logged.mode(agent, member(i), hp, shown)[:, 0] for i in range(2))
    mean = [action[sign == s].mean() for s in (-1, 1)]
    np.testing.assert_allclose(cloned, mean, atol=0.02)
    np.testing.assert_allclose(climbed, [-0.5, 0.5], atol=0.08)
