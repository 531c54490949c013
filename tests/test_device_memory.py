"""Memory: what a population needs, and what it is told where that is too much."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from jaxrl import population
from jaxrl.errors import UserError
from jaxrl.experiments import cli, restore, sizes
from jaxrl.experiments.settings import resolve
from jaxrl.runs import device_memory


def test_members_the_tile_at_work_and_a_checkpoint() -> None:
    """Ten members on four CPU devices in tiles of two have four places on each."""
    plan = population.layout(10, jax.devices()[:4], 2)
    assert device_memory.needed(100, 10, plan) == 4 * (3 * 4 + 2) * 100


def test_says_what_does_not_fit() -> None:
    plan = population.layout(8, jax.devices()[:2], 2)
    size = 2**28
    need = device_memory.needed(size, 8, plan)
    device_memory.check(size, 8, plan, need)
    device_memory.check(size, 8, plan, None)
    with pytest.raises(UserError, match="8 members of 0.25 GiB need 7 GiB, but 6.75 GiB are free"):
        device_memory.check(size, 8, plan, need - size)


def test_this_machine_has_memory() -> None:
    free = device_memory.available(jax.devices()[0])
    assert free is None or 2**20 < free < 2**50


def test_sizes_of_requests_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pqn, dqn = ["train", "pqn", "--env", "CartPole-v1"], ["train", "dqn", "--env", "CartPole-v1"]
    sweep = ["sweep", "pqn", "--env", "CartPole-v1", "--sweep"]
    wide = [f"agent.{name}=lin:0.1:0.9:300000" for name in ("lr", "gamma", "lam")]
    for words, told in (
        ([*dqn, "--agent.capacity", "1e10"], "--agent.capacity 10000000000 is too large"),
        ([*dqn, "--agent.batch-size", "1e10"], "a batch needs"),
        ([*pqn, "--seeds", "1e9"], "population of 1,000,000,000 members"),
        ([*pqn, "--eval-episodes", "1e10"], "10,000,000,000 episodes per member"),
        ([*sweep, "agent.lr=log:1e-5:1e-2:1e9"], "is not log"),
        ([*sweep, "agent.lr=log:1e-5:1e-2:1000000000"], "more than 1,000,000 values"),
        ([*sweep, wide[0], "--sweep", wide[1], "--sweep", wide[2]], "points needs"),
    ):
        assert cli.main([*words, "--preset", "none"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line, line
    assert not list(tmp_path.iterdir())


def test_bytes_of_a_batch() -> None:
    """Rows of four observations, an action, a reward, four of the successor, and three flags."""
    options = {"env": "CartPole-v1", "agent": {"batch_size": 128, "gradient_steps": 3}, "seeds": 2}
    ready = restore.prepare(resolve("dqn", options | {"preset": "none"}))
    row = 4 * (4 + 1 + 1 + 4) + 3
    assert sizes.batch_bytes(ready, sizes.abstract_states(ready)) == 3 * 128 * row


def test_temporary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = population.layout(8, jax.devices()[:4], 2)
    monkeypatch.setattr(device_memory, "available", lambda device: 400)
    device_memory.check_temporary("advance", 100, plan)
    with pytest.raises(UserError, match="advance needs"):
        device_memory.check_temporary("advance", 101, plan)
