"""Uni-O4: the diversity of clones, values in a model with known answers, and the gate."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.flatten_util import ravel_pytree
from logged import BOX, numbers, rows

from jaxrl import nets
from jaxrl.agents import ppo, uni_o4
from jaxrl.cloning import cloning_losses, diverse_clones
from jaxrl.distributions import Normal
from jaxrl.errors import UserError
from jaxrl.imagination import Model, Outcome
from jaxrl.ope.imagined import imagined_q
from jaxrl.program import train
from jaxrl.spaces import box_scale
from jaxrl.types import Batch

SIZES: dict[str, Any] = {
    "updates": 8,
    "critic_updates": 4,
    "clone_updates": 4,
    "batch_size": 4,
    "hidden": (4,),
    "actor": (4,),
    "critic": (4,),
    "policies": 2,
    "gate_every": 2,
    "gate_starts": 3,
    "gate_steps": 3,
    "models": 2,
    "elites": 1,
    "model_hidden": (4,),
    "model_epochs": 2,
    "share_dynamics": False,
}


def normals(rng: Any, count: int, size: int) -> Normal:
    number = lambda: jnp.asarray(rng.normal(size=(count, size, 2)), jnp.float32)
    return Normal(number(), 0.3 * number())


def kl(p: Any, q: Any) -> float:
    """Of two pairs of mean and deviation [A] each."""
    (m, s), (n, r) = p, q
    return float(np.sum(np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5))


def test_cloning_losses_by_hand() -> None:
    """Each policy is held apart from the one most likely to take the row's action, if another."""
    rng: Any = np.random.default_rng(0)
    dists, sample = normals(rng, 3, 5), jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    found, divergence = cloning_losses(dists, sample, 0.7)
    mean = np.asarray(dists.mean, np.float64)
    std = np.exp(np.asarray(dists.log_std, np.float64))
    log_prob = np.zeros((3, 5))
    for i in range(3):
        for b in range(5):
            z = (np.asarray(sample[b]) - mean[i, b]) / std[i, b]
            log_prob[i, b] = np.sum(-0.5 * z**2 - np.log(std[i, b]) - 0.5 * np.log(2 * np.pi))
    best = log_prob.argmax(0)
    apart = [
        np.mean([kl((mean[i, b], std[i, b]), (mean[j, b], std[j, b])) for b, j in enumerate(best)])
        for i in range(3)
    ]
    assert len(set(best)) > 1
    np.testing.assert_allclose(divergence, apart, rtol=1e-4)
    np.testing.assert_allclose(found, -log_prob.mean(1) - 0.7 * np.array(apart), rtol=1e-4)


def test_the_most_likely_policy_is_constant() -> None:
    """Its own mean has the gradient of cloning alone; the others' have that of the divergence."""
    rng: Any = np.random.default_rng(1)
    dists, sample = normals(rng, 2, 1), jnp.zeros((1, 2))

    def slope(diversity: float) -> Any:
        loss = lambda mean: jnp.sum(cloning_losses(dists._replace(mean=mean), sample, diversity)[0])
        return np.asarray(jax.grad(loss)(dists.mean))

    best = int(np.argmax(dists.log_prob(sample[None])[:, 0]))
    change = slope(1.0) - slope(0.0)
    np.testing.assert_allclose(change[best], 0, atol=1e-6)
    away = dists.mean[1 - best] - dists.mean[best]
    expected = -away * np.exp(-2 * np.asarray(dists.log_std[best]))
    np.testing.assert_allclose(change[1 - best], expected, rtol=1e-4)


@pytest.mark.slow
def test_disagreement_rises_with_diversity() -> None:
    t = jax.tree.map(jnp.asarray, rows(BOX, 64))
    model = ppo.networks(ppo.Config(actor=(16,)), BOX)
    learner = diverse_clones(model.actor, box_scale("clones", BOX), 4)

    @jax.jit
    @jax.vmap
    def spread(diversity: Any) -> Any:
        hp = numbers(uni_o4.Hypers(clone_lr=0.01)).replace(diversity=diversity)
        state = learner.init(jax.random.key(0), hp, {})
        step = lambda i, state: learner.update(state, hp, Batch(t), jax.random.key(0), i)[0]
        state = jax.lax.fori_loop(0, 300, step, state)
        mean = jax.vmap(model.actor.apply, (0, None))(state.actor, t.obs).mean
        return jnp.mean(jnp.std(mean, 0))

    found = np.asarray(spread(jnp.array([0.0, 0.1, 0.3])))
    print(found)
    assert (np.diff(found) > 0.01).all()


def test_values_in_a_known_model() -> None:
    """s' = s + a until |s| > 2; the mean of Q = s + 10 a over steps before the end, in a loop."""

    def step(inputs: Any, hp: Any, world: Any, obs: Any, action: Any, key: Any) -> Any:
        after = obs + action
        zero, no = jnp.zeros(len(obs)), jnp.zeros(len(obs), bool)
        return world, Outcome(after, zero, jnp.abs(after[:, 0]) > 2, no, zero)

    world, starts = Model(start=lambda data: (), step=step), np.array([[-1.0], [0.5], [1.9]])
    act = lambda obs: 0.5 + 0.25 * obs
    q_of = lambda obs, action: (obs + 10 * action)[:, 0]
    found = imagined_q(world, {}, act, q_of, jnp.asarray(starts), jax.random.key(0), 6)
    values = []
    for s in starts[:, 0]:
        for _ in range(6):
            a = 0.5 + 0.25 * s
            values.append(s + 10 * a)
            s = s + a
            if abs(s) > 2:
                break
    assert len(values) < 18
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)


@pytest.mark.slow
def test_stages_and_gate() -> None:
    """Clones begin the offline stage, values of the behaviour never fall with the gate, and online
    PPO begins with the best policy and the value network of the critics."""
    env = tiny.glide()
    data = jax.tree.map(jnp.asarray, rows(env.spec, 12))
    cfg = uni_o4.Config(**SIZES, finetune_steps=8, num_envs=2, num_steps=4, minibatches=2)
    program = uni_o4.program(cfg, env, evals=4, episodes=3)
    hp = numbers(uni_o4.Hypers(offline_lr=0.05, lr=0.0))
    result = jax.jit(train(program))(jax.random.key(0), hp, data)
    seen = result.metrics["offline"]["am_q_best"].value
    assert (np.diff(seen) >= 0).all()
    offline, online = result.states["offline"], result.states["online"]
    best = int(np.argmax(offline.score))
    kept = nets.pick(offline.behaviour, best)
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    vector = lambda params: ravel_pytree(params)[0]
    assert same(vector(online.params["actor"]), kept)  # the learning rate is 0
    assert same(vector(online.params["critic"]), result.states["critics"].value)
    assert not same(offline.behaviour, result.states["clones"].actor)
    free = uni_o4.make(dataclasses.replace(cfg, gate="none"), env.spec)
    inputs = {"data": data} | {name: result.states[name] for name in ("critics", "clones")}
    state = free.init(jax.random.key(0), hp, inputs | {"dynamics": result.states["dynamics"]})
    high = state._replace(score=jnp.full(2, 1e9))
    update = jax.jit(free.update)
    after, _ = update(high, hp, Batch(data), jax.random.key(1), jnp.int32(0))
    assert same(after.behaviour, after.actor)
    gated = jax.jit(uni_o4.make(cfg, env.spec).update)
    after, _ = gated(high, hp, Batch(data), jax.random.key(1), jnp.int32(0))
    assert same(after.behaviour, high.behaviour) and not same(after.actor, high.actor)


def test_refused_sizes() -> None:
    with pytest.raises(UserError, match="finetune_steps=3 is less than one rollout of 8 steps"):
        cfg = uni_o4.Config(**SIZES, finetune_steps=3, num_envs=2, num_steps=4, minibatches=2)
        uni_o4.make(cfg, BOX)
    with pytest.raises(UserError, match="gate_every=0 must be at least 1"):
        uni_o4.make(dataclasses.replace(uni_o4.Config(**SIZES), gate_every=0), BOX)
