"""Teams: agents with shared parameters as rows of a policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import contract
from jaxrl.agents import dqn, ppo, pqn
from jaxrl.envs.normalise import normalise
from jaxrl.envs.wrappers import sticky_actions, time_limit
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.program import train
from jaxrl.rollout import rollout
from jaxrl.teams import per_agent, to_rows, to_teams
from jaxrl.types import Discrete, Env, EnvSpec, HyperParams, Policy, TimeStep

A, N, T = 3, 2, 6


def signs() -> Env:
    """Each of three agents sees a sign and earns 1 for the action of this sign; two steps."""

    def draw(key):
        return jax.random.rademacher(key, (A, 1), jnp.float32)

    def reset(key, params):
        obs = draw(key)
        return (obs, jnp.int32(0)), obs

    def step(key, state, action, params):
        obs, t = state
        reward = jnp.where(action == (obs[:, 0] > 0), 1.0, 0.0)
        after, end = draw(key), t + 1 >= 2
        ts = TimeStep(after, reward, end, jnp.zeros((), bool), jnp.sum(reward))
        return (after, t + 1), ts

    return Env(EnvSpec("signs", (1,), Discrete(2), 2, agents=A), {}, reset, step)


def test_rows_are_environment_by_environment():
    spec = signs().spec
    x = jnp.arange(N * A * 4).reshape(N, A, 4)
    rows = to_rows(x, spec)
    np.testing.assert_array_equal(rows, np.arange(N * A * 4).reshape(N * A, 4))
    np.testing.assert_array_equal(to_teams(rows, spec), x)
    np.testing.assert_array_equal(per_agent(jnp.array([5, 7]), spec), [5, 5, 5, 7, 7, 7])
    alone = dataclasses.replace(spec, agents=None)
    assert to_rows(x, alone) is to_teams(x, alone) is x and per_agent(x, alone) is x


def test_rollouts_and_evaluations():
    """Rewards are those of the agents, returns those of the team."""
    env, hp = signs(), HyperParams((), {})
    contract.check_env(env)
    right = lambda obs: (obs[:, 0] > 0).astype(jnp.int32)
    policy = Policy(
        act=lambda s, hp, obs, start, memory, noise, explore: (
            jnp.where(jnp.arange(len(obs)) % A == 2, 1 - right(obs), right(obs)),
            memory,
            {"row": jnp.arange(len(obs))},
        )
    )
    source = rollout(env, policy, N, T)
    src = source.init(jax.random.key(0), (), hp, {})
    _, batch, metrics = source.next(src, (), hp, {}, jax.random.key(1), jnp.int32(0))
    t = batch.transitions
    assert t.obs.shape == t.next_obs.shape == (T, N * A, 1) and t.action.shape == (T, N * A)
    np.testing.assert_array_equal(t.reward, np.tile([1, 1, 0], (T, N)))
    np.testing.assert_array_equal(t.terminated, np.tile([[False], [True]], (T // 2, N * A)))
    np.testing.assert_array_equal(t.start, np.tile([[True], [False]], (T // 2, N * A)))
    np.testing.assert_array_equal(t.obs[1::2], t.next_obs[::2])
    assert float(metrics["episode_return"].value) == 4
    assert float(metrics["episode_length"].weight) == N * T // 2
    found = evaluator(env, policy, 5)((), hp, {}, jax.random.key(2))
    np.testing.assert_array_equal(found.returns, np.full(5, 4.0))


@pytest.mark.parametrize(
    "name", ["pqn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dqn", "ppo"))]
)
def test_agents_learn_in_teams(name):
    small = {"num_envs": 4, "num_steps": 8}
    module, cfg = {
        "pqn": (pqn, pqn.Config(3_000, minibatches=2, hidden=(16,), normalise_obs=True, **small)),
        "dqn": (
            dqn,
            dqn.Config(3_000, warmup=64, batch_size=64, gradient_steps=4, hidden=(16,), **small),
        ),
        "ppo": (
            ppo,
            ppo.Config(3_000, 4, 8, 2, 4, actor=(16,), critic=(16,), normalise_reward=True),
        ),
    }[name]
    run = train(module.program(cfg, signs(), evals=1, episodes=8))
    result = jax.jit(run)(jax.random.key(0), module.Hypers(lr=1e-2))
    assert np.all(np.asarray(result.returns) == 2 * A)


def test_contract_and_refusals():
    env = signs()
    contract.check_env(time_limit(env, 1))
    mute = lambda *args: (lambda s, ts: (s, ts._replace(score=None)))(*env.step(*args))
    with pytest.raises(UserError, match="score must be float32"):
        contract.check_env(dataclasses.replace(env, step=mute))
    for refused in (lambda: sticky_actions(env, 0.5), lambda: normalise(env, True)):
        with pytest.raises(UserError, match="takes one agent; signs has a team of 3"):
            refused()
