"""RLIF: interventions and their rewards against loops, and which rows the learner sees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import rows

from jaxrl.agents import rlif
from jaxrl.errors import UserError
from jaxrl.interventions import (
    EXTRA,
    expert_rows,
    intervention_rewards,
    take_over,
    value_based,
)
from jaxrl.policies import Trained
from jaxrl.types import Box, EnvSpec, Policy, Transition

SPEC = EnvSpec("push", (3,), Box((-1.0,), (1.0,), (1,)), 10)
EXPERT = Policy(
    act=lambda state, hp, obs, start, memory, noise, explore: (0 * obs[:, :1] + 0.7, memory, {})
)
SIZES: dict[str, Any] = {"hidden": (4,), "critics": 3, "batch_size": 4, "warmup": 4}


def test_an_intervention_lasts_its_steps_or_to_the_end_of_the_episode() -> None:
    rng = np.random.default_rng(0)
    length, envs, steps = 40, 6, 3
    wanted, start = rng.random((length, envs)) < 0.2, rng.random((length, envs)) < 0.1
    left = jnp.zeros(envs, jnp.int32)
    until = np.zeros(envs, int)  # the first step that is the policy's again
    one = jax.jit(lambda left, start, wanted: take_over(left, start, wanted, steps))
    for t in range(length):
        acts, left = one(left, start[t], wanted[t])
        for i in range(envs):
            if start[t, i]:
                until[i] = t
            if until[i] <= t and wanted[t, i]:
                until[i] = t + steps
            assert acts[i] == (t < until[i])


def test_value_based_interventions() -> None:
    """Where Q(s, π) < δ Q(s, a_expert), and the other way round with probability `slip`."""
    own, expert, n = jnp.array([0.5, 0.98, 1.2]), jnp.ones(3), 20_000
    coin = jax.random.uniform(jax.random.key(0), (n, 3))
    wants = jax.vmap(lambda coin: value_based(own, expert, 0.97, 0.05, coin))(coin)
    np.testing.assert_allclose(wants.mean(0), [0.95, 0.05, 0.05], atol=0.006)


def test_rewards_of_interventions() -> None:
    """-1 exactly at the policy's steps before the expert's in the same episode, by a loop."""
    rng: Any = np.random.default_rng(1)
    shape = (30, 4)
    expert, end = rng.random(shape) < 0.4, rng.integers(0, 6, shape)
    number = rng.normal(size=shape).astype(np.float32)
    t = Transition(
        number, number, number, number, end == 1, end == 2, end == 0, {EXTRA: jnp.asarray(expert)}
    )
    got = intervention_rewards(t)
    assert got.shape == (29, 4) and got.dtype == jnp.float32
    for i in range(29):
        for n in range(4):
            led = not expert[i, n] and expert[i + 1, n] and end[i, n] not in (1, 2)
            assert got[i, n] == (-1 if led else 0)
    assert 0.05 < -np.mean(got) < 0.3


@pytest.mark.parametrize("probability", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_the_expert_acts_at_random_and_only_in_training(probability: float) -> None:
    cfg = rlif.Config(**SIZES, intervention="random", intervention_steps=2)
    agent, n = rlif.make(cfg, SPEC, EXPERT), 5
    hp = jax.tree.map(jnp.float32, rlif.Hypers(probability=probability))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"base": Trained((), ())})
    obs, start = jnp.ones((n, 3)), jnp.zeros(n, bool)
    noise = agent.noise(jax.random.key(1), n)
    action, memory, extras = agent.act(state, hp, obs, start, agent.memory(n), noise, True)
    assert np.all(np.asarray(action == 0.7) == bool(probability))
    assert np.all(extras[EXTRA] == bool(probability)) and np.all(memory == probability)
    action, same, extras = agent.act(state, hp, obs, start, memory, noise, False)
    assert not np.any(action == 0.7) and not extras
    np.testing.assert_array_equal(same, memory)


def test_the_reference_learns_the_experts_value_of_the_task() -> None:
    """Batches have unit actions and the expert's next action; rewards are the task's."""
    data: Any = jax.tree.map(jnp.asarray, rows(SPEC, 6))
    source = expert_rows(EXPERT, SPEC, 16)
    given = {"data": data, "base": Trained((), ())}
    _, batch, _ = source.next((), (), (), given, jax.random.key(0), jnp.int32(0))
    t = batch.transitions
    np.testing.assert_array_equal(t.extras["next_mode"], np.full((16, 1), np.float32(0.7)))
    assert np.isin(t.reward, data.reward).all() and len(np.unique(t.reward)) > 1


def test_what_it_refuses() -> None:
    for base, cfg, told in [
        (None, rlif.Config(), "pass --base runs/NAME"),
        (EXPERT, rlif.Config(intervention_steps=0), "intervention_steps"),
        (EXPERT, rlif.Config(data_share=-1.0), "data_share"),
    ]:
        with pytest.raises(UserError, match=told):
            rlif.make(cfg, SPEC, base)
