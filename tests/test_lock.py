"""The combination lock: its rules step by step, observations, and the chance of each guide."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxrl import envs
from jaxrl.envs import EnvError, lock
from jaxrl.evaluate import evaluator
from jaxrl.experiments.data import collect
from jaxrl.types import HyperParams


def test_rules() -> None:
    """Every action in every good and bad state, at an early and at the last step."""
    env = lock.make(horizon=4, seed=3)
    params = env.params | {"noise": jnp.float32(0), "distraction_rate": jnp.float32(1)}
    latent, t, action = (x.reshape(-1) for x in np.meshgrid(range(3), [1, 3], range(10)))
    state = lock.LockState(jnp.asarray(latent, jnp.int32), jnp.asarray(t, jnp.int32))
    logits = 2 * jax.nn.one_hot(jnp.asarray(action), 10) - 1  # else with probability 2e-8
    rotation, right = scipy.linalg.hadamard(8), np.asarray(params["right"])
    for switch in (0.0, 1.0):
        keys = jax.random.split(jax.random.key(0), len(latent))
        step = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))
        found = step(keys, state, logits, params | {"switch": jnp.float32(switch)})
        after, ts = jax.device_get(found)
        for i in range(len(latent)):
            s = latent[i]
            opened = s < 2 and action[i] == right[min(s, 1), t[i]]
            expected = (1 - s if switch else s) if opened else 2
            assert after.latent[i] == expected and after.t[i] == t[i] + 1
            last = t[i] == 3
            earned = (1.0 if opened else 0.1 if s < 2 else 0.0) if last else 0.0
            np.testing.assert_allclose(ts.reward[i], earned)
            assert ts.terminated[i] == last and not ts.truncated[i]
            hot = np.zeros(8)
            hot[expected] = hot[3 + t[i] + 1] = 1
            np.testing.assert_allclose(ts.next_obs[i], rotation @ hot, atol=1e-6)


def test_noise_of_observations() -> None:
    """Deviation 0.1 on the first H + 3 elements before the rotation, none on the others."""
    env = lock.make(horizon=10)
    obs = jax.jit(jax.vmap(lambda key: env.reset(key, env.params)[1]))(
        jax.random.split(jax.random.key(0), 2000)
    )
    inside = np.asarray(obs) @ scipy.linalg.hadamard(16) / 16
    np.testing.assert_allclose(inside[:, 3:13].std(0), 0.1, rtol=0.1)
    np.testing.assert_allclose(inside[:, 13:], 0, atol=1e-5)
    np.testing.assert_allclose(inside[:, :2].sum(1).mean(), 1, atol=0.02)


def test_executed_actions_are_those_of_the_softmax() -> None:
    env = lock.make(horizon=2)
    logits: Any = np.linspace(-0.3, 0.3, 10)
    p = np.exp(logits / 0.1) / np.exp(logits / 0.1).sum()
    keys = jax.random.split(jax.random.key(1), 4000)
    state = lock.LockState(jnp.int32(0), jnp.int32(0))
    step = jax.vmap(env.step, (0, None, None, None))
    after, _ = jax.jit(step)(keys, state, jnp.float32(logits), env.params)
    chance = p[env.params["right"][0, 0]]
    assert abs(np.mean(after.latent < 2) - chance) < 4 * np.sqrt(chance * (1 - chance) / 4000)


@pytest.mark.slow
@pytest.mark.parametrize("level", lock.LEVELS)
def test_guides(level: str) -> None:
    """Return of the guide: 1 of the expert; with stray actions, which are right by chance at 1/10,
    (1 - 0.9 / H)^H, and 0.05 for a last step gone wrong."""
    env, count = lock.make(horizon=5), 4000
    who = collect.of_lock(env)[level][0]
    play = evaluator(who.actor.env, who.actor.policy, count, explore=True)
    returns = np.asarray(jax.jit(play)((), HyperParams(()), {}, jax.random.key(0)).returns)
    ok = 1 - 0.9 / 5 if level == "guided" else 1.0
    expected = ok**5 + 0.05 * ok**4 * (1 - ok)
    assert abs(returns.mean() - expected) < 0.03


def test_made_by_name() -> None:
    env = envs.make("lock", horizon=25)
    assert env.spec.obs_shape == (32,) and env.spec.max_steps == 25
    assert not np.array_equal(
        envs.make("lock", seed=1).params["right"], envs.make("lock").params["right"]
    )
    with pytest.raises(EnvError, match="horizon of lock must be a positive whole number"):
        envs.make("lock", horizon=0)
