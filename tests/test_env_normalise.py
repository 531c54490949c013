"""Normalisation as part of environments: against numpy on all that was seen, over many episodes."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gymnasium import wrappers

from jaxrl import envs
from jaxrl.envs import EnvError, registry
from jaxrl.envs.normalise import normalised_observations, normalised_rewards
from jaxrl.envs.wrappers import hide, sticky_actions, time_limit
from jaxrl.evaluate import evaluator, running
from jaxrl.experiments.data.collect import showing
from jaxrl.exploration import random_policy
from jaxrl.program import MemberState, Stage, eval_key, evaluate_fn
from jaxrl.rollout import rollout
from jaxrl.sources import replay
from jaxrl.types import Box, Env, EnvSpec, HyperParams, Learner, Policy, TimeStep, Transition

ENVS, STEPS, WINDOWS, MEMBERS, GAMMA = 3, 7, 4, 2, 0.9
HP: Any = HyperParams(())


def played(env: Env) -> tuple[Transition, np.ndarray]:
    """Random actions in WINDOWS windows of MEMBERS members, vmapped: transitions [P, T, N, ...] and
    the means of `episode_return` [P, WINDOWS]."""
    source = rollout(env, random_policy(env.spec.action), ENVS, STEPS)

    def one(key: jax.Array) -> Any:
        key_init, key_windows = jax.random.split(key)
        src = source.init(key_init, (), HP, {})

        def window(src: Any, key: jax.Array) -> Any:
            src, batch, metrics = source.next(src, (), HP, {}, key, jnp.int32(0))
            return src, (batch.transitions, metrics["episode_return"].value)

        return jax.lax.scan(window, src, jax.random.split(key_windows, WINDOWS))[1]

    keys = jax.random.split(jax.random.key(0), MEMBERS)
    t, returns = jax.device_get(jax.jit(jax.vmap(one))(keys))
    return jax.tree.map(lambda x: x.reshape(MEMBERS, -1, *x.shape[3:]), t), returns


def streams(t: Transition) -> Any:
    """Each environment's rows in turn."""
    for p in range(MEMBERS):
        for n in range(ENVS):
            yield jax.tree.map(lambda x: x[p, :, n], t)  # noqa: B023


@pytest.fixture(scope="module")
def bare() -> tuple[Transition, np.ndarray]:
    t, returns = played(tiny.walk())
    assert t.terminated.sum() > 5 and t.truncated.sum() > 5
    return t, returns


def test_observations_are_standardised_by_all_before(bare: Any) -> None:
    """Mean and variance of every observation of the environment so far, of all its episodes."""
    env = normalised_observations(tiny.walk(), clip=2.0)
    registry.check_env(env)
    ours, returns = played(env)
    np.testing.assert_array_equal(ours.reward, bare[0].reward)
    np.testing.assert_array_equal(returns, bare[1])
    clipped = 0
    for raw, seen in zip(streams(bare[0]), streams(ours), strict=True):
        so_far: list[np.ndarray] = []

        def standard(obs: np.ndarray) -> np.ndarray:
            so_far.append(obs.astype(np.float64))  # noqa: B023
            every = np.stack(so_far)  # noqa: B023
            return (every[-1] - every.mean(0)) / np.sqrt(every.var(0) + 1e-8)

        now = standard(raw.obs[0])
        np.testing.assert_array_equal(now, 0)
        for i in range(len(raw.obs)):
            np.testing.assert_allclose(seen.obs[i], np.clip(now, -2, 2), rtol=1e-3, atol=1e-4)
            now = standard(raw.next_obs[i])
            clipped += (abs(now) > 2).sum()
            np.testing.assert_allclose(seen.next_obs[i], np.clip(now, -2, 2), rtol=1e-3, atol=1e-4)
            if raw.done[i] and i + 1 < len(raw.obs):
                now = standard(raw.obs[i + 1])
    assert clipped > 3


def test_rewards_are_divided_by_the_deviation_of_returns(bare: Any) -> None:
    """Of the discounted sums in every step of the environment so far, and of 1e-4 of a step of
    mean 0 and variance 1; what is reported stays raw."""
    env = normalised_rewards(tiny.walk(), GAMMA, clip=5.0)
    registry.check_env(env)
    ours, returns = played(env)
    np.testing.assert_array_equal(ours.obs, bare[0].obs)
    np.testing.assert_array_equal(ours.next_obs, bare[0].next_obs)
    np.testing.assert_array_equal(returns, bare[1])
    clipped = 0
    for raw, seen in zip(streams(bare[0]), streams(ours), strict=True):
        total, sums = 0.0, []
        for i, reward in enumerate(raw.reward.astype(np.float64)):
            total = GAMMA * total + reward
            sums.append(total)
            weight = 1e-4 + len(sums)
            mean = np.sum(sums) / weight
            var = (1e-4 + np.sum(np.square(sums))) / weight - mean**2
            scaled = reward / np.sqrt(var + 1e-8)
            clipped += abs(scaled) > 5
            np.testing.assert_allclose(seen.reward[i], np.clip(scaled, -5, 5), rtol=2e-3)
            total = 0.0 if raw.done[i] else total
    assert clipped >= MEMBERS * ENVS  # the first of all


def test_both_at_once_are_both_alone(bare: Any) -> None:
    both, returns = played(normalised_rewards(normalised_observations(tiny.walk()), GAMMA))
    obs = played(normalised_observations(tiny.walk()))[0]
    rewards = played(normalised_rewards(tiny.walk(), GAMMA))[0]
    np.testing.assert_allclose(both.obs, obs.obs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.reward, rewards.reward, rtol=1e-5)
    np.testing.assert_array_equal(returns, bare[1])


def test_a_first_episode_equals_gymnasium_s_wrappers() -> None:
    """But for the weight of the prior, which fades, and for what gymnasium does where one ends."""
    rng = np.random.default_rng(0)
    obs, reward = rng.normal(3, 2, (40, 2)).astype(np.float32), rng.normal(1, 1, 40)

    class Replay(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.t = 0
            return obs[0], {}

        def step(self, action: Any) -> Any:
            self.t += 1
            return obs[self.t], reward[self.t], False, False, {}

    theirs = wrappers.NormalizeReward(wrappers.NormalizeObservation(Replay()), gamma=GAMMA)
    theirs.reset()
    table, rewards = jnp.asarray(obs), jnp.asarray(reward, jnp.float32)

    def reset(key: jax.Array, params: Any) -> Any:
        return jnp.int32(0), table[0]

    def step(key: jax.Array, t: jax.Array, action: jax.Array, params: Any) -> Any:
        no = jnp.zeros((), bool)
        return t + 1, TimeStep(table[t + 1], rewards[t + 1], no, no)

    plain = Env(EnvSpec("replay", (2,), tiny.walk().spec.action), {}, reset, step)
    env = normalised_rewards(normalised_observations(plain, jnp.inf), GAMMA, jnp.inf)
    state, _ = env.reset(jax.random.key(0), {})
    advance = jax.jit(env.step)
    for t in range(39):
        state, ts = advance(jax.random.key(0), state, jnp.int32(0), {})
        seen, earned, *_ = theirs.step(0)
        np.testing.assert_allclose(ts.reward, float(earned), rtol=1e-4)
        if t > 5:
            np.testing.assert_allclose(ts.next_obs, seen, rtol=1e-3, atol=1e-3)


# --- evaluation ----------------------------------------------------------------------------------


def mirror() -> Env:
    """One step; observes a draw around 5, pays the action."""

    def reset(key: jax.Array, params: Any) -> Any:
        obs = 5 + 2 * jax.random.normal(key, (1,))
        return obs, obs

    def step(key: jax.Array, state: jax.Array, action: jax.Array, params: Any) -> Any:
        yes = jnp.ones((), bool)
        return state, TimeStep(state, action[0], yes, ~yes)

    return Env(EnvSpec("mirror", (1,), Box((-9.0,), (9.0,), (1,)), 1), {}, reset, step)


SAYS = Policy(act=lambda state, hp, obs, start, memory, noise, explore: (obs, memory, {}))


@pytest.mark.slow
@pytest.mark.parametrize("nested", [True, False])
def test_evaluation_goes_on_with_the_statistics_of_training(nested: bool) -> None:
    """Paid by what it sees, an episode earns its standardised observation, and that as it is."""
    env = normalised_rewards(normalised_observations(mirror()), GAMMA)
    source = rollout(env, SAYS, ENVS, 20)
    if nested:
        source = replay(source, 60, 4)
    src = source.init(jax.random.key(0), (), HP, {})
    src, *_ = source.next(src, (), HP, {}, jax.random.key(1), jnp.int32(0))
    learner = Learner(init=lambda *_: (), update=lambda state, *_: (state, {}))
    episodes = evaluator(env, SAYS, 5)
    stage = Stage(name="x", learner=learner, source=source, updates=1, evaluate=episodes)
    member = MemberState((), src, HP, jax.random.key(2), {})
    shared = {"inputs": {}, "step": jnp.int32(0)}
    _, found = jax.jit(evaluate_fn(stage))((), {"state": member, "inputs": {}}, shared)

    key = jax.random.split(eval_key(member.key, 0))[0]
    raw = jax.vmap(mirror().reset, (0, None))(jax.random.split(key, 5), {})[1]
    seen = running(src, 5)[0][1]  # type: ignore[index]
    assert float(seen.weight[0]) == (81 if nested else 41) and seen.weight.shape == (5,)
    weight = seen.weight[:, None] + 1
    mean = seen.mean + (raw - seen.mean) / weight
    var = (seen.var * (weight - 1) + (raw - seen.mean) ** 2 * (weight - 1) / weight) / weight
    np.testing.assert_allclose(found.returns, ((raw - mean) / np.sqrt(var))[:, 0], rtol=1e-4)
    assert np.abs(found.returns).max() > 0.1
    alone = jax.jit(episodes)((), HP, {}, jax.random.key(2))
    np.testing.assert_array_equal(alone.returns, 0)  # a first observation of all


# --- putting on and options ----------------------------------------------------------------------


def test_wrappers_around_pass_on_what_outlives_episodes(bare: Any) -> None:
    inner = normalised_observations(tiny.walk())
    wrapped = sticky_actions(time_limit(inner, 3), 0.5)
    registry.check_env(wrapped)
    under = normalised_observations(sticky_actions(time_limit(tiny.walk(), 3), 0.5))
    for a, b in zip(
        jax.tree.leaves(played(wrapped)[0]), jax.tree.leaves(played(under)[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(EnvError, match="hide elements of line before"):
        hide(inner, [0])
    shown = played(showing(inner))[0]
    np.testing.assert_allclose(shown.obs[0], played(inner)[0].obs, rtol=1e-5, atol=1e-6)


def test_options() -> None:
    options = {"normalise_obs": True, "normalise_reward": 0.99, "hide": [1], "sticky": 0.5}
    for name in ("CartPole-v1", "probe:cue"):
        env = envs.make(name, **(options if name == "CartPole-v1" else options | {"hide": []}))
        registry.check_env(env)
        assert env.persist is not None
    off = envs.make("CartPole-v1", normalise_obs=False, normalise_reward=None)
    assert off.persist is None


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"normalise_obs": 0.5}, "normalise_obs of CartPole-v1 must be true or false, got 0.5"),
        ({"normalise_obs": "yes"}, "got 'yes'"),
        (
            {"normalise_reward": True},
            "normalise_reward of CartPole-v1 must be a discount in [0, 1]",
        ),
        ({"normalise_reward": 1.5}, "got 1.5"),
        ({"normalise_reward": float("nan")}, "got nan"),
    ],
)
def test_wrong_options(options: Any, hint: str) -> None:
    with pytest.raises(EnvError) as caught:
        envs.make("CartPole-v1", **options)
    assert hint in str(caught.value) and "\n" not in str(caught.value)
