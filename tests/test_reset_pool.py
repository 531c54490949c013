"""Pools of initial states that the environments of a rollout share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.agents import ppo
from jaxrl.envs import EnvError
from jaxrl.errors import UserError
from jaxrl.exploration import random_policy
from jaxrl.rollout import pool_size, rollout
from jaxrl.types import Discrete, Env, EnvSpec, HyperParams, TimeStep

N, T = 4, 24


def lottery() -> Env:
    """Observations are a number drawn by `reset`; action 1 of two ends the episode."""

    def reset(key, params):
        number = jax.random.uniform(key, (1,))
        return number, number

    def step(key, state, action, params):
        no = jnp.zeros((), bool)
        return state, TimeStep(state, jnp.float32(0), action == 1, no)

    return Env(EnvSpec("lottery", (1,), Discrete(2)), {}, reset, step)


def starts(env: Env, resets: int | None = None) -> np.ndarray:
    """The first observations of the episodes that begin in a window, in order."""
    source = rollout(env, random_policy(Discrete(2)), N, T, resets=resets)
    hp = HyperParams((), {})

    @jax.jit
    def window(key):
        src = source.init(key, (), hp, {})
        src, batch, _ = source.next(src, (), hp, {}, key, jnp.int32(0))
        return src.obs, batch.transitions

    last, t = window(jax.random.key(1))
    after = np.concatenate([np.asarray(t.obs), np.asarray(last)[None]])[1:, :, 0]
    return after[np.asarray(t.terminated)]


def test_the_kth_end_takes_state_k_modulo_the_pool():
    found = starts(dataclasses.replace(lottery(), reset_pool=5))
    assert len(found) > 30 and len(set(found[:5].tolist())) == 5
    np.testing.assert_array_equal(found, found[np.arange(len(found)) % 5])


def test_every_episode_has_its_own_state_without_a_pool():
    off = starts(lottery())
    assert len(set(off.tolist())) == len(off) > 30
    np.testing.assert_array_equal(off, starts(dataclasses.replace(lottery(), reset_pool=0)))


def test_default_counts_bytes():
    def size(env: Env, floats: int, envs: int, steps: int) -> int:
        return pool_size(env, jax.ShapeDtypeStruct((envs, floats), jnp.float32), envs, steps)

    env = lottery()
    assert size(env, 2**12, 8, 100) == 0 and size(env, 2**12 + 1, 8, 100) == 8
    assert size(env, 2**8, 2**10, 2**10) == 0 and size(env, 2**8, 2**10, 2**10 + 1) == 2**10
    assert size(dataclasses.replace(env, reset_pool=0), 2**20, 8, 100) == 0
    assert size(dataclasses.replace(env, reset_pool=3), 1, 8, 100) == 3


def test_options():
    assert envs.make("CartPole-v1").reset_pool is None
    for value in (0, 7):
        assert envs.make("CartPole-v1", reset_pool=value).reset_pool == value
        assert envs.make("probe:obs", reset_pool=value).reset_pool == value
    with pytest.raises(EnvError, match="reset_pool of CartPole-v1 must be a positive"):
        envs.make("CartPole-v1", reset_pool=-1)
    cfg = ppo.Config(num_envs=2, num_steps=4, minibatches=1, actor=(4,), critic=(4,), resets=2)
    with pytest.raises(UserError, match="resets=2 and reset_pool=7: set one"):
        ppo.program(cfg, envs.make("CartPole-v1", reset_pool=7))
