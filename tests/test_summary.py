"""What a run's summary says beside returns: members whose Q no policy can earn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import logged
import numpy as np
import pytest

from jaxrl.agents import iql
from jaxrl.experiments import restore, summary
from jaxrl.experiments.settings import resolve
from jaxrl.runs import records
from jaxrl.runs.metrics import part_name
from jaxrl.types import HyperParams

FIXTURE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"


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


def test_a_run_from_data_counts_updates_and_no_environment_steps(tmp_path: Path) -> None:
    asked = {"env": "dmsd", "data": FIXTURE, "seeds": 2, "evals": 1, "agent.updates": 30}
    ready = restore.prepare(resolve("bc", asked))
    assert (ready.unit, ready.total, ready.env_steps(*ready.end)) == ("updates", 30, 0)
    with records.open_run(tmp_path, ready.identity, summary.context(ready)) as run:
        index = {"stage": ready.program.stages[-1].name, "member": [0, 1], "update": 30}
        columns = {"return": [1.0, 2.0], "finite": [1.0, 1.0], "env_steps": ready.env_steps(0, 30)}
        run.write_part(part_name(0, 30, 0), index | columns)
    found = summary.summarise(ready, run, wall_s=4.0, compile_s=1.0, say=pytest.fail)
    assert (found["env_steps"], found["steps_per_s"], found["updates"]) == (0, 0, 30)
    assert found["updates_per_s"] == 2 * 30 / 3.0
    np.testing.assert_array_equal(records.read_metrics(run)["env_steps"], 0)


def test_intervals_of_few_members_are_marked() -> None:
    found = {"iqm": 2.0, "ci95": [1.0, 3.0], "min": 1.0}
    for members, text in (
        (1, "no interval"),
        (2, "of only 2 members"),
        (5, "95 % interval 1 to 3;"),
    ):
        told = {"return": found | {"members": members}, "members": 6, "failed_members": []}
        assert text in summary.result(told)


LENGTHS = {"episode_length": np.array([[9.0, 8.0]] * 2)}


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ({"loss": np.full((2, 2), np.nan), "q": np.ones((2, 2))}, "loss"),
        (
            LENGTHS | {"episode_return": np.full((2, 2), np.nan), "loss": np.full((2, 2), np.nan)},
            "reward",
        ),
        (LENGTHS | {"episode_return": np.ones((2, 2)), "loss": np.full((2, 2), np.inf)}, "loss"),
        ({"return": np.full((2, 2), np.nan)}, "parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_why_all_members_failed(metrics: dict[str, np.ndarray], what: str) -> None:
    """By the chunk in which the last member failed."""
    index = {"finite": np.array([[0.0, 1.0], [0.0, 0.0]]), "update": np.array([[4, 4], [8, 8]])}
    text = summary.failure(index | metrics)
    assert text == f"{what} not finite by update 8"
    told = {"return": {"iqm": None, "ci95": [None] * 2}, "failed_members": [0, 1], "members": 2}
    assert summary.result(told | {"failure": text}) == f"all 2 members failed: {text}"
