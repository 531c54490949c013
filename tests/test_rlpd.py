"""RLPD and RED-Q: subsets of critics, targets and the policy's loss by hand, mixed batches."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_sac
from logged import table
from test_sac import BATCH, BOX, DISCRETE, hypers, rows

from jaxrl import population
from jaxrl.agents import rlpd, sac
from jaxrl.ensembles import random_critics
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.recipes import mixed
from jaxrl.types import Batch, HyperParams

SLOW = pytest.mark.slow


def test_subsets_of_critics_are_uniform() -> None:
    """All 10 pairs of 5 critics, equally often; the mean minimum is that of enumeration."""
    values = jnp.asarray([3.0, -1.0, 0.5, 2.0, 7.0])
    draw = jax.jit(jax.vmap(lambda key: random_critics(values, key, 2)))
    got = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)))
    pairs, counts = np.unique(np.sort(got, -1), axis=0, return_counts=True)
    assert len(pairs) == 10 and np.all(np.abs(counts / 2_000 - 1) < 0.1)
    expected = np.mean([min(pair) for pair in itertools.combinations(np.asarray(values), 2)])
    np.testing.assert_allclose(got.min(-1).mean(), expected, atol=0.03)
    np.testing.assert_array_equal(random_critics(values, jax.random.key(0), 5), values)


@pytest.mark.parametrize(
    "space", [pytest.param(BOX, id="box"), pytest.param(DISCRETE, id="discrete", marks=SLOW)]
)
def test_update_by_hand(space: Any) -> None:
    """Two critic steps on the target of one random critic, then one policy step on their mean."""
    cfg = sac.Config(
        batch_size=BATCH // 2,
        hidden=(5,),
        warmup=8,
        gradient_steps=2,
        policy_every=2,
        critics=3,
        target_critics=1,
        mean_critic=True,
        entropy_backup=False,
        learn_temperature=False,
    )
    agent, head, t = sac.make(cfg, space), sac.head_of(cfg, space), rows(space)
    alpha, hp, key = 0.3, hypers(lr=0.0, tau=0.0, temperature=0.3), jax.random.key(5)
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    target = state.target + 0.3 * jax.random.normal(jax.random.key(1), state.target.shape)
    state = state._replace(target=target)
    _, metrics = jax.jit(agent.update)(state, hp, Batch(t), key, jnp.int32(0))

    keys, loss = jax.random.split(key, (2, 3)), 0.0
    part: Any = t
    for i in range(2):
        part = jax.tree.map(lambda x: x[4 * i : 4 * i + 4], t)  # noqa: B023
        one = random_critics(state.target, keys[i, 2], 1)[0]
        ahead = head.samples(head.policy(state.actor, part.next_obs), head.noise(keys[i, 0], 4))
        q = head.values(one, part.next_obs, ahead.action)
        value = np.where(part.terminated, 0, np.sum(ahead.weight * q, -1))
        y = np.asarray(part.reward) + np.asarray(part.extras["discount"]) * value
        taken = np.stack([head.value(c, part.obs, part.action) for c in state.critic])
        loss += 0.5 * np.sum(np.mean((taken - y) ** 2, -1)) / 2
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)

    now = head.samples(head.policy(state.actor, part.obs), head.noise(keys[1, 1], 4))
    q = np.mean([head.values(c, part.obs, now.action) for c in state.critic], 0)
    log_pi, weight = np.asarray(now.log_prob).sum(-1), np.asarray(now.weight)
    expected = np.mean(np.sum(weight * (alpha * log_pi - q), -1))
    np.testing.assert_allclose(metrics["actor_loss"], expected, rtol=1e-4, atol=1e-5)


def test_half_of_each_gradient_step_is_data() -> None:
    """Rows of data have reward 7: two of four in every gradient step, folded as replayed ones."""
    env = dataclasses.replace(probes.limit(8, continuous=True))
    cfg = rlpd.Config(
        gradient_steps=3, policy_every=3, batch_size=4, warmup=6, capacity=40, n_step=2
    )
    data = table(
        [0.0] * 6, np.zeros((6, 1), np.float32), [7.0] * 6, [0.0] * 6, [False] * 6, [0] * 6
    )
    hp = HyperParams(jax.tree.map(jnp.float32, rlpd.Hypers(gamma=0.5)))
    agent = rlpd.make(dataclasses.replace(cfg, hidden=(2,)), env.spec)
    source, inputs = mixed(cfg, env, agent), {"data": data}

    @jax.jit
    def draw(key: Any) -> Any:
        state = agent.init(key, hp.agent, inputs)
        src = source.init(key, state, hp, inputs)
        return source.next(src, state, hp, inputs, key, jnp.int32(0))[1].transitions

    t = draw(jax.random.key(0))
    reward, discount = (np.asarray(x).reshape(3, 4) for x in (t.reward, t.extras["discount"]))
    own, last = reward[:, 2:], reward[:, :2] == 7.0
    assert np.all(own <= 1.5)
    np.testing.assert_array_equal(reward[:, :2], np.where(last, 7.0, 10.5))
    np.testing.assert_array_equal(discount[:, :2], np.where(last, 0.5, 0.25))


def test_refuses_sizes_that_do_not_fit() -> None:
    for cfg, told in [
        (rlpd.Config(target_critics=11), "target_critics=11 must be between 1 and critics=10"),
        (rlpd.Config(policy_every=3), "policy_every=3 does not divide gradient_steps=20"),
        (rlpd.Config(data_share=1.5), "data_share=1.5 must be between 0 and 1"),
    ]:
        with pytest.raises(UserError, match=told):
            rlpd.make(cfg, BOX)


@pytest.mark.slow
def test_probe_aim() -> None:
    """The best action inside the box, with data of random actions as half of each batch."""
    env, rng = probes.aim(), np.random.default_rng(0)
    sign, action = rng.choice([-1.0, 1.0], 256), rng.uniform(-1, 1, (256, 1)).astype(np.float32)
    yes = np.ones(256, bool)
    data = table(sign, action, 1 - (action[:, 0] - sign / 2) ** 2, sign, yes, ~yes)
    cfg = rlpd.Config(
        total_steps=1_000,
        gradient_steps=8,
        policy_every=2,
        batch_size=32,
        capacity=1_000,
        warmup=32,
        critics=4,
        hidden=(16,),
        target_entropy=-2.0,
    )
    hp = HyperParams(jax.tree.map(lambda x: jnp.full(2, x, jnp.float32), rlpd.Hypers(lr=0.003)))
    plan = population.layout(2, jax.devices()[:1], 2)
    train = jax.jit(population.train(rlpd.program(cfg, env, evals=1, episodes=4), plan))
    states = train(jax.random.key(0), jnp.arange(2), hp, {"data": data}).states["agent"]
    head = sac.head_of(cfg, env.spec)
    for actor in states.actor:
        mode = head.act(head.policy(actor, test_sac.SHOWN), jnp.zeros((3, 1)), False)
        np.testing.assert_allclose(np.asarray(mode)[[0, 2], 0], [-0.5, 0.5], atol=0.12)
