"""FQL: losses by hand, with the authors' direction of time, and a bandit of two modes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, rows, table

from jaxrl.agents import fql
from jaxrl.errors import UserError
from jaxrl.spaces import box_scale
from jaxrl.types import Batch, Box, Discrete, EnvSpec

WIDTH, STEPS = 5, 3
SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (WIDTH,), "norm": False, "flow_steps": STEPS}


def gelu_net(params: Any, *inputs: Any, out: int) -> np.ndarray:
    """One hidden layer of GELUs in numpy; the output's bias and kernel come first in the vector."""
    x = np.concatenate(inputs, -1)
    sizes = np.cumsum([out, WIDTH * out, WIDTH, x.shape[1] * WIDTH])
    b2, w2, b1, w1 = np.split(np.float64(params), sizes[:-1])
    h = x @ w1.reshape(-1, WIDTH) + b1
    h = h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2
    return h @ w2.reshape(WIDTH, out) + b2


@pytest.mark.parametrize("q_agg, normalise", [("mean", False), ("min", True)])
def test_losses_by_hand(q_agg: Any, normalise: bool) -> None:
    """All losses in numpy, with noise at time 0 and data at time 1 as the authors have it."""
    agent = fql.make(fql.Config(**SIZES, q_agg=q_agg, normalise_q=normalise), BOX)
    t, space = rows(BOX), box_scale("fql", BOX)
    hp = numbers(fql.Hypers(gamma=0.9, alpha=0.7, tau=0.0, reward_scale=2.0))
    state = agent.init(jax.random.key(0), hp, {"data": t})
    far = jax.random.normal(jax.random.key(1), state.critic.shape)
    state = state._replace(target=state.critic + 0.3 * far, actor=3 * state.actor)
    key = jax.random.key(2)
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), key, jnp.int32(0))

    key_ahead, key_flow, key_time, key_now = jax.random.split(key, 4)
    draws = (jax.random.normal(k, (8, 2)) for k in (key_ahead, key_flow, key_now))
    z_ahead, e, z = (np.float64(x) for x in draws)
    time = 1 - np.asarray(jax.random.uniform(key_time, (8, 1)))  # the authors' direction
    clip = lambda a: np.clip(a, -1, 1)
    # The velocity towards the data is the negative of the field's, whose time runs to the noise.
    velocity = lambda x, time: -gelu_net(state.flow, t.obs, x, 1 - time, out=2)
    policy = lambda obs, z: gelu_net(state.actor, obs, z, out=2)
    q = lambda critic, obs, a: gelu_net(critic, obs, clip(a), out=1)[:, 0]
    action = np.float64(space.unit(t.action))

    ahead = [q(c, t.next_obs, policy(t.next_obs, z_ahead)) for c in state.target]
    value = np.min(ahead, 0) if q_agg == "min" else np.mean(ahead, 0)
    y = 2 * t.reward + np.where(t.terminated, 0, 0.9 * value)
    loss_q = np.mean([(q(c, t.obs, action) - y) ** 2 for c in state.critic])
    np.testing.assert_allclose(metrics["critic_loss"], loss_q, rtol=1e-4)

    reached = velocity((1 - time) * e + time * action, time)
    np.testing.assert_allclose(
        metrics["flow_loss"], np.mean((reached - (action - e)) ** 2), rtol=1e-4
    )

    x = z
    for i in range(STEPS):
        x = x + velocity(x, np.full((8, 1), i / STEPS)) / STEPS
    chosen = policy(t.obs, z)
    assert np.any(np.abs(chosen) > 1)  # the distance is that of actions that are not clipped
    distance = np.mean((chosen - clip(x)) ** 2)
    np.testing.assert_allclose(metrics["distillation_loss"], distance, rtol=1e-4)
    wanted = np.mean([q(c, t.obs, chosen) for c in state.critic], 0)
    scale = np.mean(np.abs(wanted)) if normalise else 1.0
    loss_pi = 0.7 * distance - np.mean(wanted) / scale
    np.testing.assert_allclose(metrics["actor_loss"], loss_pi, rtol=1e-4)
    np.testing.assert_array_equal(new.target, state.target)  # tau = 0


def test_acts_in_the_box() -> None:
    agent = fql.make(fql.Config(**SIZES), BOX)
    t, hp = rows(BOX), numbers(fql.Hypers())
    state = agent.init(jax.random.key(0), hp, {"data": t})
    state = state._replace(actor=5 * state.actor)
    noise = agent.noise(jax.random.key(1), 8)
    seen = (jnp.asarray(t.obs), jnp.ones(8, bool), ())
    act = lambda noise, explore: np.asarray(agent.act(state, hp, *seen, noise, explore)[0])
    drawn, greedy = act(noise, True), act(noise, False)
    low, high = np.float32(BOX.action.low), np.float32(BOX.action.high)  # type: ignore[union-attr]
    assert np.all((drawn >= low) & (drawn <= high)) and np.any((drawn == low) | (drawn == high))
    np.testing.assert_array_equal(greedy, act(jnp.zeros_like(noise), True))
    np.testing.assert_array_equal(greedy, act(-noise, False))
    assert np.any(drawn != greedy)


def test_bandit_of_two_modes() -> None:
    """A large α keeps both modes of the data, a small one leaves the worse mode."""
    rng: Any = np.random.default_rng(0)
    side, yes = rng.choice([-1.0, 1.0], 64), np.ones(64, bool)
    action = (0.7 * side + 0.05 * rng.normal(size=64)).astype(np.float32)
    data = table(0 * side, action[:, None], (side + 1) / 2, 0 * side, yes, ~yes)
    spec = EnvSpec("levers", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent = fql.make(fql.Config(hidden=(32, 32), flow_steps=5), spec)
    hp = numbers(fql.Hypers(lr=5e-3))
    both = jax.vmap(lambda alpha: hp.replace(alpha=alpha))(jnp.float32([100.0, 0.3]))
    states = jax.jit(jax.vmap(logged.fit(agent, 500), (0, None)))(both, data)

    def act(state: Any, hp: Any) -> Any:
        noise, obs = agent.noise(jax.random.key(1), 400), jnp.zeros((400, 1))
        return agent.act(state, hp, obs, jnp.ones(400, bool), (), noise, True)[0][:, 0]

    cloned, climbed = np.asarray(jax.jit(jax.vmap(act))(states, both))
    assert 0.3 < np.mean(cloned > 0) < 0.7 and np.mean(np.abs(np.abs(cloned) - 0.7) < 0.2) > 0.8
    assert np.mean(climbed > 0) > 0.95


def test_refused() -> None:
    with pytest.raises(UserError, match="flow_steps"):
        fql.make(fql.Config(flow_steps=0), BOX)
    with pytest.raises(UserError, match="fql"):
        fql.make(fql.Config(), EnvSpec("buttons", (3,), Discrete(3), 10))
