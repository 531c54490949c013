"""Policy extraction: the losses by hand, and IQL's critics under each of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, BUTTONS, fit, mode, numbers, rows, table

from jaxrl import extraction
from jaxrl.agents import iql
from jaxrl.errors import UserError
from jaxrl.types import Batch, Box, EnvSpec


def test_best_of_several() -> None:
    advantage = jnp.array([[0.1, 3.0, -1.0], [0.2, 1.0, -2.0]])  # [N, B]
    action = jnp.arange(6).reshape(2, 3)
    chosen, weight = extraction.best_of(advantage, action, 0.15)
    np.testing.assert_array_equal(chosen, [3, 1, 2])
    np.testing.assert_array_equal(weight, [1, 1, 0])
    np.testing.assert_array_equal(extraction.best_of(advantage, action, 0.2)[1], [0, 1, 0])
    vectors = jnp.stack([action, -action], -1)
    np.testing.assert_array_equal(
        extraction.best_of(advantage, vectors, 0.0)[0], [[3, -3], [1, -1], [2, -2]]
    )


def test_weights_solve_the_regularised_problem() -> None:
    """max E_π A - D_f(π, π_b) / β over policies on four actions: no feasible step improves it."""
    behaviour, beta = np.array([0.1, 0.2, 0.3, 0.4]), 0.8
    advantage = np.array([1.0, -0.5, 0.2, -0.15])  # mean 0 under the behaviour policy
    f = {"kl": lambda w: w * np.log(w), "chi2": lambda w: (w - 1) ** 2 / 2}
    for divergence, generator in f.items():
        weight = extraction.advantage_weights(jnp.asarray(advantage), beta, 100.0, divergence)  # type: ignore[arg-type]
        policy = np.asarray(weight, float) * behaviour
        value = lambda p: p @ advantage - behaviour @ generator(p / behaviour) / beta  # noqa: B023
        best = value(policy / policy.sum())
        if divergence == "chi2":
            np.testing.assert_allclose(policy.sum(), 1, rtol=1e-6)
        rng = np.random.default_rng(0)
        for other in rng.dirichlet(np.ones(4), 200):
            assert value(0.99 * policy / policy.sum() + 0.01 * other) < best
    cut = extraction.advantage_weights(jnp.array([-2.0, 9.0]), 1.0, 5.0, "chi2")
    np.testing.assert_array_equal(cut, [0.0, 5.0])


def test_ddpg_bc_by_hand() -> None:
    q, log_prob = jnp.array([1.0, -3.0, 4.0]), jnp.array([-1.0, -2.0, -6.0])
    loss = lambda q: extraction.ddpg_bc_loss(q, log_prob, 2.0)
    np.testing.assert_allclose(loss(q), 3.0 - 2.0 * (2 / 3) / (8 / 3), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(q), np.full(3, -2.0 / 3 / (8 / 3)), rtol=1e-6)


def test_metrics_and_random_numbers_are_those_that_a_loss_reads() -> None:
    """Weights have no part in ddpg_bc, and only best_of_n draws actions."""
    hp, batch = numbers(iql.Hypers()), Batch(rows(BOX))
    for name in ("awr", "best_of_n", "ddpg_bc"):
        agent = iql.make(iql.Config(batch_size=8, hidden=(4,), extraction=name), BOX)
        state = jax.eval_shape(agent.init, jax.random.key(0), hp, {})
        args = (state, hp, batch, jax.random.key(1), jnp.int32(0))
        assert ("weight" in jax.eval_shape(agent.update, *args)[1]) == (name != "ddpg_bc")
        drawn = "random_bits" in str(jax.make_jaxpr(agent.update)(*args))
        assert drawn == (name == "best_of_n"), name


@pytest.mark.slow
def test_critics_do_not_depend_on_the_policy() -> None:
    """The critics of all three losses are equal, the policies differ."""
    t, states = rows(BOX), {}
    hp = numbers(iql.Hypers(lr=0.01))
    for name in ("awr", "best_of_n", "ddpg_bc"):
        cfg = iql.Config(batch_size=8, hidden=(4,), extraction=name, candidates=3)
        agent = iql.make(cfg, BOX)

        def learn(key: jax.Array, agent=agent) -> iql.State:
            step = lambda i, s: agent.update(s, hp, Batch(t), jax.random.fold_in(key, i), i)[0]
            return jax.lax.fori_loop(0, 3, step, agent.init(key, hp, {}))

        states[name] = jax.jit(learn)(jax.random.key(0))
    for name in ("best_of_n", "ddpg_bc"):
        for part in ("critic", "value"):
            a, b = (getattr(states[x], part) for x in ("awr", name))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert not np.allclose(states["awr"].actor, states[name].actor, atol=1e-4)
    with pytest.raises(UserError, match="ddpg_bc needs actions in a box"):
        iql.make(iql.Config(extraction="ddpg_bc"), BUTTONS)
    with pytest.raises(UserError, match="candidates"):
        iql.make(iql.Config(candidates=0), BOX)


@pytest.mark.slow
def test_best_of_n_leaves_the_data() -> None:
    """One step of reward -(a - 0.8)², actions up to 0.5, beyond which no weights of AWR can go."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-0.5, 0.5, (128, 1)).astype(np.float32)
    yes, zero = np.ones(128, bool), np.zeros(128)
    data = table(zero, action, 1 - (action[:, 0] - 0.8) ** 2, zero, yes, ~yes)
    spec = EnvSpec("beyond", (1,), Box((-1.0,), (1.0,), (1,)), 1)
    hp = numbers(iql.Hypers(lr=0.003, lr_end=1.0, tau=0.05))
    agent = iql.make(iql.Config(hidden=(32,), extraction="best_of_n"), spec)
    state = jax.jit(fit(agent, 800))(hp, data)
    assert mode(agent, state, hp, [[0.0]])[0, 0] > 0.5
