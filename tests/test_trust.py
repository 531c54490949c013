"""Code that a file of somebody else names is not run, unless the user confirms it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxrl.envs import names
from jaxrl.errors import UserError
from jaxrl.experiments import cli, restore
from jaxrl.experiments.options import Options
from jaxrl.experiments.requests import read
from jaxrl.experiments.trust import NOBODY, check, trusting
from jaxrl.runs import folders, records

TOUCH = {"env": "os:system", "env_options": {"command": "touch ran"}}
IMPORT = {"agent": "stranger", "env": "CartPole-v1"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that leaves a trace when it is imported."""
    (tmp_path / "stranger.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path


def strange_run(folder: Path, name: str = "run", **changes: object) -> Path:
    """A run folder as it comes from somebody else; without checkpoints."""
    config = {"agent": "pqn", "env": "CartPole-v1", "env_options": {}, "seeds": 1, "seed": 0}
    config |= {"evals": 2, "eval_episodes": 2, "settings": {}}
    known = {"format": folders.FORMAT, "config": config | changes, "context": {"width": 1}}
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(known))
    return folder / name


def words_for(run: Path) -> dict[str, list[str]]:
    return {
        "eval": ["eval", "run"],
        "steps": ["eval", "run", "--eval-steps", "1,2"],
        "render": ["render", "run"],
        "diffusion": ["data", "make", "CartPole-v1", "--from-diffusion", "run"],
        "json": ["train", "run/config.json"],
        "json help": ["train", "run/config.json", "--help"],
        "json sweep": ["sweep", "run/config.json", "--sweep", "agent.lr=0.1,0.2"],
    }


@pytest.mark.parametrize(
    "changes",
    [
        TOUCH,
        IMPORT,
        {"env": "gymnasium:os:x"},
        {"env": "gymnasium:GymV26Environment-v0"},
        {"agent": ["pqn"]},
    ],
)
@pytest.mark.parametrize("command", words_for(Path()))
def test_run_folders(
    folder: Path, command: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    strange_run(folder, **changes)
    before = sorted(folder.rglob("*"))
    assert cli.main(words_for(folder)[command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "which is not in `jaxrl list" in line or changes == {"agent": ["pqn"]}, line
    assert sorted(folder.rglob("*")) == before and "stranger" not in sys.modules


def test_python(folder: Path) -> None:
    run = records.RunDir(strange_run(folder, **IMPORT))
    with pytest.raises(UserError, match="asks for agent 'stranger'.*--agent stranger or --trust"):
        restore.load(run.path)
    with pytest.raises(UserError, match="stranger.py has no Config"):
        restore.load(run.path, trust=True)
    assert (folder / "ran").exists()


def test_base_and_reused_runs(folder: Path) -> None:
    run = strange_run(folder, **IMPORT)
    options = Options("CartPole-v1", base=(run,))
    for attempt in (
        lambda: restore.read_bases(options, None, NOBODY),
        lambda: restore._abstract_bases(options, NOBODY),
        lambda: restore._reused(run, "CartPole-v1", None, trusting("pqn", "CartPole-v1")),
    ):
        with pytest.raises(UserError, match="asks for agent 'stranger'"):
            attempt()
    assert not (folder / "ran").exists()


def test_confirmation(folder: Path) -> None:
    run = strange_run(folder, env="stranger:make")
    trust = restore.confirmed(run, None, "stranger:make", False)
    with pytest.raises(UserError, match="no attribute 'make'"):
        restore.load_member(run, 0, trust)
    assert (folder / "ran").exists()
    with pytest.raises(UserError, match="has the env 'stranger:make': remove --env CartPole-v1"):
        restore.confirmed(run, None, "CartPole-v1", False)


FILES = {
    "agent": "agent: stranger\nenv: CartPole-v1",
    "env": "agent: pqn\nenv: stranger:make",
    "env in a list": "agent: pqn\nenv: [stranger:make]",
    "env swept": "agent: pqn\nsweep: {env: [CartPole-v1, stranger:make]}",
    "trust": "agent: pqn\nenv: stranger:make\ntrust: true",
}


@pytest.mark.parametrize("name", FILES)
def test_request_files(folder: Path, name: str) -> None:
    (folder / "its.yaml").write_text(FILES[name])
    for command in ("train", "sweep", "search"):
        assert cli.main([command, "its.yaml"]) == 2
    assert not (folder / "ran").exists()


def test_confirmed_request_files(folder: Path) -> None:
    (folder / "its.yaml").write_text(FILES["env"])
    assert read("train", ["its.yaml", "--trust"]).env == "stranger:make"
    assert read("train", ["its.yaml", "--env", "stranger:make"]).env == "stranger:make"
    assert read("train", ["its.yaml", "--env", "Pendulum-v1"]).env == "Pendulum-v1"
    (folder / "its.yaml").write_text(FILES["agent"])
    assert read("train", ["its.yaml", "--agent", "stranger"]).agent == "stranger"
    with pytest.raises(UserError, match="remove --agent pqn"):
        read("train", ["its.yaml", "--agent", "pqn"])


def test_incidental_options_of_a_recorded_run_are_dropped(folder: Path) -> None:
    """No file of somebody else overwrites folders or opens connections."""
    strange_run(folder, out="/precious", overwrite=True, coordinator="far:1", trust=True)
    options = read("train", ["run/config.json"]).options
    assert not {"out", "overwrite", "coordinator"} & set(options) and options["trust"] is False


def test_switch_before_the_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange_run(folder, env="stranger:make")
    for words in (["--trust", "run"], ["run", "--trust"], ["--trust", "true", "run"]):
        assert cli.main(["eval", *words]) == 2
        assert "no attribute 'make'" in capsys.readouterr().err


def test_listed_names_need_no_trust() -> None:
    check("x", "pqn", [*dict(names.names()), "brax:hopper:mjx", "gymnasium:Ant-v5"], NOBODY)
