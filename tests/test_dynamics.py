"""Ensembles against systems whose numbers are known, and what is kept out, held out and kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import dynamics
from jaxrl.agents.ravl import Hypers
from jaxrl.dynamics import Ensemble
from jaxrl.errors import UserError
from jaxrl.types import Batch, Box, EnvSpec, Transition

SPEC = EnvSpec("cart", (2,), Box((-1.0,), (1.0,), (1,)), 20)
DRIFT = np.array([[0.1, -0.2], [0.3, 0.0], [0.2, 0.4]], np.float32)  # s' - s = [s, a] DRIFT + noise
NOISE = np.array([0.05, 0.2, 0.1], np.float32)  # of both observations and the reward
SMALL = Ensemble(members=3, elites=2, hidden=(16,), batch_size=32, patience=8)


def linear(rows: int, seed: int = 0) -> Transition:
    """A linear system with normal noise; an episode ends where its first element exceeds 1."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows, 2)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    noise = (NOISE * rng.normal(size=(rows, 3))).astype(np.float32)
    after = obs + np.concatenate([obs, action], 1) @ DRIFT + noise[:, :2]
    reward = 2 * action[:, 0] + noise[:, 2]
    never: Any = np.zeros(rows, bool)
    return Transition(obs, action, reward, after, obs[:, 0] > 1, never, never)


def trained(cfg: Ensemble, data: Transition, epochs: int, lr: float = 0.01) -> list[Any]:
    """States after each epoch, the first one before any."""
    learner, hp = dynamics.ensemble(cfg, SPEC), Hypers(model_lr=lr)
    data = jax.tree.map(jnp.asarray, data)
    states = [jax.jit(learner.init)(jax.random.key(0), hp, {"data": data})]
    update = jax.jit(learner.update)
    for i in range(epochs):
        key = jax.random.fold_in(jax.random.key(1), i)
        states.append(update(states[-1], hp, Batch(data), key, jnp.int32(i))[0])
    return states


@pytest.fixture(scope="module")
def learnt() -> Any:
    return trained(SMALL, linear(2000), 40)


def test_recovers_a_linear_system(learnt: Any) -> None:
    """Means, deviations and terminations, from steps that the model makes.

    Deviations settle later than the means, by whose error learning stops: a few per cent too large.
    """
    state, n = learnt[-1], 4000
    obs, action = np.array([[0.5, -0.8]], np.float32), np.array([[0.3]], np.float32)
    step = jax.jit(dynamics.model(SMALL, SPEC).step)
    many = lambda x: jnp.repeat(jnp.asarray(x), n, 0)
    world, out = step({"dynamics": state}, {}, (), many(obs), many(action), jax.random.key(2))
    assert world == () and not out.truncated.any() and not out.terminated.any()
    expected = np.concatenate([obs + np.concatenate([obs, action], 1) @ DRIFT, [[0.6]]], 1)[0]
    drawn = np.concatenate([out.next_obs, out.reward[:, None]], 1)
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.05)
    np.testing.assert_allclose(drawn.std(0), NOISE, rtol=0.2)
    largest = np.linalg.norm(NOISE)
    assert 0.9 * largest < out.uncertainty[0] < 1.2 * largest
    _, out = step({"dynamics": state}, {}, (), many(obs + 1), many(action), jax.random.key(2))
    assert out.terminated.all()


def test_steps_are_drawn_from_the_elites(learnt: Any) -> None:
    """Networks that say where they are: only the elites' numbers come out, all of them alike."""
    state = learnt[-1]
    params = jnp.zeros_like(state.best.params)
    params = params.at[:, -7].set(jnp.array([10.0, 20.0, 30.0]))  # the bias of the first mean
    nets = state.best._replace(params=params)
    state = state._replace(best=nets, elites=jnp.array([2, 0]))
    step = jax.jit(dynamics.model(SMALL, SPEC).step)
    obs, action = jnp.zeros((1000, 2)), jnp.zeros((1000, 1))
    _, out = step({"dynamics": state}, {}, (), obs, action, jax.random.key(0))
    who = np.rint(out.next_obs[:, 0] / 10)
    assert set(who) == {1, 3}
    assert 400 < (who == 1).sum() < 600


def test_rewards_and_ends_may_be_given() -> None:
    cfg = Ensemble(
        hidden=(4,),
        reward=lambda obs, action, after: after[:, 0],
        terminated=lambda obs, action, after: after[:, 1] > 0,
    )
    state = trained(cfg, linear(8), 0)[0]
    assert state.best.bounds.shape == (7, 2, 2)
    obs, action = jnp.ones((50, 2)), jnp.zeros((50, 1))
    step = jax.jit(dynamics.model(cfg, SPEC).step)
    _, out = step({"dynamics": state}, {}, (), obs, action, jax.random.key(0))
    np.testing.assert_array_equal(out.reward, out.next_obs[:, 0])
    np.testing.assert_array_equal(out.terminated, out.next_obs[:, 1] > 0)


def test_elites_and_best_weights_follow_the_held_rows(learnt: Any) -> None:
    """By a loop: which weights are kept, which losses, when learning stops."""
    data = linear(2000)
    fixed = learnt[0]
    held = np.asarray(fixed.order)[:400]
    assert fixed.held == 400 and fixed.known == 2000
    assert sorted(np.asarray(fixed.order)) == list(range(2000))
    x = np.concatenate([data.obs, data.action], 1)
    x = np.clip((x - x.mean(0)) / x.std(0), -10, 10)[held]
    y = np.concatenate([data.next_obs - data.obs, data.reward[:, None]], 1)[held]
    shapes = dynamics.sizes(SMALL, SPEC)
    apply = jax.jit(lambda nets, x: dynamics.apply(shapes, nets, x))
    best, waiting, kept = np.full(3, np.inf), 0, [np.zeros(0)] * 3
    for before, state in zip(learnt, learnt[1:], strict=False):
        if waiting == SMALL.patience:
            np.testing.assert_array_equal(state.nets.params, before.nets.params)
            continue
        inputs = jnp.broadcast_to(jnp.float32(x), (3, *x.shape))
        error = np.mean((np.asarray(apply(state.nets, inputs)[0]) - y) ** 2, (1, 2))
        better = error < 0.99 * best
        best = np.where(better, error, best)
        waiting = 0 if better.any() else waiting + 1
        for i in np.flatnonzero(better):
            kept[i] = np.asarray(state.nets.params)[i]
        np.testing.assert_allclose(state.loss, best, rtol=1e-4)
        np.testing.assert_array_equal(state.elites, np.argsort(best)[:2])
        assert state.waiting == waiting
    assert waiting == SMALL.patience, "never stopped: nothing was tested"
    np.testing.assert_array_equal(np.stack(kept), learnt[-1].best.params)


def test_rows_before_resets_are_kept_out() -> None:
    """Rows whose successor is another episode's first observation are far off: none is seen."""
    data = linear(60)
    known = np.arange(60) % 3 != 0
    data.next_obs[~known] = 1e6
    state = trained(SMALL, data._replace(extras={"next_known": jnp.asarray(known)}), 2)[-1]
    assert state.known == 40 and state.held == 8
    assert not known[np.asarray(state.order)[40:]].any()
    assert state.loss.max() < 100
    astray = trained(SMALL, data, 2)[-1]
    assert astray.loss.min() > 1e9


def test_networks_see_samples_of_their_own() -> None:
    """With replacement, the same in every epoch: about 1 - 1/e of the rows, others for others."""
    learner, rows, seen = dynamics.ensemble(SMALL, SPEC), 500, []
    data = jax.tree.map(jnp.asarray, linear(rows))
    examples = dynamics.examples

    def spy(cfg: Ensemble, inputs: Any, data: Transition, taken: jax.Array) -> Any:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), taken)
        return examples(cfg, inputs, data, taken)

    hp = Hypers()
    state = learner.init(jax.random.key(0), hp, {"data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "examples", spy)
        update = jax.jit(learner.update)
        epochs = []
        for i in range(2):
            seen.clear()
            state, _ = update(state, hp, Batch(data), jax.random.key(i), jnp.int32(i))
            jax.effects_barrier()
            epochs.append(np.concatenate([x for x in seen if len(x) == 3], 1))
    first, second = epochs
    held = set(np.asarray(state.order)[:100])
    assert first.shape == (3, 13 * 32)  # the 400 others, rounded up to whole batches
    for i in range(3):
        np.testing.assert_array_equal(np.sort(first[i]), np.sort(second[i]))
        assert not np.array_equal(first[i], second[i])
        assert not held & set(first[i])
        assert 0.55 < len(set(first[i])) / 400 < 0.75
    assert len({tuple(np.sort(x)) for x in first}) == 3


def test_soft_clamp() -> None:
    x, low, high = jnp.linspace(-50, 50, 101), jnp.float32(-10), jnp.float32(0.5)
    y = dynamics.soft_clamp(x, low, high)
    assert y.min() >= -10 and y.max() < 0.5 + 1e-4 and (np.diff(y) >= 0).all()
    np.testing.assert_allclose(y[45:47], x[45:47], atol=0.02)  # from -5 to -4: as they are


def test_loss_by_hand() -> None:
    """With log-variances, the log-loss of ends, bounds and decay by layer, in numpy."""
    cfg = Ensemble(members=2, elites=1, hidden=(4, 4), batch_size=4)
    shapes = dynamics.sizes(cfg, SPEC)
    nets = dynamics.begin(shapes, 2, jax.random.key(0))
    found = jax.device_get(dynamics.layers(shapes, nets.params))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3))
    ends = rng.integers(0, 2, (2, 5))
    silu = lambda z: z / (1 + np.exp(-z))
    total = 0.0
    for e in range(2):
        w = [np.float64(weight[e]) for weight, _ in found]
        out = silu(silu(x[e] @ w[0]) @ w[1]) @ w[2]
        mean, log_var, logit = out[:, :3], out[:, 3:6], out[:, 6]
        log_var = 0.5 - np.log1p(np.exp(0.5 - log_var))
        log_var = -10 + np.log1p(np.exp(log_var + 10))
        total += np.mean(log_var + (mean - y[e]) ** 2 / np.exp(log_var))
        p = 1 / (1 + np.exp(-logit))
        total -= np.mean(ends[e] * np.log(p) + (1 - ends[e]) * np.log(1 - p))
        total += sum(0.5 * c * (v**2).sum() for c, v in zip((2.5e-5, 5e-5, 1e-4), w, strict=True))
    total += 0.01 * (3 * 0.5 + 3 * 10)
    got = dynamics.loss(shapes, nets, jnp.float32(x), jnp.float32(y), jnp.float32(ends))
    np.testing.assert_allclose(got, total, rtol=1e-5)


def test_elites_are_networks() -> None:
    with pytest.raises(UserError, match="elites=3 of only 2 models"):
        dynamics.ensemble(Ensemble(members=2, elites=3), SPEC)


@pytest.mark.slow
def test_a_constant_element_beside_others_disturbs_nothing() -> None:
    """Eight imagined steps of x' = 0.9 x + 0.3 a beside a constant: as good at 273.15 as at 0."""
    step = jax.jit(dynamics.model(SMALL, SPEC).step)

    def error(constant: float) -> float:
        rng = np.random.default_rng(0)
        follow = lambda x, a: 0.9 * x + 0.3 * a
        seen = lambda x: jnp.stack([x, jnp.full_like(x, constant)], 1)
        x, a = (jnp.asarray(rng.uniform(-1, 1, 1000), jnp.float32) for _ in range(2))
        never: Any = np.zeros(1000, bool)
        data = Transition(seen(x), a[:, None], a, seen(follow(x, a)), never, never, never)
        state = trained(SMALL, data, 60)[-1]
        true = x[:200]
        obs = seen(true)
        for i in range(8):
            action = jnp.asarray(rng.uniform(-1, 1, 200), jnp.float32)
            key = jax.random.key(i)
            obs = step({"dynamics": state}, {}, (), obs, action[:, None], key)[1].next_obs
            true = follow(true, action)
        return float(jnp.mean(jnp.abs(obs[:, 0] - true)))

    plain, offset = error(0.0), error(273.15)
    assert offset < 0.1 and offset < 2 * plain, (plain, offset)
