"""What a run's summary says beside returns: members whose Q no policy can earn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import logged
import numpy as np
import pytest

from jaxrl.agents import iql
from jaxrl.experiments import summary
from jaxrl.types import HyperParams


def plan(**hypers: Any) -> Any:
    """Just what `diverged` looks at: rewards from -1 to 3."""
    data = logged.rows(logged.BOX, 4)._replace(reward=np.array([-1, 0, 3, 1], np.float32))
    return SimpleNamespace(inputs={"data": data}, hp=HyperParams(iql.Hypers(**hypers)))


def test_q_beyond_what_can_be_earned_has_diverged() -> None:
    """The bound is max |r| / (1 - γ), of each member's own γ and rewards."""
    q = np.array([299.0, -299.0, 301.0, -301.0])
    np.testing.assert_array_equal(summary.diverged(plan(), q), [2, 3])
    gammas = np.array([0.9, 0.99, 0.999, 0.9], np.float32)
    np.testing.assert_array_equal(summary.diverged(plan(gamma=gammas), q), [0, 3])
    # Rewards of -1 - 5 to 3 - 5, or scaled by 2.
    np.testing.assert_array_equal(summary.diverged(plan(reward_shift=-5.0), 2 * q), [2, 3])
    np.testing.assert_array_equal(summary.diverged(plan(reward_scale=2.0), 2 * q), [2, 3])
    assert summary.diverged(plan(), np.full(4, np.nan)).size == 0  # those have failed
    # (3 + 1) / (1 - γ) with an entropy bonus of 1; no verdict where rewards are all 0.
    np.testing.assert_array_equal(summary.diverged(plan(), q + 100, np.ones(4)), [2])
    assert summary.diverged(plan(reward_scale=0.0), q).size == 0


def test_entropy_bonus_is_the_largest_of_an_interval() -> None:
    history = {
        "temperature": np.array([[1.0, 2.0], [0.5, np.nan]]),
        "entropy": np.array([[-2.0, 1.0], [6.0, np.nan]]),
    }
    np.testing.assert_array_equal(summary.entropy_bonus(history), [3.0, 2.0])
    assert summary.entropy_bonus({"entropy": np.zeros((2, 2))}) == 0


@pytest.mark.parametrize("gone", [[], [1, 3]])
def test_the_result_warns(gone: list[int]) -> None:
    found = {"iqm": 2.0, "ci95": [1.0, 3.0], "min": 1.0}
    told = {"return": found, "members": 4, "failed_members": [], "diverged": np.array(gone)}
    lines = summary.result(told | {"score": {"iqm": 50.0}}).split("\n")
    assert lines[0].endswith("normalised 50.0, 4 members")
    assert lines[1:] == (["warning: Q has diverged in 2 members: 1, 3"] if gone else [])
