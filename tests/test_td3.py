"""TD3: the actor's loss by hand, the delay across gradient steps, exploration, and probes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_sac
from logged import BOX, numbers, relu_net, rows

from jaxrl.agents import td3
from jaxrl.envs import probes
from jaxrl.types import Batch

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,), "warmup": 8}


def test_the_actor_maximises_the_first_critic() -> None:
    """-mean Q_1(s, π(s)) of the critics after their step; nothing draws the actor to the rows."""
    agent, t = td3.make(td3.Config(**SIZES, policy_every=1), BOX), rows(BOX)
    hp = numbers(td3.Hypers(lr=0.01))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(0))
    chosen = np.tanh(relu_net(np.asarray(state.actor), t.obs, 5, 2))
    critic = np.asarray(new.critic[0])
    q = relu_net(critic, np.concatenate([t.obs, chosen], -1), 5, 1)
    np.testing.assert_allclose(metrics["actor_loss"].value, -q.mean(), rtol=1e-4)
    assert np.max(np.abs(new.actor - state.actor)) > 0.005


@pytest.mark.slow
def test_delay_counts_gradient_steps() -> None:
    """Three gradient steps per rollout, of which every second moves the actor: 1, then 2."""
    cfg = td3.Config(**{**SIZES, "batch_size": 4}, gradient_steps=3, policy_every=2)
    agent, t, hp = td3.make(cfg, BOX), rows(BOX, 12), numbers(td3.Hypers())
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    update = jax.jit(agent.update)
    for step, moves in enumerate([1, 2, 1]):
        state, metrics = update(state, hp, Batch(t), jax.random.key(step), jnp.int32(step))
        assert metrics["actor_loss"].weight == moves and metrics["q"].weight == 3


def test_exploration_is_clipped_noise_in_half_action_ranges() -> None:
    agent, n = td3.make(td3.Config(**SIZES), BOX), 4_000
    hp = numbers(td3.Hypers(exploration=0.3))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    obs, start = jnp.ones((n, 3)), jnp.ones(n, bool)
    noise = agent.noise(jax.random.key(1), n)
    act = jax.jit(agent.act, static_argnames="explore")
    plain, noisy = (
        np.asarray(act(state, hp, obs, start, (), noise, explore=e)[0]) for e in (False, True)
    )
    assert np.ptp(plain, 0).max() == 0
    low, high = np.array(BOX.action.low), np.array(BOX.action.high)  # type: ignore[union-attr]
    expected = np.clip(plain + 0.3 * np.asarray(noise) * (high - low) / 2, low, high)
    np.testing.assert_allclose(noisy, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_probes() -> None:
    """Values behind one step, a delay and a time limit, and the best action of `aim`.

    Critics of 16 units, which suffice for SAC, put the maximum of `aim` up to 0.17 off its place.
    """
    gamma, no = test_sac.GAMMA, np.nan
    kinds = [
        probes.obs(continuous=True),
        probes.delay(continuous=True),
        probes.limit(8, continuous=True),
        probes.aim(),
    ]
    answers = [[-1, no, 1], [no, gamma, 1], [no, 1 / (1 - gamma), no], [1, no, 1]]
    sizes = {k: v for k, v in test_sac.PROBE.items() if k != "learn_temperature"}
    cfg = td3.Config(**(sizes | {"hidden": (64,)}), total_steps=8_000)
    hp = td3.Hypers(lr=0.005, gamma=gamma, tau=0.1, exploration=0.5, policy_noise=0.05)
    states = test_sac.learn(td3, cfg, kinds, hp)
    agent = td3.make(cfg, kinds[0].spec)
    shown = np.asarray(test_sac.SHOWN)
    for i in range(len(states.critic)):
        state: Any = jax.tree.map(lambda x: x[i], states)  # noqa: B023
        given = (jnp.asarray(shown), jnp.ones(3, bool), (), jnp.zeros((3, 1)), False)
        action = np.asarray(agent.act(state, hp, *given)[0])
        value = relu_net(np.asarray(state.critic[0]), np.concatenate([shown, action], -1), 64, 1)
        name, expected = kinds[i % 4].spec.name, np.array(answers[i % 4])
        assert np.nanmax(np.abs(value[:, 0] - expected) / np.abs(expected)) < 0.07, name
        if name == "probe:aim":
            np.testing.assert_allclose(action[[0, 2], 0], [-0.5, 0.5], atol=0.1)
