"""Cal-QL: returns of the data against a loop, and what the bound changes in CQL's regulariser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, numbers, rows

from jaxrl.agents import calql, cql
from jaxrl.errors import UserError
from jaxrl.types import Batch, HyperParams

CFG = calql.Config(batch_size=8, hidden=(5,), samples=3)


def test_returns_of_the_data() -> None:
    """Terminated episodes end; cut ones, and the end of the data, go on with their last reward."""
    data = jax.tree.map(jnp.asarray, rows(BOX, 11))
    gamma, hp = 0.8, numbers(calql.Hypers(gamma=0.8, reward_scale=2.0, reward_shift=-0.5))
    source = calql.with_returns(8)
    got = source.init(jax.random.key(0), (), HyperParams(hp), {"data": data})
    reward, later = 2 * np.asarray(data.reward) - 0.5, None
    for i in reversed(range(11)):
        if data.terminated[i]:
            later = reward[i]
        elif data.truncated[i] or i == 10:
            later = reward[i] / (1 - gamma)
        else:
            later = reward[i] + gamma * later
        np.testing.assert_allclose(got[i], later, rtol=1e-5)
    inputs, key = {"data": data}, jax.random.key(1)
    _, batch, _ = source.next(got, (), HyperParams(hp), inputs, key, jnp.int32(0))
    drawn = [int(np.flatnonzero(data.reward == r)[0]) for r in batch.transitions.reward]
    np.testing.assert_array_equal(batch.transitions.extras["return"], got[jnp.asarray(drawn)])


def test_gradient_of_bounded_values_is_zero() -> None:
    """Values of the policy's actions below G are not pushed down; uniform actions always are."""
    q = jnp.zeros((2, 4))
    elsewhere = jax.random.normal(jax.random.key(0), (2, 6, 4))
    floor = jnp.asarray([-9.0, 0.0, 0.3, 9.0])
    log_p = jnp.zeros((6, 4))

    def push(elsewhere: jax.Array) -> jax.Array:
        return cql.regulariser(q, calql.calibrated(elsewhere, floor, 2), log_p)

    slope = np.asarray(jax.grad(push)(elsewhere))
    assert np.all(slope[:, :2] > 0)
    above = np.asarray(elsewhere)[:, 2:] > np.asarray(floor)
    np.testing.assert_array_equal(slope[:, 2:] > 0, above)


@pytest.mark.slow
def test_without_a_bound_it_is_cql() -> None:
    """G = -∞ gives CQL's update, bit for bit; G above all values changes the critics."""
    t = jax.tree.map(jnp.asarray, rows(BOX))
    hp = numbers(calql.Hypers(lr=0.01))
    agent, plain = calql.make(CFG, BOX), cql.make(CFG, BOX)
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    args = (jax.random.key(1), jnp.int32(0))
    told = lambda g: Batch(t._replace(extras={"return": jnp.full(8, g)}))
    update, expected = jax.jit(agent.update), jax.jit(plain.update)(state, hp, Batch(t), *args)[0]
    free, bound = (update(state, hp, told(g), *args)[0] for g in (-jnp.inf, 50.0))
    np.testing.assert_array_equal(free.critic, expected.critic)
    assert np.abs(bound.critic - expected.critic).max() > 1e-3


def test_refuses_held_out_rows() -> None:
    with pytest.raises(UserError, match="remove --validation-share"):
        calql.check_request(CFG, calql.Hypers(), {"data": (), "validation": ()})
