"""Observations of bytes: kept in windows and replay, divided by 255 in networks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import batchnorm, contract, nets
from jaxrl.agents import dqn, ppo, pqn, pqn_rnn
from jaxrl.envs import normalise
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.program import train
from jaxrl.types import Discrete, Env, EnvSpec, HyperParams, TimeStep

SIZES: dict[str, Any] = {"num_envs": 4, "num_steps": 8}
SMALL = {
    "pqn": (pqn, pqn.Config(3_000, minibatches=2, hidden=(16,), conv=(4,), **SIZES)),
    "ppo": (ppo, ppo.Config(3_000, 4, 8, 2, 4, actor=(16,), critic=(16,))),
    "dqn": (
        dqn,
        dqn.Config(3_000, warmup=64, batch_size=64, gradient_steps=4, hidden=(16,), **SIZES),
    ),
}


def bright() -> Env:
    """One step: reward 1 for the action that says whether the image is white."""

    def reset(key: Any, params: Any) -> Any:
        image = jnp.where(jax.random.bernoulli(key), jnp.full((4, 4, 1), 255), 0).astype(jnp.uint8)
        return image, image

    def step(key: Any, state: Any, action: Any, params: Any) -> Any:
        reward = jnp.where(action == (state[0, 0, 0] > 0), 1.0, 0.0)
        return state, TimeStep(state, reward, jnp.ones((), bool), jnp.zeros((), bool))

    spec = EnvSpec("bright", (4, 4, 1), Discrete(2), 1, obs_dtype="uint8")
    return Env(spec, {}, reset, step)


def test_networks_divide_by_255() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    floats = image.astype(np.float32) / 255
    mlp = lambda train=False: nets.MLP((5,), 2)
    net, other = nets.from_linen(mlp(), (4, 4, 1)), batchnorm.from_linen(mlp, (4, 4, 1))
    params = net.init(jax.random.key(0))
    np.testing.assert_array_equal(net.apply(params, image), net.apply(params, floats))
    np.testing.assert_array_equal(
        other.apply(params, {}, image), np.asarray(net.apply(params, floats))
    )
    np.testing.assert_array_equal(*(other.learn(params, {}, x)[0] for x in (image, floats)))


@pytest.mark.parametrize("name", SMALL)
def test_windows_and_replay_keep_bytes(name: str) -> None:
    module, cfg = SMALL[name]
    program = module.program(cfg, bright(), evals=1, episodes=2)
    stage, key, hp = program.stages[0], jax.random.key(0), HyperParams(module.Hypers(), {})

    def one() -> Any:
        state = stage.learner.init(key, hp.agent, {})
        src = stage.source.init(key, state, hp, {})
        return src, stage.source.next(src, state, hp, {}, key, jnp.int32(0))[1]

    src, batch = jax.eval_shape(one)
    assert batch.transitions.obs.dtype == batch.transitions.next_obs.dtype == jnp.uint8
    assert any(x.dtype == jnp.uint8 and x.size >= 64 for x in jax.tree.leaves(src))


def test_refusals() -> None:
    contract.check_env(bright())
    cfg = pqn_rnn.Config(**SIZES, minibatches=2, hidden=(4,))
    with pytest.raises(UserError, match="bytes, which this agent does not support: use pqn"):
        pqn_rnn.program(cfg, bright())
    with pytest.raises(UserError, match="bytes"):
        evaluator(bright(), pqn_rnn.make(cfg, bright().spec), 2)
    with pytest.raises(UserError, match="does not take the bytes of bright"):
        pqn.make(pqn.Config(normalise_obs=True), bright().spec)
    with pytest.raises(UserError, match="does not take the bytes of bright"):
        normalise.normalise(bright(), True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_agents_learn_from_bytes(name: str) -> None:
    module, cfg = SMALL[name]
    run = train(module.program(cfg, bright(), evals=1, episodes=8))
    result = jax.jit(run)(jax.random.key(0), module.Hypers(lr=1e-2))
    assert np.all(np.asarray(result.returns) == 1)
