"""`jaxrl peak`, and the verdicts of `jaxrl report`."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl.diagnosis import peak
from jaxrl.experiments import cli, diagnose
from jaxrl.runs import records
from jaxrl.runs.metrics import part_name

FIXTURE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"


def logged(path: Path, env_steps: int) -> records.RunDir:
    """A run of three members and five evaluations: one falls, one stays, one has failed."""
    config = {"agent": "cql", "env": "e", "seed": 0, "seeds": 3, "data": "x"}
    with records.open_run(path, config, {"width": 1}) as run:
        pass
    q = np.array([[0, 4, 10, 8, 5], [0, 4, 6, 7, 8], [0, 1, np.nan, 2, 3]])
    for i in range(5):
        columns = {"q": q[:, i], "td_error": np.ones(3), "q_std": np.ones(3), "finite": np.ones(3)}
        columns["held_td_error"] = np.full(3, 1.5)
        index = {"stage": "agent", "member": np.arange(3), "update": 100 * (i + 1)}
        index["env_steps"] = env_steps * (i + 1)
        run.write_part(part_name(0, i, 0), index | columns)
    return run


def test_verdicts_of_a_run(tmp_path: Path) -> None:
    over, under = diagnose.lines(logged(tmp_path / "run", 0), "NAME")
    assert over.startswith(
        "NAME: overfitting in 1 of 3 members (Q peaks at update 300 and falls by 50% of its range, "
        "held-out TD error 1.50 times that of training rows): choose the checkpoint at the peak"
    )
    assert under.startswith("NAME: underfitting in 1 of 3 members (the TD error stays at 1.00")


def test_no_verdict_where_the_agent_adds_rows(tmp_path: Path) -> None:
    assert diagnose.lines(logged(tmp_path / "run", 100), "NAME") == []


@pytest.mark.slow
def test_policies_at_the_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each member is the one of its checkpoint, for which a shorter run is the witness."""
    words = ["train", "td3bc", "--env", "dmsd", "--data", str(FIXTURE), "--preset", "none"]
    words += ["--evals", "4", "--seeds", "3", "--eval-episodes", "2", "--agent.hidden", "4"]
    words += ["--agent.batch-size", "4", "--agent.updates", "8", "--checkpoint-seconds", "0"]
    run, few, out = (tmp_path / name for name in ("run", "few", "peaks"))
    assert cli.main([*words, "--keep", "9", "--out", str(run)]) == 0
    assert cli.main(["peak", str(run), "--metric", "action_distance", "--out", str(out)]) == 0
    metrics = records.read_metrics(run)
    distance = metrics["action_distance"].reshape(4, 3)
    updates = [2 * (peak(distance[:, i]) + 1) for i in range(3)]
    assert json.loads((out / "config.json").read_text())["config"]["derived"]["updates"] == updates
    leaves = lambda policy: np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(policy.state.actor)]
    )
    for i, update in enumerate(updates):
        same = np.array_equal(leaves(jaxrl.load(out, i)), leaves(jaxrl.load(run, i)))
        assert same == (update == 8)
    assert cli.main(["eval", str(out), "--episodes", "2"]) == 0
    assert cli.main([*words, "--keep", "1", "--overwrite", "--out", str(few)]) == 0
    capsys.readouterr()
    assert cli.main(["peak", str(few), "--out", str(tmp_path / "x")]) == 2
    assert cli.main(["peak", str(run), "--metric", "qq", "--out", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "keeps 1 checkpoint of its evaluations" in told and "unknown metric qq" in told
