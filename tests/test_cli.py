"""The command line before anything is trained: bad input, help, lists, and how options resolve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from jaxrl.drive import Report
from jaxrl.envs import names
from jaxrl.errors import UserError
from jaxrl.experiments import (
    agents,
    cli,
    commands,
    jax_setup,
    report,
    settings,
    summary,
    train,
    train_loop,
    values,
)
from jaxrl.experiments.plan import Plan, make_plan
from jaxrl.experiments.requests import tokenise
from jaxrl.experiments.settings import Settings, identity, resolve
from jaxrl.runs import files, records
from jaxrl.runs.metrics import part_name
from jaxrl.types import Episodes

TRAIN = ["train", "pqn", "--env", "probe:match"]
NAMED = ["train", "pqn", "--env"]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, a process as it was before, and no training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    refuse = lambda *args, **more: pytest.fail("a training run was started")
    monkeypatch.setattr(train_loop, "run", refuse)
    return tmp_path


@pytest.fixture
def jaxrl(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs one command in this process."""

    def run(*words: str) -> Outcome:
        try:
            code = cli.main(words)
        except SystemExit as stop:  # as --help ends
            code = int(stop.code or 0)
        told = capsys.readouterr()
        return Outcome(code, str(told.out), str(told.err))

    return run


def process(*words: str, code: str = "", cwd: Path | None = None, **env: str) -> Outcome:
    """Runs one command, or `code` with its words, in a process of its own."""
    start = ["-c", code] if code else ["-m", "jaxrl.experiments.cli"]
    done = subprocess.run(
        [sys.executable, *start, *words],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def tree(folder: Path) -> dict[str, bytes]:
    files = {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    return {str(path): data for path, data in files.items()}


def is_refused(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2 and one line that holds all fragments."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("jaxrl: "), outcome.err
    assert outcome.err.endswith("\n") and outcome.err.count("\n") == 1, outcome.err
    assert len(outcome.err) < 500
    assert "Traceback" not in outcome.out + outcome.err
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err


# --- bad input -----------------------------------------------------------------------------------

BLOCKED = "files/notes.txt/a"  # below a file
# Words, and what the one line must say.
BAD = {
    "command": (["trian", "pqn"], "trian", "'train'"),
    "command, nothing near": (["--seeds", "3"], "--seeds", "--help"),
    "no agent": (["train"], "train needs an agent"),
    "no agent, options": (["train", "--env", "CartPole-v1"], "train needs an agent"),
    "agent": (["train", "pqm", "--env", "CartPole-v1"], "'pqm'", "'pqn'"),
    "agent's module": (["train", "nowhere.agent", "--env", "probe:obs"], "'nowhere'"),
    "agent's submodule": (["train", "json.nothing", "--env", "probe:obs"], "json.nothing"),
    "agent without parts": (["train", "json.tool", "--env", "probe:obs"], "no Config"),
    "agent, relative": (["train", ".agent", "--env", "probe:obs"], ".agent"),
    "agent, broken": (["train", "broken.agent", "--env", "probe:obs"], "ZeroDivisionError"),
    "capitals": (["train", "PPO", "--env", "CartPole-v1"], "unknown agent 'PPO'", "mean 'ppo'?"),
    "no env": (["train", "pqn"], "pqn needs an environment: pass --env"),
    "env without value": (["train", "pqn", "--env"], "pqn needs an environment: pass --env"),
    "env, empty": (["train", "pqn", "--env="], "pqn needs an environment: pass --env"),
    "env, then an option": (
        ["train", "pqn", "--env", "--seeds", "3"],
        "pqn needs an environment: pass --env",
    ),
    "env": (["train", "pqn", "--env", "CartPole-v2"], "'CartPole-v2'", "'CartPole-v1'"),
    "env, family": (["train", "pqn", "--env", "cartpole"], "'CartPole-v1'"),
    "env, probe": (["train", "pqn", "--env", "probe:dela"], "'probe:delay'"),
    "env's module": ([*NAMED, "nowhere:env"], "'nowhere'"),
    "env's submodule": ([*NAMED, "json.nothing:env"], "json.nothing"),
    "env's attribute": ([*NAMED, "json:load_"], "'load_'", "'load'"),
    "env with arguments": ([*NAMED, "json:loads"], "json:loads", "'s'"),
    "env, no Env": ([*NAMED, "odd:number"], "odd:number", "int"),
    "env, broken": ([*NAMED, "broken:env"], "broken", "ZeroDivisionError"),
    "env, syntax": ([*NAMED, "syntax:env"], "syntax.py", "SyntaxError"),
    "env, no module": ([*NAMED, "some-module:env"], "module:attribute"),
    "action space": (["train", "pqn", "--env", "probe:aim"], "discrete", "probe:aim"),
    "number": (["report", "runs", "--target", "abc"], "--target takes a number, not 'abc'"),
    "choice": ([*TRAIN, "--compute-dtype", "half"], "takes one of float32, bfloat16, not 'half'"),
    "tracker": ([*TRAIN, "--dry-run", "--track", "wandbb"], "'wandbb'", "mean 'wandb'?"),
    "tracker, real": ([*TRAIN, "--track", "wandbb"], "'wandbb'", "mean 'wandb'?"),
    "tracker's module": ([*TRAIN, "--dry-run", "--track", "nowhere:Own"], "no module 'nowhere'"),
    "sweep's tracker": (
        ["sweep", *TRAIN[1:], "--sweep", "lr=1,2", "--track", "wandbb"],
        "unknown tracker 'wandbb'",
    ),
    "processes alone": ([*TRAIN, "--dry-run", "--processes", "2"], "belong together"),
    "process id": (
        [*TRAIN, "--dry-run", "--processes=2", "--process-id=2", "--coordinator=x:1"],
        "--process-id must be between 0 and 1",
    ),
    "option": ([*TRAIN, "--sedes", "3"], "--sedes", "'--seeds'"),
    "agent's option": ([*TRAIN, "--agent.lrr", "3"], "--agent.lrr", "'--agent.lr'"),
    "agent's option, bare": ([*TRAIN, "--lrr", "3"], "--lrr", "'--agent.lr'"),
    "agent's option, long": ([*TRAIN, "--num_env=3"], "--num-env", "'--agent.num-envs'"),
    "option, short": ([*TRAIN, "-x", "3"], "-x"),
    "word": ([*TRAIN, "hello"], "hello"),
    "value for a switch": ([*TRAIN, "--overwrite", "yes"], "yes"),
    "no value": ([*TRAIN, "--seeds"], "--seeds"),
    "two values": ([*TRAIN, "--seeds", "3", "4"], "4"),
    "type, int": ([*TRAIN, "--seeds", "three"], "--seeds", "'three'", "a whole number"),
    "type, fraction": ([*TRAIN, "--seeds", "1.5"], "--seeds", "'1.5'", "a whole number"),
    "type, float": ([*TRAIN, "--agent.lr", "high"], "--agent.lr", "'high'", "a number"),
    "type, optional": ([*TRAIN, "--devices", "all"], "--devices", "'all'"),
    "type, list": ([*TRAIN, "--agent.hidden", "8", "x"], "--agent.hidden", "'x'", "whole numbers"),
    "type, wrapped": ([*TRAIN, "--agent.total-steps", "1e-6"], "--agent.total-steps", "1e-6"),
    "nan": ([*TRAIN, "--agent.lr", "nan"], "--agent.lr", "nan"),
    "seeds 0": ([*TRAIN, "--seeds", "0"], "--seeds", "at least 1"),
    "seeds -1": ([*TRAIN, "--seeds=-1"], "--seeds", "at least 1"),
    "seeds, the last one": ([*TRAIN, "--seeds", "3", "--seeds", "0"], "--seeds", "at least 1"),
    "seed -1": ([*TRAIN, "--seed=-1"], "--seed", "at least 0"),
    "seed 2^40": ([*TRAIN, "--seed", str(2**40)], "--seed", str(2**40)),
    "seed of shared stages": ([*TRAIN, "--seed", str(2**31 - 1)], "--seed", "below 2^31"),
    "seeds beyond": ([*TRAIN, "--seed", str(2**31 - 1), "--seeds", "2"], "--seed"),
    "evals": ([*TRAIN, "--evals", "0"], "--evals", "at least 1"),
    "eval-episodes": ([*TRAIN, "--eval-episodes", "0"], "--eval-episodes", "at least 1"),
    "keep": ([*TRAIN, "--keep", "0"], "--keep", "at least 1"),
    "checkpoint-seconds": ([*TRAIN, "--checkpoint-seconds=-1"], "--checkpoint-seconds"),
    "devices 99": ([*TRAIN, "--devices", "99"], "--devices", "between 1 and 8"),
    "devices 0": ([*TRAIN, "--devices", "0"], "--devices", "between 1 and 8"),
    "width 0": ([*TRAIN, "--width", "0"], "--width", "between 1 and 1"),
    "width 10^9": ([*TRAIN, "--seeds", "8", "--width", "1000000000"], "between 1 and 8"),
    "minibatches": ([*TRAIN, "--agent.minibatches", "7"], "minibatches=7", "2048"),
    "total-steps": ([*TRAIN, "--agent.total-steps", "5"], "total_steps=5", "2048"),
    "preset": ([*TRAIN, "--preset", "nothing"], "'nothing'", "CartPole-v1"),
    "preset, near": ([*NAMED, "CartPole-v1", "--preset", "smal"], "'smal'", "'small'"),
    "env-options": ([*TRAIN, "--env-options", "length"], "name=value", "'length'"),
    "env-options, YAML": ([*TRAIN, "--env-options", "length=[1, 2"], "--env-options", "[1, 2"),
    "env-options, name": (
        [*NAMED, "probe:delay", "--env-options", "lenght=3"],
        "'lenght'",
        "'length'",
    ),
    "env-options, value": ([*NAMED, "probe:delay", "--env-options", "length=0"], "length"),
    "env-options, type": ([*NAMED, "probe:delay", "--env-options", "length=x"], "length"),
    "env-options, limit": (
        [*TRAIN, "--env-options", "max_steps=0"],
        "max_steps of probe:match",
        "0",
    ),
    "out, a file": ([*TRAIN, "--out", "odd.py"], "odd.py"),
    "out, below a file": ([*TRAIN, "--out", "odd.py/run"], "odd.py"),
    "out, other files": ([*TRAIN, "--out", "files"], "files", "config.json"),
    "out, other files, overwrite": ([*TRAIN, "--out", "files", "--overwrite"], "config.json"),
    "out, half a config": ([*TRAIN, "--out", "half"], "half", "config.json"),
    "eval nothing": (["eval"], "eval needs one run"),
    "eval two": (["eval", "files", "half"], "eval needs one run"),
    "eval no run": (["eval", "files"], "files", "config.json"),
    "eval no folder": (["eval", "nowhere"], "nowhere", "no such folder"),
    "eval half a config": (["eval", "half"], "half", "config.json"),
    "eval another config": (["eval", "another"], "another", "config.json"),
    "eval episodes 0": (["eval", "files", "--episodes", "0"], "--episodes", "'0'"),
    "eval episodes few": (["eval", "files", "--episodes", "few"], "--episodes", "'few'"),
    "eval episodes without value": (["eval", "files", "--episodes"], "--episodes"),
    "eval option": (["eval", "files", "--episods=3"], "--episods", "'--episodes'"),
    "report nothing": (["report"], "report needs a run"),
    "report no run": (["report", "files"], "files", "config.json"),
    "report half a config": (["report", "half"], "half", "repeat, with --overwrite, the command"),
    "report csv": (["report", "half", "--csv", f"{BLOCKED}.csv"], "a.csv cannot be written: Not a"),
    "report html": (["report", "half", "--html", f"{BLOCKED}.html"], "a.html cannot be written"),
    "report csv, a folder": (["report", "half", "--csv", "files"], "files cannot be written: Is a"),
    "report csv, new folder": (["report", "half", "--csv", "new/new/a.csv"], "half", "is damaged"),
    "eval csv": (["eval", "half", "--csv", f"{BLOCKED}.csv"], "a.csv cannot be written"),
    "ope csv": (["ope", "half", "--data", "x", "--csv", f"{BLOCKED}.csv"], "cannot be written"),
    "merge csv": (["merge", "half", "old", "--csv", f"{BLOCKED}.csv"], "a.csv cannot be written"),
    "render": (["render", "half", "--out", f"{BLOCKED}.gif"], "a.gif cannot be written"),
    "data info": (["data", "info", "x.npz", "--out", f"{BLOCKED}.png"], "a.png cannot be written"),
    "report of a file": (["report", "old/config.json"], "it is a file; did you mean old?"),
    "report of a part": (["report", "old/metrics"], "no such folder"),
    "train a folder": (["train", "old"], "jaxrl train old/config.json has its settings", "--env"),
    "report option": (["report", "files", "--uot", "x.png"], "--uot", "'--out'"),
    "report csv without value": (["report", "files", "--csv", "--out", "x.png"], "--csv needs a"),
    "eval of jaxrl 0.1": (["eval", "old"], "old was made by jaxrl 0.1", "this version"),
    "out of jaxrl 0.1": ([*TRAIN, "--out", "old"], "made by jaxrl 0.1"),
    "agent's file": (["train", "nowhere.py", "--env", "probe:obs"], "no file 'nowhere.py'"),
    "env's file": ([*NAMED, "nowhere.py:env"], "no file 'nowhere.py'"),
    "env-options, name=": ([*NAMED, "CartPole-v1", "--env-options", "name=x"], "'name'"),
    "list nothing": (["list"], "list needs agents, envs or reproductions"),
    "list": (["list", "agent"], "agents", "envs"),
    "list two": (["list", "envs", "agents"], "list needs agents, envs or reproductions"),
    "hidden 0": ([*TRAIN, "--agent.hidden", "0"], "agent.hidden=0", "0"),
    "hidden -3": ([*TRAIN, "--agent.hidden=-3"], "agent.hidden=-3", "-3"),
    "num-envs 0": ([*TRAIN, "--agent.num-envs", "0"], "num_envs=0"),
    "num-steps 0": ([*TRAIN, "--agent.num-steps", "0"], "num_steps=0"),
    "minibatches 0": ([*TRAIN, "--agent.minibatches", "0"], "minibatches=0"),
    "minibatches -2": ([*TRAIN, "--agent.minibatches=-2"], "minibatches=-2"),
    "epochs 0": ([*TRAIN, "--agent.epochs", "0"], "epochs=0"),
    "convolution of numbers": ([*TRAIN, "--agent.conv", "8"], "conv=(8,)", "images"),
    "env's function raises": ([*NAMED, "odd:make"], "odd:make", "first line second line"),
}


@pytest.fixture
def furnished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules and folders that nothing can be trained with or in."""
    (folder / "odd.py").write_text(
        "number = 3\n\n\ndef make():\n    raise ValueError('first line\\nsecond line')\n"
    )
    (folder / "broken.py").write_text("raise ZeroDivisionError('first line\\nsecond line')\n")
    (folder / "syntax.py").write_text("def env(:\n")
    for name, file, text in (
        ("files", "notes.txt", "kept"),
        ("half", "config.json", '{"config": '),
        ("another", "config.json", "[]"),
        ("old", "config.json", '{"config": {"agent": "pqn"}, "context": {"width": 1}}'),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)
    for name in ("odd", "broken", "syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def check_refused(jaxrl: Callable, folder: Path, words: list[str], *fragments: str) -> None:
    before = tree(folder)
    try:
        outcome = jaxrl(*words)
    finally:
        for name in ("odd", "broken", "syntax"):
            sys.modules.pop(name, None)
    is_refused(outcome, *fragments)
    assert outcome.out == ""
    assert tree(folder) == before, "something was left on disk"


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, jaxrl: Callable[..., Outcome], furnished: Path
) -> None:
    words, *fragments = BAD[case]
    check_refused(jaxrl, furnished, words, *fragments)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--seeds", "2"], "seeds is 1 there and 2 here"),
        (["--agent.lr", "0.5"], "settings.lr"),
        (["--agent.hidden", "8"], "settings.hidden"),
        (["--env-options", "max_steps=3"], "env_options"),
    ],
)
def test_folder_of_another_configuration(
    words: list[str], field: str, jaxrl: Callable[..., Outcome], folder: Path
) -> None:
    first = resolve("pqn", tokenise(TRAIN[2:])[1])
    with records.open_run("taken", identity(first, {}), {"width": 1}):
        pass
    check_refused(jaxrl, folder, [*TRAIN, "--out", "taken", *words], "taken", field)
    Path("taken/summary.json").write_text('{"finished": true}')  # also when that run is finished
    check_refused(jaxrl, folder, [*TRAIN, "--out", "taken", *words], "taken", field)


def test_an_open_folder_forbids_nothing_incidental(folder: Path) -> None:
    """Where it writes, how often and on what devices do not make it another run."""
    words = ["--devices", "2", "--keep=3", "--tensorboard", "--out", "x", "--checkpoint-seconds=1"]
    parse = lambda *words: resolve("pqn", tokenise([*TRAIN[2:], *words])[1])
    assert identity(parse(*words, "--overwrite"), {}) == identity(parse(), {})


def test_bad_input_where_there_is_only_ascii(tmp_path: Path) -> None:
    """The line is ASCII whatever it says."""
    env = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    outcome = process(*TRAIN, "--seeds", "many", cwd=tmp_path, **env)
    is_refused(outcome, "--seeds", "'many'", "a whole number")
    assert "--  " not in outcome.err and "─" not in outcome.err
    assert outcome.out == "" and not list(tmp_path.iterdir())


def test_bad_input_with_jax_running(tmp_path: Path) -> None:
    """Nothing but the one line, also where devices were looked for."""
    outcome = process(*TRAIN, "--devices", "99", cwd=tmp_path, JAX_PLATFORMS="cpu")
    is_refused(outcome, "--devices")
    assert outcome.out == "" and not list(tmp_path.iterdir())


# --- what needs no JAX ---------------------------------------------------------------------------

LOADED = """
import sys
from jaxrl.experiments.cli import main
code = main(sys.argv[1:])
heavy = {"jax", "jaxlib", "flax", "optax", "tyro", "rich", "pyarrow", "matplotlib", "gymnax"}
print("loaded", sorted(heavy & set(sys.modules)))
raise SystemExit(code)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 0),
        (["--help"], 0),
        (["train", "--help"], 0),
        (["eval", "--help"], 0),
        (["data", "make", "--help"], 0),
        (["--version"], 0),
        (["list", "envs"], 0),
        (["list", "agents"], 0),
        (["train", "pqm", "--env", "CartPole-v1"], 2),
        (["train", "pqn", "--env", "CartPole-v2"], 2),
        (["train", "pqn", "--env", "nowhere:env"], 2),
        (["eval", "--episods", "3"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_without_jax(words: list[str], code: int, tmp_path: Path) -> None:
    outcome = process(*words, code=LOADED, cwd=tmp_path)
    assert outcome.code == code, outcome
    assert outcome.out.splitlines()[-1] == "loaded []"


COMPILED = """
import sys
import jax
from jaxrl.experiments.cli import main
compiled = []
watch = lambda event, seconds, **_: compiled.append(event)
jax.monitoring.register_event_duration_secs_listener(watch)
code = main(sys.argv[1:])
print("compiled", sum(event.endswith("backend_compile_duration") for event in compiled))
raise SystemExit(code)
"""


def test_a_plan_compiles_next_to_nothing(tmp_path: Path) -> None:
    """Each operation on arrays would be a program of its own, in some hundredths of a second."""
    words = ["train", "dqn", "--env", "CartPole-v1", "--dry-run"]
    outcome = process(*words, code=COMPILED, cwd=tmp_path)
    assert outcome.code == 0, outcome
    word, count = outcome.out.split()[-2:]
    assert word == "compiled" and 1 <= int(count) <= 5  # gymnax compiles one when imported


def test_help_is_immediate() -> None:
    """In seconds of CPU, which other processes on the machine lengthen little."""
    seconds = []
    for _ in range(3):
        before = os.times()
        assert process("--help").code == 0
        after = os.times()
        user, system = (after[i] - before[i] for i in (2, 3))  # of children
        seconds.append(user + system)
    assert 0 < min(seconds) < 0.5


def test_help_names_every_command(jaxrl: Callable[..., Outcome]) -> None:
    outcome = jaxrl("--help")
    assert outcome.code == 0 and outcome.err == ""
    for command in cli.COMMANDS:
        assert f"jaxrl {command}" in outcome.out
    assert jaxrl() == jaxrl("-h") == jaxrl("help") == outcome


@pytest.mark.parametrize("command", commands.PAGES)
def test_help_of_a_command(command: str, jaxrl: Callable[..., Outcome]) -> None:
    """Usage, every option with its help, and an example that has no unknown option."""
    words = command.split()
    outcome = jaxrl(*words, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith(f"usage: jaxrl {command} ")
    assert outcome == jaxrl("help", *words) == jaxrl(*words, "-h")
    page = commands.PAGES[command]
    known = [f for record in page.options for f in values.fields_of(record, help=True).values()]
    text = " ".join(outcome.out.split())
    for field in known:
        assert f"{field.option}" in text and field.help and field.help in text
    assert max(map(len, outcome.out.splitlines())) <= 100
    assert f"example: jaxrl {command} " in outcome.out
    if command not in ("train", "sweep", "search", "data make"):
        assert outcome == jaxrl(*words, "some/run", "--help")
        used = {word for word in page.example.split() if word.startswith("--")}
        assert used <= {field.option for field in known}


def test_help_of_an_agent(jaxrl: Callable[..., Outcome]) -> None:
    outcome = jaxrl("train", "pqn", "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith("usage: jaxrl train pqn --env ENV [options]\n")
    for word in ("--env", "(required)", "--seeds", "--agent.lr", "--agent.hidden", "(default: 1)"):
        assert word in outcome.out


@pytest.mark.parametrize(
    ("command", "own"),
    [("train", "--dry-run"), ("sweep", "--dry-run, --no-dry-run"), ("search", "--trials INT")],
)
def test_help_has_the_options_of_the_command(
    command: str, own: str, jaxrl: Callable[..., Outcome]
) -> None:
    """Every option with its help; with --env, defaults are those of the preset."""
    outcome = jaxrl(command, "pqn", "--env", "CartPole-v1", "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith(f"usage: jaxrl {command} pqn --env ENV")
    assert own in outcome.out
    known = settings.known_fields(agents.load("pqn"))
    chosen = settings.preset_values("pqn", agents.load("pqn"), "CartPole-v1", "auto")
    assert chosen
    words = outcome.out.split()
    for name in known:
        assert values.spelled(name) in {word.strip(",") for word in words}
    text = " ".join(words)
    assert f"(default: {chosen['agent.total_steps']})" in text


def test_lists(jaxrl: Callable[..., Outcome]) -> None:
    for what, known in (("agents", agents.AGENTS), ("envs", dict(names.names()))):
        outcome = jaxrl("list", what)
        assert outcome.code == 0
        listed = outcome.out.partition("\n\n")[0]
        rows = dict(line.split(None, 1) for line in listed.splitlines())
        assert rows == known


# --- how options resolve -------------------------------------------------------------------------


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of presets for PQN."""
    known = {
        "probe:obs": {"seeds": 5, "evals": 7, "agent": {"lr": "1e-3", "hidden": [7], "gamma": 0}},
        "probe:obs/wide": {"agent": {"hidden": [70]}},
        "probe:limit": {"sedes": 3},
        "probe:cue": {"agent": {"hiden": [3]}},
    }
    file = tmp_path / "pqn.yaml"
    file.write_text(yaml.safe_dump(known))
    monkeypatch.setattr(settings, "PRESETS", tmp_path)
    return file


def parse(*words: str) -> Settings:
    return resolve("pqn", tokenise(words)[1])


def test_command_line_over_preset_over_default(presets: Path) -> None:
    default = parse("--env", "probe:obs", "--preset", "none")
    assert (default.options.seeds, default.options.evals) == (1, 20)
    assert default.cfg == agents.load("pqn").Config()
    preset = parse("--env", "probe:obs")
    assert (preset.options.seeds, preset.options.evals) == (5, 7)
    assert (preset.cfg.hidden, preset.cfg.num_envs) == ((7,), default.cfg.num_envs)
    assert (preset.hp.lr, preset.hp.lam) == (1e-3, default.hp.lam)
    assert isinstance(preset.hp.gamma, float)  # 0 in the file: another type is another program
    line = parse("--env", "probe:obs", "--seeds", "2", "--agent.hidden", "8", "9", "--agent.lr=1")
    assert (line.options.seeds, line.options.evals) == (2, 7)
    assert (line.cfg.hidden, line.hp.lr, line.hp.gamma) == ((8, 9), 1.0, 0.0)
    # What only the agent has needs no prefix.
    assert line == parse("--env=probe:obs", "--seeds=2", "--hidden", "8", "9", "--lr", "1")


def test_presets_by_name(presets: Path) -> None:
    assert parse("--env", "probe:obs", "--preset", "wide").cfg.hidden == (70,)
    assert parse("--env", "probe:delay").cfg.hidden == (256, 256)  # has none
    assert parse("--env", "probe:delay", "--preset", "probe:obs").options.env == "probe:delay"
    assert parse("--env", "probe:delay", "--preset", "probe:obs/wide").cfg.hidden == (70,)
    with pytest.raises(UserError, match="no preset 'wide'"):
        parse("--env", "probe:delay", "--preset", "wide")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("probe:limit", "of probe:limit: .*--sedes, did you mean '--seeds'"),
        ("probe:cue", "--agent.hiden.*'--agent.hidden'"),
    ],
)
def test_preset_with_a_slip(presets: Path, env: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse("--env", env)


@pytest.mark.parametrize("agent", agents.AGENTS)
def test_presets_that_come_with_jaxrl(agent: str) -> None:
    file = settings.PRESETS / f"{agent}.yaml"
    known = yaml.safe_load(file.read_text()) if file.is_file() else {}
    for name in known:
        task = name.partition("/")[0]
        env = task if task in dict(names.names()) else "probe:obs"
        found = resolve(agent, {"env": env, "preset": name})
        assert found.options.env == env and found.agent == agent


def test_a_setting_has_one_spelling_of_its_name(presets: Path) -> None:
    dashes = parse("--env=probe:obs", "--agent.num-envs=3", "--eval-episodes", "4")
    assert parse("--env", "probe:obs", "--agent.num_envs", "3", "--eval_episodes=4") == dashes


def test_spellings_with_ize(presets: Path) -> None:
    own = ["--env", "probe:obs", "--env-options", "normalize_obs=true"]
    assert parse(*own).options.env_options == {"normalise_obs": True}
    found = resolve("pqn_continuous", {"env": "probe:aim", "agent": {"normalize_obs": True}})
    assert found.cfg.normalise_obs
    line = tokenise(["--env=probe:aim", "--no-normalize-obs"])[1]
    assert not resolve("pqn_continuous", line).cfg.normalise_obs


def test_a_call_is_a_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings and the same errors, with a name or a module for the agent."""
    monkeypatch.setattr(train, "train", lambda settings, hint: settings)
    line = parse("--env", "probe:match", "--seeds", "3", "--lr", "0.5", "--hidden", "8", "8")
    given = {"env": "probe:match", "seeds": 3, "agent": {"lr": np.float32(0.5), "hidden": [8, 8]}}
    assert train.run("pqn", **given) == line
    assert train.run(agents.load("pqn"), **given) == line
    with pytest.raises(UserError, match="--agent.lrr, did you mean '--agent.lr'"):
        train.run("pqn", env="probe:match", agent={"lrr": 1})
    with pytest.raises(UserError, match="--seeds takes a whole number, not 'three'"):
        train.run("pqn", env="probe:match", seeds="three")


def test_a_call_leaves_jax_as_it_is(tmp_path: Path) -> None:
    """Also where devices are in use already; the command would have changed their number."""
    code = """
import jax
devices, before = jax.devices(), dict(jax.config.values)
import jaxrl
try:
    jaxrl.run("pqn", env="probe:match", seeds=2, width=3)
except ValueError as error:
    print(error)
assert jax.devices() == devices and dict(jax.config.values) == before
"""
    outcome = process(code=code, cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert outcome.out == "--width must be between 1 and 2, the number of members\n", outcome.err


def test_the_command_leaves_what_is_set(tmp_path: Path) -> None:
    code = """
import jax
from jaxrl.experiments import jax_setup
jax_setup.start()
print(jax.config.jax_default_matmul_precision, jax.config.jax_num_cpu_devices)
"""
    own = {"JAX_DEFAULT_MATMUL_PRECISION": "high", "JAX_NUM_CPU_DEVICES": "3"}
    assert process(code=code, cwd=tmp_path, **own).out == "high 3\n"


def test_own_agents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the current directory, a file anywhere, and an attribute of either."""
    (folder / "below").mkdir()
    for file in ("own_agent.py", "below/other_agent.py"):
        (folder / file).write_text("from jaxrl.agents import pqn\nfrom jaxrl.agents.pqn import *\n")
    own = agents.load("pqn").Config
    for name in ("own_agent", "own_agent.py", "own_agent:pqn", "below/other_agent.py:pqn"):
        agents.check_name(name)
        assert agents.load(name).Config is own
    for name in ("own_agent", "other_agent"):
        monkeypatch.delitem(sys.modules, name)


def test_a_run_is_asked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its config.json, of which options take the place."""
    seen: list[Settings] = []
    monkeypatch.setattr(train, "train", lambda asked, **_: seen.append(asked) or {})
    asked = ["--env", "probe:match", "--seeds", "2", "--lr", "1e-9"]
    asked += ["--env-options", "max_steps=3"]
    made = parse(*asked)
    with records.open_run("made", identity(made, {}), {"width": 1}):
        pass
    assert cli.main(["train", "made/config.json"]) == 0
    assert cli.main(["train", "made/config.json", "--seeds", "5", "--lr=1"]) == 0
    assert seen[0] == made
    assert (seen[1].options.seeds, seen[1].hp.lr, seen[1].cfg) == (5, 1.0, made.cfg)


def test_env_options_are_values_not_text() -> None:
    line = ["a=1", "b=1e-4", "c=true", "d=[1, 2]", "e=x=y", "f=-.5", "g="]
    read = parse("--env", "probe:obs", "--env-options", *line).options.env_options
    assert read == {"a": 1, "b": 1e-4, "c": True, "d": [1, 2], "e": "x=y", "f": -0.5, "g": None}
    assert isinstance(read["a"], int)


def test_own_environment_with_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:attribute` from the current directory; options reach its function and its params."""
    source = Path(__file__).with_name("tiny.py").read_text()
    lines = ("\n\n\ndef make(limit):", "    import dataclasses", "    env = walk()")
    last = (
        "    return dataclasses.replace(env, spec=dataclasses.replace(env.spec, max_steps=limit))"
    )
    (folder / "own_env.py").write_text(source + "\n".join([*lines, last, "", "", "env = walk()"]))
    monkeypatch.delitem(sys.modules, "own_env", raising=False)
    made = make_plan(parse("--env", "own_env:make", "--env-options", "limit=4", "noise=0.5")).env
    assert made.spec.max_steps == 4 and float(made.params["noise"]) == 0.5
    assert make_plan(parse("--env", "own_env:env")).env.spec.max_steps == 5
    monkeypatch.delitem(sys.modules, "own_env")


# --- members that fail, and reports --------------------------------------------------------------


def make_run(path: Path, returns: list[list[float]], finite: list[list[float]]) -> Plan:
    """A run's folder with metrics [C, P], as if it had been trained."""
    own = parse("--env", "probe:match", "--seeds", "3", "--out", str(path))
    with records.open_run(path, identity(own, {}), {"width": 1}) as run:
        for chunk, (y, sound) in enumerate(zip(returns, finite, strict=True), start=1):
            step = {"update": chunk, "env_steps": 100 * chunk}
            columns = {"return": np.array(y), "finite": np.array(sound)}
            index = {"stage": "agent", "member": np.arange(3)} | step
            run.write_part(part_name(0, chunk, 0), index | columns)
    return make_plan(own)


def finish(path: Path, ready: Plan) -> dict:
    run = records.RunDir(path)
    found = summary.summarise(ready, run, wall_s=10.0, compile_s=4.0)
    run.write_summary(found)
    return found


def test_a_failed_member_has_no_return() -> None:
    returns, lengths = np.array([[1.0, 3.0], [9.0, 9.0]]), np.array([[1, 3], [9, 9]])
    evals = Episodes(returns, lengths, lengths > 0)
    metrics = {"finite": np.array([1.0, 0.0]), "loss": np.array([0.1, np.nan])}
    columns = train_loop.metrics_of(Report("agent", 1, metrics, evals, None))
    assert columns is not None
    np.testing.assert_array_equal(columns["return"], [2.0, np.nan])
    np.testing.assert_array_equal(columns["length"], [2.0, np.nan])
    assert train_loop.shown(columns) == {"return": 2.0}


def test_summary_names_failed_members_and_counts_the_others(folder: Path) -> None:
    nan, path = np.nan, folder / "run"
    ready = make_run(path, [[1, 9, 3], [2, nan, 1]], [[1, 1, 1], [1, 0, 1]])
    found = finish(path, ready)
    assert list(found["failed_members"]) == [1]
    assert found["return"]["mean"] == 1.5 and found["members"] == 3
    assert found["steps_per_s"] == found["env_steps"] / 6.0  # compiling left out
    members = records.RunDir(path).members()
    np.testing.assert_array_equal(members["final_return"], [2, nan, 1])
    np.testing.assert_array_equal(members["best_return"], [2, 9, 3])
    np.testing.assert_array_equal(members["failed"], [False, True, False])
    assert summary.result(found).endswith("3 members; 1 failed: 1")


def test_summary_when_all_fail(folder: Path, jaxrl: Callable[..., Outcome]) -> None:
    path = folder / "run"
    ready = make_run(path, [[np.nan] * 3], [[0] * 3])
    report.draw_run(records.RunDir(path))  # has nothing to draw
    assert summary.result(files.plain(finish(path, ready))).startswith("all 3 members failed: ")
    outcome = jaxrl("report", "run")
    assert outcome.code == 0 and outcome.out.splitlines()[-1].split()[-1] == "finished"
    again = jaxrl(*TRAIN, "--seeds", "3", "--out", "run")
    assert again.out.startswith("run is finished: all 3 members failed: ") and again.code == 1


def test_report_on_runs_of_all_ages(folder: Path, jaxrl: Callable[..., Outcome]) -> None:
    make_run(folder / "new", [], [])
    make_run(folder / "a/run", [[1, 2, 3], [2, 3, 4]], [[1] * 3] * 2)
    finish(folder / "b/run", make_run(folder / "b/run", [[5, 6, 7]], [[1] * 3]))
    outcome = jaxrl("report", "new", "a/run", "b/run", "--out", "all.png")
    rows = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert outcome.code == 0 and "nothing yet" in rows["new"]
    assert "2 evaluations" in rows[str(folder / "a/run")]  # two of one name
    assert rows[str(folder / "b/run")].split()[1:3] == ["3", "6"]
    assert "finished" in rows[str(folder / "b/run")]
    assert (folder / "all.png").read_bytes().startswith(b"\x89PNG")
    outcome = jaxrl("report", "new")
    assert outcome.code == 0 and "learning curves" not in outcome.out
    assert not list((folder / "new").rglob("*.png"))


def test_a_run_without_checkpoint(folder: Path, jaxrl: Callable[..., Outcome]) -> None:
    make_run(folder / "young", [[1, 2, 3]], [[1] * 3])
    check_refused(jaxrl, folder, ["eval", "young"], "young", "no checkpoint")


def test_more_evaluations_than_there_is_room_for(jaxrl: Callable[..., Outcome]) -> None:
    """The default takes as many as there are updates; another number has to fit."""
    tiny = ["--env", "probe:match", "--agent.total-steps=64", "--agent.num-envs=4"]
    tiny += ["--agent.num-steps=4", "--agent.minibatches=1"]
    assert len(make_plan(resolve("pqn", tokenise(tiny)[1])).program.stages[0].chunks) == 4
    refused = jaxrl("train", "pqn", *tiny, "--evals", "5")
    assert refused.code == 2
    assert "--evals 5 is more than 4 updates of stage 'agent' allow" in refused.err
