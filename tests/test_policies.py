"""Policies: what actor-critics compute from sampled actions, and checks of box actions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, BUTTONS

from jaxrl.errors import UserError
from jaxrl.losses import masked_mean
from jaxrl.policies import (
    ActionSamples,
    acting,
    least_value,
    mean_entropy,
    squashed_head,
)
from jaxrl.spaces import box_scale
from jaxrl.types import Box, EnvSpec

HEAD = squashed_head((4,), BOX)
OBS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def test_the_mean_entropy_weighs_actions() -> None:
    """Two states, two actions of two factors: -E[log π] by hand."""
    log_prob = jnp.array([[[-1.0, -0.5], [-2.0, 0.0]], [[0.5, 0.5], [-1.0, -1.0]]])
    weight = jnp.array([[0.25, 0.75], [0.5, 0.5]])
    found = mean_entropy(ActionSamples((), log_prob, weight))
    np.testing.assert_allclose(found, ((0.25 * 1.5 + 0.75 * 2) + 0.5 * (-1 + 2)) / 2)


def test_the_least_of_several_critics() -> None:
    critics = jax.vmap(HEAD.critic)(jax.random.split(jax.random.key(0), 3))
    action = HEAD.noise(jax.random.key(1), 5)
    each = np.stack([HEAD.values(critic, OBS, action) for critic in critics])
    assert len(set(each.argmin(0).ravel())) > 1  # not always the same critic
    np.testing.assert_allclose(least_value(HEAD, critics, OBS, action), each.min(0), rtol=1e-5)


def test_acting_stays_in_the_box() -> None:
    """With and without exploration; the memory passes through."""

    class State:
        actor = 2 * HEAD.actor(jax.random.key(0))

    noise, scale = HEAD.noise(jax.random.key(1), 5), box_scale("test", BOX)
    for explore in (True, False):
        action, memory, extras = acting(HEAD)(State, (), OBS, OBS[:, 0] > 9, "kept", noise, explore)
        assert memory == "kept" and not extras
        assert (jnp.abs(scale.unit(action)) <= 1 + 1e-6).all()
    other = acting(HEAD)(State, (), OBS, OBS[:, 0] > 9, (), noise, True)[0]
    assert not np.array_equal(action, other)


def test_a_squashed_policy_needs_a_bounded_box() -> None:
    arm = EnvSpec("arm", (3,), Box((-1.0,), (np.inf,), (1,)))
    for spec, told in (
        (BUTTONS, "needs actions in a box of one axis"),
        (arm, "needs bounded actions"),
    ):
        with pytest.raises(UserError, match=f"a squashed normal policy {told}; {spec.name}"):
            squashed_head((4,), spec)


def test_masked_mean() -> None:
    values = jnp.array([1.0, 5.0, jnp.nan, 3.0])
    assert masked_mean(values, jnp.array([True, False, False, True])) == 2
    assert masked_mean(values, jnp.zeros(4, bool)) == 0
