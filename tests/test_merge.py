"""`jaxrl merge`: weights between two runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.experiments import cli
from jaxrl.merging import merge

FIXTURE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"


def test_merged_leaves() -> None:
    """The ends exactly, a convex combination between, and other leaves of the first."""
    a = {"w": jnp.array([1.0, jnp.inf, 3.0]), "n": jnp.int32(2)}
    b = {"w": jnp.array([3.0, jnp.inf, 7.0]), "n": jnp.int32(5)}
    np.testing.assert_array_equal(merge(a, b, 0.25)["w"], [1.5, np.inf, 4.0])
    assert merge(a, b, 0.25)["n"] == 2
    third = {"w": jnp.array([0.1, 0.2, 0.3]), "n": jnp.int32(0)}
    np.testing.assert_array_equal(merge(third, b, 0.0)["w"], third["w"])
    np.testing.assert_array_equal(merge(third, b, 1.0)["w"], b["w"])


def trained(path: Path, *more: str) -> Path:
    """A run of two members of behaviour cloning."""
    words = ["train", "bc", "--env", "dmsd", "--data", str(FIXTURE), "--evals", "1", "--seeds", "2"]
    words += ["--eval-episodes", "2", "--preset", "none", "--agent.hidden", "4"]
    words += ["--agent.batch-size", "4", "--agent.updates", "1", "--out", str(path), *more]
    assert cli.main(words) == 0
    return path


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal policies on both sides: the same returns for every weight."""
    run = str(trained(tmp_path / "run"))
    table, both = tmp_path / "merged.csv", ["merge", run, run]
    more = ["--alpha", "lin:0:1:3", "--episodes", "4", "--csv", str(table)]
    assert cli.main([*both, *more]) == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["alpha"], row["member"]) for row in rows] == [
        (alpha, member) for alpha in ("0.0", "0.5", "1.0") for member in ("0", "1")
    ]
    returns = np.array([float(row["return"]) for row in rows]).reshape(3, 2)
    np.testing.assert_allclose(returns, returns[:1].repeat(3, 0), rtol=1e-5)
    assert returns[0, 0] != returns[0, 1]
    capsys.readouterr()
    assert cli.main(both[:2]) == 2
    for wrong in ("2", "half"):
        assert cli.main([*both, "--alpha", wrong]) == 2
    told = capsys.readouterr().err
    assert "merge needs two runs" in told and told.count("--alpha must be between 0") == 2


@pytest.mark.slow
def test_written_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run per weight, whose members have the merged weights and can be evaluated."""
    a = trained(tmp_path / "a")
    b = trained(tmp_path / "b", "--seed", "5")
    words = ["merge", str(a), str(b), "--episodes", "2", "--out", str(tmp_path / "merged")]
    assert cli.main([*words, "--alpha", "0,0.25"]) == 0
    for name, alpha in (("alpha-0", 0.0), ("alpha-0.25", 0.25)):
        path = tmp_path / "merged" / name
        for member in (0, 1):
            ends = [jaxrl.load(run, member).state.actor for run in (a, b)]
            found = jaxrl.load(path, member).state.actor
            mixed = jax.tree.map(lambda x, y: (1 - alpha) * x + alpha * y, *ends)  # noqa: B023
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, mixed)
        assert json.loads((path / "config.json").read_text())["config"]["derived"]["alpha"] == alpha
        assert cli.main(["eval", str(path), "--episodes", "2"]) == 0
    summary = tmp_path / "merged" / "alpha-0" / "summary.json"
    before = json.loads(summary.read_text())
    summary.unlink()  # as after a kill
    assert cli.main([*words, "--alpha", "0,0.25"]) == 0
    assert json.loads(summary.read_text())["return"] == before["return"]
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path / "merged"), "--out", str(tmp_path / "r.svg")]) == 0
    told = capsys.readouterr().out
    assert "alpha-0.25" in told and "finished" in told
    assert cli.main(["train", str(tmp_path / "merged" / "alpha-0" / "config.json")]) == 2
    assert cli.main([*words, "--alpha", "0.5"]) == 2  # the folder holds other files
    told = capsys.readouterr().err
    assert "derived from others, not trained" in told and "merged" in told
