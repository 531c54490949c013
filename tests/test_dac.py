"""DAC and AILBoost: discriminators with known answers, the mixture's weights, absorbing states."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from logged import BOX, BUTTONS, numbers, random_state, rows, table

from jaxrl import envs
from jaxrl.adversarial import (
    gradient_penalty,
    logistic_loss,
    mixture,
    mixture_weights,
    reverse_kl_loss,
    rounds_in_ring,
)
from jaxrl.agents import ailboost, dac, sac
from jaxrl.envs import EnvError
from jaxrl.envs.wrappers import absorbing
from jaxrl.errors import UserError
from jaxrl.program import train
from jaxrl.sources import replay
from jaxrl.types import Array, Batch, Discrete, HyperParams, Source, Transition

# --- discriminators ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logistic", "reverse_kl"])
def test_optima_of_tables(kind: str) -> None:
    """Newton's method on values per point. logit D = log d_E / d_π;  g = log d_π / d_E."""
    expert, policy = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 1, 1, 1, 2, 2, 2])
    of = logistic_loss if kind == "logistic" else reverse_kl_loss
    loss = lambda table: of(table[expert], table[policy])
    newton = lambda _, x: x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))
    table = jax.jit(lambda x: jax.lax.fori_loop(0, 12, newton, x))(jnp.zeros(3))
    ratio = np.log(np.array([3, 2, 3]) / np.array([1, 4, 3]))
    np.testing.assert_allclose(table, ratio if kind == "logistic" else -ratio, atol=1e-5)
    if kind == "reverse_kl":
        kl = np.sum(np.array([1, 4, 3]) / 8 * -ratio)
        np.testing.assert_allclose(1 - loss(table), kl, rtol=1e-5)


def test_gradient_penalty_by_hand() -> None:
    """f = w · x + ½ x₀²: slopes w + (x₀, 0) at points between the rows."""
    rng: Any = np.random.default_rng(0)
    a, b, w = (rng.normal(size=s).astype(np.float32) for s in ((6, 2), (6, 2), (2,)))
    key = jax.random.key(1)
    value = lambda x: x @ w + 0.5 * x[:, 0] ** 2
    found = gradient_penalty(value, jnp.asarray(a), jnp.asarray(b), key)
    u = np.asarray(jax.random.uniform(key, (6, 1)))
    x = u * a + (1 - u) * b
    slope = np.stack([w[0] + x[:, 0], np.full(6, w[1])], -1)
    np.testing.assert_allclose(found, np.mean((np.linalg.norm(slope, axis=1) - 1) ** 2), rtol=1e-4)


@pytest.mark.parametrize("spec", [BOX, BUTTONS], ids=lambda spec: spec.name)
def test_inputs(spec: Any) -> None:
    t = jax.tree.map(jnp.asarray, rows(spec))
    inputs_of, size = dac.discriminator_inputs("dac", spec)
    if isinstance(spec.action, Discrete):
        action = np.eye(3)[t.action]
    else:
        action = (t.action - np.array([[0, 2]])) / np.array([[1, 2]])
    np.testing.assert_allclose(inputs_of(t), np.concatenate([t.obs, action], -1), rtol=1e-6)
    assert inputs_of(t).shape == (8, size)


# --- the mixture ---------------------------------------------------------------------------------


def test_weights_of_the_mixture() -> None:
    """π_mix,t = (1 - α) π_mix,t-1 + α π_t, from π_mix,0 = π_0."""
    mix = np.zeros(6)
    mix[0] = 1
    for t in range(4):
        if t:
            mix = 0.7 * mix
            mix[t] += 0.3
        np.testing.assert_allclose(mixture_weights(0.3, jnp.int32(t), 6), mix, atol=1e-6)
        np.testing.assert_allclose(mix.sum(), 1)


def test_mixture_of_a_tabular_mdp() -> None:
    """d_mix of a ring of three states: the buffer with weights has the exact occupancy.

    Policy i turns for i steps, then waits; episodes of four steps begin in state 0. A round has two
    windows of one episode, whose rows are the occupancy of its policy, since nothing is random.
    """
    alpha, every, count, length, warmup = 0.4, 2, 5, 4, 1
    occupancy = np.zeros((count, 3))
    for policy in range(count):
        state = 0
        for t in range(length):
            occupancy[policy, state] += 1 / length
            state = (state + (t < policy)) % 3

    def window(number: Array) -> Transition:
        policy = jnp.maximum(number - warmup, 0) // every
        t = jnp.arange(length)
        state = jnp.minimum(t, policy) % 3
        obs, flag = state.astype(jnp.float32)[:, None, None], jnp.zeros((length, 1), bool)
        return Transition(obs, state[:, None], obs[..., 0], obs, flag, flag, flag)

    def draw(src: Any, learner_state: Any, hp: Any, inputs: Any, key: Any, step: Any) -> Any:
        return src + 1, Batch(window(src)), {}

    def start(key: Any, learner_state: Any, hp: Any, inputs: Any) -> Any:
        return jnp.int32(0)

    inner = Source(init=start, next=draw)
    updates, batch_size = every * count, 4000
    source = mixture(replay(inner, 1000, 2), batch_size, updates, warmup, every)
    hp = HyperParams(ailboost.Hypers(alpha=alpha))
    src = source.init(jax.random.key(0), (), hp, {})
    next = jax.jit(lambda src, step: source.next(src, (), hp, {}, jax.random.key(step), step))
    for step in range(updates):
        src, batch, _ = next(src, jnp.int32(step))
        exact = np.asarray(mixture_weights(alpha, jnp.int32(step // every), count)) @ occupancy
        found = rounds_in_ring(alpha, jnp.int32(step), 250, warmup, every, count)
        rows = (
            np.stack(
                [
                    np.bincount(window(jnp.int32(n)).action[:, 0], minlength=3)
                    for n in range(step + 2)
                ]
            )
            / length
        )
        buffer = sum(
            w * rows[first:end].mean(0)
            for w, first, end in zip(*map(np.asarray, found), strict=True)
            if w
        )
        np.testing.assert_allclose(buffer, exact, atol=1e-6)
        frequency = np.bincount(batch.transitions.action[2:], minlength=3) / batch_size
        np.testing.assert_allclose(frequency, exact, atol=0.035)


def test_rounds_that_left_the_ring() -> None:
    """Five windows of a warm-up of one and rounds of two: round 0 is gone, round 1 has one left."""
    found = rounds_in_ring(0.5, jnp.int32(6), 4, 1, 2, 5)
    np.testing.assert_array_equal(np.asarray(found.first)[1:4], [4, 5, 7])
    np.testing.assert_array_equal(np.asarray(found.end)[1:4], [5, 7, 8])
    np.testing.assert_allclose(found.weight, [0, 0.25 / 1.75, 0.5 / 1.75, 1 / 1.75, 0])


# --- agents --------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "total_steps": 8,
    "gradient_steps": 2,
    "batch_size": 4,
    "capacity": 20,
    "warmup": 6,
    "hidden": (4,),
    "discriminator": (3,),
}


def test_update_by_hand() -> None:
    """The discriminator's step raises its values of demonstrations relative to those of the policy.
    Then SAC's update on rewards of the new discriminator; demonstrations train no policy."""
    spec, cfg = BOX, dac.Config(**SIZES)
    agent, hp = dac.make(cfg, spec), numbers(dac.Hypers(lr=0.01, penalty=0.0))
    state = random_state(agent, hp)
    t = jax.tree.map(jnp.asarray, rows(spec, 16))
    key = jax.random.key(2)
    new, metrics = jax.jit(agent.update)(state, hp, Batch(t), key, jnp.int32(0))
    inputs_of, size = dac.discriminator_inputs("dac", spec)
    mlp = dac.nets.MLP((3,), 1, activation=jnp.tanh)
    net = dac.nets.packed(dac.nets.from_linen(mlp, (size,)))
    own = jax.tree.map(lambda x: x[8:], t)
    value = jax.jit(lambda params: net.apply(params, inputs_of(t))[:, 0])
    before, after = (np.asarray(value(x)) for x in (state.discriminator, new.discriminator))
    gap = lambda value: np.mean(value[:8]) - np.mean(value[8:])
    assert gap(after) > gap(before) + 1e-3
    reward = after[8:]
    np.testing.assert_allclose(metrics["reward"], np.mean(reward), rtol=1e-4)
    base = sac.make(sac.Config(**{k: v for k, v in SIZES.items() if k != "discriminator"}), spec)
    key_learner = jax.random.split(key)[1]
    expected, _ = jax.jit(base.update)(
        state.learner, hp, Batch(own._replace(reward=reward)), key_learner, jnp.int32(0)
    )
    for a, b in zip(jax.tree.leaves(new.learner), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_imitates() -> None:
    """`probe:aim` from demonstrations of its best action, without its rewards."""
    env = envs.make("probe:aim")
    sign: Any = np.where(np.arange(64) % 2, 1.0, -1.0)
    ends: Any = np.ones(64, bool)
    data = table(sign, np.float32(sign[:, None] / 2), np.zeros(64), sign, ends, ~ends)
    cfg = dac.Config(
        total_steps=6_000,
        num_envs=2,
        batch_size=64,
        warmup=200,
        capacity=4_000,
        hidden=(32,),
        discriminator=(32,),
        target_entropy=-2.0,
    )
    hypers = {"lr": 0.003, "tau": 0.05, "penalty": 1.0, "temperature": 0.1}
    hp = numbers(dac.Hypers(**hypers))
    program = dac.program(cfg, env, evals=1, episodes=32)
    result = jax.jit(train(program))(jax.random.key(0), hp, data)
    seen = {name: np.round(float(x.value[-1]), 3) for name, x in result.metrics["agent"].items()}
    assert np.mean(result.returns) > 0.9, seen  # of 1; actions of 0 have 0.75


def test_refused_sizes() -> None:
    with pytest.raises(UserError, match="n_step=3: rewards of a discriminator are one-step"):
        dac.make(dac.Config(**SIZES, n_step=3), BOX)
    with pytest.raises(UserError, match="round_steps=3 must be at least 4"):
        ailboost.make(ailboost.Config(**SIZES, num_steps=4, round_steps=3), BOX)
    with pytest.raises(UserError, match="reward=softplus is none of AILBoost's"):
        ailboost.make(ailboost.Config(**SIZES, reward="softplus"), BOX)


# --- absorbing states ----------------------------------------------------------------------------


def test_absorbing_states() -> None:
    """The walk's own steps until it terminates; then zeros, a mark and no reward, to the limit."""
    env, base = absorbing(tiny.walk()), tiny.walk()
    assert env.spec.obs_shape == (3,)
    keys = jax.random.split(jax.random.key(3), (32, tiny.LIMIT))

    def play(env: Any, key: Any, keys: Any) -> Any:
        state, first = env.reset(key, env.params)
        step = lambda state, key: env.step(key, state, jnp.int32(2), env.params)
        return first, jax.lax.scan(step, state, keys)[1]

    begin = jax.random.split(jax.random.key(4), 32)
    first, got = jax.jit(jax.vmap(lambda *args: play(env, *args)))(begin, keys)
    plain, expected = jax.jit(jax.vmap(lambda *args: play(base, *args)))(begin, keys)
    np.testing.assert_allclose(first[:, :2], plain, rtol=1e-6)
    np.testing.assert_array_equal(first[:, 2], 0)
    over = np.maximum.accumulate(np.asarray(expected.terminated), 1)  # from this step on
    before = np.concatenate([np.zeros((32, 1), bool), over[:, :-1]], 1)
    assert over[:, -1].any() and not over[:, -1].all()
    np.testing.assert_array_equal(got.next_obs[..., 2], over)
    shown = np.where(over[..., None], 0, expected.next_obs)
    np.testing.assert_allclose(got.next_obs[..., :2], shown, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.reward, np.where(before, 0, expected.reward), rtol=1e-5)
    assert not got.terminated.any()
    np.testing.assert_array_equal(got.truncated, expected.truncated & ~over)
    with pytest.raises(EnvError, match="absorbing of probe:aim must be true or false"):
        envs.make("probe:aim", absorbing=1)
    assert envs.make("probe:aim", absorbing=True).spec.obs_shape == (2,)
