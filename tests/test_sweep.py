"""Sweeps: what is read, how it is split into programs, and one that is stopped and continued."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxrl.errors import UserError
from jaxrl.experiments import agents, cli, jax_setup, requests, restore, sweep, train
from jaxrl.experiments.requests import Request, expand
from jaxrl.experiments.settings import Settings, identity, resolve
from jaxrl.experiments.trust import Trust
from jaxrl.runs import files, records

TRUSTED = Trust(everything=True)
SMALL = [
    *("--env", "mine:walk", "--agent.hidden", "4", "--agent.num-envs", "2"),
    *("--agent.minibatches", "2", "--agent.epochs", "1", "--agent.total-steps", "64"),
    *("--evals", "2", "--eval-episodes", "2"),
]
TINY = [*SMALL, "--agent.num-steps", "4", "--env-options", "noise=0.2"]
MATCH = ["pqn", "--env", "probe:match"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with nothing but an environment, and this process's own JAX."""
    shutil.copy(Path(__file__).with_name("tiny.py"), tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def parts(*asked: str) -> list[sweep.Program]:
    return sweep.programs(sweep.full_names(requests.read("sweep", asked)))


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,3e-4", ["1e-4", "3e-4"]),
        ("gru, lstm", ["gru", "lstm"]),
        ("-1", ["-1"]),
        ("[64,64],[256, 256],[]", ["[64,64]", "[256, 256]", "[]"]),
        ("(1,2),3x4", ["(1,2)", "3x4"]),
        ("log:1e-5:1e-2:4", ["1e-05", "0.0001", "0.001", "0.01"]),
        ("log:8:1:4", ["8", "4", "2", "1"]),
        ("lin:16:64:4", ["16", "32", "48", "64"]),
        ("lin:1:-1:3", ["1", "0", "-1"]),
        ("mine:walk,mine:glide", ["mine:walk", "mine:glide"]),
    ],
)
def test_values(text: str, values: list[str]) -> None:
    assert expand("x", text) == values


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 30))
def test_ranges_are_those_of_numpy(low: float, high: float, count: int) -> None:
    if low == high:
        return
    for kind, expected in (("log", np.geomspace), ("lin", np.linspace)):
        found = [float(value) for value in expand("x", f"{kind}:{low}:{high}:{count}")]
        np.testing.assert_allclose(found, expected(low, high, count), rtol=1e-9, atol=1e-9)


# --- requests ------------------------------------------------------------------------------------

FILE = """
agent: {name: pqn, hidden: [8, 8], lr: 1e-3, num-envs: 4}
env: mine:walk
env_options: {noise: 0.5, max_steps: null, hide: [1]}
seeds: 3
overwrite: true
devices: null
sweep:
  agent.gamma: [0.9, 0.99]
  agent.num_steps: lin:4:8:2
  env.max_steps: 3
"""
LINE = [
    *("pqn", "--agent.hidden", "8", "8", "--agent.lr", "1e-3", "--agent.num-envs=4"),
    *("--env", "mine:walk", "--env-options", "noise=0.5", "max_steps=null", "hide=[1]"),
    *("--seeds", "3", "--overwrite", "--sweep", "agent.gamma=0.9,0.99", "agent.num-steps=4,8"),
    *("--sweep=env.max_steps=3",),
]


def settled(request: Request) -> tuple[Settings, dict[str, list[str]]]:
    return resolve("pqn", request.options), request.sweep


CONFIRMED = ["--env", "mine:walk"]  # files may not name custom environments by themselves


def test_a_file_a_line_and_a_call_say_the_same(folder: Path) -> None:
    (folder / "it.yaml").write_text(FILE)
    line = requests.read("sweep", LINE)
    call = {
        "env": "mine:walk",
        "env-options": {"noise": 0.5, "max_steps": None, "hide": (1,)},
        "sweep": {"agent.gamma": (0.9, 0.99), "agent.num_steps": [4, 8], "env.max_steps": 3},
        "agent": {"hidden": (8, 8), "lr": 1e-3, "num_envs": 4},
        **{"seeds": 3, "overwrite": True, "devices": None},
    }
    assert settled(requests.read("sweep", ["it.yaml", *CONFIRMED])) == settled(line)
    assert settled(requests.from_call("pqn", call)) == settled(line)
    assert line.sweep == {
        "agent.gamma": ["0.9", "0.99"],
        "agent.num_steps": ["4", "8"],
        "env.max_steps": ["3"],
    }


def test_the_line_wins_over_the_file(folder: Path) -> None:
    (folder / "it.yaml").write_text(FILE)
    asked = ["it.yaml", *CONFIRMED, "--agent.num-steps=16", "--no-overwrite", "--seeds", "2"]
    request = requests.read("sweep", [*asked, "--sweep", "agent.lr=1,2", "env.noise=0.1"])
    settings, swept = settled(request)
    assert (settings.options.seeds, settings.options.overwrite) == (2, False)
    assert (settings.cfg.num_steps, settings.cfg.hidden) == (16, (8, 8))
    assert set(swept) == {"agent.gamma", "agent.lr", "env.noise", "env.max_steps"}
    assert "agent.lr" not in request.options and settings.options.env_options == {
        "max_steps": None,
        "hide": [1],
    }


def test_names_without_no() -> None:
    """Only at the beginning of the last part."""
    wanted = {"agent.no_hybrid", "agent.hybrid", "agent.mono_rate", "casino_env", "no_clip", "clip"}
    found = requests.option_names(dict.fromkeys(wanted - {"agent.hybrid", "clip"}))
    assert found == wanted | {f"agent.{name}" for name in wanted}


def test_train_takes_a_file_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "it.yaml").write_text(FILE.partition("sweep:")[0])
    seen: list[Settings] = []
    monkeypatch.setattr(train, "train", lambda settings, **_: seen.append(settings) or {})
    assert cli.main(["train", "it.yaml", *CONFIRMED, "--agent.lr", "0.5"]) == 0
    (settings,) = seen
    assert (settings.hp.lr, settings.cfg.hidden, settings.options.seeds) == (0.5, (8, 8), 3)


# --- the split -----------------------------------------------------------------------------------


def test_traced_values_are_members_and_static_ones_programs(folder: Path) -> None:
    found = parts(
        *("pqn", *SMALL, "--seeds=3", "--seed=7"),
        *("--sweep", "agent.num-steps=4,8", "agent.lr=1e-3,1e-2", "env.noise=0,1,2"),
        *("--sweep", "env.max_steps=2"),
    )
    assert [program.static for program in found] == [
        {"agent.num_steps": 4, "env.max_steps": 2},
        {"agent.num_steps": 8, "env.max_steps": 2},
    ]
    assert found[1].folder == "001-num_steps=8,env.max_steps=2"
    for program, steps in zip(found, (4, 8), strict=True):
        plan = program.plan
        assert (plan.settings.cfg.num_steps, plan.env.spec.max_steps) == (steps, 2)
        assert plan.members == 2 * 3 * 3
        np.testing.assert_array_equal(plan.seeds, np.tile([7, 8, 9], 6))  # point by point
        lr, noise = np.float32([1e-3, 1e-2]), np.float32([0, 1, 2])
        np.testing.assert_array_equal(plan.hp.agent.lr, np.repeat(lr, 9))
        np.testing.assert_array_equal(plan.hp.env["noise"], np.tile(np.repeat(noise, 3), 2))
        assert (plan.hp.agent.gamma == np.float32(plan.settings.hp.gamma)).all()
    # Whoever does not sweep is who it was: names of runs stay.
    settings = dataclasses.replace(found[0].plan.settings, points=({},))
    assert "points" not in identity(settings, {})
    assert found[0].plan.identity["points"][1] == {"agent.lr": 1e-3, "env.noise": 1.0}


def test_values_take_the_kind_of_what_they_replace(folder: Path) -> None:
    own = ["pqn_rnn", "--env", "probe:cue", "--agent.num-envs", "16"]
    found = parts(*own, "--sweep", "agent.hidden=8x8,[4],[]", "agent.cell=gru,lstm")
    assert [(p.plan.settings.cfg.hidden, p.plan.settings.cfg.cell) for p in found] == [
        ((8, 8), "gru"),
        ((8, 8), "lstm"),
        ((4,), "gru"),
        ((4,), "lstm"),
        ((), "gru"),
        ((), "lstm"),
    ]
    own = ["pqn_continuous", "--env", "probe:aim"]
    found = parts(*own, "--sweep", "agent.normalise_obs=true,false")
    assert [p.plan.settings.cfg.normalise_obs for p in found] == [True, False]


def test_points_come_back_from_a_run(folder: Path) -> None:
    (program,) = parts("pqn", *TINY, "--sweep", "max-grad-norm=1,inf", "lr=0.1")
    settings = program.plan.settings
    with records.open_run(folder / "run", identity(settings, {}), {"width": 1}) as run:
        assert restore.settings_of(run, TRUSTED).points == settings.points
    assert settings.points[1] == {"agent.max_grad_norm": np.inf, "agent.lr": 0.1}


def test_an_environment_that_is_not_made_without_what_is_swept(folder: Path) -> None:
    source = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(source + "\n\ndef make(limit):\n    return walk()\n")
    own = ["--env", "mine:make", *SMALL[2:], "--agent.num-steps", "4"]
    found = parts("pqn", *own, "--sweep", "env.limit=1,2", "env.noise=0,1")
    assert [program.static for program in found] == [{"env.limit": 1}, {"env.limit": 2}]
    np.testing.assert_array_equal(found[1].plan.hp.env["noise"], np.float32([0, 1]))


def test_environments_are_programs_with_presets_of_their_own(folder: Path) -> None:
    found = parts("pqn", "--sweep", "env=CartPole-v1,Breakout-MinAtar", "agent.lr=1e-3,1e-2")
    assert [program.static for program in found] == [
        {"env": "CartPole-v1"},
        {"env": "Breakout-MinAtar"},
    ]
    first, second = (program.plan.settings for program in found)
    assert (first.cfg.conv, second.cfg.conv) == ((), (16,))
    assert first.options.env == "CartPole-v1" and first.hp.lam != second.hp.lam
    assert [program.plan.members for program in found] == [2, 2]


def test_dry_run_compiles_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "train", lambda settings: pytest.fail("training"))
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *a, **kw: pytest.fail("compiling"))
    before = sorted(folder.rglob("*"))
    asked = [*SMALL[:2], *SMALL[4:], "--agent.num-steps", "4", "--seeds", "8"]
    asked += ["--sweep", "agent.lr=1e-4,1e-3,1e-2", "agent.hidden=4,8x8"]
    assert cli.main(["sweep", "pqn", *asked, "--dry-run"]) == 0
    assert sorted(folder.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pqn on mine:walk: 48 members in 2 programs = 3.072k environment")
    assert lines[1] == "members of one program: agent.lr = 0.0001, 0.001, 0.01"
    assert lines[2].split()[:2] == ["program", "agent.hidden"]
    narrow, wide = (line.split() for line in lines[3:])
    assert (narrow[:4], wide[:4]) == (["000", "4", "24", "8"], ["001", "8x8", "24", "8"])
    assert narrow[-1] == wide[-1] == "1.536k" and narrow[-3:-1] == ["8", "cpu"]
    # The call returns nothing to report, and says the same.
    swept = {"agent.lr": [1e-4, 1e-3, 1e-2], "agent.hidden": [[4], (8, 8)]}
    own = {"total_steps": 64, "num_envs": 2, "num_steps": 4, "minibatches": 2, "epochs": 1}
    more = {"seeds": 8, "evals": 2, "eval_episodes": 2}
    assert sweep.sweep("pqn", env="mine:walk", agent=own, sweep=swept, dry_run=True, **more) == {}
    assert capsys.readouterr().out.splitlines() == lines


def test_dry_run_of_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *a, **kw: pytest.fail("compiling"))
    before = sorted(folder.rglob("*"))
    assert cli.main(["train", "pqn", *TINY, "--out", "runs/x", "--dry-run"]) == 0
    assert sorted(folder.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pqn on mine:walk: ") and lines[1].endswith("; runs/x")


# --- bad input -----------------------------------------------------------------------------------

# Words after `jaxrl sweep`, and what the one line must say.
BAD = {
    "no agent": ([], "sweep needs an agent", "jaxrl sweep"),
    "nothing": (MATCH, "nothing is swept: pass --sweep"),
    "form": ([*MATCH, "--sweep", "agent.lr"], "NAME=VALUES", "'agent.lr'"),
    "field": ([*MATCH, "--sweep", "agent.lrr=1,2"], "agent.lrr", "'agent.lr'"),
    "field, other": ([*MATCH, "--sweep", "zzz=1,2"], "zzz", "agent.NAME"),
    "option": ([*MATCH, "--sweep", "seeds=1,2"], "seeds cannot be swept"),
    "env's field": ([*MATCH, "--sweep", "env.max_step=1,2"], "'max_step'", "'max_steps'"),
    "env": (["pqn", "--sweep", "env=CartPole-v1,CartPole-v2"], "'CartPole-v2'", "'CartPole-v1'"),
    "no env": (["pqn", "--sweep", "agent.lr=1,2"], "pqn needs an environment: pass --env"),
    "number": ([*MATCH, "--sweep", "agent.lr=1,high"], "agent.lr", "'high'"),
    "nan": ([*MATCH, "--sweep", "agent.lr=1,nan"], "agent.lr", "nan"),
    "int": ([*MATCH, "--sweep", "agent.num_steps=32,6.5"], "--agent.num-steps", "6.5"),
    "tuple": ([*MATCH, "--sweep", "agent.hidden=8x8,8xx8"], "--agent.hidden", "8xx8"),
    "switch": (
        ["pqn_continuous", "--env", "probe:aim", "--sweep", "agent.normalise_obs=on"],
        "--agent.normalise-obs is true or false",
        "'on'",
    ),
    "choice": (
        ["pqn_rnn", "--env", "probe:cue", "--sweep", "agent.cell=gru,rnn"],
        "--agent.cell",
        "rnn",
    ),
    "env's number": (["pqn", *SMALL, "--sweep", "env.noise=much"], "noise", "'much'"),
    "twice": ([*MATCH, "--sweep", "agent.lr=1", "--sweep", "agent.lr=2"], "swept twice"),
    "twice, spelling": ([*MATCH, "--sweep", "agent.num-steps=8", "agent.num_steps=4"], "twice"),
    "swept and set": (
        [*MATCH, "--agent.lr", "1", "--sweep", "agent.lr=2"],
        "agent.lr is both swept",
    ),
    "env swept and set": ([*MATCH, "--sweep", "env=probe:obs"], "env is both swept and set"),
    "parameter swept and set": (["pqn", *TINY, "--sweep", "env.noise=1"], "env.noise is both"),
    "value twice": (
        [*MATCH, "--sweep", "agent.lr=1e-4,0.0001"],
        "agent.lr has the value 0.0001",
    ),
    "program twice": ([*MATCH, "--sweep", "agent.hidden=8,[8]"], "agent.hidden=8 is swept twice"),
    "out of range": ([*MATCH, "--sweep", "gamma=0.9,1.5"], "--agent.gamma must be in [0, 1]"),
    "bare name, twice": ([*MATCH, "--sweep", "lr=1", "agent.lr=2"], "agent.lr is swept twice"),
    "bare name, set": ([*MATCH, "--lr", "1", "--sweep", "lr=2"], "agent.lr is both swept"),
    "peer's name": ([*MATCH, "--sweep", "learning_rate=1,2"], "did you mean 'agent.lr'"),
    "range, bare": ([*MATCH, "--sweep", "lr=1e-4:1e-2"], "write log:1e-4:1e-2:N"),
    "sizes": ([*MATCH, "--sweep", "agent.minibatches=4,7"], "agent.minibatches=7: ", "2048"),
    "empty": ([*MATCH, "--sweep", "agent.lr="], "agent.lr has no values to sweep"),
    "empty value": ([*MATCH, "--sweep", "agent.lr=1,,2"], "agent.lr", "empty"),
    "range, form": ([*MATCH, "--sweep", "agent.lr=log:1:2"], "'log:1:2'", "log:LOW:HIGH:N"),
    "range, none": ([*MATCH, "--sweep", "agent.lr=lin:1:2:0"], "0 values"),
    "range, one": ([*MATCH, "--sweep", "agent.lr=lin:2:2:3"], "a single value"),
    "range, log": ([*MATCH, "--sweep", "agent.lr=log:0:1:3"], "above 0"),
    "option, unknown": ([*MATCH, "--sedes=3", "--sweep", "agent.lr=1,2"], "'--seeds'"),
    "no file": (["nothing.yaml"], "nothing.yaml", "No such file"),
    "no YAML": (["broken.yaml"], "broken.yaml", "not valid YAML"),
    "no mapping": (["list.yaml"], "list.yaml", "names and values"),
    "no agent in it": (["nameless.yaml"], "nameless.yaml names no agent"),
    "unknown in it": (["slip.yaml"], "--sedes", "'--seeds'"),
    "key twice": (["twice.yaml"], "twice.yaml", "line 4 has 'seeds' again, after line 2"),
    "spelt twice": (["spelt.yaml"], "spelt.yaml", "line 3 has 'eval_episodes' again"),
    "key twice, inside": (["inside.yaml"], "inside.yaml", "line 5 has 'agent.lr' again"),
    "key twice, JSON": (["twice.json"], "twice.json", "'seeds' is there twice"),
    "out, other files": ([*MATCH, "--out", "full", "--sweep", "agent.lr=1,2"], "no sweep.json"),
    "out, a file": ([*MATCH, "--out", "slip.yaml", "--sweep", "agent.lr=1,2"], "slip.yaml"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.yaml").write_text("agent: [")
    (folder / "list.yaml").write_text("- agent")
    (folder / "nameless.yaml").write_text("env: CartPole-v1")
    (folder / "slip.yaml").write_text(
        "{agent: pqn, env: CartPole-v1, sedes: 3, sweep: {agent.lr: [1]}}"
    )
    (folder / "twice.yaml").write_text("agent: pqn\nseeds: 2\nenv: probe:match\nseeds: 3\n")
    (folder / "spelt.yaml").write_text("agent: pqn\neval-episodes: 8\neval_episodes: 9\n")
    (folder / "inside.yaml").write_text(
        "agent: pqn\nenv: probe:match\nsweep:\n  agent.lr: [1, 2]\n  agent.lr: [3]\n"
    )
    (folder / "twice.json").write_text('{"seeds": 2, "seeds": 3}')
    (folder / "full").mkdir()
    (folder / "full/notes.txt").write_text("kept")
    monkeypatch.setattr(train, "train", lambda settings: pytest.fail("training"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    asked, *fragments = BAD[case]
    assert cli.main(["sweep", *asked]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("jaxrl: ") and told.err.count("\n") == 1 and told.out == ""
    for fragment in fragments:
        assert fragment in told.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_train_refuses_to_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *MATCH, "--sweep", "agent.lr=1,2"]) == 2
    assert "jaxrl sweep" in capsys.readouterr().err


# --- one that is trained -------------------------------------------------------------------------


def states_of(run: records.RunDir) -> dict[str, np.ndarray]:
    """Every number [P, ...] of the last checkpoint; of keys, the data."""
    state = restore.read_state(restore.prepare(restore.settings_of(run, TRUSTED)), run).member
    state = state._replace(key=jax.random.key_data(state.key))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def test_a_sweep_from_end_to_end(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """2 static x 2 traced x 2 seeds: stopped between programs, continued, and left alone."""
    own = ["pqn", *SMALL, "--width", "1"]
    asked = ["sweep", *own, "--seeds", "2", "--sweep", "agent.num_steps=4,8"]
    asked += ["--sweep", "agent.lr=1e-3,1e-1", "env.noise=0.2"]
    asked += ["--out", "it"]
    done: list[Any] = []
    real: Callable[..., Any] = train.train

    def once(settings: Settings) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(settings)
        return real(settings)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", once)
        assert cli.main(asked) == 130
    told = capsys.readouterr()
    assert "the same command continues" in told.err
    first, second = (folder / "it" / f"00{i}-num_steps={n}" for i, n in ((0, 4), (1, 8)))
    known = json.loads((folder / "it/sweep.json").read_text())
    assert known["sweep"] == {
        "agent.num_steps": [4, 8],
        "agent.lr": [1e-3, 1e-1],
        "env.noise": [0.2],
    }
    assert (first / "summary.json").is_file() and not second.exists()
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    # Half of a sweep is reported on, and another sweep is kept out of its folder.
    assert cli.main(["report", "it"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:5]
    assert [row.split()[-1] for row in rows] == ["finished", "finished", "yet", "yet"]
    assert cli.main([*asked, "--sweep", "agent.lam=0.1"]) == 2
    assert "agent.lam is absent there and [0.1] here" in capsys.readouterr().err
    assert cli.main([*asked, "--agent.gamma", "0.5"]) == 2
    assert "settings.gamma is 0.99 there and 0.5 here" in capsys.readouterr().err

    assert cli.main(asked) == 0
    told = capsys.readouterr().out
    assert "000-num_steps=4 is finished" in told and told.count("compiling training") == 1
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before

    # The files agree with one another.
    summary = json.loads((folder / "it/summary.json").read_text())
    assert (summary["members"], summary["programs"], summary["failed"]) == (8, 2, 0)
    assert summary["env_steps"] == 2 * 4 * 64
    places = ((run, index) for run in (first, second) for index in (0, 1))
    for point, (run, index) in zip(summary["points"], places, strict=True):
        members = records.RunDir(run).members()
        mine = members["agent.lr"] == point["values"]["agent.lr"]
        np.testing.assert_array_equal(np.flatnonzero(mine), [2 * index, 2 * index + 1])
        np.testing.assert_array_equal(members["seed"][mine], [0, 1])
        np.testing.assert_array_equal(members["env.noise"], [0.2] * 4)
        final = members["final_return"][mine]
        assert point["return"]["iqm"] == pytest.approx(final.mean())
        assert point["values"]["agent.num_steps"] == (4 if run == first else 8)
    highest = max(point["return"]["iqm"] for point in summary["points"])
    assert summary["best"]["mine:walk"]["return"]["iqm"] == highest
    assert len(list((folder / "it/plots").glob("*.png"))) == 2

    # It is done, and each run is one like others.
    assert cli.main(asked) == 0
    assert "it is finished: best on mine:walk: " in capsys.readouterr().out
    with pytest.raises(UserError, match="a sweep of 2 runs"):
        restore.load("it", trust=True)
    opened = records.RunDir(second)
    found = identity(restore.settings_of(opened, TRUSTED), {})
    assert files.plain(found) == opened.config()["config"]
    assert float(restore.load(second, member=3, trust=True).hp.lr) == np.float32(1e-1)

    # A member is what a run of its own is, bit for bit: seed 1 of the first rate in the second.
    alone = ["--agent.num-steps=8", "--agent.lr=1e-3", "--env-options", "noise=0.2"]
    assert cli.main(["train", *own, *alone, "--seed", "1", "--out", "alone"]) == 0
    solo = records.RunDir(folder / "alone")
    states, others = states_of(opened), states_of(solo)
    for name in states | others:
        np.testing.assert_array_equal(states[name][1], others[name][0], err_msg=name)
    mine, its = records.read_metrics(opened), records.read_metrics(solo)
    for name in set(mine) - {"stage", "member"}:
        np.testing.assert_array_equal(mine[name][1::4], its[name], err_msg=name)
    # Equal seeds draw the same numbers whatever their values; rates make a difference.
    keys = states[".key"]
    assert (keys[:2] == keys[2:]).all() and (keys[0] != keys[1]).any()
    assert (mine["loss"][0::4] != mine["loss"][2::4]).any()


def test_overwrite_removes_what_was_swept_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(settings: Settings) -> Any:
        with records.open_run(settings.options.out or "", identity(settings, {})):
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stop)
    asked = ["sweep", "pqn", *SMALL, "--agent.num-steps=4", "--out", "it", "--sweep"]
    assert cli.main([*asked, "agent.lr=1,2"]) == 130
    (folder / "it/notes.txt").write_text("kept")
    assert cli.main([*asked, "agent.epochs=1,2", "--overwrite"]) == 2  # both swept and set
    assert (folder / "it/000").is_dir()
    assert cli.main([*asked, "agent.lam=0,1", "agent.conv=[]", "--overwrite"]) == 130
    assert {path.name for path in (folder / "it").iterdir()} == {
        *(".lock", "sweep.json", "notes.txt", "000-conv=_"),
    }


OWN = """
from jaxrl import Algorithm
from jaxrl.agents import pqn

def program(cfg, env, **options):
    return pqn.program(cfg, env, **options)

ALGORITHM = Algorithm(pqn.Config, pqn.Hypers, pqn.make, program)
"""


def test_an_own_algorithm_is_swept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings of each program are those asked for; training stops before it starts."""
    (folder / "own_swept.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "own_swept", None)  # forgotten after the test
    monkeypatch.delitem(sys.modules, "own_swept")
    trained: list[Settings] = []
    monkeypatch.setattr(train, "train", trained.append)
    monkeypatch.setattr(sweep, "_summary", lambda *args: {"best": {}, "points": []})
    monkeypatch.setattr(sweep.report, "report", lambda *args: None)
    sizes = {"total_steps": 32, "num_envs": 2, "num_steps": 4, "minibatches": 1}
    swept = {"agent.lr": [1e-4, 1e-2], "agent.hidden": [[4], [8]]}
    given = {"env": "probe:obs", "evals": 1, "eval_episodes": 2, "agent": sizes}
    sweep.sweep(agents.load("own_swept"), **given, sweep=swept, out="it")
    assert [each.agent for each in trained] == ["own_swept"] * 2
    assert [each.cfg.hidden for each in trained] == [(4,), (8,)]
    points = tuple({"agent.lr": x} for x in (1e-4, 1e-2))
    assert all(each.points == points for each in trained)
    assert json.loads(Path("it/sweep.json").read_text())["agent"] == "own_swept"
    assert "own_swept on probe:obs: 4 members in 2 programs" in capsys.readouterr().out
