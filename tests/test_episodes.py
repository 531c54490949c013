"""What `jaxrl eval` prints and writes, of evaluations that were never made."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from jaxrl.experiments import cli, episodes
from jaxrl.runs import files, folders
from jaxrl.types import Episodes

COLUMNS = {"agent.lr": np.array([0.1, 0.1, 0.2]), "seed": np.array([3, 4, 3])}
RETURNS = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0], [0.0, 0.0, 9.0]])
CONFIG = {"agent": "pqn", "env": "probe:match", "seeds": 3, "seed": 0, "settings": {}}
FOUND = Episodes(RETURNS, np.full((3, 3), 7), np.ones((3, 3), bool))


@pytest.mark.parametrize("member", [None, 2])
def test_members_as_a_table_and_as_csv(
    member: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a/eval.csv"
    episodes.show(COLUMNS, FOUND, member, file)
    heading, *lines = capsys.readouterr().out.splitlines()
    kept = range(3) if member is None else [member]
    table = [dict(zip(heading.split(), line.split(), strict=True)) for line in lines[: len(kept)]]
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(table) == len(rows) == len(kept)
    for i, shown, row in zip(kept, table, rows, strict=True):
        expected = {"agent.lr": COLUMNS["agent.lr"][i], "seed": COLUMNS["seed"][i], "length": 7}
        expected |= {"mean": RETURNS[i].mean(), "std": RETURNS[i].std(ddof=1)}
        expected |= {"min": RETURNS[i].min(), "max": RETURNS[i].max()}
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value), name
            assert float(shown[name]) == pytest.approx(value, rel=1e-3), name
        assert row["episodes"] == "3" and float(row["cvar_0.1"]) == RETURNS[i].min()


def test_one_episode_has_no_std(capsys: pytest.CaptureFixture[str]) -> None:
    one = FOUND._replace(returns=RETURNS[:, :1], lengths=np.full((3, 1), 7))
    episodes.show(COLUMNS, one, None, None)
    heading, row, *_ = capsys.readouterr().out.splitlines()
    assert dict(zip(heading.split(), row.split(), strict=True))["std"] == "-"


def test_an_unfinished_run_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    for told in ("", "training is not finished: 2 of 8 updates"):
        episodes.show(COLUMNS, FOUND, None, None, told)
        words = " ".join(capsys.readouterr().out.split())
        assert words.endswith(f"3 episodes each{told and '; '}{told}")


def test_bad_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"format": folders.FORMAT, "config": CONFIG, "context": {"width": 1}}
    files.write_json(tmp_path / "config.json", known)
    for words, told in (
        (["--member", "3"], "member 3: the run has members 0 to 2"),
        (["--eval-steps", "1,2", "--csv", "a.csv"], "omit --member and --csv"),
    ):
        assert cli.main(["eval", str(tmp_path), *words]) == 2
        assert told in capsys.readouterr().err
