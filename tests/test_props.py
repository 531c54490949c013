"""PROPS: the loss by hand, sampling errors of a table against on-policy sampling, the buffer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from logged import numbers
from test_ppo import PROBES, check_values, learn_probes

from jaxrl import envs
from jaxrl.agents import ppo, props
from jaxrl.errors import UserError
from jaxrl.experiments.studies import sampling_error
from jaxrl.minibatch import sgd_epochs, sgd_until
from jaxrl.sources import take
from jaxrl.types import Array, HyperParams

TINY: dict[str, Any] = {"num_envs": 2, "num_steps": 4, "minibatches": 2, "epochs": 2}
TINY |= {"sampling_every": 2, "actor": (4,), "critic": (4,)}


# --- the behaviour policy ------------------------------------------------------------------------


def test_sampling_loss() -> None:
    """max(ρ, clip(ρ, 1 ± 0.3)): constant below 0.7, so that no action becomes rarer than that."""
    ratio, held = jnp.array([0.5, 0.9, 2.0, 7.0]), jnp.array([True, True, True, False])
    loss, slope = jax.value_and_grad(props.sampling_loss)(ratio, held, 0.3)
    np.testing.assert_allclose(loss, (0.7 + 0.9 + 2.0) / 3, rtol=1e-6)
    np.testing.assert_allclose(slope, np.array([0, 1, 1, 0]) / 3, rtol=1e-6)


def test_epochs_end_early() -> None:
    """SGD on (x - part)²; the epoch whose last minibatch crosses the limit is the last."""
    loss = lambda x, part: (jnp.sum((x[None] - part) ** 2), {"x": jnp.sum(x)})
    sgd, data = optax.sgd(0.25), jnp.full((4, 1), 8.0)
    args = (loss, (jnp.zeros(1), sgd.init(jnp.zeros(1))), sgd, jax.random.key(0), data)
    x, means, expected = 0.0, [], []
    for _epoch in range(4):
        seen = []
        for _ in range(2):  # minibatches of two equal rows, of gradient 2 · 2 (x - 8)
            seen.append(x)
            x = x + 0.25 * 2 * 2 * (8 - x)
        means.append(np.mean(seen))
        expected.append(x)
        if seen[-1] > 7.0:
            break
    stop = lambda metrics: metrics["x"] > 7.0
    (found, _), metrics = sgd_until(*args, 4, 2, stop)
    np.testing.assert_allclose(found, [expected[-1]])
    np.testing.assert_allclose(metrics["x"], np.mean(means))
    never, _ = sgd_until(*args, 4, 2, lambda metrics: metrics["x"] > np.inf)
    np.testing.assert_array_equal(never[0], sgd_epochs(*args, 4, 2)[0][0])


def test_counts() -> None:
    """State 0: 3/4 of the actions where π has 1/2; state 1: as π. Together 4/6 KL(3/4 || 1/2)."""
    counts = jnp.array([[3.0, 1.0], [1.0, 1.0]])
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(
        sampling_error.kl_of_counts(counts, jnp.zeros((2, 2))), kl * 4 / 6, rtol=1e-5
    )


@pytest.mark.slow
def test_sampling_errors_of_a_table() -> None:
    """PROPS < ROS < on-policy, of which the error is near (A - 1) S / (2 n) for n samples."""
    after, steps, replicas = jnp.array([[1, 1, 1], [0, 0, 0]]), 128, 256
    keys = jax.random.split(jax.random.key(0), replicas)
    hp = numbers(props.Hypers(sampling_lr=0.02, sampling_kl=0.1))
    last = {}
    for method in ("props", "ros", "on_policy"):
        one = lambda key, m=method: sampling_error.errors(key, hp, after, method=m, steps=steps)
        last[method] = np.asarray(jax.vmap(one)(keys))[:, -1]
    print({method: (x.mean(), x.std() / np.sqrt(replicas)) for method, x in last.items()})
    np.testing.assert_allclose(last["on_policy"].mean(), 2 * 2 / (2 * steps), rtol=0.25)
    for better, worse in (("props", "ros"), ("ros", "on_policy")):
        gap = last[worse] - last[better]
        assert gap.mean() > 3 * gap.std() / np.sqrt(replicas), (better, worse)


def test_the_metric_is_the_exact_error_of_a_table() -> None:
    rng: Any = np.random.default_rng(0)
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]]))
    state, sample = jnp.arange(32) % 2, jnp.asarray(rng.integers(0, 4, 32), jnp.int32)
    held = jnp.arange(32) < 24
    policy_of = sampling_error.table_policy
    rows = props.Sampled(state, sample, policy_of(logits, state).log_prob(sample), held)
    found = jax.jit(lambda rows: props.sampling_error(policy_of, logits, rows, 6000))(rows)
    exact = sampling_error.kl_of_counts(jnp.zeros((2, 4)).at[state, sample].add(held), logits)
    assert exact > 0.1
    np.testing.assert_allclose(found, exact, rtol=0.01)


# --- the agent -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_target_rows_of_the_buffer() -> None:
    """Values and log-probabilities of θ, and GAE over the whole stream, in a numpy loop."""
    cfg, env = props.Config(**TINY), tiny.walk()
    model = ppo.networks(cfg, env.spec)
    params = model.init(jax.random.key(0))
    rng: Any = np.random.default_rng(1)
    number = lambda *shape: rng.normal(size=shape).astype(np.float32)
    end = rng.integers(0, 4, (6, 2))
    action = rng.integers(0, 3, (6, 2))
    rest = (number(6, 2), number(6, 2, 2), end == 1, end == 2)
    steps = props.Steps(number(6, 2, 2), action, *rest)
    obs = steps.obs.copy()
    running = ~(end == 2)  # successors are the next observations but for truncations
    steps.next_obs[:-1] = np.where(running[:-1, :, None], obs[1:], steps.next_obs[:-1])
    steps = jax.tree.map(jnp.asarray, steps)
    hp = ppo.Hypers(gamma=0.9, lam=0.7)
    rows = jax.jit(lambda params: props.experience(cfg, model, params, hp, steps))(params)
    value = np.asarray(model.value(params["critic"], steps.obs.reshape(-1, 2))).reshape(6, 2)
    ahead = np.asarray(model.value(params["critic"], steps.next_obs.reshape(-1, 2))).reshape(6, 2)
    advantage = np.zeros((7, 2))
    for t in reversed(range(6)):
        delta = steps.reward[t] + 0.9 * np.where(end[t] == 1, 0, ahead[t]) - value[t]
        done = (end[t] == 1) | (end[t] == 2)
        advantage[t] = delta + 0.63 * np.where(done, 0, advantage[t + 1])
    np.testing.assert_allclose(rows.advantage, advantage[:6].reshape(-1), rtol=1e-4, atol=1e-5)
    log_prob = model.actor.apply(params["actor"], rows.obs).log_prob(rows.sample)
    np.testing.assert_allclose(rows.log_prob, log_prob, rtol=1e-5)


@pytest.mark.slow
def test_order_of_updates() -> None:
    """θ changes at every second update only, φ at every one; both begin as one policy."""
    cfg, env = props.Config(**TINY, total_steps=48), tiny.walk()
    agent = props.make(cfg, env.spec)
    source = props.program(cfg, env, evals=1, episodes=1).stages[0].source
    hp = HyperParams(numbers(props.Hypers()), env.params)
    key = jax.random.key(0)
    state = agent.init(key, hp.agent, {})
    src = source.init(key, state, hp, {})

    @jax.jit
    def one(state: Any, src: Any, step: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(1), step)
        src, batch, _ = source.next(src, state, hp, {}, key, step)
        return *agent.update(state, hp.agent, batch, key, step), src, batch

    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    assert same(state.behaviour, state.params["actor"])
    for step in range(6):
        new, metrics, src, batch = one(state, src, jnp.int32(step))
        assert same(new.params, state.params) == (step % 2 == 0)
        assert not same(new.behaviour, new.params["actor"])
        assert metrics["kl"].weight == step % 2
        slot = take(new.ring, jnp.int32(step % 4))
        np.testing.assert_array_equal(slot.obs, batch.transitions.obs)
        np.testing.assert_array_equal(slot.sample, batch.transitions.extras["sample"])
        state = new


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampling_every": 3}, "sampling_every=3 does not divide num_steps=4"),
        ({"batches": 0}, "batches=0 must be at least 1"),
        ({"sampling_minibatches": 3}, "sampling_minibatches=3 does not divide the buffer of 16"),
        ({"normalise_obs": True}, "a buffer has no running statistics"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        props.make(dataclasses.replace(props.Config(**TINY), **change), envs.make("probe:obs").spec)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["props", "ros", "on_policy"])
def test_probes(sampling: Any) -> None:
    """Values, and the probability of the better action where there is one."""
    cfg = props.Config(
        total_steps=40_000,
        num_envs=1,
        num_steps=128,
        minibatches=4,
        epochs=4,
        sampling=sampling,
        actor=(16,),
        critic=(16,),
    )
    hp = props.Hypers(lr=0.005, gamma=0.8, lam=0.9, entropy_weight=0.0)
    policy, values = learn_probes(props, cfg, hp, PROBES)
    check_values(PROBES, values)
    kinds, p = list(PROBES), np.exp(np.asarray(policy.log_probs))
    assert np.all(p[kinds.index("action"), :, 1, 1] > 0.97)
    assert np.all(p[kinds.index("match"), :, [0, 2], [0, 1]] > 0.97)
