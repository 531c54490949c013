"""ReBRAC: targets and losses by hand, unknown next actions, and the pull of each penalty."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from logged import BOX, numbers, relu_net, rows, table

from jaxrl.agents import rebrac
from jaxrl.sources import following
from jaxrl.types import Batch, Box, EnvSpec, HyperParams

SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,), "norm": False}


def test_rows_that_follow() -> None:
    """The next row's action; no successor at the end of an episode or of the data."""
    t = rows(BOX, 8)  # of every three rows the second terminates, the third is cut
    t = t._replace(truncated=t.truncated & (np.arange(8) < 7))
    source = following(400)
    _, batch, _ = source.next((), (), HyperParams(()), {"data": t}, jax.random.key(0), jnp.int32(0))
    seen = set()
    for obs, ahead, known in zip(
        batch.transitions.obs,
        batch.transitions.extras["next_action"],
        batch.transitions.extras["next_row"],
        strict=True,
    ):
        row = int(np.flatnonzero((t.obs == np.asarray(obs)).all(1))[0])
        seen.add(row)
        assert known == (row % 3 == 0 and row < 7)
        if known:
            np.testing.assert_array_equal(ahead, t.action[row + 1])
    assert seen == set(range(8))


def test_losses_by_hand() -> None:
    """Both penalties in plain numpy, from the sums over dimensions of unit actions."""
    agent, t = rebrac.make(rebrac.Config(**SIZES, policy_every=1), BOX), rows(BOX)
    rng: Any = np.random.default_rng(1)
    next_action = rng.uniform(BOX.action.low, BOX.action.high, (8, 2)).astype(np.float32)  # type: ignore[union-attr]
    known = np.arange(8) % 2 == 0
    t = t._replace(extras={"next_action": next_action, "next_row": known})
    hp = numbers(
        rebrac.Hypers(lr=0.0, gamma=0.9, policy_noise=0.0, actor_penalty=0.3, critic_penalty=0.7)
    )
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    noise = jax.random.normal(jax.random.key(1), state.critic.shape)
    state = state._replace(critic_target=state.critic + 0.3 * noise, actor_target=0.5 * state.actor)
    _, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(0))

    unit = lambda action: (action - np.array([[0.0, 2.0]])) / np.array([[1.0, 2.0]])
    act = lambda params, obs: np.tanh(relu_net(np.asarray(params), obs, 5, 2))
    q = lambda params, obs, action: relu_net(
        np.asarray(params), np.concatenate([obs, action], -1), 5, 1
    )[:, 0]
    ahead, chosen = act(state.actor_target, t.next_obs), act(state.actor, t.obs)
    loss = 0.0
    for i in range(8):
        row = slice(i, i + 1)
        value = min(q(c, t.next_obs[row], ahead[row])[0] for c in state.critic_target)
        if known[i]:
            value -= 0.7 * np.sum((ahead[i] - unit(next_action)[i]) ** 2)
        y = t.reward[i] + (0.0 if t.terminated[i] else 0.9 * value)
        loss += sum((q(c, t.obs[row], unit(t.action)[row])[0] - y) ** 2 for c in state.critic) / 8
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
    least = np.minimum(*[q(c, t.obs, chosen) for c in state.critic])  # lr = 0 keeps the critics
    far = np.sum((chosen - unit(t.action)) ** 2, 1).mean()
    expected = 0.3 * far - least.mean() / np.abs(least).mean()
    np.testing.assert_allclose(metrics["actor_loss"].value, expected, rtol=1e-4)


def test_actor_loss_has_no_gradient_through_its_scale() -> None:
    q, action = jnp.array([1.0, -3.0]), jnp.zeros((2, 1))
    t = table([0, 0], action, [0, 0], [0, 0], [True, True], [False, False])
    loss = lambda q: rebrac.actor_loss(q, action, t, rebrac.Hypers())
    np.testing.assert_allclose(jax.grad(loss)(q), [-0.25, -0.25])


def test_each_penalty_pulls_to_the_data() -> None:
    """One step of reward -(a + 0.5)², random actions in the data: a small β₁ gives -0.5, a large
    one their mean."""
    count: Any = 64
    rng: Any = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    yes = np.ones(count, bool)
    data = table(np.zeros(count), action, -((action[:, 0] + 0.5) ** 2), np.zeros(count), yes, ~yes)
    data = data._replace(extras={"next_action": jnp.asarray(action), "next_row": jnp.asarray(~yes)})
    spec = EnvSpec("pull", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent = rebrac.make(rebrac.Config(hidden=(32,), norm=False), spec)
    betas = jnp.float32([0.001, 100.0])
    hp = jax.vmap(lambda b: numbers(rebrac.Hypers(lr=0.003)).replace(actor_penalty=b))(betas)

    def learn(hp: Any) -> Any:
        state = agent.init(jax.random.key(0), hp, {"data": data})
        step = lambda i, s: agent.update(s, hp, Batch(data), jax.random.key(i), i)[0]
        state = jax.lax.fori_loop(0, 800, step, state)
        noise = agent.noise(jax.random.key(0), 1)
        return agent.act(state, hp, jnp.zeros((1, 1)), jnp.ones(1, bool), (), noise, False)[0]

    free, cloned = np.asarray(jax.jit(jax.vmap(learn))(hp))[:, 0, 0]
    assert abs(free + 0.5) < 0.1
    assert abs(cloned - action.mean()) < 0.05
