"""FamO2O: inputs and weights of the universal model in numpy, and a balance that is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, random_params, random_state, rows, table

from jaxrl import nets
from jaxrl.agents import famo2o
from jaxrl.errors import UserError
from jaxrl.heads import Layers
from jaxrl.types import Batch, Box, EnvSpec

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,)}


def test_inputs_of_the_universal_model() -> None:
    """β from unit numbers; then cos and sin of β 10000^(-2k/6) behind the observation."""
    hp = famo2o.Hypers(beta_low=2.0, beta_high=6.0)
    beta = famo2o.coefficient(jnp.array([-1.0, 0.0, 0.5, 1.0]), hp)
    np.testing.assert_allclose(beta, [2, 4, 5, 6])
    obs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    seen = famo2o.with_beta(jnp.asarray(obs), beta)
    phases = np.asarray(beta)[:, None] * 10_000.0 ** (-2 * np.arange(3) / 6)[None]
    wave = np.concatenate([np.cos(phases), np.sin(phases)], -1)
    np.testing.assert_allclose(seen, np.concatenate([obs.reshape(4, 6), wave], -1), rtol=1e-5)


def test_only_the_policy_sees_beta() -> None:
    t, head = rows(BOX), famo2o.universal_head((5,), BOX)
    key = jax.random.key(0)
    actor = random_params(head.actor.init, key)
    critic = random_params(jax.vmap(head.critic.init), jax.random.split(key))

    @jax.jit
    def both(beta: Any) -> Any:
        seen = famo2o.with_beta(jnp.asarray(t.obs), jnp.full(8, beta))
        return head.twins(critic, seen, jnp.asarray(t.action)), head.policy(actor, seen).mean

    (low, mean_low), (high, mean_high) = both(1.0), both(5.0)
    np.testing.assert_array_equal(low, high)
    assert (mean_low != mean_high).all()


@pytest.mark.parametrize("online", [False, True])
def test_update_by_hand(online: bool) -> None:
    """Weights exp(β A) at each row's own β; offline β is uniform, online that of the balance."""
    t, cfg = jax.tree.map(jnp.asarray, rows(BOX)), famo2o.Config(**SIZES, updates=10)
    agent = famo2o.make(cfg, BOX, online=online)
    hp = numbers(famo2o.Hypers(lr=0.05, gamma=0.9, beta_low=0.5, beta_high=3.0, max_weight=0.8))
    state, key = random_state(agent, hp), jax.random.key(2)
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), key, jnp.int32(0))

    head, balance = famo2o.universal_head((5,), BOX), famo2o.balance_head((5,), BOX)
    key_beta, _, key_u, key_action = jax.random.split(key, 4)

    @jax.jit
    def universal(beta: Any) -> Any:
        """Q [2, B] of the targets and log π(a|s) [B] before the update."""
        seen = famo2o.with_beta(t.obs, beta)
        policy = head.policy(state.inner.actor, seen)
        return head.twins(state.inner.target, seen, t.action), head.log_prob(policy, t.action)

    @jax.jit
    def drawn(beta: Any) -> Any:
        """Q [2, B] of actions of the new universal model."""
        seen = famo2o.with_beta(t.obs, beta)
        action = head.act(head.policy(new.inner.actor, seen), head.noise(key_action, 8), True)
        return head.twins(new.inner.critic, seen, action)

    dist, eps = jax.jit(lambda: (balance.policy(state.balance, t.obs), balance.noise(key_u, 8)))()
    mean, log_std, eps = map(np.asarray, (dist.mean, dist.log_std, eps))
    unit = np.tanh(mean[:, 0]) if online else jax.random.uniform(key_beta, (8,), minval=-1.0)
    beta = 0.5 + 2.5 * (np.asarray(unit) + 1) / 2
    q, log_prob = map(np.asarray, universal(beta))
    net = nets.flat(nets.from_linen(Layers((5,), 1), (3,)))
    v = np.asarray(jax.jit(net.apply)(new.inner.value, t.obs))[:, 0]
    weight = np.minimum(np.exp(beta * (q.min(0) - v)), 0.8)
    assert weight.min() < 0.7 and weight.max() == 0.8
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["actor_loss"], -np.mean(weight * log_prob), rtol=1e-4)

    # The balance model: α log p - min Q of an action of the new universal model at its own β.
    u = mean + np.exp(log_std) * eps
    log_p = -0.5 * eps**2 - 0.5 * np.log(2 * np.pi) - log_std - np.log(1 - np.tanh(u) ** 2)
    beta = 0.5 + 2.5 * (np.tanh(u[:, 0]) + 1) / 2
    loss = np.exp(state.log_temperature) * log_p[:, 0] - np.asarray(drawn(beta)).min(0)
    np.testing.assert_allclose(metrics["balance_loss"], np.mean(loss), rtol=1e-3)
    np.testing.assert_allclose(metrics["entropy"], -np.mean(log_p), rtol=1e-3)
    # Adam's first step on log α: with the sign of entropy - target, downwards.
    step = -0.05 * np.sign(float(metrics["entropy"]) + 0.5)
    np.testing.assert_allclose(new.log_temperature - state.log_temperature, step, rtol=1e-3)


@pytest.mark.slow
def test_balance_where_data_are_poor() -> None:
    """In state 1 the data have the best action only, in state -1 two actions, of which one is bad.

    Only in state -1 does a larger β give a better action, so that β(-1) goes to the upper end.
    """
    spec = EnvSpec("quality", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    shown, action = [1, 1, -1, -1], np.array([[0.5], [0.5], [0.5], [-0.5]], np.float32)
    ends: Any = np.ones(4, bool)
    data = table(shown, action, [1, 1, 1, 0], shown, ends, ~ends)
    data = jax.tree.map(lambda x: jnp.tile(x, (8,) + (1,) * (x.ndim - 1)), data)
    cfg = famo2o.Config(updates=3000, hidden=(32,))
    agent = famo2o.make(cfg, spec)
    hp = famo2o.Hypers(lr=0.003, tau=0.05, expectile=0.5, beta_low=0.0, beta_high=6.0)
    state = jax.jit(logged.fit(agent, 3000))(numbers(hp), data)
    head = famo2o.balance_head((32,), spec)
    unit = jnp.tanh(head.policy(state.balance, jnp.array([[1.0], [-1.0]])).mean[:, 0])
    good, poor = np.asarray(famo2o.coefficient(unit, hp))
    assert poor > 4.5 and poor > good + 1, (good, poor)
    chosen = logged.mode(agent, state, numbers(hp), [[1.0], [-1.0]])
    np.testing.assert_allclose(chosen, [[0.5], [0.5]], atol=0.1)


def test_other_extractions_are_refused() -> None:
    with pytest.raises(UserError, match="extraction=best_of_n has no balance per state"):
        famo2o.make(famo2o.Config(extraction="best_of_n"), BOX)
