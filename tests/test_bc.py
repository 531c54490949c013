"""BC: the loss by hand, what standardising does, and an exact policy out of exact data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, BUTTONS, numbers, rows

from jaxrl.agents import bc
from jaxrl.errors import UserError
from jaxrl.types import Batch, Box, EnvSpec

CFG = bc.Config(batch_size=8, hidden=(5,))
HP = numbers(bc.Hypers(lr=0.01))


def test_loss_and_distance_by_hand() -> None:
    """In units of half the box: the first action spans 2, the second 4."""
    agent, t = bc.make(CFG, BOX), rows(BOX)
    state = jax.jit(agent.init)(jax.random.key(0), HP, {"data": t})
    error = (logged.mode(agent, state, HP, t.obs) - t.action) / np.array([[1.0, 2.0]])
    new, metrics = jax.jit(agent.update)(state, HP, Batch(t), jax.random.key(1), jnp.int32(0))
    np.testing.assert_allclose(metrics["actor_loss"], np.mean(error**2), rtol=1e-5)
    length = np.sqrt(np.sum(error**2, -1))
    np.testing.assert_allclose(metrics["action_distance"], length.mean(), rtol=1e-5)
    # Adam's first step is the rate times the sign of the gradient.
    step = np.abs(np.asarray(new.actor - state.actor))
    np.testing.assert_allclose(step[step > 0], 0.01, rtol=1e-2)


def test_observations_are_standardised_by_the_data() -> None:
    """Data in other units, and observations in the same: the same policy."""
    agent, t = bc.make(CFG, BOX), rows(BOX, 64)
    scale, shift = (np.array([x], np.float32) for x in ((3, 50, 7), (0, -200, 1)))
    other = t._replace(obs=t.obs * scale + shift)
    state, moved = (jax.jit(agent.init)(jax.random.key(0), HP, {"data": d}) for d in (t, other))
    np.testing.assert_allclose(state.obs.mean, t.obs.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.sqrt(state.obs.var), t.obs.std(0) + 1e-3, rtol=1e-5)
    np.testing.assert_allclose(
        logged.mode(agent, moved, HP, other.obs), logged.mode(agent, state, HP, t.obs), atol=0.01
    )


def test_learns_a_deterministic_policy() -> None:
    agent = bc.make(bc.Config(hidden=(32,)), BOX)
    t = rows(BOX, 64)
    action = np.stack([np.tanh(t.obs[:, 0]), 2 + np.sin(t.obs[:, 1])], -1).astype(np.float32)
    state = jax.jit(logged.fit(agent, 3000))(HP, t._replace(action=action))
    assert np.max(np.abs(logged.mode(agent, state, HP, t.obs) - action)) < 0.05


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (BUTTONS, "bc needs actions in a box of one axis; buttons has Discrete"),
        (EnvSpec("arm", (3,), Box((-1.0,), (np.inf,), (1,))), "bc needs bounded actions"),
    ],
)
def test_refuses_spaces_it_cannot_act_in(spec: EnvSpec, told: str) -> None:
    with pytest.raises(UserError, match=told):
        bc.make(CFG, spec)
