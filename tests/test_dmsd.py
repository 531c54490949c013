"""DMSD against the published data of NeoRL-2, ten episodes of which lie in tests/data."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import datasets, dmsd
from jaxrl.types import Env

FILE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"
HALF = 49  # the step in which targets may be drawn again


@pytest.fixture(scope="module")
def env() -> Env:
    return dmsd.make()


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    return datasets.load(FILE)


def state_of(obs: np.ndarray, t: int) -> dmsd.DmsdState:
    x, v, target = jnp.split(jnp.asarray(obs), 3)
    return dmsd.DmsdState(x, v, target, jnp.int32(t))


def test_every_step_is_that_of_the_data(env: Env, data: datasets.Dataset) -> None:
    """Positions, velocities and rewards of all rows; where targets changed they are given."""
    t = data.transitions
    datasets.check(data, env.spec)
    step_of = jnp.asarray(np.tile(np.arange(100), 10))

    @jax.jit
    @jax.vmap
    def both(obs, next_target, t, action):
        # A step from the target that the data arrive at, so that the redraw is left out.
        x, v, _ = jnp.split(obs, 3)
        after = env.step(
            jax.random.key(0), dmsd.DmsdState(x, v, next_target, t), action, env.params
        )
        return after[1]

    ts = both(t.obs, t.next_obs[:, 4:], jnp.where(step_of == HALF, 0, step_of), t.action)
    assert np.abs(ts.next_obs - t.next_obs).max() < 1e-6
    # A logarithm this close to 0 passes on up to a hundredfold what positions differ by.
    slope = (1 / (np.abs(t.next_obs[:, :2] - t.next_obs[:, 4:]) + 0.01)).sum(1)
    assert (np.abs(ts.reward - t.reward) < 1e-6 + 2e-7 * slope).all()
    np.testing.assert_array_equal(ts.truncated, t.truncated)
    assert not ts.terminated.any()
    changed = (t.next_obs[:, 4:] != t.obs[:, 4:]).any(1)
    assert set(np.flatnonzero(changed) % 100) == {HALF}


def test_whole_episodes_stay_with_the_data(env: Env, data: datasets.Dataset) -> None:
    """Open loop over the first half: the errors of its steps do not add up to 1e-6."""
    obs, action = (x.reshape(10, 100, -1)[:, :HALF] for x in data.transitions[:2])
    after = data.transitions.next_obs.reshape(10, 100, -1)[:, :HALF]

    @jax.jit
    @jax.vmap
    def play(first, actions):
        def step(state, action):
            state, ts = env.step(jax.random.key(0), state, action, env.params)
            return state, ts.next_obs

        return jax.lax.scan(step, state_of(first, 0), actions)[1]

    assert np.abs(play(obs[:, 0], action) - after).max() < 1e-6


def test_a_hand_computed_step(env: Env) -> None:
    """From x = (1, 0), v = (0, 1): the numbers of the published equations."""
    state = state_of(np.array([1, 0, 0, 1, 0.5, 0.5], np.float32), 3)
    after, ts = jax.jit(env.step)(jax.random.key(0), state, jnp.array([2.0, -0.5]), env.params)
    expected = [1, 0.2, -0.04 + 0.04 + 0.3, 0.02 + 0.92 - 0.15, 0.5, 0.5]
    np.testing.assert_allclose(ts.next_obs, expected, atol=1e-6)
    assert ts.reward == pytest.approx(-np.log(0.51) - np.log(0.31), abs=1e-5)
    assert int(after.t) == 4 and not ts.truncated


def test_resets_and_redraws_are_as_documented(env: Env) -> None:
    keys = jax.random.split(jax.random.key(1), 4000)
    state, obs = jax.jit(jax.vmap(env.reset, (0, None)))(keys, env.params)
    for column, bound in zip(np.asarray(obs).T, [0.25, 0.25, 0.1, 0.1, 1.5, 1.5], strict=True):
        assert abs(column).max() <= bound
        assert column.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    at_half = state._replace(t=jnp.full(4000, HALF))
    act = jnp.zeros((4000, 2))
    step = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))
    after, ts = step(keys, at_half, act, env.params)
    changed = np.asarray(after.target != state.target)
    assert changed.mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert changed.all(1).mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(ts.next_obs[:, 4:], after.target)
    after, _ = step(keys, at_half._replace(t=at_half.t + 1), act, env.params)
    np.testing.assert_array_equal(after.target, state.target)


def test_the_published_returns(env: Env, data: datasets.Dataset) -> None:
    """The data's mean return over its ten episodes, and the scale of scores."""
    returns, lengths = datasets.episode_returns(data.transitions)
    assert (lengths == 100).all() and len(returns) == 10
    rewards = data.transitions.reward.reshape(10, 100)
    np.testing.assert_allclose(returns, rewards.sum(1, dtype=np.float64))
    assert datasets.normalised_score(data.meta, [30.60, 849.51]) == pytest.approx([0, 100])
