"""PQN-VDN: an update against plain loops, the game that needs the sum, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from test_returns import oracle

from jaxrl import nets
from jaxrl.agents import pqn, pqn_vdn
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.optim import clipped_radam
from jaxrl.program import train
from jaxrl.types import Batch, Discrete, EnvSpec, Transition

STEPS, ENVS, AGENTS, OBS, ACTIONS = 3, 2, 2, 2, 3
ROWS = ENVS * AGENTS
SPEC = EnvSpec("made", (OBS,), Discrete(ACTIONS), agents=AGENTS)
CFG = pqn_vdn.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=1,
    epochs=1,
    hidden=(4,),
)
NET = nets.from_linen(nets.MLP(CFG.hidden, ACTIONS, norm=True), (OBS,))


def q_values(params: Any, obs: Any) -> Any:
    """Q-values of observations [..., OBS]."""
    return NET.apply(params, obs.reshape(-1, OBS)).reshape(*obs.shape[:-1], ACTIONS)


def window(params: Any) -> Transition:
    """Rows [T, N * A]: environment 0 terminates at step 0, environment 1 is cut at step 1."""
    rng = np.random.default_rng(3)
    obs, next_obs = rng.normal(size=(2, STEPS, ROWS, OBS)).astype(np.float32)
    ends = np.zeros((2, STEPS, ENVS), bool)
    ends[0, 0, 0] = ends[1, 1, 1] = True
    terminated, truncated = np.repeat(ends, AGENTS, -1)
    for t in range(STEPS - 1):
        going = ~(terminated | truncated)[t]
        obs[t + 1, going] = next_obs[t, going]
    rows: Any = {
        "obs": obs,
        "action": rng.integers(0, ACTIONS, (STEPS, ROWS), np.int32),
        "reward": rng.normal(size=(STEPS, ROWS)).astype(np.float32),
        "next_obs": next_obs,
        "terminated": terminated,
        "truncated": truncated,
        "start": np.zeros((STEPS, ROWS), bool),
    }
    return Transition(**rows, extras={"value": jnp.max(q_values(params, obs), -1)})


def test_update_by_hand() -> None:
    """Targets and loss of teams by loops over their agents; one step of RAdam."""
    hp = pqn.Hypers(lr=0.05, gamma=0.9, lam=0.6, reward_scale=0.5, l2=0.3)
    hp = jax.tree.map(jnp.float32, hp)
    agent = pqn_vdn.make(CFG, SPEC)
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    t = window(state.params)
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(1), jnp.int32(0))

    best = np.max(np.asarray(q_values(state.params, t.next_obs)), -1)
    of_team = lambda x, i: [np.asarray(x)[..., i * AGENTS + j] for j in range(AGENTS)]
    each = lambda of: np.stack([of(i) for i in range(ENVS)], 1)  # [T, N]
    reward = each(lambda i: 0.5 * sum(of_team(t.reward, i)) / AGENTS)
    value = each(lambda i: sum(of_team(best, i)))
    terminated, truncated = (t.terminated[:, ::AGENTS], t.truncated[:, ::AGENTS])
    targets = oracle(reward, value, terminated, truncated, 0.9, 0.6)

    def loss(params: Any) -> Any:
        q = q_values(params, t.obs)
        total = 0.0
        for step in range(STEPS):
            for i in range(ENVS):
                rows = [i * AGENTS + j for j in range(AGENTS)]
                team = sum(q[step, row, t.action[step, row]] for row in rows)
                total += 0.5 * (team - targets[step, i]) ** 2
        penalty = 0.5 * 0.3 * jnp.sum(params["Dense_0"]["kernel"] ** 2)
        return total / (STEPS * ENVS) + penalty

    found, grads = jax.value_and_grad(loss)(state.params)
    np.testing.assert_allclose(metrics["loss"], found, rtol=1e-5)
    flat, unravel = ravel_pytree(state.params)
    optimiser = clipped_radam(hp.lr, hp.max_grad_norm)
    moved, _ = optimiser.update(ravel_pytree(grads)[0], state.opt, flat)
    want = unravel(optax.apply_updates(flat, moved))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), new.params, want)


def test_refusals() -> None:
    with pytest.raises(UserError, match="one agent: use pqn"):
        pqn_vdn.make(CFG, EnvSpec("made", (OBS,), Discrete(ACTIONS)))


@pytest.mark.slow
def test_the_sum_matters() -> None:
    """In the game of gifts the team's optimum needs the sum; independent learners keep all."""
    cfg = pqn.Config(4_000, num_envs=8, num_steps=8, minibatches=2, hidden=(16,))

    def returns(module: Any) -> Any:
        run = train(module.program(cfg, probes.gift(), evals=1, episodes=4))
        hp = pqn.Hypers(lr=jnp.float32(1e-2), reward_scale=jnp.float32(1.0))
        return np.asarray(jax.jit(run)(jax.random.key(0), hp).returns)

    assert (returns(pqn_vdn) == 1).all() and (returns(pqn) == 0).all()
