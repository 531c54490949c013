"""HNPG: critics fitted from the last step back, advantages in numpy, and a lock that opens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from logged import numbers, random_state

from jaxrl import nets
from jaxrl.agents import hnpg
from jaxrl.envs import lock
from jaxrl.errors import UserError
from jaxrl.experiments.data import collect
from jaxrl.program import train
from jaxrl.types import Box, Env, EnvSpec, HyperParams, TimeStep, Transition

H, N = 3, 4
SPEC = EnvSpec("three", (2,), Box((-1.0,), (1.0,), (1,)), H)
CFG = hnpg.Config(
    horizon=H,
    total_steps=H * N,
    num_envs=N,
    actor=(3,),
    critic=(3,),
    critic_steps=1,
    value_samples=2,
)


def model() -> hnpg.Networks:
    critic = nets.MLP(CFG.critic, 1, activation=jnp.tanh)
    return hnpg.Networks(
        nets.flat(nets.from_linen(hnpg.Gaussian(CFG.actor, 1), (2,))),
        nets.flat(nets.from_linen(critic, (3,))),
    )


def some_rows(seed: int) -> hnpg.Rows:
    rng: Any = np.random.default_rng(seed)
    number = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return hnpg.Rows(number(H, N, 2), number(H, N, 1), number(H, N), number(H, N, 2))


@pytest.fixture(scope="module")
def state() -> hnpg.State:
    return random_state(hnpg.make(CFG, SPEC), numbers(hnpg.Hypers()))


@pytest.mark.parametrize("hybrid", [True, False])
def test_critics_by_hand(state: hnpg.State, hybrid: bool) -> None:
    """One step of Adam per critic, from the last to the first: sums of rewards for own steps, and
    for the data r + Q of the critic of the next step after its own step."""
    own, data, net, hp = some_rows(1), some_rows(2), model(), hnpg.Hypers(critic_lr=0.1)
    cfg, key = dataclasses.replace(CFG, hybrid=hybrid), jax.random.key(3)
    fit = lambda: hnpg.fit_critics(cfg, net, state, hp, own, data, key)
    found, metrics = jax.jit(fit)()
    expected, losses = jax.jit(lambda: critics_by_hand(hybrid, state, own, data, key))()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["critic_loss"], losses[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss_data"], losses[1], rtol=1e-4)


def critics_by_hand(hybrid: bool, state: Any, own: Any, data: Any, key: Any) -> Any:
    """Parameters [H, ...] after one step of size 0.1, and the means of both losses [2]."""
    net = model()
    keys, adam = jax.random.split(key, H), optax.adam(0.1)
    fitted: list[Any] = [None] * H
    losses = []
    for h in reversed(range(H)):
        returns, target = own.reward[h:].sum(0), data.reward[h]
        if h < H - 1:
            action = net.drawn(state.actor[h + 1], data.next_obs[h], keys[h])
            target = target + net.q(fitted[h + 1], data.next_obs[h], action)

        def loss(critic: Any, h: int = h, returns: Any = returns, target: Any = target) -> Any:
            first = jnp.mean((net.q(critic, own.obs[h], own.sample[h]) - returns) ** 2)
            second = jnp.mean((net.q(critic, data.obs[h], data.sample[h]) - target) ** 2)
            return first + hybrid * second, (first, second)

        grads, each = jax.grad(loss, has_aux=True)(state.critic[h])
        change, _ = adam.update(grads, adam.init(state.critic[h]))
        fitted[h] = optax.apply_updates(state.critic[h], change)
        losses.append(each)
    return jnp.stack(fitted), jnp.mean(jnp.asarray(losses), 0)


def test_advantages_by_hand(state: hnpg.State) -> None:
    """GAE without discount for own steps; Q - V at actions of the policy for states of the data."""
    own, data, net, hp = some_rows(1), some_rows(2), model(), hnpg.Hypers(lam=0.6)
    key = jax.random.key(4)
    rows, found = jax.jit(lambda: hnpg.advantages(CFG, net, state, hp, own, data, key))()
    keys = jax.random.split(key, (3, H))

    @jax.jit
    def parts() -> Any:
        """V [H, N] of own steps; actions, Q and V [H, N] of the data."""
        own_v = [value(h, own.obs[h], keys[0, h]) for h in range(H)]
        action = [net.drawn(state.actor[h], data.obs[h], keys[1, h]) for h in range(H)]
        q = [net.q(state.critic[h], data.obs[h], action[h]) for h in range(H)]
        return own_v, action, q, [value(h, data.obs[h], keys[2, h]) for h in range(H)]

    def value(h: int, obs: Any, key: Any) -> Any:
        drawn = [net.drawn(state.actor[h], obs, k) for k in jax.random.split(key, 2)]
        return sum(net.q(state.critic[h], obs, a) for a in drawn) / 2

    own_v, action, q, v_data = (np.asarray(x) for x in parts())
    v = np.concatenate([own_v, np.zeros((1, N))])
    advantage = np.zeros((H + 1, N))
    for h in reversed(range(H)):
        advantage[h] = own.reward[h] + v[h + 1] - v[h] + 0.6 * advantage[h + 1]
    np.testing.assert_allclose(found[:, :N], advantage[:H], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rows.sample[:, :N], own.sample)
    np.testing.assert_array_equal(rows.obs[:, N:], data.obs)
    np.testing.assert_allclose(found[:, N:], q - v_data, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.sample[:, N:], action, rtol=1e-5)


def test_a_policy_per_step(state: hnpg.State) -> None:
    """The memory counts steps and starts again with an episode; each environment has its own."""
    agent, net = hnpg.make(CFG, SPEC), model()
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)
    start, memory = jnp.array([True, False, False]), jnp.array([2, 1, 2], jnp.int32)
    noise = agent.noise(jax.random.key(0), 3)
    action, memory, _ = agent.act(state, None, obs, start, memory, noise, False)
    np.testing.assert_array_equal(memory, [1, 2, 3])
    for i, h in enumerate((0, 1, 2)):
        mean = net.actor.apply(state.actor[h], obs[i][None]).mean[0]
        np.testing.assert_allclose(action[i], np.clip(mean, -1, 1), rtol=1e-5)


def test_episodes_that_end_early_last_until_the_horizon() -> None:
    """Walks from 0 in steps of 1 that end at 2: every window begins one, and pays until its end."""

    def step(key: Any, x: Any, action: Any, params: Any) -> Any:
        x = x + 1
        return x, TimeStep(jnp.full(2, x), x, x >= 2, jnp.zeros((), bool))

    reset = lambda key, params: (jnp.zeros(()), jnp.zeros(2))
    env = Env(SPEC, {}, reset, step)
    agent, hp, key = hnpg.make(CFG, SPEC), hnpg.Hypers(), jax.random.key(0)
    source = hnpg.hybrid_batches(CFG, env, agent)
    rows = np.arange(6)
    data = Transition(
        np.zeros((6, 2)), np.zeros((6, 1)), *[rows, np.zeros((6, 2))], *[rows < 0] * 3
    )
    inputs = {"data": jax.tree.map(jnp.float32, data)}

    @jax.jit
    def windows(state: hnpg.State) -> Any:
        src = source.init(key, state, HyperParams(hp, {}), inputs)
        take = lambda src, key: source.next(src, state, HyperParams(hp, {}), inputs, key, 0)[:2]
        return jax.lax.scan(take, src, jax.random.split(key))[1].transitions

    found = windows(agent.init(key, hp, {}))
    own = jax.tree.map(lambda x: np.asarray(x)[:, :, :N], found)  # of two windows
    same = lambda x: np.broadcast_to(np.array(x)[None, :, None], (2, H, N))
    np.testing.assert_array_equal(own.reward, same([1, 2, 0]))
    np.testing.assert_array_equal(own.obs[..., 0], same([0, 1, 2]))
    np.testing.assert_array_equal(own.next_obs[..., 0], same([1, 2, 2]))
    np.testing.assert_array_equal(own.start, same([True, False, False]))
    with pytest.raises(UserError, match="three runs on the host, which hnpg does not support"):
        hnpg.waiting(dataclasses.replace(env, host=object))


def test_refused_requests() -> None:
    start: Any = np.array([1, 0, 1, 0, 0, 0], bool)
    column: Any = np.zeros(6)
    data = Transition(*[column] * 6, start=start)
    with pytest.raises(UserError, match="episodes all have horizon=3 steps; these have 2"):
        hnpg.check_request(CFG, None, {"data": data})
    with pytest.raises(UserError, match="episodes all have horizon=3 steps; these have 6"):
        hnpg.check_request(CFG, None, {"data": data._replace(start=jnp.arange(6) == 0)})
    for rows in (6, 5):  # the last episode may be cut
        whole = Transition(*[np.zeros(rows)] * 6, start=np.arange(rows) % 3 == 0)
        hnpg.check_request(CFG, None, {"data": whole})
    with pytest.raises(UserError, match="pass --agent.horizon 10"):
        hnpg.program(CFG, lock.make(10))


@pytest.mark.slow
def test_a_lock_opens() -> None:
    """A lock of five steps, from data that open it at 0.37: HNPG does, TRPO alone does not."""
    env = lock.make(horizon=5)
    data = collect.collect(collect.of_lock(env)["guided"][0], jax.random.key(0), 10_000)
    data = jax.tree.map(jnp.asarray, data._replace(extras={}))
    means = {}
    for hybrid in (True, False):
        cfg = hnpg.Config(horizon=5, num_envs=100, total_steps=200 * 500, hybrid=hybrid)
        program = hnpg.program(cfg, env, evals=1, episodes=200)
        result = jax.jit(train(program))(jax.random.key(1), data=data)
        means[hybrid] = float(np.mean(result.returns))
    assert means[True] > 0.9 and means[False] < 0.5, means
