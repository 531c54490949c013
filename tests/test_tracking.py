"""Trackers get the points of a run once, in order, from all processes, and its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jaxrl.errors import UserError
from jaxrl.experiments import cli, tracking
from jaxrl.runs import records
from jaxrl.runs.metrics import part_name, read_parts

OWN = """
import json, pathlib

class Own:
    def __init__(self, run):
        self.file = pathlib.Path("told.json")
        self.say("begin", [run.name, dict(run.hyperparameters), run.resume_at])
    def say(self, *what):
        with self.file.open("a") as file:
            print(json.dumps(what), file=file)
    def log(self, step, values):
        self.say(step, dict(values))
    def close(self, table):
        self.say("end", list(table))

class Mute:
    def __init__(self, run):
        pass
    def log(self, step, values):
        pass
"""

CONFIG = {"agent": "pqn", "env": "CartPole-v1", "seed": 0, "seeds": 1}
CONFIG |= {"settings": {"lr": 0.5, "hidden": [8], "gamma": 0.9}, "env_options": {"gravity": 1.6}}
CONFIG |= {"points": [{"agent.lr": 0.1}, {"agent.lr": 0.2}]}
CONTEXT = {"unit": "steps", "members": 2, "stages": {"agent": {"updates": 20}}, "width": 1}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> records.RunDir:
    """A run of two members in two processes, in the current directory, without metrics."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tracker.py").write_text(OWN)
    with records.open_run(tmp_path / "runs/x", CONFIG, CONTEXT) as found:
        return found


def write(run: records.RunDir, update: int, *members: int) -> None:
    for member in members:
        columns: dict[str, Any] = {"stage": "agent", "member": np.array([member]), "finite": 1.0}
        columns |= {"update": update, "env_steps": 100 * update, "return": 10.0 * member + update}
        run.write_part(part_name(0, update, member), columns)


def finish(run: records.RunDir) -> None:
    found = {"iqm": 5.0, "mean": 5.0, "std": 0.0, "min": 5.0, "max": 5.0, "ci95": [4.0, 6.0]}
    found |= {"members": 1}
    points = [{"values": {"agent.lr": lr}, "return": found, "failed": 0} for lr in (0.1, 0.2)]
    numbers: dict[str, Any] = dict.fromkeys(records.RESULTS, 0) | {"failed_members": []}
    run.write_summary({"finished": True, **numbers, "return": found, "points": points})


def lines() -> list[Any]:
    return [yaml.safe_load(line) for line in Path("told.json").read_text().splitlines()]


def test_a_run_of_two_processes(run: records.RunDir) -> None:
    """The last point waits until a later one shows that it is whole; nothing is sent twice."""
    with tracking.live(run, "my_tracker:Own") as tracked:
        write(run, 10, 0)
        tracked.update(False)
        assert len(lines()) == 1
        write(run, 10, 1)
        write(run, 20, 0)
        tracked.update(False)
        tracked.update(False)
        assert len(lines()) == 2
        write(run, 20, 1)
        finish(run)
    begin, first, last, end = lines()
    shared = {"agent": "pqn", "env": "CartPole-v1", "seed": 0, "seeds": 1}
    shared |= {"env.gravity": 1.6, "hidden": "[8]", "gamma": 0.9}  # not lr, which is swept
    assert begin == ["begin", ["x", shared, None]]
    assert first[0] == 1000 and first[1]["return/median"] == 15
    assert first[1]["return/min"] == 10 and first[1]["return/max"] == 20
    assert last[0] == 2000 and last[1]["return/median"] == 25
    assert [row["agent.lr"] for row in end[1]] == [0.1, 0.2]
    assert end[1][0]["return/iqm"] == 5 and end[1][0]["return/ci95_high"] == 6


def test_points_that_were_sent_are_not_read_again(run: records.RunDir) -> None:
    write(run, 10, 0, 1)
    write(run, 20, 0, 1)
    for member in (0, 1):
        columns = {"stage": "later", "member": np.array([member]), "update": 5, "env_steps": 0}
        run.write_part(part_name(1, 5, member), columns)
    folder = run.path / "metrics"
    (folder / part_name(0, 10, 0)).write_text("not read")
    updates = lambda after: read_parts(folder, after=after)[0]["update"].tolist()
    assert updates((0, 10)) == [20, 20, 5, 5] and updates((0, 20)) == [5, 5]
    assert read_parts(folder, after=(0, 10))[1] == [] != read_parts(folder)[1]


def test_a_resumed_and_interrupted_run(run: records.RunDir) -> None:
    write(run, 10, 0, 1)
    run = run.as_found()
    with pytest.raises(KeyboardInterrupt), tracking.live(run, "my_tracker:Own") as tracked:
        write(run, 20, 0, 1)
        tracked.update()
        raise KeyboardInterrupt
    begin, point, end = lines()
    assert begin[1][2] == 1001 and point[0] == 2000 and end == ["end", []]


def test_the_command_sends_a_finished_run(
    run: records.RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, 10, 0, 1)
    finish(run)
    assert cli.main(["track", "runs/x", "--to", "my_tracker:Own"]) == 0
    assert capsys.readouterr().out == "runs/x: sent to my_tracker:Own\n"
    assert [line[0] for line in lines()] == ["begin", 1000, "end"]
    assert cli.main(["track", "runs/x"]) == 0
    assert len(list(Path("runs/x/tensorboard").iterdir())) == 1


def test_nothing_is_sent_of_a_run_without_metrics(
    run: records.RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["track", "runs/x", "--to", "my_tracker:Own"]) == 2
    told = capsys.readouterr()
    assert (
        told.err == "jaxrl: runs/x has no metrics yet: there is nothing to send\n" and not told.out
    )
    assert not Path("told.json").exists()


def test_bad_trackers(run: records.RunDir) -> None:
    for target, reason in (
        ("wandbb", "did you mean 'wandb'"),
        ("my_tracker:Mute", "no method 'close'"),
        ("my_tracker:Owl", "no attribute 'Owl'"),
    ):
        with pytest.raises(UserError, match=reason), tracking.live(run, target):
            pass
    Path("run.yaml").write_text("env: CartPole-v1\nagent: pqn\ntrack: my_tracker:Own\n")
    assert cli.main(["train", "run.yaml"]) == 2
    assert not Path("told.json").exists()  # a file may not name code to import
