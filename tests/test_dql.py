"""DQL: an update by hand, what it shares with OFQL piece by piece, and a bandit of two modes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, rows, table

from jaxrl import diffusion
from jaxrl.agents import dql
from jaxrl.optim import clip_norm
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Batch, Box, EnvSpec, PyTree, Transition

SIZES: dict[str, Any] = {"hidden": (5,), "embedding": 4, "normalise_obs": False}
CFG = dql.Config(**SIZES, steps=3, backup_actions=3, candidates=4, ema_every=2, ema_start=3)


def begun(agent: Any, hp: Any, data: Transition) -> PyTree:
    """A state whose slow copies are not their originals."""
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": data})
    np.testing.assert_array_equal(state.actor, state.actor_target)
    np.testing.assert_array_equal(state.critic, state.critic_target)
    shift = 0.3 * jax.random.normal(jax.random.key(1), state.critic.shape)
    return state._replace(actor_target=0.7 * state.actor, critic_target=state.critic + shift)


def test_update_by_hand() -> None:
    """Losses row by row, maximising either critic; time limits bootstrap, terminations do not."""
    agent, t = dql.make(CFG, BOX), rows(BOX)
    hp = numbers(dql.Hypers(gamma=0.9, eta=0.7, reward_scale=2.0, reward_shift=-0.5))
    state, update = begun(agent, hp, t), jax.jit(agent.update)
    space = box_scale("dql", BOX)
    policy, net = dql.generator(CFG, BOX, space), dql.value_net(CFG, BOX, space)
    unit = space.unit(t.action)
    twins = lambda critic, obs, action: jnp.stack([net.apply(c, obs, action) for c in critic])

    @jax.jit
    def seen(critic: Array, key: Array) -> tuple[Array, ...]:
        """Q of what enters the losses, and the policy's part; `critic` is the updated one."""
        key_ahead, key_now, key_clone, key_swap = jax.random.split(key, 4)
        ahead = policy.sample(state.actor_target, policy.noise(key_ahead, (8, 3)), t.next_obs)
        chosen = policy.sample(state.actor, policy.noise(key_now, (8,)), t.obs)
        return (
            twins(state.critic_target, t.next_obs, ahead),
            twins(state.critic, t.obs, unit),
            twins(critic, t.obs, chosen),
            chosen,
            policy.cloning(state.actor, hp, unit, t.obs, key_clone),
            jax.random.bernoulli(key_swap),
        )

    swaps = set()
    for key in jax.random.split(jax.random.key(0), 8)[-2:]:
        new, metrics = update(state, hp, Batch(t), key, jnp.int32(4))
        each, taken, q, chosen, held, swap = map(np.asarray, seen(new.critic, key))
        loss = 0.0
        for i in range(8):
            value = min(each[0, i].max(), each[1, i].max())
            y = 2.0 * t.reward[i] - 0.5 + (0.0 if t.terminated[i] else 0.9 * value)
            loss += ((taken[0, i] - y) ** 2 + (taken[1, i] - y) ** 2) / 8
        np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)
        q_actor, q_norm = (q[1], q[0]) if swap else (q[0], q[1])
        want = held - 0.7 * q_actor.mean() / np.abs(q_norm).mean()
        np.testing.assert_allclose(metrics["actor_loss"], want, rtol=1e-4)
        far = np.linalg.norm(chosen - unit, axis=-1).mean()
        np.testing.assert_allclose(metrics["action_distance"], far, rtol=1e-4)
        swaps.add(bool(swap))
    assert swaps == {False, True}


def test_slow_copies() -> None:
    """The policy's moves at every second update from the third on, the critics' at each."""
    agent, t = dql.make(CFG, BOX), rows(BOX)
    hp = numbers(dql.Hypers(tau=0.25, policy_tau=0.4))
    state, update = begun(agent, hp, t), jax.jit(agent.update)
    for step in range(7):
        new, _ = update(state, hp, Batch(t), jax.random.key(step), jnp.int32(step))
        moved = 0.75 * state.critic_target + 0.25 * new.critic
        np.testing.assert_allclose(new.critic_target, moved, atol=1e-6)
        if step in (4, 6):
            moved = 0.6 * state.actor_target + 0.4 * new.actor
            np.testing.assert_allclose(new.actor_target, moved, atol=1e-6)
        else:
            np.testing.assert_array_equal(new.actor_target, state.actor_target)
        state = new


def test_rates_fall_to_their_end() -> None:
    """At the end of the cosine nothing moves where nothing of the rate is left."""
    t = rows(BOX)
    cfg = dql.Config(**SIZES, steps=2, updates=10)
    agent, hp = dql.make(cfg, BOX), numbers(dql.Hypers(lr_end=0.0))
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    update = jax.jit(agent.update)
    for step, still in ((9, False), (10, True)):
        new, _ = update(state, hp, Batch(t), jax.random.key(0), jnp.int32(step))
        for name in ("actor", "critic"):
            assert np.array_equal(getattr(new, name), getattr(state, name)) == still


def test_cloning_is_the_chain_of_one_row_after_another() -> None:
    space = box_scale("dql", BOX)
    policy, net = dql.generator(CFG, BOX, space), dql.timed_net(CFG, BOX, space, 1)
    t, params, key = rows(BOX), policy.init(jax.random.key(0)), jax.random.key(5)
    key_noise, key_index = jax.random.split(key)
    e, i = jax.random.normal(key_noise, (8, 2)), jax.random.randint(key_index, (8,), 0, 3)
    assert len(set(np.asarray(i))) > 1
    bar, total, unit = diffusion.vp_chain(3).alpha_bar, 0.0, space.unit(t.action)
    for row in range(8):
        b = bar[i[row]]
        x = np.sqrt(b) * unit[row] + np.sqrt(1 - b) * e[row]
        guess = net.apply(params, x[None], t.obs[row][None], i[row].astype(jnp.float32)[None])
        total += np.mean((guess[0] - e[row]) ** 2) / 8
    got = policy.cloning(params, dql.Hypers(), unit, t.obs, key)
    np.testing.assert_allclose(got, total, rtol=1e-4)


# --- shared with OFQL ----------------------------------------------------------------------------


def test_backup() -> None:
    """Each critic takes its own best action, and the smaller of both counts."""
    q = jnp.array([[[1.0, 5.0], [0.0, -2.0]], [[4.0, 2.0], [-1.0, 3.0]]])
    np.testing.assert_array_equal(dql.backup(q), [4.0, 0.0])  # min before max: 2, -1


def test_normalised_holds_its_denominator() -> None:
    q, q_norm = jnp.array([1.0, -3.0, 4.0]), jnp.array([2.0, -4.0, 3.0])
    value, slopes = jax.value_and_grad(dql.normalised_q, (0, 1))(q, q_norm)
    np.testing.assert_allclose(value, (2 / 3) / 3, rtol=1e-6)
    np.testing.assert_allclose(slopes[0], np.full(3, 1 / 9), rtol=1e-6)
    np.testing.assert_array_equal(slopes[1], 0)
    same = jax.grad(lambda q: dql.normalised_q(q, q))(q)  # not d/dq of a ratio that is nearly one
    np.testing.assert_allclose(same, np.full(3, 1 / 8), rtol=1e-6)


def test_selection() -> None:
    """Frequencies are softmax(w q); an infinite weight takes the best, whatever the noise."""
    q, w, count = np.float32([0.3, -0.2, 0.8]), 2.0, 20_000
    gumbel = jax.random.gumbel(jax.random.key(0), (count, 3))
    candidates = jnp.broadcast_to(jnp.arange(3.0)[None, :, None], (count, 3, 1))
    scores = jnp.broadcast_to(q[None], (count, 3))
    got = np.asarray(dql.select(candidates, scores, gumbel, w))[:, 0]
    want = np.exp(w * q) / np.exp(w * q).sum()
    np.testing.assert_allclose(np.bincount(got.astype(int)) / count, want, atol=0.015)
    assert (np.asarray(dql.select(candidates, scores, gumbel, jnp.inf)) == 2).all()
    even = np.bincount(np.asarray(dql.select(candidates, scores, gumbel, 0.0))[:, 0].astype(int))
    np.testing.assert_allclose(even / count, 1 / 3, atol=0.015)
    assert (np.asarray(dql.select(candidates, scores, None, 0.0)) == 2).all()


def test_clipping() -> None:
    grads = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(clip_norm(grads, 1.0), grads / 5, rtol=1e-6)
    for largest in (6.0, np.inf):
        np.testing.assert_array_equal(clip_norm(grads, largest), grads)
    np.testing.assert_array_equal(clip_norm(0 * grads, 1.0), 0)


@pytest.mark.parametrize("explore", [True, False])
def test_acting(explore: bool) -> None:
    """The slow policy's candidates, scored by the smaller slow critic; without exploration the best
    of those that are always the same, for a state alike in any row."""
    agent, t = dql.make(CFG, BOX), rows(BOX)
    hp = numbers(dql.Hypers(selection=np.inf if explore else 0.1, temperature=0.5))
    state = begun(agent, hp, t)
    space = box_scale("dql", BOX)
    policy, net = dql.generator(CFG, BOX, space), dql.value_net(CFG, BOX, space)
    noise, start = agent.noise(jax.random.key(5), 8), jnp.ones(8, bool)
    act = jax.jit(agent.act, static_argnames="explore")
    got = act(state, hp, t.obs, start, (), noise, explore=explore)[0]
    fixed = jnp.tile(policy.noise(jax.random.key(0), (1, 4)), (8, 1, 1, 1))
    cooled = np.array([0.5, 1.0, 1.0])[:, None]  # of a chain's three steps the first

    @jax.jit
    def best(begin: Array, obs: Array) -> Array:
        many = jnp.tile(obs[None], (4, 1))
        candidates = policy.sample(state.actor_target, begin, many)
        q = jnp.minimum(*[net.apply(c, many, candidates) for c in state.critic_target])
        return space.scaled(candidates[jnp.argmax(q)][None])[0]

    for i in range(8):
        want = best((noise[0] if explore else fixed)[i] * cooled[None], t.obs[i])
        np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)


def bandit(updates: int, module: Any, cfg: Any, **hypers: Any) -> tuple[Array, Array]:
    """Samples [2, 400] of policies with η = 0 and as given, learnt from one step at two modes.

    Actions -0.7 and 0.7, each ± 0.05, of rewards 0 and 1.
    """
    rng: Any = np.random.default_rng(0)
    side, yes = rng.choice([-1.0, 1.0], 64), np.ones(64, bool)
    action = (0.7 * side + 0.05 * rng.normal(size=64)).astype(np.float32)
    data = table(0 * side, action[:, None], (side + 1) / 2, 0 * side, yes, ~yes)
    spec = EnvSpec("levers", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    agent, plain = module.make(cfg, spec), numbers(module.Hypers(**hypers))
    both = jax.vmap(lambda eta: plain.replace(eta=eta))(jnp.float32([0.0, plain.eta]))
    states = jax.jit(jax.vmap(logged.fit(agent, updates), (0, None)))(both, data)

    @jax.jit
    def act(state: PyTree, hp: Any) -> Array:
        noise, obs = agent.noise(jax.random.key(1), 400), jnp.zeros((400, 1))
        return agent.act(state, hp, obs, jnp.ones(400, bool), (), noise, True)[0][:, 0]

    return jax.vmap(act)(states, both)


LEVERS: dict[str, Any] = {
    "hidden": (32, 32),
    "normalise_obs": False,
    "candidates": 1,
    "ema_start": 0,
    "ema_every": 1,
}


@pytest.mark.slow
def test_bandit_of_two_modes() -> None:
    """Cloning spreads over both, Q leaves the better one."""
    cfg = dql.Config(**LEVERS)
    cloned, climbed = np.asarray(
        bandit(600, dql, cfg, lr=5e-3, actor_lr=5e-3, policy_tau=1.0, eta=1.0)
    )
    assert 0.3 < np.mean(cloned > 0) < 0.7
    assert np.mean(climbed > 0) > 0.95 and np.mean(climbed) > 0.6
