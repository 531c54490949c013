"""`jaxrl ope`: from runs and a dataset to a table, a CSV file and a figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.experiments import cli, restore
from jaxrl.experiments.ope import discounting
from jaxrl.experiments.ope_report import Found, agreement
from jaxrl.experiments.settings import Settings, resolve
from jaxrl.runs.records import read_metrics
from jaxrl.types import HyperParams, Policy

FIXTURE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"
QUICK = ["--updates", "3", "--hidden", "4", "--batch-size", "8"]


def test_members_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two members at two noise levels in a box; without noise there is no density."""
    run = tmp_path / "run"
    words = ["train", "bc", "--env", "dmsd", "--data", str(FIXTURE), "--seeds", "2", "--evals", "1"]
    words += ["--eval-episodes", "2", "--preset", "none", "--agent.updates", "2"]
    words += ["--agent.hidden", "4", "--agent.batch-size", "4", "--out", str(run)]
    assert cli.main(words) == 0
    table, figure = tmp_path / "table.csv", tmp_path / "sharpe.svg"
    again = tmp_path / "run/../run"  # runs count once
    words = ["ope", str(run), str(again), "--data", str(FIXTURE), "--std", "0,0.3", *QUICK]
    words += ["--gamma", "0.9"]
    words += ["--episodes", "2", "--csv", str(table), "--out", str(figure)]
    capsys.readouterr()
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "4 candidates, 10 episodes of data, 3 updates of FQE" in told
    assert "SharpeRatio@3" in told and figure.is_file()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["seed"], row["spread"]) for row in rows] == [
        *(("0", "0.0"), ("0", "0.3"), ("1", "0.0"), ("1", "0.3"))
    ]
    for row in rows:
        assert np.isfinite([float(row["fqe"]), float(row["true"])]).all()
        assert bool(row["snpdis"]) == (row["spread"] == "0.3")
    assert cli.main(["ope", str(run), "--data", str(FIXTURE), "--epsilon", "0.1"]) == 2
    assert "--epsilon does not fit; dmsd has a box: use --std" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ope needs a run: jaxrl ope runs/NAME --data FILE"),
        (["runs/A"], "ope needs a dataset: pass --data FILE"),
        (["runs/A", "--data", "x.npz", "--out", "a.svg"], "pass --episodes 1000"),
        (["runs/A", "--data", "x.npz", "--behaviour", "guess"], "auto"),
    ],
)
def test_bad_requests(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ope", *words]) == 2
    assert message in capsys.readouterr().err


def test_true_values_are_discounted() -> None:
    """An episode of five steps in which the walker stands: Σ γ^t r is a geometric sum."""

    def act(state, hp, obs, start, memory, noise, explore):
        return jnp.ones(len(obs), jnp.int32), memory, {}

    env = tiny.walk()
    play = evaluator(discounting(env, 0.5), Policy(act=act), 4)
    hp = HyperParams((), {"noise": jnp.float32(0)})
    found = play((), hp, {}, jax.random.key(0))
    plain = evaluator(env, Policy(act=act), 4)((), hp, {}, jax.random.key(0))
    share = (1 - 0.5**5) / (1 - 0.5) / 5
    np.testing.assert_allclose(found.returns, share * plain.returns, rtol=1e-5)


def test_agreement() -> None:
    columns = {"fqe": [3.0, 1.0, 2.0], "true": [2.0, 1.0, 3.0]}
    found = agreement(Found(columns, 0.5, "std"), "fqe")
    assert found["regret@1"] == 1 and found["regret@3"] == 0 and found["rank corr."] == 0.5
    assert found["best@3"] == 3 and found["worst@3"] == 1 and found["mean@3"] == 2
    np.testing.assert_allclose(found["SharpeRatio@3"], 2.5 / np.std([2, 3, 1]))


SMALL = ["--env", "dmsd", "--data", str(FIXTURE), "--preset", "none", "--eval-episodes", "2"]
SMALL += ["--agent.hidden", "4", "--agent.batch-size", "4", "--agent.updates", "4"]


def test_fresh_episodes_need_no_fqe(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jaxrl eval` of a run with --ope-updates plans episodes alone."""
    options = {"env": "dmsd", "data": FIXTURE, "preset": "none", "ope_updates": 20}
    planned = []

    def prepare(settings: Settings) -> None:
        planned.append(settings.options)
        raise UserError("enough")

    monkeypatch.setattr(restore, "open_run_folder", lambda path: None)
    monkeypatch.setattr(restore, "settings_of", lambda *_: resolve("bc", options))
    monkeypatch.setattr(restore, "prepare", prepare)
    with pytest.raises(UserError, match="enough"):
        restore.evaluate(Path("run"), 5, 0)
    assert [(x.ope_updates, x.eval_episodes, x.interim_episodes) for x in planned] == [(0, 5, 5)]


@pytest.mark.slow
def test_search_by_fqe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best trial is the one of the highest estimate, whatever its return."""
    path = tmp_path / "search"
    words = ["search", "bc", *SMALL, "--objective", "ope:fqe", "--evals", "1", "--trials", "3"]
    words += ["--range", "agent.lr=log:1e-3:1", "--out", str(path)]
    assert cli.main(words) == 2
    assert "ope:fqe needs --ope-updates, for example" in capsys.readouterr().err
    assert cli.main([*words, "--ope-updates", "20"]) == 0
    trials = list(csv.DictReader((path / "trials.csv").read_text().splitlines()))
    values = [float(trial["value"]) for trial in trials]
    best = json.loads((path / "summary.json").read_text())["best"]
    assert len(values) == 3 and best["value"] == max(values)
    told = np.concatenate([read_metrics(run)["ope_fqe"] for run in path.glob("00*")])
    assert np.isclose(np.array(values)[:, None], told[None], rtol=1e-6).any(1).all()


@pytest.mark.slow
def test_estimates_during_a_run(tmp_path: Path) -> None:
    """A column beside the returns, which it does not change."""
    found = []
    for more in ([], ["--ope-updates", "20"]):
        path = tmp_path / f"run{len(found)}"
        assert cli.main(["train", "bc", *SMALL, "--evals", "2", "--out", str(path), *more]) == 0
        found.append(read_metrics(path))
    plain, estimated = found
    assert "ope_fqe" not in plain and np.isfinite(estimated["ope_fqe"]).all()
    assert len(estimated["ope_fqe"]) == 2
    for name in ("action_distance", "finite"):
        np.testing.assert_allclose(estimated[name], plain[name], rtol=1e-5)
