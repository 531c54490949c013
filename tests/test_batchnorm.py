"""Batch norms against flax, numpy and each other; in PQN against a network of flax's own layers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn
from test_pqn import ACTIONS, ENVS, OBS, STEPS, hypers, spec, window
from test_returns import oracle

from jaxrl import batchnorm, nets
from jaxrl.agents import pqn, pqn_rnn
from jaxrl.batchnorm import NORM, RENORM, Rule, Statistics, by_batch, by_running
from jaxrl.envs import probes
from jaxrl.program import train
from jaxrl.types import Array, Batch, HyperParams, PyTree

SHAPES = [(16, 5), (4, 3, 2, 5)]


def batches(shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    """Of means and deviations that differ by feature and drift from batch to batch."""
    rng = np.random.default_rng(0)
    centre, width = rng.normal(size=shape[-1]), rng.uniform(0.2, 3, shape[-1])
    draw = lambda i: rng.normal(centre * (1 + 0.3 * i), width, shape).astype(np.float32)
    return [draw(i) for i in range(count)]


def some_statistics() -> Statistics:
    rng = np.random.default_rng(1)
    mean, var = rng.normal(size=5), rng.uniform(0.5, 2, 5)
    return Statistics(jnp.float32(mean), jnp.float32(var), jnp.int32(7))


# --- the layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_equals_flax(shape: tuple[int, ...]) -> None:
    """Outputs, gradients and running statistics over five batches, and what acting makes of it."""
    rng = np.random.default_rng(2)
    ours = batchnorm.BatchNorm(train=True)
    theirs = nn.BatchNorm(use_running_average=False, use_fast_variance=False)
    params = {"scale": rng.normal(size=5), "bias": rng.normal(size=5)}
    params = jax.tree.map(jnp.float32, params)
    target = jnp.asarray(rng.normal(size=shape), jnp.float32)

    @jax.jit
    def step(stats: PyTree, x: Array) -> Any:
        def loss(module: nn.Module, name: str, params: PyTree, x: Array) -> Any:
            variables = {"params": params, name: stats[name]}
            y, changed = module.apply(variables, x, mutable=[name])
            return jnp.sum(y * target), (y, changed[name])

        kinds = {batchnorm.COLLECTION: ours, "batch_stats": theirs}
        grad = lambda name: jax.grad(
            functools.partial(loss, kinds[name], name), argnums=(0, 1), has_aux=True
        )(params, x)
        return {name: grad(name) for name in kinds}

    first = jnp.zeros(shape)
    stats: Any = {
        batchnorm.COLLECTION: ours.init(jax.random.key(0), first)[batchnorm.COLLECTION],
        "batch_stats": theirs.init(jax.random.key(0), first)["batch_stats"],
    }
    stats[batchnorm.COLLECTION] = {"running": batchnorm.statistics(5)}  # init saw a batch
    stats["batch_stats"] = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    running, x = batchnorm.statistics(5), first
    for x in map(jnp.asarray, batches(shape, 5)):
        found = step(stats, x)
        one, other = found[batchnorm.COLLECTION], found["batch_stats"]
        for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one[1][0], other[1][0], rtol=1e-4, atol=1e-5)
        stats = {name: each[1][1] for name, each in found.items()}
        running = stats[batchnorm.COLLECTION]["running"]
        np.testing.assert_allclose(running.mean, stats["batch_stats"]["mean"], rtol=1e-5)
        np.testing.assert_allclose(running.var, stats["batch_stats"]["var"], rtol=1e-5)
    assert running.batches == 5
    shown = batchnorm.BatchNorm(train=False).apply({"params": params, **stats}, x)
    also = nn.BatchNorm(use_running_average=True).apply({"params": params, **stats}, x)
    np.testing.assert_allclose(shown, also, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


def renormalised(rule: Rule, stats: PyTree, x: np.ndarray) -> tuple[np.ndarray, Any]:
    """By the formulas of the paper, in float64."""
    x = np.float64(x).reshape(-1, x.shape[-1])
    mean, var, batches = stats
    m, v = x.mean(0), x.var(0)
    r, d = np.ones_like(m), np.zeros_like(m)
    if batches >= rule.warmup:
        for i in range(len(m)):
            sigma = np.sqrt(var[i] + rule.eps)
            r[i] = min(max(np.sqrt(v[i] + rule.eps) / sigma, 1 / rule.r_max), rule.r_max)
            d[i] = min(max((m[i] - mean[i]) / sigma, -rule.d_max), rule.d_max)
    out = (x - m) / np.sqrt(v + rule.eps) * r + d
    keep = rule.momentum
    return out, (keep * mean + (1 - keep) * m, keep * var + (1 - keep) * v, batches + 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "rule", [NORM, RENORM._replace(warmup=3), Rule(0.5, 1e-3, 1.2, 0.3, 1)], ids=str
)
def test_batches_against_numpy(rule: Rule, shape: tuple[int, ...]) -> None:
    """Six batches in a row, warm-up included, where some r and d are clipped and some are not."""
    ours, theirs = batchnorm.statistics(5), (np.zeros(5), np.ones(5), 0)
    step = jax.jit(functools.partial(by_batch, rule))
    for x in batches(shape, 6):
        out, ours = step(ours, jnp.asarray(x))
        expected, theirs = renormalised(rule, theirs, x)
        np.testing.assert_allclose(out.reshape(-1, 5), expected, rtol=1e-3, atol=1e-4)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_renorm_without_room_and_in_its_warm_up_is_batch_norm() -> None:
    x, stats = jnp.asarray(batches((16, 5), 1)[0]), some_statistics()
    plain = NORM._replace(eps=RENORM.eps, momentum=RENORM.momentum)
    expected = by_batch(plain, stats, x)
    for rule in (RENORM._replace(r_max=1.0, d_max=0.0, warmup=0), RENORM._replace(warmup=8)):
        jax.tree.map(np.testing.assert_array_equal, by_batch(rule, stats, x), expected)
    after = by_batch(RENORM._replace(warmup=7), stats, x)[0]
    assert np.max(np.abs(after - expected[0])) > 0.1


def test_learning_is_acting_where_nothing_is_clipped() -> None:
    """Renormalised: at any statistics. Plain: once they are those of the batch."""
    x, stats = jnp.asarray(batches((16, 5), 1)[0]), some_statistics()
    wide = RENORM._replace(r_max=1e3, d_max=1e3, warmup=0)
    np.testing.assert_allclose(
        by_batch(wide, stats, x)[0], by_running(wide, stats, x), rtol=1e-4, atol=1e-5
    )
    assert np.max(np.abs(by_batch(NORM, stats, x)[0] - by_running(NORM, stats, x))) > 0.1

    def again(i: int, stats: Statistics) -> Statistics:
        return by_batch(NORM, stats, x)[1]

    stats = jax.lax.fori_loop(0, 2000, again, stats)
    for rule in (NORM, RENORM._replace(warmup=0)):
        np.testing.assert_allclose(
            by_batch(rule, stats, x)[0], by_running(rule, stats, x), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("rule", [NORM, RENORM._replace(warmup=0)], ids=["norm", "renorm"])
def test_gradient_flows_through_the_batch_s_moments_alone(rule: Rule) -> None:
    """Against central differences in float64, with r and d held where they are."""
    x, stats = batches((8, 5), 1)[0], some_statistics()
    target = np.random.default_rng(3).normal(size=(8, 5))
    r, d = batchnorm.correction(rule, stats, jnp.mean(x, 0), jnp.var(x, 0))
    r, d = np.float64(r), np.float64(d)

    def loss(x: np.ndarray) -> float:
        m, v = x.mean(0), x.var(0)
        return float(np.sum(((x - m) / np.sqrt(v + rule.eps) * r + d) ** 2 * target))

    numeric, x64 = np.zeros((8, 5)), x.astype(np.float64)
    for at in np.ndindex(8, 5):
        step = np.zeros((8, 5))
        step[at] = 1e-5
        numeric[at] = (loss(x64 + step) - loss(x64 - step)) / 2e-5
    ours = jax.grad(lambda x: jnp.sum(by_batch(rule, stats, x)[0] ** 2 * jnp.float32(target)))
    np.testing.assert_allclose(ours(jnp.asarray(x)), numeric, rtol=1e-3, atol=1e-4)


# --- in PQN --------------------------------------------------------------------------------------

CFG = pqn.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=1,
    epochs=2,
    hidden=(5,),
    norm="batch",
    norm_input="batch",
)


def flax_net(train: bool) -> nets.MLP:
    layer = functools.partial(nn.BatchNorm, use_running_average=not train)
    return nets.MLP(CFG.hidden, ACTIONS, norm=layer, first=layer)


def flax_statistics(tree: PyTree) -> PyTree:
    """As flax names them."""
    is_ours = lambda x: isinstance(x, Statistics)
    found = jax.tree.map(lambda x: {"mean": x.mean, "var": x.var}, tree, is_leaf=is_ours)
    return {"Torso_0": {name: each["running"] for name, each in found["Torso_0"].items()}}


def randomised(tree: PyTree, size: float) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = lambda x, k: x + size * jnp.abs(jax.random.normal(k, x.shape)) if x.ndim else x
    return jax.tree.unflatten(structure, [noise(x, k) for x, k in zip(leaves, keys, strict=True)])


def test_update_by_hand() -> None:
    """Targets and acting by running statistics, two gradient steps by the batch's, and what the
    statistics are then, with flax's layers in place of ours."""
    agent = pqn.make(CFG, spec(STEPS))
    hp = hypers(lr=0.05, lr_end=1.0, gamma=0.9, lam=0.6, max_grad_norm=0.2, reward_scale=0.5)
    state = jax.jit(agent.init)(jax.random.key(0), hp, {})
    state = state._replace(
        params=randomised(state.params, 0.3), statistics=randomised(state.statistics, 0.5)
    )
    stats = flax_statistics(state.statistics)

    @jax.jit
    def best(obs: Array) -> Array:
        variables = {"params": state.params, "batch_stats": stats}
        q: Any = flax_net(False).apply(variables, obs.reshape(-1, OBS))
        return jnp.max(q, -1).reshape(obs.shape[:-1])

    t = window(0, best)
    acted = jax.jit(agent.act, static_argnames="explore")(
        state,
        hp,
        t.obs[0],
        t.start[0],
        (),
        noise=agent.noise(jax.random.key(0), ENVS),
        explore=True,
    )
    np.testing.assert_allclose(acted[2]["value"], best(t.obs[0]), rtol=1e-4, atol=1e-5)

    new, _ = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(0))
    targets = oracle(0.5 * t.reward, best(t.next_obs), t.terminated, t.truncated, 0.9, 0.6)

    @jax.jit
    def step(params: PyTree, stats: PyTree, opt: PyTree) -> PyTree:
        def loss(params: PyTree) -> Any:
            variables = {"params": params, "batch_stats": stats}
            q, changed = flax_net(True).apply(
                variables, t.obs.reshape(-1, OBS), mutable=["batch_stats"]
            )
            chosen = q[jnp.arange(STEPS * ENVS), t.action.reshape(-1)]
            error = chosen - jnp.float32(targets).reshape(-1)
            return 0.5 * jnp.mean(error**2), changed["batch_stats"]

        grads, stats_after = jax.grad(loss, has_aux=True)(params)
        updates, opt = chain.update(grads, opt, params)
        return optax.apply_updates(params, updates), stats_after, opt

    chain = optax.chain(optax.clip_by_global_norm(0.2), optax.radam(0.05))
    params, opt = state.params, chain.init(state.params)
    for _ in range(CFG.epochs):
        params, stats, opt = step(params, stats, opt)
    pairs = [(new.params, params), (flax_statistics(new.statistics), stats)]
    for ours, theirs in pairs:
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    counts = [x for x in jax.tree.leaves(new.statistics) if x.ndim == 0]
    assert [int(x) for x in counts] == [2, 2]


def test_without_batch_norms_nothing_is_kept() -> None:
    cfg = pqn.Config(hidden=(4,))
    state = jax.eval_shape(pqn.make(cfg, spec(500)).init, jax.random.key(0), hypers(), {})
    assert state.statistics == {}
    bare = pqn.Config(hidden=(4,), norm="none")
    state = jax.eval_shape(pqn.make(bare, spec(500)).init, jax.random.key(0), hypers(), {})
    assert not any("Norm" in name for name in state.params["Torso_0"])


@pytest.mark.slow
def test_recurrent_statistics_are_those_of_whole_windows() -> None:
    """Of the input, over steps and environments of a minibatch; two of these are the whole."""
    env = tiny.walk()
    cfg = pqn_rnn.Config(
        total_steps=12,
        num_envs=4,
        num_steps=3,
        minibatches=2,
        epochs=1,
        hidden=(4,),
        memory=3,
        memory_window=1,
        norm_input="batch_renorm",
        norm="batch",
    )
    agent = pqn_rnn.make(cfg, env.spec)
    stage = pqn_rnn.program(cfg, env, evals=1, episodes=1).stages[0]
    hp = HyperParams(jax.tree.map(jnp.float32, pqn_rnn.Hypers()), env.params)

    @jax.jit
    def play(key: Array) -> Any:
        keys = jax.random.split(key, 3)
        state = agent.init(keys[0], hp.agent, {})
        src = stage.source.init(keys[1], state, hp, {})
        _, batch, _ = stage.source.next(src, state, hp, {}, keys[2], jnp.int32(0))
        return batch, agent.update(state, hp.agent, batch, keys[2], jnp.int32(0))[0]

    batch, state = play(jax.random.key(0))
    seen = batch.transitions.obs
    running = state.statistics["torso"]["BatchNorm_0"]["running"]
    assert seen.shape == (4, 4, 2) and running.batches == 2
    np.testing.assert_allclose(running.mean, 2e-3 * jnp.mean(seen, (0, 1)), rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_probe() -> None:
    """Learns which of two actions fits what it sees, values by running statistics included."""
    env = probes.match()
    cfg = pqn.Config(
        total_steps=400 * 64,
        num_envs=8,
        num_steps=8,
        minibatches=2,
        epochs=2,
        hidden=(16,),
        norm="batch",
        norm_input="batch_renorm",
    )
    hp: Any = HyperParams(
        hypers(lr=0.02, gamma=0.8, eps_end=0.3, reward_scale=1.0),
        env.params,
    )
    program = pqn.program(cfg, env, evals=1, episodes=4)
    state = jax.jit(train(program))(jax.random.key(0), hp).states["agent"]
    assert all(x > 1000 for x in jax.tree.leaves(state.statistics) if x.ndim == 0)
    mlp = lambda train: nets.MLP(cfg.hidden, 2, **pqn.layers(cfg, train))
    net = batchnorm.from_linen(mlp, (1,))
    q = net.apply(state.params, state.statistics, jnp.array([[-1.0], [1.0]]))
    np.testing.assert_allclose(q, [[1, -1], [-1, 1]], atol=0.1)
