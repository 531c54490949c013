"""AWAC: targets, weights and the policy's loss by hand, and the best action of the data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, BUTTONS, numbers, random_state, rows, table

from jaxrl.agents import awac
from jaxrl.heads import head_of
from jaxrl.types import Batch, Box, EnvSpec

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,)}


@pytest.mark.parametrize("spec", [BOX, BUTTONS], ids=lambda spec: spec.name)
def test_update_by_hand(spec: EnvSpec) -> None:
    """One action of the policy in targets and values; time limits bootstrap; clipped weights."""
    agent, head = awac.make(awac.Config(**SIZES), spec), head_of(SIZES["hidden"], spec)
    t = jax.tree.map(jnp.asarray, rows(spec))
    hp = numbers(awac.Hypers(gamma=0.9, lam=0.05, max_weight=3.0, lr=0.0, reward_scale=2.0))
    state = random_state(agent, hp)
    key = jax.random.key(3)
    _, metrics = jax.jit(agent.update)(state, hp, Batch(t), key, jnp.int32(0))

    @jax.jit
    def parts() -> Any:
        now, ahead = jax.random.split(key)
        act = lambda k, obs: head.act(head.policy(state.actor, obs), head.noise(k, 8), True)
        twins = lambda critic, obs, action: head.twins(critic, obs, action)
        log_prob = head.log_prob(head.policy(state.actor, t.obs), t.action)
        return (
            twins(state.target, t.next_obs, act(ahead, t.next_obs)),
            twins(state.critic, t.obs, t.action),
            twins(state.critic, t.obs, act(now, t.obs)),
            log_prob,
        )

    following, taken, own, log_prob = map(np.asarray, parts())
    y = 2 * np.asarray(t.reward) + 0.9 * np.where(t.terminated, 0, following.min(0))
    np.testing.assert_allclose(metrics["critic_loss"], np.sum((taken - y) ** 2) / 8, rtol=1e-4)
    weight = np.minimum(np.exp((taken.min(0) - own.min(0)) / 0.05), 3)
    assert weight.max() == 3 and weight.min() < 3
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["actor_loss"], -np.mean(weight * log_prob), rtol=1e-3)


@pytest.mark.slow
def test_prefers_the_better_action_of_the_data() -> None:
    """Actions ±0.5 with rewards 1 and 0: λ = 100 clones their mean, λ = 0.05 the better one."""
    action = np.float32(np.tile([[0.5], [-0.5]], (32, 1)))
    nothing, yes = np.zeros(64), np.ones(64, bool)
    data = table(nothing, action, action[:, 0] > 0, nothing, yes, ~yes)
    spec = EnvSpec("lever", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent = awac.make(awac.Config(batch_size=64, hidden=(16,)), spec)
    base = numbers(awac.Hypers(lr=0.01))
    hp = jax.vmap(lambda lam: base.replace(lam=lam))(jnp.float32([100.0, 0.05]))
    states = jax.jit(jax.vmap(logged.fit(agent, 600), (0, None)))(hp, data)
    for i, best in enumerate([0.0, 0.5]):
        state = jax.tree.map(lambda x: x[i], states)  # noqa: B023
        np.testing.assert_allclose(logged.mode(agent, state, hp, [[0.0]]), best, atol=0.06)
