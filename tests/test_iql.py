"""IQL: losses against their closed forms, an update by hand, and data whose answers are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, BUTTONS, numbers, rows, table

from jaxrl import heads, losses, nets
from jaxrl.agents import iql
from jaxrl.errors import UserError
from jaxrl.optim import cosine
from jaxrl.types import Batch, Box, Discrete, EnvSpec

SPECS = {"box": BOX, "discrete": BUTTONS}
SIZES: dict[str, Any] = {"batch_size": 8, "hidden": (5,)}

every_space = pytest.mark.parametrize("kind", SPECS)


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9, 0.999])
def test_expectile_of_a_sample(tau: float) -> None:
    """Newton's minimiser against the root of Σ |τ - 1[x < m]| (x - m) = 0, found by bisection."""
    sample = np.random.default_rng(0).normal(size=50)
    low, high, m = sample.min(), sample.max(), 0.0
    for _ in range(60):
        m = (low + high) / 2
        pull = np.sum(np.where(sample < m, 1 - tau, tau) * (sample - m))
        low, high = (m, high) if pull > 0 else (low, m)
    x = jnp.float32(sample)
    slope = jax.grad(lambda m: losses.expectile_loss(x - m, tau))
    found = jnp.float32(0)
    for _ in range(20):  # the loss is piecewise quadratic
        found = found - slope(found) / (2 * jnp.mean(jnp.where(x < found, 1 - tau, tau)))
    np.testing.assert_allclose(found, m, atol=1e-5)
    if tau == 0.5:
        np.testing.assert_allclose(found, sample.mean(), atol=1e-6)
    if tau == 0.999:
        assert sample.max() - 0.15 < found < sample.max()


def test_weights_of_advantages() -> None:
    advantage = jnp.array([-2.0, 0.0, 1.0, 1.5, 40.0])
    got = iql.advantage_weights(advantage, 3.0, 100.0)
    np.testing.assert_allclose(got, [np.exp(-6), 1, np.exp(3), np.exp(4.5), 100], rtol=1e-5)


def test_cosine_schedule() -> None:
    progress = jnp.array([0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(cosine(progress, 0.2), [1, 0.6, 0.2, 0.2], atol=1e-6)


# --- one update ----------------------------------------------------------------------------------


def test_networks_begin_orthogonal() -> None:
    """Kernels with columns or rows of length √2 at right angles, biases 0, log-std 0."""
    params = heads.Gaussian((8, 6), 2).init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
    np.testing.assert_array_equal(params["log_std"], 0)
    for layer in params["Layers_0"].values():
        kernel = np.asarray(layer["kernel"])
        gram = kernel @ kernel.T if kernel.shape[0] <= kernel.shape[1] else kernel.T @ kernel
        np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-5)
        np.testing.assert_array_equal(layer["bias"], 0)


@every_space
def test_update_by_hand(kind: str) -> None:
    """Order V, policy, Q, targets; policy and Q see the new V; time limits bootstrap."""
    spec, t = SPECS[kind], rows(SPECS[kind])
    cfg = iql.Config(**SIZES, updates=10)
    agent = iql.make(cfg, spec)
    hp = iql.Hypers(lr=0.05, gamma=0.9, tau=0.25, beta=2.0, max_weight=1.5, reward_scale=0.5)
    state = jax.jit(agent.init)(jax.random.key(0), numbers(hp), {})
    np.testing.assert_array_equal(state.critic, state.target)
    noise = jax.random.normal(jax.random.key(1), state.target.shape)
    state = state._replace(target=state.target + 0.3 * noise)
    new, metrics = jax.jit(agent.update)(
        state, numbers(hp), Batch(t), jax.random.key(2), jnp.int32(0)
    )

    head = heads.head_of(cfg.hidden, spec)
    net = nets.flat(nets.from_linen(heads.Layers(cfg.hidden, 1), spec.obs_shape))
    old_v, new_v = (np.asarray(net.apply(v, t.obs))[:, 0] for v in (state.value, new.value))
    ahead = np.asarray(net.apply(new.value, t.next_obs))[:, 0]
    taken = np.asarray(head.twins(state.critic, t.obs, t.action))
    q = np.asarray(head.twins(state.target, t.obs, t.action)).min(0)
    log_prob = np.asarray(head.log_prob(head.policy(state.actor, t.obs), t.action))
    sums = np.zeros(4)
    for i in range(8):
        u = q[i] - old_v[i]
        w = min(np.exp(2.0 * (q[i] - new_v[i])), 1.5)
        y = 0.5 * t.reward[i] + (0.0 if t.terminated[i] else 0.9 * ahead[i])
        errors = taken[:, i] - y
        sums += [(0.3 if u < 0 else 0.7) * u**2, -w * log_prob[i], np.sum(errors**2), w]
    names = ("value_loss", "actor_loss", "critic_loss", "weight")
    for name, total in zip(names, sums / 8, strict=True):
        np.testing.assert_allclose(metrics[name], total, rtol=2e-4, err_msg=name)
    moved = 0.75 * state.target + 0.25 * new.critic
    np.testing.assert_allclose(new.target, moved, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_only_the_policy_decays() -> None:
    """Behind the schedule it stands still, while V and Q learn; in fine-tuning it learns too."""
    t, hp = rows(BOX), numbers(iql.Hypers())
    cfg = iql.Config(**SIZES, updates=10)
    for decay in (True, False):
        agent = iql.make(cfg, BOX, decay=decay)
        state = jax.jit(agent.init)(jax.random.key(0), hp, {})
        new, _ = jax.jit(agent.update)(state, hp, Batch(t), jax.random.key(2), jnp.int32(10))
        assert np.array_equal(new.actor, state.actor) == decay
        assert not np.array_equal(new.value, state.value)
        assert not np.array_equal(new.critic, state.critic)


# --- data whose answers are known ----------------------------------------------------------------


def test_two_states() -> None:
    """V is known: action 1 earns 1, action 0 nothing, both as often; action 2 is not in the data.

    The τ-expectile of {0, 1} is τ. From state 0 one comes to state 1, where the episode ends:
    V(1) = τ and V(0) = τ (1 + γ). With a time limit there, and itself as successor, V(1) is
    τ / (1 - γ). τ -> 1 is the best of the data. The policy has odds exp(β).
    """
    spec = EnvSpec("two", (1,), Discrete(3), 2)
    # One row per state and action. The limit's leads back to state 1, not to whatever begins next.
    data = table([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1], [0] * 4, [0] * 4)
    last = jnp.array([False, False, True, True])
    ends = data._replace(terminated=last), data._replace(truncated=last)
    ends = jax.tree.map(lambda *x: jnp.stack(x), *ends)
    agent = iql.make(iql.Config(updates=2500, hidden=(24,)), spec)
    taus, gamma, beta = (0.5, 0.9, 0.99), 0.5, 1.5
    hp = numbers(iql.Hypers(lr=0.005, tau=0.05, gamma=gamma, beta=beta))
    many = jax.vmap(lambda tau: hp.replace(expectile=tau))(jnp.float32(taus))
    learn = jax.vmap(jax.vmap(logged.fit(agent, 2500), (None, 0)), (0, None))
    states = jax.jit(learn)(many, ends)  # [tau, end]

    net = nets.flat(nets.from_linen(heads.Layers((24,), 1), (1,)))
    head, shown = heads.discrete_head((24,), spec), jnp.array([[0.0], [1.0]])
    value = jax.vmap(jax.vmap(lambda v: net.apply(v, shown)[:, 0]))(states.value)
    for i, tau in enumerate(taus):
        np.testing.assert_allclose(value[i, 0], [tau * (1 + gamma), tau], atol=0.03)
        np.testing.assert_allclose(value[i, 1], [tau / (1 - gamma)] * 2, atol=0.05)
    log_p = jax.vmap(jax.vmap(lambda a: head.policy(a, shown).log_probs))(states.actor)
    np.testing.assert_allclose(log_p[..., 1] - log_p[..., 0], beta, atol=0.1)
    assert log_p[..., 2].max() < -3


def test_policy_in_a_box() -> None:
    """Two actions, of rewards 0 and 1: the normal distribution of the weighted data.

    With p = 1 / (1 + exp(-β)) its mean is that of the two, and its deviation √(p (1 - p)) of what
    lies between them.
    """
    spec, beta = EnvSpec("lever", (1,), Box((0.0,), (8.0,), (1,)), 1), 1.5
    action = jnp.array([[2.0], [6.0]])  # -0.5 and 0.5 in half ranges
    data = table([0, 0], action, [0, 1], [0, 0], [1, 1], [0, 0])
    agent = iql.make(iql.Config(updates=2500, hidden=(16,)), spec)
    hp = numbers(iql.Hypers(lr=0.005, tau=0.05, beta=beta))
    state = jax.jit(logged.fit(agent, 2500))(hp, data)
    p = 1 / (1 + np.exp(-beta))
    mean = 2 + 4 * p
    np.testing.assert_allclose(logged.mode(agent, state, hp, [[0.0]]), [[mean]], atol=0.05)
    dist = heads.box_head((16,), spec).policy(state.actor, jnp.zeros((1, 1)))
    np.testing.assert_allclose(np.exp(dist.log_std), [[np.sqrt(p * (1 - p))]], rtol=0.03)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"updates": 0}, "updates=0 must be at least 1"),
        ({"data_share": 1.5}, "data_share=1.5 must be between 0 and 1"),
        ({"finetune_steps": 3, "num_envs": 4}, "finetune_steps=3 must be at least 4"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        iql.make(iql.Config(**sizes), BOX)
