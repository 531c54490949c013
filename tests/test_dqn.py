"""DQN: targets and updates by hand, the target network's schedule, and answers in probes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from medley import medley

from jaxrl import nets, population
from jaxrl.agents import dqn
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.losses import huber, td_target
from jaxrl.types import Array, Batch, Box, Discrete, EnvSpec, HyperParams, Transition

OBS, ACTIONS, BATCH, STEPS = 3, 4, 6, 2
SPEC = EnvSpec("made", (OBS,), Discrete(ACTIONS), 10)
SIZES: dict[str, Any] = {"batch_size": BATCH, "gradient_steps": STEPS, "hidden": (5,)}
NET = nets.flat(nets.from_linen(nets.MLP((5,), ACTIONS), (OBS,)))


def rows(seed: int, count: int = STEPS * BATCH) -> Transition:
    """Folded rows: each with a discount of its own, and NaN behind terminations."""
    rng = np.random.default_rng(seed)
    number = lambda *shape: rng.normal(size=shape).astype(np.float32)
    end = rng.choice(3, count)
    next_obs = np.where((end == 1)[:, None], np.nan, number(count, OBS)).astype(np.float32)
    discount = {"discount": rng.uniform(0.5, 1, count).astype(np.float32)}
    action = rng.integers(0, ACTIONS, count, np.int32)
    t = (number(count, OBS), action, number(count), next_obs, end == 1, end == 2, end == 0)
    return Transition(*map(jnp.asarray, t), extras=jax.tree.map(jnp.asarray, discount))


def hypers(**values: float) -> dqn.Hypers:
    return jax.tree.map(jnp.float32, dqn.Hypers(**values))


def start(hp: dqn.Hypers) -> dqn.State:
    """A state whose target network is not its online network."""
    state = jax.jit(dqn.make(dqn.Config(**SIZES), SPEC).init)(jax.random.key(0), hp, {})
    np.testing.assert_array_equal(state.params, state.target)
    noise = jax.random.normal(jax.random.key(1), state.params.shape)
    return state._replace(target=state.target + 0.5 * noise)


@functools.cache
def updater(**sizes: Any) -> Any:
    return jax.jit(dqn.make(dqn.Config(**SIZES | sizes), SPEC).update)


def target_by_hand(state: dqn.State, params: Array, t: Transition, double: bool) -> np.ndarray:
    """r + discount · Q'(s', argmax Q), a loop over rows; r alone where terminated."""
    online, target = (np.asarray(_q(p, t.next_obs)) for p in (params, state.target))
    values = []
    for i in range(BATCH):
        best = np.argmax((online if double else target)[i])
        ahead = 0.0 if t.terminated[i] else float(t.extras["discount"][i]) * target[i, best]
        values.append(float(t.reward[i]) + ahead)
    return np.array(values, np.float32)


_q = jax.jit(NET.apply)


@jax.jit
def step_by_hand(params: Array, opt: Any, t: Transition, y: Array) -> Any:
    """Clipped Adam on the mean Huber loss of limit 0.7, with optax's own parts."""

    def loss(params: Array) -> Array:
        q = NET.apply(params, t.obs)[jnp.arange(BATCH), t.action]
        return jnp.mean(optax.huber_loss(q, y, delta=0.7))

    value, grads = jax.value_and_grad(loss)(params)
    chain = optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.02))
    change, opt = chain.update(grads, opt, params)
    return optax.apply_updates(params, change), opt, value, jnp.linalg.norm(grads)


@pytest.mark.parametrize("double", [True, False])
def test_update_by_hand(double: bool) -> None:
    hp = hypers(lr=0.02, gamma=0.3, huber=0.7, max_grad_norm=0.3)
    state, t = start(hp), rows(0)
    new, metrics = updater(double=double)(state, hp, Batch(t), jax.random.key(0), jnp.int32(3))
    params, opt, losses, norms = state.params, state.opt, [], []
    for i in range(STEPS):
        part = jax.tree.map(lambda x, i=i: x[i * BATCH : (i + 1) * BATCH], t)
        y = target_by_hand(state, params, part, double)
        params, opt, value, norm = step_by_hand(params, opt, part, y)
        losses.append(value)
        norms.append(norm)
    assert max(norms) > 0.3  # so that clipping counts
    np.testing.assert_allclose(new.params, params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert np.max(np.abs(new.params - state.params)) > 0.01


def test_single_steps_are_discounted_by_gamma() -> None:
    """Rows without a discount of their own: y = r + γ V, and V where a time limit cut."""
    t = rows(1)._replace(extras={})
    value = jnp.arange(12.0)
    expected = [float(r) + (0 if e else 0.3 * v) for r, e, v in zip(*t[2:5:2], value, strict=True)]
    np.testing.assert_allclose(td_target(t, jnp.float32(0.3), value), expected, rtol=1e-5)


def test_target_network_moves_by_the_update_counter() -> None:
    """By the share τ after every third update, and not in between."""
    hp = hypers(tau=0.25)
    update, state = updater(target_every=3), start(hp)
    for step in range(7):
        before = state.target
        state, _ = update(state, hp, Batch(rows(step)), jax.random.key(0), jnp.int32(step))
        moved = before + 0.25 * (state.params - before)
        expected = moved if step in (2, 5) else before
        np.testing.assert_allclose(state.target, expected, rtol=1e-6, atol=1e-7)
    copied, _ = update(state, hypers(tau=1.0), Batch(rows(0)), jax.random.key(0), jnp.int32(8))
    np.testing.assert_allclose(copied.target, copied.params, rtol=1e-6, atol=1e-6)


def test_huber_loss_is_exact_for_any_limit() -> None:
    """Values and slopes: ½ e², and linear beyond; a limit of 1e6 squares all errors."""
    error = jnp.float32([-50.0, -2.0, -0.3, 0.0, 0.5, 1.0, 4.0])
    for limit in (0.4, 1.0, 1e6):
        value, slope = jax.vmap(jax.value_and_grad(huber), (0, None))(error, limit)
        size = np.abs(error)
        expected = np.where(size <= limit, 0.5 * size**2, limit * (size - 0.5 * limit))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(slope, np.clip(error, -limit, limit), rtol=1e-6)


def test_flat_network_is_the_network() -> None:
    net = nets.from_linen(nets.MLP((5,), ACTIONS), (OBS,))
    key, obs = jax.random.key(3), jax.random.normal(jax.random.key(4), (7, OBS))
    params = NET.init(key)
    assert params.ndim == 1
    np.testing.assert_array_equal(NET.apply(params, obs), net.apply(net.init(key), obs))


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"target_every": 0}, "target_every=0 must be at least 1"),
        ({"total_steps": 9}, "total_steps=9 is less than one rollout"),
        ({"capacity": 9_999}, "capacity=9999 holds 999 windows of 10 steps, too few for warmup"),
        ({"conv": (8,)}, "conv=.8,. with kernels=.3,. needs larger images"),
        ({"hidden": (0,)}, "hidden=0"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dqn.make(dqn.Config(**sizes), SPEC)


def test_refuses_boxes() -> None:
    with pytest.raises(UserError, match="dqn needs discrete actions; arm has Box"):
        dqn.make(dqn.Config(), EnvSpec("arm", (3,), Box((-1.0,), (1.0,), (1,))))


# --- probes --------------------------------------------------------------------------------------

GAMMA, SEEDS = 0.8, 2
KINDS = [
    probes.constant(),
    probes.obs(),
    probes.delay(),
    probes.action(),
    probes.match(),
    probes.limit(8),
]


def test_probes() -> None:
    """Q values [observations -1 0 1, actions] of all that can be known; NaN for what is not seen.

    With up to three steps folded: over ends, over the newest step, and over the ring's edge.
    """
    no, far = np.nan, 1 / (1 - GAMMA)
    answers = [
        [[no, no], [1, 1], [no, no]],
        [[-1, -1], [no, no], [1, 1]],
        [[no, no], [GAMMA, GAMMA], [1, 1]],
        [[no, no], [-1, 1], [no, no]],
        [[1, -1], [no, no], [-1, 1]],
        [[no, no], [far, far], [no, no]],
    ]
    cfg = dqn.Config(
        total_steps=6_000,
        num_envs=4,
        num_steps=2,
        gradient_steps=2,
        batch_size=32,
        capacity=600,
        warmup=64,
        n_step=3,
        target_every=5,
        hidden=(16,),
    )
    count = SEEDS * len(KINDS)
    full = lambda x: jnp.full(count, x, jnp.float32)
    hp = HyperParams(
        jax.tree.map(full, dqn.Hypers(lr=0.01, gamma=GAMMA, eps_end=0.3)),
        {"kind": jnp.arange(count) % len(KINDS)},
    )
    plan = population.layout(count, jax.devices()[:1], count)
    program = dqn.program(cfg, medley(KINDS), evals=1, episodes=4)
    train = jax.jit(population.train(program, plan))
    states = train(jax.random.key(0), jnp.arange(count), hp, {}).states["agent"]
    net = nets.flat(nets.from_linen(nets.MLP(cfg.hidden, 2), (1,)))
    shown = jnp.array([-1.0, 0.0, 1.0])[:, None]
    q = np.asarray(jax.jit(jax.vmap(net.apply, (0, None)))(states.params, shown))
    for i, values in enumerate(q):
        expected = np.array(answers[i % len(KINDS)])
        error = np.nanmax(np.abs(values - expected) / np.abs(expected))
        assert error < 0.05, KINDS[i % len(KINDS)].spec.name
