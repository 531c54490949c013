"""The plane of the edge of reach: optimal values and the edge against grids in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs
from jaxrl.envs import reach

STEP = 0.5  # of the grid
SIDE = np.arange(-16, 16 + STEP, STEP)
PLANE = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), -1).astype(np.float32)


def spread(values: np.ndarray) -> np.ndarray:
    """The largest of `values` [H, W] within a step of each point: actions are multiples of STEP."""
    far = round(1 / STEP)
    wide = np.pad(values, far, constant_values=values.min())
    views = np.lib.stride_tricks.sliding_window_view(wide, (2 * far + 1, 2 * far + 1))
    return views.max((-1, -2))


def test_edge_is_what_walks_from_the_starts_reach_last() -> None:
    """Reached by k steps, but not by k - 1, from [-2, 2]²: by widening the set step by step."""
    reached = (np.abs(PLANE) <= reach.START).all(-1)
    before = reached
    for steps in range(1, 11):
        before, reached = reached, spread(reached.astype(int)) > 0
        np.testing.assert_array_equal(reach.reached_after(jnp.asarray(PLANE), steps), reached)
        np.testing.assert_array_equal(
            reach.edge_of_reach(jnp.asarray(PLANE), steps), reached & ~before
        )
    largest = np.abs(PLANE).max(-1)
    np.testing.assert_array_equal(
        reach.edge_of_reach(jnp.asarray(PLANE), 10), (11 < largest) & (largest <= 12)
    )


def test_rollouts_step_from_within_and_end_in_the_edge() -> None:
    """Walks into a corner: 9 steps lead to states that steps begin in, the 10th beyond them."""
    env = envs.make("reach")

    @jax.jit
    @jax.vmap
    def walk(key: jax.Array) -> Any:
        corner = jnp.sign(jax.random.normal(key, (2,)))
        state, obs = env.reset(key, env.params)

        def go(state: Any, _: None) -> Any:
            state, ts = env.step(key, state, 1.5 * corner, env.params)
            return state, ts

        return obs, jax.lax.scan(go, state, None, 30)[1]

    obs, ts = walk(jax.random.split(jax.random.key(0), 500))
    assert np.abs(obs).max() <= 2 and reach.reached_after(obs, 0).all()
    assert reach.reached_after(ts.next_obs[:, 8], 9).all()
    assert not reach.edge_of_reach(ts.next_obs[:, :9], 10).any()
    far = reach.edge_of_reach(ts.next_obs[:, 9], 10)
    np.testing.assert_allclose(far.mean(), 0.75, atol=0.06)  # 1 less both coordinates behind
    np.testing.assert_array_equal(ts.truncated, np.tile(np.arange(30) == 29, (500, 1)))
    assert not ts.terminated.any()


def test_optimal_value_by_value_iteration() -> None:
    """V = max_a [r + γ V](s + a) on the grid, whose points straight ways to the goal stay on."""
    goal, gamma = jnp.float32(reach.GOAL), 0.9
    reward = np.asarray(reach.reward_at(jnp.asarray(PLANE), goal))
    value = np.zeros_like(reward)
    for _ in range(200):
        value = spread(reward + gamma * value)
    found = reach.optimal_value(jnp.asarray(PLANE), goal, gamma, 200)
    np.testing.assert_allclose(found, value, rtol=1e-4)


def test_sparse_reward_and_its_controller() -> None:
    """Reward 1 and termination within the radius; straight ways need max |goal - s| steps."""
    env, policy = envs.make("reach:sparse"), reach.controller()

    @jax.jit
    @jax.vmap
    def walk(key: jax.Array) -> Any:
        state, obs = env.reset(key, env.params)

        def go(carry: Any, _: None) -> Any:
            state, obs = carry
            action = policy.act((), (), obs[None], jnp.ones(1, bool), (), key, False)[0][0]
            state, ts = env.step(key, state, action, env.params)
            return (state, ts.next_obs), ts

        return obs, jax.lax.scan(go, (state, obs), None, 12)[1]

    obs, ts = walk(jax.random.split(jax.random.key(0), 200))
    left = np.linalg.norm(np.asarray(ts.next_obs) - np.array(reach.GOAL), axis=-1)
    np.testing.assert_array_equal(ts.terminated, left <= reach.RADIUS)
    np.testing.assert_array_equal(ts.reward, ts.terminated)
    assert not np.any(ts.terminated & ts.truncated) and ts.terminated[:, -1].all()
    far = np.abs(np.array(reach.GOAL) - np.asarray(obs)).max(-1)
    first = np.argmax(np.asarray(ts.terminated), 1) + 1
    assert np.all((first <= np.ceil(far)) & (first >= np.ceil(far - reach.RADIUS)))
