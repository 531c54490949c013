"""A run whose members all fail: it stops early, says why, and its exit status is not 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxrl.experiments import cli, jax_setup
from jaxrl.runs import records

ENV = """
import dataclasses
import jax.numpy as jnp
from jaxrl.envs import make as base

def make():
    env = base("probe:match")

    def step(key, state, action, params):
        state, ts = env.step(key, state, action, params)
        return state, ts._replace(reward=ts.reward * jnp.nan)

    return dataclasses.replace(env, step=step)
"""
WORDS = (
    "train pqn --env nans.py:make --preset none --out run --evals 4 --seeds 2 --devices 1 "
    "--agent.total-steps 1024 --agent.num-envs 4 --agent.num-steps 8 --agent.hidden 4"
).split()


@pytest.mark.slow
def test_nan_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    Path("nans.py").write_text(ENV)
    assert cli.main(WORDS) == 1
    told, out = "all 2 members failed: reward not finite by update 8", capsys.readouterr().out
    assert told in out and "missing" not in out
    assert set(records.read_metrics("run")["update"]) == {8}  # of 8, 16, 24, 32
    summary = records.RunDir(Path("run")).summary()
    assert summary is not None and summary["failed_members"] == [0, 1]
    assert cli.main(WORDS) == 1  # reported again, not trained again
    assert f"run is finished: {told}; --overwrite" in capsys.readouterr().out
