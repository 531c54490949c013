"""Action boxes: bounds, scaling to [-1, 1], and policies that act in any box."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.agents import mdpo, ppo
from jaxrl.errors import UserError
from jaxrl.spaces import box_scale, from_units
from jaxrl.types import Box, Discrete, EnvSpec

INF = float("inf")


def spec(low: tuple[float, ...], high: tuple[float, ...]) -> EnvSpec:
    return EnvSpec("some", (3,), Box(low, high, (len(low),)), 5)


def test_impossible_tasks_are_refused() -> None:
    for count in (0, -3):
        with pytest.raises(UserError, match="at least one action"):
            Discrete(count)
    for shape in ((0,), (3, -1)):
        with pytest.raises(UserError, match="some: observations of shape"):
            EnvSpec("some", shape, Discrete(2))
    for limit in (0, -10, 2.5):
        with pytest.raises(UserError, match="some: max_steps="):
            EnvSpec("some", (3,), Discrete(2), limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        ((1.0, 0.0), (2.0, -1.0), "low <= high, not low=0 and high=-1"),
        ((float("nan"),), (1.0,), "low <= high, not low=nan"),
        ((0.0,), (float("nan"),), "low <= high, not low=0 and high=nan"),
        ((0.0,), (1.0, 2.0), "needs 1 bounds"),
    ],
)
def test_bad_bounds(low: tuple[float, ...], high: tuple[float, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Box(low, high, (len(low),))


def test_an_action_without_choice_has_scale_one() -> None:
    space = box_scale("some", spec((-2.0, 3.0), (6.0, 3.0)))
    np.testing.assert_array_equal(space.scale, [[4, 1]])
    action = space.scaled(jnp.array([[0.5, 0.7], [-1.0, -1.0]]))
    np.testing.assert_array_equal(action, [[4, 3], [-2, 3]])  # in the box
    np.testing.assert_array_equal(space.unit(action), [[0.5, 0], [-1, 0]])


def test_units_of_boxes_without_two_bounds() -> None:
    scaled = from_units(Box((0.0, 0.0, -INF, -3.0), (1000.0, INF, INF, 1.0), (4,)))
    np.testing.assert_array_equal(scaled(jnp.ones((1, 4))), [[1000, 1, 1, 1]])
    np.testing.assert_array_equal(scaled(-jnp.ones((1, 4))), [[0, -1, -1, -3]])
    same = jnp.ones((2, 1))
    assert from_units(Box((-1.0,), (1.0,), (1,)))(same) is same
    assert from_units(Discrete(2))(same) is same


@pytest.mark.parametrize("agent", [ppo, mdpo])
def test_a_policy_acts_alike_in_all_boxes(agent: Any) -> None:
    """The same weights and noise give the same sample, and the action in units of the box."""
    cfg = dataclasses.replace(agent.Config(), actor=(4,), critic=(4,))
    found = {}
    for low, high in [(-1.0, 1.0), (0.0, 1000.0)]:
        made = agent.make(cfg, spec((low,), (high,)))
        state = jax.jit(made.init)(jax.random.key(0), made.hypers, {})
        obs, noise = jnp.ones((6, 3)), made.noise(jax.random.key(1), 6)
        start = jnp.ones(6, bool)
        found[high] = [
            made.act(state, made.hypers, obs, start, (), noise, explore)[::2]
            for explore in (True, False)
        ]
    for (narrow, extras), (wide, others) in zip(found[1.0], found[1000.0], strict=True):
        np.testing.assert_allclose(wide, 500 * narrow + 500, rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, extras, others)
    assert np.ptp(found[1000.0][0][0]) > 200
