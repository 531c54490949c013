"""ResFiT: begins as its base, targets and losses by hand, the critics' warm-up, and a probe."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, numbers, relu_net, rows, table

from jaxrl import population
from jaxrl.agents import resfit
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.policies import Trained
from jaxrl.spaces import box_scale
from jaxrl.types import Batch, HyperParams, Policy

SIZES: dict[str, Any] = {
    "batch_size": 8,
    "hidden": (5,),
    "warmup": 8,
    "capacity": 40,
    "gradient_steps": 1,
    "policy_every": 1,
    "critics": 3,
    "layer_norm": False,
}


def pulling(strength: Any) -> Policy:
    """Unit actions strength * (first element of the observation) in both dimensions of BOX."""
    space = box_scale("test", BOX)

    def act(state, hp, obs, start, memory, noise, explore):
        unit = state * jnp.tile(jnp.tanh(obs[:, :1]), (1, 2)) + (noise if explore else 0.0)
        return space.scaled(unit), memory, {}

    return Policy(act=act, noise=lambda key, n: jax.random.normal(key, (n, 2)))


BASE, STRENGTH = pulling(0.9), jnp.float32(0.9)
INPUTS: Any = {"base": Trained(STRENGTH, ())}
pulled = lambda obs: 0.9 * np.tile(np.tanh(np.asarray(obs)[:, :1]), (1, 2))
UNIT = box_scale("test", BOX)


def made(**sizes: Any) -> tuple[Any, Any, Any]:
    agent = resfit.make(resfit.Config(**{**SIZES, **sizes}), BOX, BASE)
    hp = numbers(resfit.Hypers(lr=0.01, actor_lr=0.01, scale=0.3))
    return agent, hp, jax.jit(agent.init)(jax.random.key(0), hp, INPUTS)


def test_begins_as_its_base() -> None:
    """Without exploration; with noise it stays within the box, in the warm-up within ±0.2."""
    t, n = rows(BOX, 200), 200
    obs, start = jnp.asarray(t.obs), jnp.ones(n, bool)
    for zero in (True, False):
        agent, hp, state = made(zero_start=zero)
        noise = agent.noise(jax.random.key(1), n)
        act = lambda e: UNIT.unit(agent.act(state, hp, obs, start, (), noise, e)[0])  # noqa: B023
        moved = np.abs(act(False) - pulled(obs)).max()
        assert moved < 1e-5 if zero else 0.01 < moved < 0.3
        assert np.abs(act(True)).max() <= 1 + 1e-5
    warm = resfit.warmup_policy(BASE, UNIT)
    action = warm.act(state, hp, obs, start, (), warm.noise(jax.random.key(2), n), True)[0]
    away = np.asarray(UNIT.unit(action)) - pulled(obs)
    assert 0.19 < np.abs(away).max() <= 0.2 + 1e-5 and np.abs(away).mean() > 0.08


def test_update_by_hand() -> None:
    """Critics see combined actions; the target is the minimum of two critics, the loss a sum."""
    agent, hp, state = made(zero_start=False, target_critics=3, critic_warmup=0)
    hp = hp.replace(policy_noise=jnp.float32(0.0), lr=jnp.float32(0.0))
    t = jax.tree.map(jnp.asarray, rows(BOX))
    state = state._replace(critic_target=0.5 * state.critic, actor_target=2.0 * state.actor)
    _, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(0))

    def chosen(actor: Any, obs: Any) -> np.ndarray:
        b = pulled(obs)
        residual = np.tanh(relu_net(np.asarray(actor), np.concatenate([obs, b], -1), 5, 2))
        return np.clip(b + 0.3 * residual, -1, 1)

    def q(critics: Any, obs: Any, action: Any) -> np.ndarray:
        x = np.concatenate([obs, action], -1)
        return np.stack([relu_net(np.asarray(c), x, 5, 1)[:, 0] for c in critics])

    ahead = q(state.critic_target, t.next_obs, chosen(state.actor_target, t.next_obs)).min(0)
    y = np.asarray(t.reward) + 0.995 * np.where(t.terminated, 0, ahead)
    taken = q(state.critic, t.obs, np.asarray(UNIT.unit(t.action)))
    np.testing.assert_allclose(
        metrics["critic_loss"].value, np.sum((taken - y) ** 2) / 8, rtol=1e-4
    )
    best = chosen(state.actor, t.obs)
    np.testing.assert_allclose(
        metrics["actor_loss"].value, -q(state.critic, t.obs, best).mean(), rtol=1e-3
    )
    moved = np.linalg.norm(best - pulled(t.obs), axis=-1).mean()
    np.testing.assert_allclose(metrics["moved"].value, moved, rtol=1e-3)


@pytest.mark.slow
def test_critics_warm_up_and_the_base_stays() -> None:
    """Two gradient steps per update; the residual learns from gradient step 4 on, each second."""
    agent, hp, state = made(gradient_steps=2, policy_every=2, critic_warmup=4, batch_size=4)
    t = jax.tree.map(jnp.asarray, rows(BOX))
    update = jax.jit(agent.update)
    for step in range(4):
        new, _ = update(state, hp, Batch(t), jax.random.key(step), jnp.int32(step))
        assert np.array_equal(new.actor, state.actor) == (step < 2)
        assert np.array_equal(new.actor_target, state.actor_target) == (step < 2)
        assert not np.array_equal(new.critic, state.critic) and new.base.state == STRENGTH
        state = new


def test_what_it_refuses() -> None:
    recurrent = dataclasses.replace(BASE, memory=lambda n: jnp.zeros((n, 1)))
    for base, cfg, told in [
        (None, resfit.Config(), "pass --base runs/NAME"),
        (recurrent, resfit.Config(), "a base policy without memory"),
        (BASE, resfit.Config(target_critics=0), "target_critics=0 must be between"),
    ]:
        with pytest.raises(UserError, match=told):
            resfit.make(cfg, BOX, base)


@pytest.mark.slow
def test_residual_goes_as_far_as_it_may() -> None:
    """A base of zeros in `aim`, whose best actions are ±0.5, beyond residuals of up to 0.3."""
    env, rng = probes.aim(), np.random.default_rng(0)
    still = Policy(act=lambda state, hp, obs, start, memory, noise, explore: (0 * obs, memory, {}))
    sign, action = rng.choice([-1.0, 1.0], 256), rng.uniform(-1, 1, (256, 1)).astype(np.float32)
    yes = np.ones(256, bool)
    data = table(sign, action, 1 - (action[:, 0] - sign / 2) ** 2, sign, yes, ~yes)
    cfg = resfit.Config(
        total_steps=1_000,
        batch_size=32,
        capacity=1_000,
        warmup=32,
        critic_warmup=400,
        critics=4,
        hidden=(16,),
        n_step=1,
    )
    hypers = resfit.Hypers(lr=0.003, actor_lr=0.003, scale=0.3, exploration=0.1)
    hp = HyperParams(jax.tree.map(lambda x: jnp.full(2, x, jnp.float32), hypers))
    plan = population.layout(2, jax.devices()[:1], 2)
    program = resfit.program(cfg, env, evals=1, episodes=4, base=still)
    given = {"data": data, "base": Trained((), ())}
    states = jax.jit(population.train(program, plan))(jax.random.key(0), jnp.arange(2), hp, given)
    agent, obs = resfit.make(cfg, env.spec, still), jnp.array([[-1.0], [1.0]])
    for i in range(2):
        state: Any = jax.tree.map(lambda x: x[i], states.states["agent"])  # noqa: B023
        noise = agent.noise(jax.random.key(0), 2)
        action = agent.act(state, hypers, obs, jnp.ones(2, bool), (), noise, False)[0]
        np.testing.assert_allclose(np.asarray(action)[:, 0], [-0.3, 0.3], atol=0.05)
