"""Truncation at any time: targets of on-policy agents, and limits that rollouts enforce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_returns import oracle

from jaxrl.agents import mdpo, ppo, pqn, pqn_continuous
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.exploration import random_policy
from jaxrl.program import train
from jaxrl.returns import gae, lambda_returns, successor_values
from jaxrl.rollout import rollout
from jaxrl.types import Array, Box, Discrete, Env, EnvSpec, HyperParams, PyTree, TimeStep

STEPS, ENVS = 9, 3


def ragged(space: Discrete | Box) -> Env:
    """Random observations; steps are cut with probability 0.4 and terminate with 0.1."""

    def reset(key: Array, params: PyTree) -> tuple[Array, Array]:
        obs = jax.random.normal(key, (2,))
        return obs, obs

    def step(key: Array, state: Array, action: Array, params: PyTree) -> tuple[Array, TimeStep]:
        key_obs, key_end = jax.random.split(key)
        obs, draw = jax.random.normal(key_obs, (2,)), jax.random.uniform(key_end)
        return obs, TimeStep(obs, state[0], draw < 0.1, (draw > 0.1) & (draw < 0.5))

    return Env(EnvSpec("ragged", (2,), space, 100), {}, reset, step)


# --- values of successors ------------------------------------------------------------------------


def test_successor_values_with_any_number_of_cuts() -> None:
    """Everywhere but behind a termination, from no cut to a cut in every step."""
    value_of = lambda obs: jnp.sin(obs @ jnp.arange(1.0, 3))
    rng, windows = np.random.default_rng(0), []
    for share in np.repeat([0.0, 0.1, 0.4, 0.8, 1.0], 6):
        truncated = rng.random((STEPS, ENVS)) < share
        terminated = (rng.random((STEPS, ENVS)) < 0.2) & ~truncated
        obs, ahead = rng.normal(size=(2, STEPS, ENVS, 2)).astype(np.float32)
        ahead[:-1] = np.where((terminated | truncated)[:-1, :, None], ahead[:-1], obs[1:])
        windows.append((obs, ahead, terminated, truncated))
    obs, ahead, terminated, truncated = (np.stack(x) for x in zip(*windows, strict=True))
    found = jax.jit(jax.vmap(lambda *window: successor_values(value_of, *window)))
    got = np.asarray(found(ahead, value_of(obs), truncated))
    np.testing.assert_allclose(got[~terminated], value_of(ahead)[~terminated], rtol=1e-5)


def test_a_window_with_one_cut_per_environment_takes_one_pass() -> None:
    passes = 0

    def value_of(obs: Array) -> Array:
        def count(x: Any) -> None:
            nonlocal passes
            passes += 1

        jax.debug.callback(count, obs[0, 0])
        return obs[:, 0]

    run = jax.jit(lambda *window: successor_values(value_of, *window))
    obs, cut = np.zeros((STEPS, ENVS, 2), np.float32), np.zeros((STEPS, ENVS), bool)
    for steps, expected in (((), 1), ((4,), 1), ((4, 8), 2), (range(STEPS), STEPS)):
        cut[list(steps), 1] = True
        passes = 0
        jax.block_until_ready(run(obs, obs[..., 0], cut))
        jax.effects_barrier()
        assert passes == expected


# --- targets of agents ---------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "total_steps": STEPS * ENVS,
    "num_envs": ENVS,
    "num_steps": STEPS,
    "minibatches": 1,
    "epochs": 1,
}
NETS: dict[str, Any] = {"actor": (4,), "critic": (4,)}
BOX = Box((-1.0,), (1.0,), (1,))
CASES = {
    "pqn": (pqn, pqn.Config(**SIZES, hidden=(4,)), pqn.Hypers(reward_scale=1.0), Discrete(3)),
    "ppo": (ppo, ppo.Config(**SIZES, **NETS), ppo.Hypers(), Discrete(3)),
    "mdpo": (mdpo, mdpo.Config(**SIZES, **NETS), mdpo.Hypers(), BOX),
    "pqn_continuous": (
        pqn_continuous,
        pqn_continuous.Config(**SIZES, **NETS),
        pqn_continuous.Hypers(noise_start=0.0),
        BOX,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "pqn_continuous" else n for n in CASES]
)
def test_targets_with_cuts_at_random_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's targets in a rollout are those of a loop over steps and all true successors."""
    module, cfg, hp, space = CASES[name]
    seen: list[np.ndarray] = []
    home = ppo if name == "mdpo" else module

    def spy(fn: Callable[..., Array]) -> Callable[..., Array]:
        def wrapped(*args: Any) -> Array:
            out = fn(*args)
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), out)
            return out

        return wrapped

    advantages = home is ppo
    monkeypatch.setattr(
        home, "gae" if advantages else "lambda_returns", spy(gae if advantages else lambda_returns)
    )
    env, hp = ragged(space), HyperParams(jax.tree.map(jnp.float32, hp))
    agent = module.make(cfg, env.spec)
    source = rollout(env, agent, ENVS, STEPS)

    @jax.jit
    def run(key: Array) -> PyTree:
        keys = jax.random.split(key, 5)
        state = agent.init(keys[0], hp.agent, {})
        src = source.init(keys[1], state, hp, {})
        _, batch, _ = source.next(src, state, hp, {}, keys[2], jnp.int32(0))
        t = batch.transitions
        metrics = agent.update(state, hp.agent, batch, keys[3], jnp.int32(0))[1]
        values = []
        for obs in (t.obs, t.next_obs):
            rows = obs.reshape(-1, 2)
            if advantages:  # of the policies of PPO, which do not record values
                found = ppo.networks(cfg, env.spec).value(state.params["critic"], rows)
            else:
                noise = agent.noise(keys[4], STEPS * ENVS)
                start = jnp.zeros(len(rows), bool)
                found = agent.act(state, hp.agent, rows, start, (), noise, True)[2]["value"]
            values.append(found.reshape(STEPS, ENVS))
        return t, values, metrics  # `metrics` keep the update alive

    t, (value, ahead), _ = jax.device_get(run(jax.random.key(1)))
    jax.effects_barrier()
    assert np.max(np.sum(t.truncated, 0)) > 2 and t.terminated.any()
    expected = oracle(
        t.reward, ahead, t.terminated, t.truncated, float(hp.agent.gamma), float(hp.agent.lam)
    )
    got = seen[0] + value if advantages else seen[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_values_of_an_environment_that_cuts_every_third_step() -> None:
    """Rewards ±1 for ever: values ±1 / (1 - γ), although the declared limit is far away."""

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return (sign, jnp.int32(0)), sign[None]

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        sign, t = state
        return (sign, t + 1), TimeStep(sign[None], sign, jnp.bool_(False), t + 1 >= 3)

    env = Env(EnvSpec("sign", (1,), Discrete(2), 100), {}, reset, step)
    cfg = pqn.Config(
        total_steps=9600, num_envs=4, num_steps=16, minibatches=2, epochs=4, hidden=(16,)
    )
    # Both actions are often tried, since all of them are worth the same.
    tried = {"eps_end": 0.2, "eps_decay": 0.2}
    hp = pqn.Hypers(gamma=0.8, lam=0.5, lr=5e-3, lr_end=0.1, reward_scale=1.0, **tried)
    result = jax.jit(train(pqn.program(cfg, env, evals=1, episodes=1)))(jax.random.key(0), hp)
    obs = jnp.array([[-1.0], [1.0]])
    agent = pqn.make(cfg, env.spec)
    noise = agent.noise(jax.random.key(0), 2)
    value = agent.act(result.state, hp, obs, jnp.ones(2, bool), (), noise, False)[2]["value"]
    np.testing.assert_allclose(value, [-5, 5], atol=1e-3)


# --- limits and flags that rollouts enforce ------------------------------------------------------


def counting(ends: Callable[[Array], tuple[Array, Array]], limit: int | None) -> Env:
    """Observations count the steps of the episode; `ends` gives both flags of the step's count."""

    def reset(key: Array, params: PyTree) -> tuple[Array, Array]:
        return jnp.float32(0), jnp.zeros(1)

    def step(key: Array, state: Array, action: Array, params: PyTree) -> tuple[Array, TimeStep]:
        t = state + 1
        return t, TimeStep(t[None], jnp.float32(1), *ends(t))

    return Env(EnvSpec("counting", (1,), Discrete(2), limit), {}, reset, step)


@pytest.mark.parametrize(
    ("ends", "limit", "terminated", "truncated"),
    [
        (lambda t: (t < 0, t < 0), 4, [], [4, 8, 12]),
        (lambda t: (t == 4, t < 0), 4, [4, 8, 12], []),
        (lambda t: (t == 3, t == 3), None, [3, 6, 9, 12], []),
        (lambda t: (t < 0, t == 3), 100, [], [3, 6, 9, 12]),
    ],
    ids=["limit", "termination at the limit", "both flags", "cut before the limit"],
)
def test_rollouts_end_episodes(ends: Any, limit: Any, terminated: Any, truncated: Any) -> None:
    """At the limit if the environment does not, as terminated if both flags are set."""
    env = counting(ends, limit)
    policy, hp = random_policy(env.spec.action), HyperParams(())
    source, evaluate = rollout(env, policy, 1, 13), evaluator(env, policy, 2)

    @jax.jit
    def run(key: Array) -> PyTree:
        src = source.init(key, (), hp, {})
        batch = source.next(src, (), hp, {}, key, jnp.int32(0))[1]
        return batch.transitions, evaluate((), hp, {}, key)

    t, episodes = run(jax.random.key(0))
    assert [i + 1 for i in np.flatnonzero(t.terminated)] == terminated
    assert [i + 1 for i in np.flatnonzero(t.truncated)] == truncated
    first = (terminated + truncated)[0]
    assert np.all(t.obs[:, 0, 0] == np.arange(13) % first)
    assert episodes.finished.all() and np.all(episodes.lengths == first)


def test_rollouts_of_an_environment_that_violates_the_contract() -> None:
    env = counting(lambda t: (t, t), None)
    source = rollout(env, random_policy(env.spec.action), 1, 2)
    src = jax.eval_shape(source.init, jax.random.key(0), (), HyperParams(()), {})
    with pytest.raises(UserError, match="counting: terminated must be bool of shape"):
        jax.eval_shape(source.next, src, (), HyperParams(()), {}, jax.random.key(0), jnp.int32(0))
