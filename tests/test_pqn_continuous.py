"""PQN for continuous actions: its losses by hand, and the answers it learns in probes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from medley import medley

from jaxrl import nets, population
from jaxrl.agents import pqn_continuous
from jaxrl.envs import probes
from jaxrl.types import HyperParams

KINDS = {
    "constant": probes.constant(continuous=True),
    "obs": probes.obs(continuous=True),
    "delay": probes.delay(continuous=True),
    "aim": probes.aim(),
    "limit": probes.limit(8, continuous=True),
}
GAMMA, SEEDS = 0.8, 2
CFG = pqn_continuous.Config(
    total_steps=400 * 128,
    num_envs=16,
    num_steps=8,
    minibatches=4,
    epochs=2,
    actor=(16,),
    critic=(16,),
    critics=2,
    normalise_obs=False,
)


def test_penalty_acts_beyond_the_threshold_only() -> None:
    change = jnp.array([[0.1, -0.1], [0.5, 0.1], [3.0, 0.0]])
    pull, far = pqn_continuous.trust_penalty(change, 0.2)
    np.testing.assert_array_equal(far, [False, True, True])
    np.testing.assert_allclose(pull, [0, (0.125 + 0.005) / 2, 2.5 / 2], rtol=1e-6)


@pytest.fixture(scope="module")
def learnt() -> tuple[np.ndarray, np.ndarray]:
    """Actions [kinds, seeds, observations -1 0 1], and Q-values of the last one's choice there."""
    count = SEEDS * len(KINDS)
    hypers = pqn_continuous.Hypers(
        lr=0.01, gamma=GAMMA, lam=0.5, penalty=1.0, noise_start=0.5, noise_end=0.3
    )
    hp = HyperParams(
        jax.tree.map(lambda x: jnp.full(count, x, jnp.float32), hypers),
        {"kind": jnp.arange(count, dtype=jnp.int32) // SEEDS},
    )
    plan = population.layout(count, jax.devices()[:1], count)
    env = medley(list(KINDS.values()))
    program = pqn_continuous.program(CFG, env, evals=1, episodes=4)
    result = jax.jit(population.train(program, plan))(jax.random.key(0), jnp.arange(count), hp, {})
    state = result.states["agent"]
    shown = jnp.array([-1.0, 0.0, 1.0])[:, None]
    actor = nets.from_linen(pqn_continuous.Blocks(CFG.actor, 1), (1,))
    critic = nets.from_linen(pqn_continuous.Blocks(CFG.critic, 1), (2,))

    def one(actor_params: Any, critic_params: Any) -> Any:
        action = jnp.tanh(actor.apply(actor_params, shown))
        x = jnp.concatenate([shown, action], -1)
        return action[:, 0], jnp.mean(jax.vmap(critic.apply, (0, None))(critic_params, x), 0)[:, 0]

    actions, q = jax.jit(jax.vmap(one))(state.actor, state.critic)
    shape = (len(KINDS), SEEDS, 3)
    return np.asarray(actions).reshape(shape), np.asarray(q).reshape(shape)


@pytest.mark.slow
def test_probes(learnt: tuple[np.ndarray, np.ndarray]) -> None:
    actions, q = learnt
    no, far = np.nan, 1 / (1 - GAMMA)
    answers = {  # values of observations -1, 0, 1
        "constant": [no, 1, no],
        "obs": [-1, no, 1],
        "delay": [no, GAMMA, 1],
        "aim": [1, no, 1],
        "limit": [no, far, no],
    }
    assert answers.keys() == KINDS.keys()
    for i, (kind, expected) in enumerate(answers.items()):
        error = np.nanmax(np.abs(q[i] - np.array(expected)) / np.abs(expected))
        assert error < 0.05, (kind, error)
    aims = actions[list(KINDS).index("aim")]
    np.testing.assert_allclose(aims[:, [0, 2]], [[-0.5, 0.5]] * SEEDS, atol=0.1)
