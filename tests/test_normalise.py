"""Running normalisation against numpy on everything seen so far."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from logged import BOX, rows

from jaxrl.normalise import (
    discounted_sums,
    include,
    moments,
    normalised,
    row_moments,
    standardise,
    standardised,
    standardised_log_prob,
)
from jaxrl.rollout import rollout
from jaxrl.types import Agent, Batch, HyperParams

ENVS, STEPS = 4, 6


def test_moments_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    seen, m = [], moments((3,))
    for size in (5, 1, 40):
        x = rng.normal(2.0, 3.0, (size, 3)).astype(np.float32)
        seen.append(x)
        m = include(m, jnp.asarray(x))
        every = np.concatenate(seen)
        np.testing.assert_allclose(m.mean, every.mean(0), rtol=1e-5)
        np.testing.assert_allclose(m.var, every.var(0), rtol=1e-4)
    assert m.weight == 46
    z = standardise(m, jnp.asarray(every), 10.0)
    np.testing.assert_allclose(np.mean(z, 0), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(z, 0), 1, atol=1e-4)
    assert np.max(np.abs(standardise(m, jnp.asarray(every), 0.5))) == 0.5


def test_discounted_sums_restart_with_episodes() -> None:
    reward = jnp.array([[1.0], [2.0], [4.0], [8.0]])
    done = jnp.array([[False], [True], [False], [False]])
    running, sums = discounted_sums(jnp.array([10.0]), reward, done, 0.5)
    np.testing.assert_allclose(sums[:, 0], [6.0, 5.0, 4.0, 10.0])
    np.testing.assert_allclose(running, [10.0])


def spy() -> Agent:
    """Keeps the window it was handed last, and acts on the sign of what it sees."""

    def init(key, hp, inputs):
        shape = (STEPS, ENVS)
        return {"obs": jnp.zeros((*shape, 2)), "reward": jnp.zeros(shape)}

    def update(state, hp, batch, key, step):
        t = batch.transitions
        return {"obs": t.obs, "reward": t.reward}, {}

    def act(state, hp, obs, start, memory, noise, explore):
        return jnp.where(obs[:, 0] > 0, 2, 0), memory, {"saw": obs}

    return Agent(init=init, update=update, act=act)


@pytest.mark.optimised
def test_an_agent_sees_alike_in_acting_and_learning() -> None:
    env = tiny.walk()
    agent = normalised(spy(), env.spec, ENVS, obs=True, reward=True)
    source = rollout(env, agent, ENVS, STEPS)
    hp = type("Hypers", (), {"gamma": 0.9})

    state = agent.init(jax.random.key(0), hp, {})
    src = source.init(jax.random.key(1), state, HyperParams(hp), {})
    rewards, observed = [], []
    for step in range(3):
        src, batch, _ = source.next(src, state, HyperParams(hp), {}, jax.random.key(step + 2), step)
        before = state
        state, _ = agent.update(state, hp, batch, jax.random.key(9), step)
        t = batch.transitions
        np.testing.assert_array_equal(state.inner["obs"], t.extras["saw"])
        np.testing.assert_allclose(
            state.inner["obs"], standardise(before.obs, t.obs, 10.0), rtol=1e-6
        )
        observed.append(np.asarray(t.obs).reshape(-1, 2))
        rewards.append(t)
    np.testing.assert_allclose(state.obs.mean, np.concatenate(observed).mean(0), rtol=1e-4)

    running, sums = np.zeros(ENVS), []
    for t in rewards:
        for reward, done in zip(np.asarray(t.reward), np.asarray(t.done), strict=True):
            running = 0.9 * running + reward
            sums.append(running)
            running = np.where(done, 0.0, running)
    std = np.std(np.stack(sums))
    expected = np.asarray(rewards[-1].reward) / std
    np.testing.assert_allclose(state.inner["reward"], expected, rtol=1e-4)


def test_moments_of_constant_columns() -> None:
    """Constants are found by their range: float32 moments of a large constant are not exact."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000).astype(np.float32)
    columns = [x, np.full(1000, 273.15), 1e-8 * x, 1000 + 0.1 * x, np.zeros(1000), -5e7 + 0 * x]
    rows = np.stack(columns, 1).astype(np.float32)
    found = row_moments(jnp.asarray(rows))
    right = rows.astype(np.float64).var(0)
    np.testing.assert_allclose(found.var[jnp.array([0, 2, 3])], right[[0, 2, 3]], rtol=1e-3)
    np.testing.assert_array_equal(found.var[jnp.array([1, 4, 5])], 1)
    np.testing.assert_allclose(found.mean, rows.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-6)
    assert found.weight == 1000


@dataclasses.dataclass(frozen=True)
class Wanted:
    normalise_obs: bool = True


def test_observations_are_standardised_by_the_dataset() -> None:
    """In acting, learning and log-probabilities; without the option nothing changes."""
    data = rows(BOX, 9, seed=3)
    data = data._replace(obs=5 * data.obs + 2)
    agent, kept = spy(), Wanted(False)
    assert standardised(agent, kept, BOX) is agent
    whole = standardised(agent, Wanted(), BOX)
    state = whole.init(jax.random.key(0), (), {"data": data})
    new, _ = whole.update(state, (), Batch(data), jax.random.key(0), jnp.int32(0))
    mean, std = np.mean(data.obs, 0), np.std(data.obs, 0) + 1e-3  # as TD3+BC's authors do
    np.testing.assert_allclose(new.inner["obs"], (data.obs - mean) / std, atol=1e-5)
    np.testing.assert_array_equal(new.inner["reward"], data.reward)
    seen = mean + np.array([[-0.1], [0.1]], np.float32)
    action, _, _ = whole.act(state, (), seen, jnp.ones(2, bool), (), (), False)
    plain, _, _ = agent.act(state.inner, (), (seen - mean) / std, jnp.ones(2, bool), (), (), False)
    np.testing.assert_array_equal(action, plain)

    log_prob = lambda state, hp, obs, action: jnp.sum(obs, -1)
    got = standardised_log_prob(log_prob, Wanted())(state, (), seen, action)
    np.testing.assert_allclose(got, np.sum((seen - mean) / std, -1), atol=1e-5)
    assert standardised_log_prob(log_prob, kept) is log_prob
