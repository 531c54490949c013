"""Recurrent PQN-VDN: an update against loops over steps and agents, teams of one, refusals."""

from __future__ import annotations

import dataclasses
import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.flatten_util import ravel_pytree
from test_returns import oracle

from jaxrl.agents import pqn_rnn, pqn_vdn_rnn
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.optim import clipped_radam
from jaxrl.program import train
from jaxrl.rollout import rollout
from jaxrl.types import HyperParams

KEEP, STEPS, ENVS = 2, 9, 4  # more steps than an episode has
HP = jax.tree.map(
    jnp.float32, pqn_rnn.Hypers(lr=0.05, gamma=0.9, lam=0.6, reward_scale=0.5, l2=0.3)
)
CFG = pqn_vdn_rnn.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=1,
    epochs=1,
    hidden=(4,),
    memory=3,
    memory_window=KEEP,
)


@functools.cache
def updated() -> tuple[Any, ...]:
    """State, batch of the second rollout, new state and metrics of an update of teams of two."""
    env = tiny.pair()
    agent = pqn_vdn_rnn.make(CFG, env.spec)
    source, hp = rollout(env, agent, ENVS, STEPS, keep=KEEP), HyperParams(HP)

    @jax.jit
    def play() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(1), 5)
        state = agent.init(keys[0], HP, {})
        src = source.init(keys[1], state, hp, {})
        src, _, _ = source.next(src, state, hp, {}, keys[2], jnp.int32(0))
        _, batch, _ = source.next(src, state, hp, {}, keys[3], jnp.int32(1))
        return state, batch, *agent.update(state, HP, batch, keys[4], jnp.int32(0))

    return env.spec, *play()


def test_update_by_hand() -> None:
    """Memories step by step, targets and loss of teams by loops, one step of RAdam."""
    spec, state, batch, new, metrics = updated()
    net, t, size = pqn_rnn.Network(CFG, spec.action.n), batch.transitions, spec.agents
    assert t.reward.shape == (KEEP + STEPS, ENVS * size)
    assert np.any(t.truncated) and np.any(t.terminated) and np.any(t.start)
    never = jnp.zeros(ENVS * size, bool)

    def values(params: Any) -> tuple[list[Any], list[Any]]:
        apply = lambda carry, obs, last: net.apply({"params": params}, carry, obs, last, never)
        (carry, last), q, ahead = batch.memory, [], []
        for i in range(KEEP + STEPS):
            keep = ~t.start[i][:, None]
            carry, last = jax.tree.map(lambda x, keep=keep: x * keep, (carry, last))
            carry, now = apply(carry, t.obs[i], last)
            last = jax.nn.one_hot(t.action[i], spec.action.n)
            q.append(now)
            ahead.append(jnp.max(apply(carry, t.next_obs[i], last)[1], -1))
        return q, ahead

    ahead = np.stack(jax.jit(values)(state.params)[1])
    teams = [[i * size + j for j in range(size)] for i in range(ENVS)]
    summed = lambda x: np.stack([sum(np.asarray(x)[:, row] for row in rows) for rows in teams], 1)
    first = lambda x: np.stack([np.asarray(x)[:, rows[0]] for rows in teams], 1)
    ends = (first(t.terminated), first(t.truncated))
    targets = oracle(0.5 * summed(t.reward) / size, summed(ahead), *ends, 0.9, 0.6)

    def loss(params: Any) -> Any:
        q, total = values(params)[0], 0.0
        for step in range(KEEP + STEPS):
            for i, rows in enumerate(teams):
                team = sum(q[step][row, t.action[step, row]] for row in rows)
                total += 0.5 * (team - targets[step, i]) ** 2
        penalty = 0.5 * 0.3 * jnp.sum(params["head"]["kernel"] ** 2)
        return total / ((KEEP + STEPS) * ENVS) + penalty

    found, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(metrics["loss"], found, rtol=1e-5)
    flat, unravel = ravel_pytree(state.params)
    moved, _ = clipped_radam(HP.lr, HP.max_grad_norm).update(
        ravel_pytree(grads)[0], state.opt, flat
    )
    want = unravel(optax.apply_updates(flat, moved))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), new.params, want)


def test_a_team_of_one_learns_as_an_agent_alone() -> None:
    spec, state, batch, _, _ = updated()
    rows = ENVS * spec.agents
    cfg = dataclasses.replace(CFG, num_envs=rows)
    alone = pqn_rnn.make(cfg, dataclasses.replace(spec, agents=None))
    ones = pqn_vdn_rnn.make(cfg, dataclasses.replace(spec, agents=1))
    args = (state, HP, batch, jax.random.key(2), jnp.int32(0))
    (one, found), (other, expected) = jax.jit(ones.update)(*args), jax.jit(alone.update)(*args)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, one.params, other.params)


def test_refusals() -> None:
    with pytest.raises(UserError, match="one agent: use pqn_rnn"):
        pqn_vdn_rnn.make(CFG, tiny.walk().spec)


@pytest.mark.slow
def test_the_sum_matters() -> None:
    """In the game of gifts the team's optimum needs the sum; independent learners keep all."""
    cfg = pqn_rnn.Config(4_000, num_envs=8, num_steps=8, minibatches=2, hidden=(16,), memory=8)

    def returns(module: Any) -> Any:
        run = train(module.program(cfg, probes.gift(), evals=1, episodes=4))
        hp = pqn_rnn.Hypers(lr=jnp.float32(1e-2), reward_scale=jnp.float32(1.0))
        return np.asarray(jax.jit(run)(jax.random.key(0), hp).returns)

    assert (returns(pqn_vdn_rnn) == 1).all() and (returns(pqn_rnn) == 0).all()
