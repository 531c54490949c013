"""Several gradient steps per environment step: the updates in order, the share of data in each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl.agents import iql
from jaxrl.errors import UserError
from jaxrl.recipes import check_fine_tuning, fine_tuning, several_steps
from jaxrl.types import Batch, HyperParams, Transition


def noting() -> Any:
    """An agent whose update depends on its state, the batch, the key and the count of steps."""

    def update(state, hp, batch, key, step):
        seen = jnp.sum(batch.transitions.reward) + jax.random.uniform(key) + step
        return 0.5 * state + hp * seen, {"seen": seen}

    init, act = lambda key, hp, inputs: jnp.float32(0), lambda *given: pytest.fail("acting")
    return dataclasses.replace(
        iql.make(iql.Config(), tiny.walk().spec), init=init, act=act, update=update
    )


def rows(number: int) -> Transition:
    column = jnp.arange(number, dtype=jnp.float32)
    no = jnp.zeros(number, bool)
    return Transition(column, column, column, column, no, no, no)


@pytest.mark.parametrize("count", [1, 3])
def test_several_steps_are_the_updates_one_after_another(count: int) -> None:
    agent, key, hp = noting(), jax.random.key(3), jnp.float32(0.1)
    batch = Batch(rows(6))
    state, metrics = several_steps(agent, count).update(
        jnp.float32(2), hp, batch, key, jnp.int32(5)
    )
    expected, seen = jnp.float32(2), []
    size = 6 // count
    for i, one in enumerate(jax.random.split(key, count)):
        part = jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], batch.transitions)
        expected, told = agent.update(expected, hp, Batch(part), one, jnp.int32(5 * count + i))
        seen.append(told["seen"])
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["seen"].total, sum(seen), rtol=1e-6)
    assert metrics["seen"].weight == count


def test_each_gradient_step_of_fine_tuning_has_its_share_of_data() -> None:
    env = tiny.walk()
    sizes = {"updates": 8, "batch_size": 4, "hidden": (4,), "finetune_steps": 8, "capacity": 8}
    cfg = iql.Config(**sizes, finetune_gradient_steps=3, data_share=0.25)
    (online,) = fine_tuning(cfg, env, iql.make(cfg, env.spec), 1, 1)
    obs, action = jnp.zeros((16, *env.spec.obs_shape)), jnp.zeros(16, jnp.int32)
    no = jnp.zeros(16, bool)
    data = Transition(obs, action, jnp.full(16, 77.0), obs, no, no, no)
    key, inputs = jax.random.key(0), {"data": data}
    state, hp = online.learner.init(key, iql.Hypers(), inputs), HyperParams(iql.Hypers())
    src = online.source.init(key, state, hp, inputs)
    _, batch, _ = online.source.next(src, state, hp, inputs, key, jnp.int32(0))
    from_data = np.asarray(batch.transitions.reward).reshape(3, 4) == 77
    np.testing.assert_array_equal(from_data.sum(1), [1, 1, 1])


def test_refuses_no_gradient_steps() -> None:
    with pytest.raises(UserError, match="finetune_gradient_steps=0 must be at least 1"):
        check_fine_tuning(iql.Config(finetune_gradient_steps=0))
