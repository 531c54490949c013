"""`jaxrl merge`: weights between two runs."""

from __future__ import annotations

import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

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


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal policies on both sides: the same returns for every weight."""
    words = ["train", "bc", "--env", "dmsd", "--data", str(FIXTURE), "--evals", "1", "--seeds", "2"]
    words += ["--eval-episodes", "2", "--preset", "none", "--agent.hidden", "4"]
    words += ["--agent.batch-size", "4", "--agent.updates", "1", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    table, both = tmp_path / "merged.csv", ["merge", *[str(tmp_path / "run")] * 2]
    more = ["--alpha", "0,0.5,1", "--episodes", "4", "--csv", str(table)]
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
    assert cli.main([*both, "--alpha", "2"]) == 2
    told = capsys.readouterr().err
    assert "merge needs two runs" in told and "--alpha must be between 0" in told
