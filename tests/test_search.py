"""Searches: what is asked for, what a killed one leaves, and small ones from end to end."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster
import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from jaxrl import drive
from jaxrl.errors import UserError
from jaxrl.evaluate import Evaluator
from jaxrl.experiments import agents, cli, jax_setup, requests, restore, sizes, train_loop
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.search import command, loop, pbt, report, slots, study
from jaxrl.experiments.search.objective import Objective
from jaxrl.experiments.search.pbt import truncation
from jaxrl.experiments.search.slots import Outcome
from jaxrl.experiments.search.space import Range, Space, read_space
from jaxrl.experiments.settings import identity
from jaxrl.experiments.trust import Trust
from jaxrl.program import Program
from jaxrl.runs import records, shards
from jaxrl.types import Episodes

TRUSTED = Trust(everything=True)
SMALL = {
    "env": "mine:walk", "agent.hidden": "4", "agent.num-envs": "2", "agent.num-steps": "4",
    "agent.minibatches": "2", "agent.epochs": "1", "agent.total-steps": "64",
    "seeds": "2", "evals": "4", "eval-episodes": "2", "width": "2",
}  # fmt: skip


def asked_for(without: str = "") -> list[str]:
    """A small search, but for what it is to search."""
    words = ["pqn"]
    for name, value in SMALL.items():
        words += [f"--{name}", value] if name not in without.split() else []
    return words


ASKED = asked_for()
RANGE = ["--range", "agent.lr=log:1e-4:1e-1", "agent.lam=lin:0:1"]
FAST = ["--range", "agent.lr=log:1e-2:10", "agent.lam=lin:0:1"]  # so that trials differ at once


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with nothing but an environment, and this process's own JAX."""
    shutil.copy(Path(__file__).with_name("tiny.py"), tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trials come to -(log10 lr + 2)² without training, and to NaN where lam is above 0.9. The list
    has all that were trained; `stop` among the points raises."""
    trained: list[dict[str, Any]] = []

    def train(engine: Any, settings: Any, path: Path, size: int) -> Outcome:
        trained.append({"run": path.name, "points": list(settings.points), "cfg": settings.cfg})
        lr = np.array([point["agent.lr"] for point in settings.points])
        scores = np.repeat(-((np.log10(lr) + 2) ** 2)[:, None], 2, 1)
        bad = np.array([point.get("agent.lam", 0) > 0.9 for point in settings.points])
        scores[bad, 1] = np.nan
        values = engine.objective.trials(scores)
        return Outcome(scores, values, np.zeros(len(lr), int), 100 * len(lr))

    monkeypatch.setattr(slots, "train", train)
    monkeypatch.setattr(slots, "check", lambda *args: 4)
    monkeypatch.setattr(report, "draw", lambda *args: [])
    return trained


BUILT: dict[Any, Any] = {}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of several tests compile together."""
    make = slots.Engine
    monkeypatch.setattr(loop, "Engine", lambda *args: make(*args)._replace(built=BUILT))


def space(*texts: str) -> Space:
    asked = asked_for(without="agent.hidden agent.num-steps")
    return read_space(requests.read("search", [*asked, "--range", *texts]))


# --- ranges --------------------------------------------------------------------------------------


def test_what_ranges_mean() -> None:
    found = space(
        "agent.lr=log:1e-5:1e-2", "agent.num_steps=4,8", "agent.gamma=lin:0.9:1",
        "agent.lam=0.5,1", "agent.hidden=[4],[4,4]", "env.noise=log:0.1:0.4:3",
    )  # fmt: skip
    assert found.traced == {
        "agent.lr": Range(1e-5, 1e-2, True),
        "agent.gamma": Range(0.9, 1.0),
        "agent.lam": Range(choices=(0.5, 1.0)),
        "env.noise": Range(choices=(0.1, 0.2, 0.4)),
    }
    assert {name: each.choices for name, each in found.static.items()} == {
        "agent.num_steps": (4, 8),
        "agent.hidden": ("[4]", "[4,4]"),
    }
    static = {"agent.num_steps": 8, "agent.hidden": "[4,4]"}
    settings = found.settings(static, [{"agent.lr": 0.1}])
    assert (settings.cfg.num_steps, settings.cfg.hidden) == (8, (4, 4))
    assert settings.points == ({"agent.lr": 0.1},)


@pytest.mark.parametrize(
    "each", [Range(1e-5, 1e-2, True), Range(-1, 3), Range(choices=(1.0, 2.0, 5.0))]
)
def test_a_value_and_its_unit(each: Range) -> None:
    units = np.array([0.1, 0.5, 0.9])
    values = each.values(units)
    again = each.values(each.units(np.float32(values).tolist()))
    np.testing.assert_allclose(again, values, rtol=1e-5)
    np.testing.assert_allclose(each.values(np.array([0.0]))[0], (each.choices or [each.low])[0])
    np.testing.assert_allclose(each.values(np.array([1.0]))[0], (each.choices or [each.high])[-1])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([], "nothing is searched"),
        (["--range", "agent.lr"], "NAME=VALUES"),
        (["--range", "agent.lr=log:0:1"], "above 0"),
        (["--range", "agent.lr=log:1:x"], "is not log:LOW:HIGH"),
        (["--range", "agent.lr=lin:2:1"], "LOW must be below HIGH"),
        (["--range", "agent.lr=lin:0:inf"], "both finite"),
        (["--range", "agent.lr=1,1"], "twice"),
        (["--range", "agent.lr=1,a"], "not a number"),
        (["--range", "agent.lr=1e-5:1e-2"], "write log:1e-5:1e-2 for equal ratios"),
        (["--range", "agent.lam=lin:0:1.5"], "--agent.lam must be in [0, 1], not '1.5'"),
        (["--range", "agent.lr=1e-3,-1e-3"], "--agent.lr must be at least 0, not '-1e-3'"),
        (["--range", "lr=log:1e-4:1", "agent.lr=log:1e-4:1"], "agent.lr is swept twice"),
        (["--range", "agent.lr=1", "agent.lr=2"], "searched twice"),
        (["--range", "agent.lrr=log:1:2"], "did you mean 'agent.lr'"),
        (["--range", "agent.conv=lin:4:8"], "is static: list its values"),
        (["--range", "keep=1,2"], "cannot be swept"),
        (["--range", "env=mine:walk,mine:glide"], "env cannot be searched"),
        (["--range", "env.wind=lin:0:1"], "wind"),
        ([*RANGE, "--agent.lr", "1"], "both swept and set"),
        ([*RANGE, "--trials", "0"], "--trials must be at least 1"),
        ([*RANGE, "--sampler", "best"], "sampler"),
        ([*RANGE, "--sampler", "grid"], "grid needs values"),
        (["--sampler", "cmaes", "--range", "agent.lr=1,2"], "cmaes needs a range"),
        ([*RANGE, "--objective", "metric:los"], "did you mean 'loss'"),
        ([*RANGE, "--objective", "score"], "return, ope:fqe or metric:NAME"),
        ([*RANGE, "--statistic", "cvar:2"], "iqm or cvar:SHARE"),
        ([*RANGE, "--halving", "--pbt"], "cannot be combined"),
        ([*RANGE, "--pbt"], "--sampler random or qmc"),
        ([*RANGE, "--eval-budget", "3"], "must be at least --trials"),
        ([*RANGE, "--overwrite"], "is not overwritten"),
        ([*RANGE, "--agent.minibatches", "3"], "minibatches"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    asked: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", *ASKED, *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(folder.glob("runs/*"))


# --- objectives ----------------------------------------------------------------------------------


def test_objectives_by_hand() -> None:
    history = {
        "return": np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 100.0]]),
        "finite": np.array([[1, 1, 1, 1], [1, 1, 1, 0.5]]),
    }
    np.testing.assert_array_equal(Objective().members(history), [5, 6, 7, np.nan])
    np.testing.assert_array_equal(Objective(mean=True).members(history), [3, 4, 5, np.nan])
    seeds = np.array([[1.0, 2.0, 3.0, 10.0], [5.0, np.nan, 1.0, 1.0]])
    np.testing.assert_array_equal(Objective().trials(seeds), [2.5, np.nan])
    np.testing.assert_array_equal(Objective(cvar=0.5).trials(seeds), [1.5, np.nan])
    np.testing.assert_array_equal(Objective(cvar=0.5, minimise=True).trials(seeds), [6.5, np.nan])
    np.testing.assert_array_equal(Objective(minimise=True).ranking(seeds), [-2.5, np.nan])


def test_objectives_are_columns_of_the_metrics() -> None:
    """Those of the training loop: risks and what an evaluation measures are among them."""
    asked = requests.read("search", ASKED)
    ready = restore.prepare(restore.settle(asked.agent, asked.options))
    (stage,) = ready.program.stages
    assert isinstance(stage.evaluate, Evaluator)
    play = stage.evaluate.measuring(lambda *_: {"moved": jnp.float32(0)})
    ready = ready._replace(program=Program((dataclasses.replace(stage, evaluate=play),)))
    states = sizes.abstract_states(ready)
    each = np.ones(2, np.float32)
    metrics = {name: each for name in ("finite", *states[-1].member.metrics)}
    evals = Episodes(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3), bool), {"moved": each})
    columns = train_loop.metrics_of(drive.Report("agent", 1, metrics, evals))
    assert columns is not None and {"loss", "cvar_0.1", "var_0.25", "moved"} < columns.keys()
    for name in columns:
        slots.check_metric(name, ready, states)
    with pytest.raises(
        UserError, match="metric:move: unknown metric, did you mean 'moved'"
    ) as told:
        slots.check_metric("move", ready, states)
    assert str(told.value).partition("known: ")[2].split(", ") == sorted(columns)
    nowhere = Program((dataclasses.replace(stage, evaluate=None),))
    with pytest.raises(UserError, match="metric:return: unknown metric"):
        slots.check_metric("return", ready._replace(program=nowhere), states)


def test_options_of_a_search_are_checked_before_its_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "read_space", lambda *_: pytest.fail("plans every combination"))
    for option in ("--eval-first", "--overwrite"):
        with pytest.raises(UserError, match="remove"):
            run(option)


def test_batches_are_even() -> None:
    assert slots.sizes(256, 64, 1, 4) == (64, 1)
    assert slots.sizes(100, 64, 1, 4) == (50, 1)
    assert slots.sizes(64, 64, 6, 4) == (16, 4)
    assert slots.sizes(10, 64, 2, 4) == (5, 2)


# --- the study -----------------------------------------------------------------------------------


def run(*more: str, trials: int = 12, out: str = "it") -> dict[str, Any]:
    asked = [*ASKED, *RANGE, "--trials", str(trials), "--batch", "4", "--out", out, *more]
    return loop.run(requests.read("search", asked))


def results(out: str = "it") -> list[optuna.trial.FrozenTrial]:
    return study.current(study.read_study(Path(out)))


def outcomes(out: str) -> list[Any]:
    attrs = ("scores", "final", "run", "row")
    return [
        (t.number, t.state, t.params, t.value, [t.user_attrs.get(name) for name in attrs])
        for t in results(out)
    ]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc", "random"])
def test_samplers(sampler: str, formula: list[dict[str, Any]]) -> None:
    found = run("--sampler", sampler, "--seed", "3")
    assert [len(each["points"]) for each in formula] == [4, 4, 4]
    points = [json.dumps(point) for each in formula for point in each["points"]]
    assert len(set(points)) == 12
    trials = results()
    failed = [trial.params["agent.lam"] > 0.9 for trial in trials]
    assert [trial.state.name for trial in trials] == ["FAIL" if x else "COMPLETE" for x in failed]
    assert (found["trials"], found["failed"]) == (12, sum(failed))
    assert found["complete"] + found["failed"] == 12 and found["env_steps"] == 1200
    values = [-((np.log10(trial.params["agent.lr"]) + 2) ** 2) for trial in trials]
    best = max(value for value, bad in zip(values, failed, strict=True) if not bad)
    assert found["best"]["value"] == pytest.approx(best)
    assert found["best"]["scores"] == [found["best"]["value"]] * 2


def test_a_grid_is_gone_through_once(formula: list[dict[str, Any]]) -> None:
    ranges = ["--range", "agent.lr=1e-3,1e-2", "agent.lam=0.1,0.95", "agent.epochs=1,2"]
    asked = [*asked_for(without="agent.epochs"), *ranges, "--sampler", "grid", "--out", "it"]
    found = loop.run(requests.read("search", asked))
    assert (found["trials"], found["failed"], found["best"]["value"]) == (8, 4, 0)
    assert [(each["cfg"].epochs, len(each["points"])) for each in formula] == [(1, 4), (2, 4)]
    assert len({json.dumps(trial.params, sort_keys=True) for trial in results()}) == 8


def test_static_values_are_those_of_a_slot(formula: list[dict[str, Any]]) -> None:
    ranges = ["--range", "agent.lr=log:1e-4:1e-1", "agent.num_steps=2,4,8"]
    own = asked_for(without="agent.num-steps")
    asked = [*own, *ranges, "--trials", "16", "--batch", "8", "--programs", "2"]
    loop.run(requests.read("search", [*asked, "--out", "it"]))
    assert [len(each["points"]) for each in formula] == [4, 4, 4, 4]
    by_run = {each["run"]: each["cfg"].num_steps for each in formula}
    for trial in results():
        assert trial.params["agent.num_steps"] == by_run[trial.user_attrs["run"]]


def test_more_trials_continue_a_search_and_the_rest_has_to_be_the_same(
    formula: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(trials=4)
    run(trials=4)
    assert len(formula) == 1
    before = [trial.params for trial in results()]
    assert run(trials=8)["trials"] == 8
    assert [trial.params for trial in results()][:4] == before
    asked = ["search", *ASKED, "--trials", "8", "--batch", "4", "--out", "it"]
    assert cli.main([*asked, *RANGE[:2]]) == 2
    assert 'it holds another search: range.agent.lam is "lin:0:1" there and absent here' in (
        capsys.readouterr().err
    )
    assert cli.main([*asked, *RANGE, "--seeds", "3"]) == 2
    assert "seeds is 2 there and 3 here" in capsys.readouterr().err
    assert cli.main([*asked[:-1], "."]) == 2
    assert "search" in capsys.readouterr().err


def test_a_search_of_one_trial(formula: list[dict[str, Any]]) -> None:
    found = run("--halving", "--eta", "2", trials=1)
    assert (found["trials"], found["complete"], found["best"]["trial"]) == (1, 1, 0)


def test_a_search_whose_trials_all_fail(
    formula: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*ASKED, "--range", "agent.lr=log:1e-4:1e-1", "agent.lam=0.95,0.99"]
    asked += ["--trials", "8", "--batch", "4", "--out", "it", "--confirm", "2"]
    assert cli.main(["search", *asked]) == 1
    found = json.loads(Path("it/summary.json").read_text())
    assert (found["failed"], found["best"], found["confirmed"]) == (8, {}, [])
    assert "8 failed" in capsys.readouterr().out and "command" not in found
    assert [len(each["points"]) for each in formula] == [4, 4]
    assert cli.main(["report", "it"]) == 0


OWN = """
from jaxrl import Algorithm
from jaxrl.agents import pqn

def program(cfg, env, **options):
    return pqn.program(cfg, env, **options)

ALGORITHM = Algorithm(pqn.Config, pqn.Hypers, pqn.make, program)
"""


def test_an_own_algorithm_is_searched(
    folder: Path, formula: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own_searched.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "own_searched", None)  # forgotten after the test
    monkeypatch.delitem(sys.modules, "own_searched")
    record = agents.load("own_searched")
    own = {"hidden": (4,), "num_envs": 2, "num_steps": 4, "minibatches": 2, "total_steps": 64}
    given = {"env": "mine:walk", "agent": own, "evals": 4, "eval_episodes": 2, "trials": 4}
    ranges = {"agent.lr": "log:1e-4:1e-1", "agent.epochs": [1, 2]}
    found = loop.search(record, **given, range=ranges, out="it", sampler="random")
    assert (found["agent"], found["complete"]) == ("own_searched", 4)
    assert found["command"].startswith("jaxrl train own_searched --env mine:walk ")
    assert loop.search("own_searched", **given, range=ranges, out="it", sampler="random")
    trained = [point["agent.lr"] for each in formula for point in each["points"]]
    assert trained == [trial.params["agent.lr"] for trial in results()]


def test_the_command_of_a_trial_has_all_that_is_not_a_default() -> None:
    text = ["--env-options", "noise=0.5", "hide=[1]", "--agent.hidden", "8x8", "--seed", "3"]
    asked = [*asked_for(without="agent.hidden"), *text, "--preset", "none", "--agent.eps-end=-0.0"]
    request = requests.read("search", [*asked, *RANGE])
    found = read_space(request)
    point = {"agent.lr": 0.1 + 0.2, "agent.lam": 1e-17}
    words = shlex.split(command.train_command(found.settings({}, [{}]), point))
    assert words[:3] == ["jaxrl", "train", "pqn"]
    given = requests.read("train", words[2:])
    again = restore.settle(given.agent, given.options)
    whole = requests.read("train", [*asked, "--agent.lr", str(0.1 + 0.2), "--agent.lam", "1e-17"])
    wanted = restore.settle(whole.agent, whole.options)
    assert (again.cfg, again.hp) == (wanted.cfg, wanted.hp)
    assert identity(again, {}) == identity(wanted, {})


# --- from end to end -----------------------------------------------------------------------------


def test_a_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two programs, two batches: each is compiled once, and a trial is what a run of it is."""
    ranges = {"agent.lr": "log:1e-4:1e-1", "agent.num_steps": [4, 8]}
    agent = {"hidden": (4,), "num_envs": 2, "minibatches": 2, "epochs": 1, "total_steps": 64}
    given = {"env": "mine:walk", "seeds": 2, "evals": 4, "eval_episodes": 2, "width": 2}
    found = loop.search(
        "pqn", **given, agent=agent, out="it", trials=11, batch=6, programs=2, range=ranges,
        confirm=1, confirm_seeds=4, eval_budget=12,
    )  # fmt: skip
    out = capsys.readouterr().out
    trials = results()
    used = {trial.params["agent.num_steps"] for trial in trials}
    assert found["compiles"] == 3 * len(used)
    assert (found["trials"], found["complete"], found["failed"]) == (11, 11, 0)
    assert "bandit, 12 episodes: trial" in out and "with fresh seeds, trial" in out
    for trial in trials:
        opened = records.RunDir(folder / "it" / trial.user_attrs["run"])
        row = trial.user_attrs["row"]
        members = opened.members()
        mine = slice(2 * row, 2 * row + 2)
        np.testing.assert_allclose(members["agent.lr"][mine], trial.params["agent.lr"], rtol=1e-6)
        assert trial.user_attrs["scores"] == members["final_return"][mine].tolist()
        assert trial.value == pytest.approx(members["final_return"][mine].mean())
    # The best, trained again: other seeds than the search had, as many as were asked for.
    best = study.best(study.read_study(Path("it")), 1)
    for result, trial in zip(found["confirmed"], best, strict=True):
        assert (result["trial"], result["values"]) == (trial.number, trial.params)
    confirmed = [
        restore.settings_of(records.RunDir(x), TRUSTED) for x in (folder / "it/confirm").iterdir()
    ]
    assert {(x.options.seed, x.options.seeds) for x in confirmed} == {(2, 4)}
    # What a bandit takes is one of the trials, and known to it by episodes of its own.
    assert found["bandit"]["trial"] in [trial.number for trial in trials]
    assert found["bandit"]["best_return"] >= found["bandit"]["return"]
    # The printed command trains the best trial.
    (line,) = [x for x in out.splitlines() if x.startswith("to train the best trial: ")]
    assert line.endswith(found["command"])
    request = requests.read("train", shlex.split(found["command"])[2:])
    again = restore.settle(request.agent, request.options)
    assert (again.hp.lr, again.cfg.num_steps) == tuple(best[0].params[n] for n in ranges)
    assert dataclasses.replace(again.cfg, num_steps=8) == dataclasses.replace(
        confirmed[0].cfg, num_steps=8
    )
    assert (again.options.env, again.options.seeds, again.options.evals) == ("mine:walk", 2, 4)
    assert {path.name for path in (folder / "it/plots").iterdir()} == {
        *("slices.png", "parallel.png"),
    }
    assert len((folder / "it/trials.csv").read_text().splitlines()) == 12
    assert cli.main(["report", "it"]) == 0
    assert "with fresh seeds" in capsys.readouterr().out


def columns(out: Path) -> dict[str, np.ndarray]:
    found = records.read_metrics(out)
    return {k: x for k, x in found.items() if k not in ("stage", "member", "update", "env_steps")}


HALVING = [*ASKED, *FAST, "--trials", "4", "--batch", "4", "--sampler", "random"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, np.ndarray]]:
    """The metrics of a search without halving, [C, P]; made when first asked for."""
    out, found = tmp_path_factory.mktemp("plain") / "it", {}

    def make() -> dict[str, np.ndarray]:
        if not found:
            loop.run(requests.read("search", [*HALVING, "--out", str(out)]))
            found.update({k: x.reshape(4, 8) for k, x in columns(out / "000").items()})
        return found

    return make


def survivors(whole: dict[str, np.ndarray]) -> tuple[np.ndarray, int]:
    """By hand: the best two of four trials after the first chunk, and the best after the second."""
    returns = whole["return"].reshape(4, 4, 2).mean(2)  # evaluations, trials
    alive = np.sort(np.argsort(-returns[0], kind="stable")[:2])
    return alive, int(alive[np.argmax(returns[1][alive])])


@pytest.mark.slow
def test_halving_stops_the_worst_and_changes_nothing_else(
    folder: Path, shared: None, plain: Callable[[], dict[str, np.ndarray]]
) -> None:
    """Of four trials the best two of the first rung go on: bit for bit as without halving."""
    whole = plain()
    halved = loop.run(requests.read("search", [*HALVING, "--halving", "--eta", "2", "--out", "it"]))
    alive, best = survivors(whole)
    trials = results()
    states = ["COMPLETE" if i == best else "PRUNED" for i in range(4)]
    assert [trial.state.name for trial in trials] == states
    ends = [3 if i == best else 1 if i in alive else 0 for i in range(4)]
    returns = whole["return"].reshape(4, 4, 2).mean(2)
    expected = [returns[end, i] for i, end in enumerate(ends)]
    np.testing.assert_allclose([trial.value for trial in trials], expected, rtol=1e-6)
    assert len(set(returns[0])) > 1
    # The first rung ends after a quarter of the run, the second after a half.
    assert halved["env_steps"] == 2 * (4 * 16 + 2 * 16 + 32)
    trained = np.arange(4)[:, None] <= np.repeat(ends, 2)
    for name, values in columns(folder / "it/000").items():
        same = np.where(trained, whole[name], np.nan)
        np.testing.assert_array_equal(values.reshape(4, 8), same, err_msg=name)
    assert halved["compiles"] == 0  # beside those of the search without halving
    # Three more make a slot that is filled up by a trial which nobody trains.
    more = [*HALVING, "--trials", "7", "--halving", "--eta", "2", "--out", "it"]
    found = loop.run(requests.read("search", more))
    assert found["env_steps"] - halved["env_steps"] == 2 * (3 * 16 + 2 * 16 + 32)
    assert (found["complete"], found["stopped_early"], found["failed"]) == (2, 5, 0)
    assert found["compiles"] == 0


def test_halving_computes_no_tile_without_a_survivor(
    folder: Path, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of whoever was stopped stays what it was."""
    made, run = drive.drive, []

    def watched(*args: Any, **more: Any) -> Iterator[Any]:
        hooks = more["hooks"]._replace(snapshot=lambda stage, step, last: True)
        for each in made(*args, **more | {"hooks": hooks}):
            run.append(each)
            yield each

    monkeypatch.setattr(drive, "drive", watched)
    monkeypatch.setattr(shards.Shards, "save", lambda *args: None)
    loop.run(requests.read("search", [*HALVING, "--halving", "--eta", "2", "--out", "it"]))
    ends = [report for report in run if report.metrics is not None]
    stopped = [np.flatnonzero(np.isnan(report.metrics["finite"])) for report in ends]
    assert [len(x) for x in stopped] == [0, 4, 6, 6]
    states = [jax.tree.leaves(report.snapshot.member) for report in ends]
    for before, after, gone in zip(states, states[1:], stopped[1:], strict=False):
        same = np.ones(8, bool)
        for old, new in zip(before, after, strict=True):
            same &= np.array([bool((old[i] == new[i]).all()) for i in range(8)])
        np.testing.assert_array_equal(np.flatnonzero(same), gone)


def test_halving_goes_on_where_it_was_stopped(
    folder: Path, shared: None, plain: Callable[[], dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped after the first rung, when two of four trials are left."""
    asked = [*HALVING, "--halving", "--eta", "2", "--checkpoint-seconds", "0"]
    best_of = Objective.ranking
    calls: list[int] = []

    def stop(self: Objective, members: np.ndarray) -> np.ndarray:
        calls.append(len(members))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return best_of(self, members)

    monkeypatch.setattr(Objective, "ranking", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run(requests.read("search", [*asked, "--out", "it"]))
    found = loop.run(requests.read("search", [*asked, "--out", "it"]))
    # The first rung is read again, the second one is decided on.
    assert calls == [4, 2, 4, 2]
    _, best = survivors(plain())
    assert [t.state.name for t in results()].index("COMPLETE") == best
    assert found["env_steps"] == 2 * (4 * 16 + 2 * 16 + 32)
    values = columns(folder / "it/000")["return"].reshape(4, 8)[:, [2 * best, 2 * best + 1]]
    np.testing.assert_array_equal(values, plain()["return"][:, [2 * best, 2 * best + 1]])


@pytest.mark.slow
def test_pbt_in_a_population(folder: Path, shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights move where settings do; stopped in the middle and continued, it is the same."""
    asked = [*ASKED, *FAST, "--trials", "4", "--batch", "4", "--pbt", "--sampler", "qmc"]
    asked += ["--checkpoint-seconds", "0"]
    found = loop.run(requests.read("search", [*asked, "--out", "it"]))
    trials = results()
    ends = np.array([list(trial.user_attrs["final"].values()) for trial in trials])
    starts = np.array([[t.params["agent.lr"], t.params["agent.lam"]] for t in trials])
    assert found["importance"] == {} and (ends != starts).any()
    state = restore.read_state(plan_of(folder / "it/000"), records.RunDir(folder / "it/000"))
    np.testing.assert_allclose(state.member.hp.agent.lr[::2], ends[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(state.member.hp.agent.lr[::2], state.member.hp.agent.lr[1::2])

    spread, calls = truncation, []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return spread(*args)

    monkeypatch.setattr(pbt, "truncation", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run(requests.read("search", [*asked, "--out", "other"]))
    again = loop.run(requests.read("search", [*asked, "--out", "other"]))
    assert again["best"]["value"] == found["best"]["value"]
    assert again["best"]["final"] == found["best"]["final"]
    for name, values in columns(folder / "it/000").items():
        np.testing.assert_array_equal(values, columns(folder / "other/000")[name], err_msg=name)


def plan_of(path: Path) -> Plan:
    return restore.prepare(restore.settings_of(records.RunDir(path), TRUSTED))


# --- processes -----------------------------------------------------------------------------------

WIDE = ["--range", "agent.lr=log:1e-5:1e-1", "--trials", "6", "--batch", "3", "--seeds", "2"]


@pytest.mark.slow
def test_sigkill_and_the_same_command(folder: Path) -> None:
    slow = ["--agent.total-steps", "1600", *WIDE]
    start: Callable[..., Any] = lambda inject: cluster.start(
        folder / "it", command="search", more=slow, inject=inject
    )
    (process,) = start([cluster.SLOW])
    try:
        cluster.until(lambda: len(cluster.saved(folder / "it/001")) > 1, 600)
    finally:
        process.kill()
        process.communicate()
    running = [trial.params for trial in results() if not trial.state.is_finished()]
    assert len(running) == 3
    (ended,) = cluster.finish(start([]), 600)
    assert ended.code == 0 and "continuing from update" in ended.text, ended.text
    trials = results()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert [trial.params for trial in trials][3:] == running
    assert len({trial.params["agent.lr"] for trial in trials}) == 6


FOUR = [*WIDE, "--trials", "8", "--batch", "4", "--evals", "4", "--sampler", "random"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        WIDE,
        [*FOUR, "--halving", "--eta", "2"],
        [*FOUR, "--pbt"],
        [*WIDE, "--eval-budget", "20", "--confirm", "1", "--confirm-seeds", "2"],
    ],
    ids=["plain", "halving", "pbt", "bandit"],
)
def test_two_processes_search_together(asked: list[str], folder: Path) -> None:
    """The numbers are those of one process with all the devices."""
    for out, processes in (("one", 1), ("two", 2)):
        its = cluster.start(folder / out, processes, devices=2, command="search", more=asked)
        for ended in cluster.finish(its, 600):
            assert ended.code == 0, ended.text
    assert outcomes("one") == outcomes("two")
    found = [json.loads((folder / out / "summary.json").read_text()) for out in ("one", "two")]
    for each in found:
        del each["wall_s"]
    assert found[0] == found[1]
    for run in {trial.user_attrs["run"] for trial in results("one")}:
        one, two = (records.read_metrics(folder / out / run) for out in ("one", "two"))
        for name, values in one.items():
            np.testing.assert_array_equal(values, two[name], err_msg=f"{run} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["--halving", "--pbt"])
def test_two_processes_are_killed_and_go_on(method: str, folder: Path) -> None:
    """One of them, in the second batch; a single process then ends what they began."""
    asked = [*FOUR, method, *(["--eta", "2"] if method == "--halving" else [])]
    slow = [*asked, "--agent.total-steps", "1600"]
    start: Callable[..., Any] = lambda out, count, inject: cluster.start(
        folder / out, count, devices=2, command="search", more=slow, inject=inject
    )
    running = start("it", 2, [cluster.SLOW])
    try:
        cluster.until(lambda: enough(folder / "it/001"), 600)
        running[0].kill()
        cluster.finish(running, 120)
    finally:
        for process in running:
            process.kill()
    for out in ("it", "whole"):
        (ended,) = cluster.finish(start(out, 1, []), 600)
        assert ended.code == 0, ended.text
        assert ("continuing from update" in ended.text) == (out == "it")
    it, whole = outcomes("it"), outcomes("whole")
    assert it == whole


def enough(run: Path) -> bool:
    """Whether a run has come over the half, where some have been stopped and others have moved."""
    steps = [int(x.name) for x in cluster.saved(run)]
    return max(steps, default=0) > 50


def test_a_search_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install -e .\.\[search\]"):
        run()
    monkeypatch.setitem(sys.modules, "cmaes", None)
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    with pytest.raises(UserError, match="pip install cmaes"):
        run("--sampler", "cmaes")
