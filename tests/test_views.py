"""Observations of critics alone: who sees what, the contract, and what a hidden number is worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.agents import bc, dqn, ppo, rlpd, sac
from jaxrl.contract import check_env
from jaxrl.envs.names import EnvError
from jaxrl.errors import UserError
from jaxrl.masks import Masked, Views, critic_view, map_obs, unmask
from jaxrl.normalise import include, moments, normalised, standardise
from jaxrl.program import train
from jaxrl.types import Batch, Box, Discrete, Env, EnvSpec, TimeStep, Transition

HIDDEN = [1, 3]  # CartPole's velocities


def coin(seen: bool) -> Env:
    """One step: the reward is a hidden number in {-1, 1}, which critics see if `seen`."""

    def observe(number: jax.Array) -> Any:
        own = jnp.zeros(2)
        return Views(own, number[None]) if seen else own

    def reset(key: jax.Array, params: Any) -> tuple[Any, Any]:
        number = jax.random.rademacher(key, (), jnp.float32)
        return number, observe(number)

    def step(key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, TimeStep]:
        yes, no = jnp.ones((), bool), jnp.zeros((), bool)
        return state, TimeStep(observe(state), state, yes, no)

    spec = EnvSpec("coin", (2,), Discrete(2), 5, critic_shape=(1,) if seen else None)
    return Env(spec, {}, reset, step)


def test_views_of_masks_and_arrays() -> None:
    obs, legal, more = jnp.ones((2, 3)), jnp.ones((2, 4), bool), jnp.zeros((2, 5))
    for own, mask in ((obs, None), (Masked(obs, legal), legal)):
        both = Views(own, more)
        assert unmask(both)[0] is obs and unmask(both)[1] is mask
        assert critic_view(both) is more and critic_view(own) is obs
        doubled = map_obs(lambda x: 2 * x, both)
        assert doubled.critic is more
        np.testing.assert_array_equal(unmask(doubled)[0], 2 * obs)


def test_hide_from_the_policy() -> None:
    """The policy's view is that of `hide`; the critics' is the whole observation."""
    whole, part = envs.make("CartPole-v1"), envs.make("CartPole-v1", hide=HIDDEN)
    env = envs.make("CartPole-v1", hide=HIDDEN, hide_from="policy")
    check_env(env)
    assert env.spec.obs_shape == (2,) and env.spec.critic_shape == (4,)
    key, action = jax.random.key(0), jnp.int32(1)
    results = []
    for each in (env, whole, part):
        state, obs = each.reset(key, each.params)
        results.append((obs, each.step(key, state, action, each.params)[1].next_obs))
    for both, every, seen in zip(*results, strict=True):
        np.testing.assert_array_equal(both.critic, every)
        np.testing.assert_array_equal(both.obs, seen)


def test_what_is_refused() -> None:
    two = envs.make("CartPole-v1", hide=HIDDEN, hide_from="policy")
    with pytest.raises(EnvError, match="must be all or policy, and needs hide"):
        envs.make("CartPole-v1", hide_from="policy")
    with pytest.raises(EnvError, match="must be all or policy"):
        envs.make("CartPole-v1", hide=HIDDEN, hide_from="critic")
    with pytest.raises(EnvError, match="use --agent.normalise-obs"):
        envs.make("CartPole-v1", hide=HIDDEN, hide_from="policy", normalise_obs=True)
    with pytest.raises(EnvError, match="one observation of one axis"):
        envs.make("CartPole-v1", hide=HIDDEN, hide_from="policy", absorbing=True)
    with pytest.raises(UserError, match="use ppo, trpo, mdpo or sac"):
        dqn.program(dqn.Config(), two)
    with pytest.raises(UserError, match="use ppo, trpo, mdpo or sac"):
        rlpd.program(rlpd.Config(), two)
    reach = envs.make("reach", hide=[1], hide_from="policy")
    with pytest.raises(UserError, match="use ppo, trpo, mdpo or sac"):
        bc.program(bc.Config(), reach)
    bare = coin(seen=False)
    lies = Env(EnvSpec("lies", (2,), Discrete(2), 5, critic_shape=(1,)), {}, bare.reset, bare.step)
    with pytest.raises(UserError, match=r"must be Views\(obs, critic\)"):
        check_env(lies)


def test_statistics_of_both_views() -> None:
    """Each view is standardised by its own moments; the trained policy needs its own view only."""
    cfg = ppo.Config(num_envs=3, num_steps=4, minibatches=2, actor=(4,), critic=(4,))
    env = envs.make("CartPole-v1", hide=HIDDEN, hide_from="policy")
    seen: list[Any] = []
    inner = ppo.make(cfg, env.spec)

    def update(state: Any, hp: Any, batch: Any, key: Any, step: Any) -> Any:
        seen.append(batch.transitions.obs)
        return state, {}

    agent = normalised(dataclasses.replace(inner, update=update), env.spec, cfg.num_envs)
    hp = jax.tree.map(jnp.float32, ppo.Hypers())
    state = agent.init(jax.random.key(0), hp, {})
    rng: Any = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(2, 3, shape), jnp.float32)
    obs = Views(draw(4, 3, 2), draw(4, 3, 4))
    flags = jnp.zeros((4, 3), bool)
    window = Transition(obs, flags, draw(4, 3), obs, flags, flags, flags)
    key, zero = jax.random.key(1), jnp.int32(0)
    after, _ = agent.update(state, hp, Batch(window), key, zero)
    for got, x in zip(after.obs, obs, strict=True):
        own = include(moments(x.shape[2:]), x.reshape(12, -1))
        np.testing.assert_allclose(got.mean, own.mean, rtol=1e-6)
    agent.update(after, hp, Batch(window), key, zero)
    for x, found, known in zip(obs, seen[-1], after.obs, strict=True):
        np.testing.assert_allclose(found, standardise(known, x, 10.0), rtol=1e-6)
    one = lambda obs: agent.act(after, hp, obs, flags[0], (), agent.noise(key, 3), False)[0]
    np.testing.assert_array_equal(one(jax.tree.map(lambda x: x[0], obs)), one(obs.obs[0]))


@pytest.mark.slow
def test_critics_learn_what_only_they_see() -> None:
    """PPO's value loss ½ E(r - V)² goes to 0 with the view, and to that of V = 0, ½, without."""
    cfg = ppo.Config(total_steps=40_000, num_envs=32, num_steps=8, minibatches=4)
    losses = []
    for seen in (True, False):
        program = ppo.program(cfg, coin(seen), evals=1, episodes=8)
        result = jax.jit(train(program))(jax.random.key(0), ppo.Hypers(lr=1e-2))
        losses.append(float(result.metrics["agent"]["value_loss"].value[-1]))
    assert losses[0] < 0.01 and 0.45 < losses[1] < 0.55


@pytest.mark.slow
@pytest.mark.parametrize("space", [Discrete(2), Box((-1.0,), (1.0,), (1,))])
def test_critics_of_sac_learn_what_only_they_see(space: Any) -> None:
    """The loss of two critics of the hidden reward goes to 0, by replay as well."""
    env = coin(True)
    env = dataclasses.replace(env, spec=dataclasses.replace(env.spec, action=space))
    sizes: Any = {"num_envs": 8, "batch_size": 64, "capacity": 4_000, "warmup": 200}
    cfg = sac.Config(total_steps=8_000, hidden=(16,), **sizes)
    program = sac.program(cfg, env, evals=1, episodes=8)
    result = jax.jit(train(program))(jax.random.key(0), sac.Hypers(lr=1e-2))
    assert float(result.metrics["agent"]["critic_loss"].value[-1]) < 0.02
