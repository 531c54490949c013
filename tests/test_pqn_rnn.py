"""Recurrent PQN: what learning recomputes is what acting saw."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl.agents import pqn_rnn
from jaxrl.errors import UserError
from jaxrl.rollout import rollout
from jaxrl.types import HyperParams

KEEP, STEPS, ENVS = 2, 10, 16  # more steps than an episode has
CELLS = ["gru", "lstm"]


@functools.cache
def windows(cell: str) -> tuple[Any, ...]:
    """Two windows in a row of a greedy agent: config, state, batches, and acting's own Q-values."""
    env = tiny.walk()
    cfg = pqn_rnn.Config(
        total_steps=STEPS * ENVS,
        num_envs=ENVS,
        num_steps=STEPS,
        minibatches=2,
        hidden=(8,),
        memory=8,
        memory_window=KEEP,
        cell=cell,  # type: ignore[arg-type]
    )
    agent = pqn_rnn.make(cfg, env.spec)
    hp = pqn_rnn.Hypers(eps_start=0.3)
    source = rollout(env, agent, ENVS, STEPS, keep=KEEP)

    @jax.jit
    def play() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(1), 4)
        state = agent.init(keys[0], hp, {})
        src = source.init(keys[1], state, HyperParams(hp), {})
        src, first, _ = source.next(src, state, HyperParams(hp), {}, keys[2], jnp.int32(0))
        src, second, _ = source.next(src, state, HyperParams(hp), {}, keys[3], jnp.int32(1))
        return state, first, second

    return cfg, env.spec, *play()


def recompute(cell: str) -> tuple[np.ndarray, np.ndarray]:
    cfg, spec, state, _, batch = windows(cell)
    net = pqn_rnn.Network(cfg, spec.action.n)
    step = lambda *args: net.apply({"params": state.params}, *args)
    unroll = lambda *args: (net.apply({"params": state.params}, *args, method="unroll"), {})
    return jax.jit(lambda: pqn_rnn.window_values(unroll, step, *batch)[:2])()


def by_hand(cell: str) -> tuple[np.ndarray, np.ndarray]:
    """Q-values of the window and of its true successors, one step at a time from the memory."""
    cfg, spec, state, _, batch = windows(cell)
    net, t = pqn_rnn.Network(cfg, spec.action.n), batch.transitions
    never = jnp.zeros(ENVS, bool)
    apply = jax.jit(
        lambda carry, obs, last: net.apply({"params": state.params}, carry, obs, last, never)
    )
    (carry, last), q, ahead = batch.memory, [], []
    for i in range(KEEP + STEPS):
        keep = ~np.asarray(t.start[i])[:, None]
        carry, last = jax.tree.map(lambda x: x * keep, (carry, last))  # noqa: B023
        carry, now = apply(carry, t.obs[i], last)
        last = jax.nn.one_hot(t.action[i], spec.action.n)
        q.append(now)
        ahead.append(jnp.max(apply(carry, t.next_obs[i], last)[1], -1))  # type: ignore[index]
    return np.stack(q), np.stack(ahead)


@pytest.mark.parametrize("cell", CELLS)
def test_windows_overlap_and_carry_their_memory(cell: str) -> None:
    _, _, _, first, second = windows(cell)
    assert first.transitions.reward.shape == (KEEP + STEPS, ENVS)
    for old, new in zip(
        jax.tree.leaves(first.transitions), jax.tree.leaves(second.transitions), strict=True
    ):
        np.testing.assert_array_equal(old[-KEEP:], new[:KEEP])
    assert any(np.any(x != 0) for x in jax.tree.leaves(second.memory))


@pytest.mark.parametrize("cell", CELLS)
def test_values_are_those_of_acting_step_by_step(cell: str) -> None:
    _, _, _, _, batch = windows(cell)
    t = batch.transitions
    assert np.any(t.truncated) and np.any(t.terminated)
    assert np.max(np.sum(t.truncated, 0)) > 1
    q, ahead = recompute(cell)
    expected_q, expected = by_hand(cell)
    np.testing.assert_allclose(q, expected_q, atol=1e-5)
    counts = ~np.asarray(t.terminated)  # the value after a termination is not looked at
    np.testing.assert_allclose(np.asarray(ahead)[counts], expected[counts], atol=1e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    spec = tiny.walk().spec
    with pytest.raises(UserError, match="memory_window=9"):
        pqn_rnn.make(pqn_rnn.Config(num_steps=8, memory_window=9), spec)
    with pytest.raises(UserError, match="does not divide num_envs=32"):
        pqn_rnn.make(pqn_rnn.Config(minibatches=64), spec)
    with pytest.raises(UserError, match="memory=0"):
        pqn_rnn.make(pqn_rnn.Config(memory=0), spec)
