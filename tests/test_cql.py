"""CQL: the regulariser against closed forms, targets by hand, and where it pushes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, rows, table

from jaxrl import nets
from jaxrl.agents import cql
from jaxrl.policies import squashed_head
from jaxrl.spaces import box_scale
from jaxrl.types import Batch, Box, EnvSpec

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,), "samples": 3}


def test_regulariser_of_constant_q() -> None:
    """log ∫ exp(c) da - c is the log of the volume, 2^A, exactly, for both twins."""
    q = jnp.array([[3.0, 3.0], [-7.0, -7.0]])  # [2, B]
    elsewhere = jnp.broadcast_to(q[:, None], (2, 5, 2))
    push = cql.regulariser(q, elsewhere, jnp.full((5, 2), -3 * jnp.log(2.0)))
    np.testing.assert_allclose(push, 2 * 3 * np.log(2), rtol=1e-6)


def test_regulariser_lowers_q_elsewhere_and_lifts_that_of_the_data() -> None:
    """Its gradient is softmax(Q - log p) / B over the proposals, and -1 / B in the data."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.float32(rng.normal(size=shape))
    q, elsewhere, log_p = number(2, 4), number(2, 6, 4), number(6, 4)
    up, down = jax.grad(cql.regulariser, (0, 1))(q, elsewhere, log_p)
    np.testing.assert_allclose(up, -np.ones((2, 4)) / 4, rtol=1e-6)
    share = np.exp(np.asarray(elsewhere) - np.asarray(log_p))
    np.testing.assert_allclose(down, share / share.sum(1, keepdims=True) / 4, rtol=1e-5)


def test_proposals_estimate_the_integral() -> None:
    """∫ exp(a) da over [-1, 1] is 2 sinh 1, from each kind of proposal by its own density."""
    spec, samples = EnvSpec("lever", (1,), Box((0.0,), (4.0,), (1,)), 1), 20_000
    head, space = squashed_head((3,), spec), box_scale("cql", spec)
    t = table([0.3], [[1.0]], [0], [-0.9], [1], [0])
    actor = 0.3 * jnp.asarray(head.actor(jax.random.key(0)))
    propose = jax.jit(lambda actor, key: cql.propose(head, space, actor, t, key, samples))
    pushed = propose(actor, jax.random.key(1))
    unit = np.asarray(jax.vmap(space.unit)(pushed.action))[:, 0, 0]
    assert unit.shape == (3 * samples,) and np.abs(unit).max() <= 1 + 1e-6
    ratio = np.exp(unit - np.asarray(pushed.log_density)[:, 0]).reshape(3, samples)
    np.testing.assert_allclose(ratio.mean(1), 2 * np.sinh(1), rtol=0.04)


@pytest.mark.parametrize("learned", [False, True])
def test_update_by_hand(learned: bool) -> None:
    """Targets without entropy; time limits bootstrap; the temperature moves where it is learned."""
    t, cfg = rows(BOX), cql.Config(**SIZES, learn_temperature=learned)
    agent, head = cql.make(cfg, BOX), squashed_head(cfg.hidden, BOX)
    hp = cql.Hypers(gamma=0.9, tau=0.25, temperature=0.3, reward_scale=2.0, actor_lr=0.01)
    state = jax.jit(agent.init)(jax.random.key(0), numbers(hp), {})
    np.testing.assert_array_equal(state.critic, state.target)
    state = state._replace(target=0.5 * state.target)
    key = jax.random.key(5)
    new, metrics = jax.jit(agent.update)(state, numbers(hp), Batch(t), key, jnp.int32(0))

    @jax.jit
    def values() -> Any:
        noise = head.noise(jax.random.split(key, 3)[0], 8)
        ahead = head.samples(head.policy(state.actor, t.next_obs), noise)
        q = jnp.stack([head.values(c, t.next_obs, ahead.action)[:, 0] for c in state.target])
        return jnp.min(q, 0), jnp.stack([head.value(c, t.obs, t.action) for c in state.critic])

    value, taken = map(np.asarray, values())
    y = 2 * t.reward + 0.9 * np.where(t.terminated, 0, value)
    np.testing.assert_allclose(metrics["critic_loss"], np.sum((taken - y) ** 2) / 8, rtol=1e-4)
    np.testing.assert_allclose(metrics["td_error"], np.abs(taken - y).mean(), rtol=1e-4)
    moved = 0.75 * state.target + 0.25 * new.critic
    np.testing.assert_allclose(new.target, moved, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["temperature"], 0.3, rtol=1e-6)
    step = np.sign(-2.0 - metrics["entropy"]) * 0.01 if learned else 0.0
    np.testing.assert_allclose(new.log_temperature - state.log_temperature, step, atol=1e-4)


@pytest.mark.slow
def test_pushes_q_down_outside_the_data() -> None:
    """All rewards are 1, all actions near 0.5: the regulariser makes Q lower elsewhere."""
    rng = np.random.default_rng(0)
    action = np.float32(0.5 + 0.05 * rng.normal(size=(32, 1)))
    nothing, yes = np.zeros(32), np.ones(32, bool)
    data = table(nothing, action, yes, nothing, yes, ~yes)
    spec = EnvSpec("lever", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent = cql.make(cql.Config(samples=4, batch_size=32, hidden=(24,)), spec)
    base = numbers(cql.Hypers(lr=0.005, actor_lr=0.005))
    hp = jax.vmap(lambda weight: base.replace(weight=weight))(jnp.float32([0.0, 0.5]))
    states = jax.jit(jax.vmap(logged.fit(agent, 500), (0, None)))(hp, data)
    head = squashed_head((24,), spec)
    at = lambda a: jax.vmap(lambda c: head.value(c[0], jnp.zeros((1, 1)), jnp.full((1, 1), a)))
    inside, outside = (np.asarray(at(a)(states.critic))[:, 0] for a in (0.5, -0.8))
    np.testing.assert_allclose(inside[0], 1, atol=0.05)
    gap = inside - outside
    assert gap[1] > gap[0] + 0.5


def test_initial_weights_of_corl() -> None:
    """Orthogonal critics with a small output; a policy of mean 0 and log-std -1, nearly."""
    cfg = cql.Config(hidden=(4, 3), networks="corl")
    head = cql.head_of(cfg, BOX)
    inside = nets.from_linen(cql.CorlCritic((4, 3), 2), (5,)).init(jax.random.key(0))
    for layer, gain in (("Dense_0", np.sqrt(2)), ("Dense_1", np.sqrt(2)), ("Dense_2", 0.01)):
        kernel = np.asarray(inside[layer]["kernel"])
        np.testing.assert_allclose(kernel.T @ kernel, gain**2 * np.eye(kernel.shape[1]), atol=1e-5)
        assert np.all(inside[layer]["bias"] == 0)
    obs = jnp.asarray(rows(BOX, 20).obs)
    dist = head.policy(head.actor(jax.random.key(1)), obs)
    assert np.max(np.abs(dist.mean)) < 0.1
    np.testing.assert_allclose(dist.log_std, -1, atol=0.1)


def test_the_log_std_of_corl_is_an_affine_function() -> None:
    net = nets.from_linen(cql.CorlActor((4,), 4), (3,))
    params = net.init(jax.random.key(0))
    obs = jnp.asarray(rows(BOX, 5).obs)
    mean, log_std = jnp.split(net.apply(params, obs), 2, -1)
    params |= {"factor": jnp.full((1, 1), 3.0), "offset": jnp.full((1, 1), 0.5)}
    after, changed = jnp.split(net.apply(params, obs), 2, -1)
    np.testing.assert_array_equal(after, mean)
    np.testing.assert_allclose(changed, 3 * (log_std + 1) + 0.5, rtol=1e-5)
