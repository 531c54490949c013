"""Runs from end to end, by the command line in processes of their own, on a tiny environment.

One run that nothing disturbs is the measure. Others are killed, damaged, interrupted or part of a
larger population, and must come out as it does. All share their compiled programs, and what several
tests look at is made once, also where tests are spread over processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

import jaxrl
from jaxrl.evaluate import evaluator
from jaxrl.experiments import cli, jax_setup, restore, train_loop
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.requests import tokenise
from jaxrl.experiments.settings import identity, resolve
from jaxrl.experiments.trust import Trust
from jaxrl.program import evaluate_fn
from jaxrl.runs import records

TRUSTED = Trust(everything=True)
WORDS = [
    *("train", "pqn", "--env", "mine:walk", "--env-options", "noise=0.2"),
    *("--agent.hidden", "8", "--agent.num-envs", "4", "--agent.num-steps", "8"),
    *("--agent.minibatches", "2", "--agent.epochs", "1", "--agent.total-steps", "2000"),
    *("--seeds", "3", "--evals", "31", "--eval-episodes", "4"),
]
UPDATES, MEMBERS, EVALS, WINDOW = 62, 3, 31, 32  # 2000 // (4 * 8) updates of 4 * 8 steps


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that all commands run in, with an environment of its own."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "lab"
    folder.mkdir(exist_ok=True)
    with once(folder / "mine.py") as missing:
        if missing:
            shutil.copy(Path(__file__).with_name("tiny.py"), folder / "mine.py")
    return folder


@contextlib.contextmanager
def once(path: Path) -> Iterator[bool]:
    """Whether `path` has yet to be made; other processes wait until it is."""
    done = path.with_name(f".{path.name}.done")
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


def start(lab: Path, *words: str, terminal: int | None = None) -> subprocess.Popen[str]:
    """A command on two devices, with compiled programs and byte code from those before it."""
    unset = {"PYTHONDONTWRITEBYTECODE", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "XLA_FLAGS"}
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "TERM": "xterm-256color"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(lab / "xla"), "PYTHONPYCACHEPREFIX": str(lab / "pyc")}
    command = [sys.executable, "-m", "jaxrl.experiments.cli", *words]
    to = subprocess.PIPE if terminal is None else terminal
    return subprocess.Popen(command, cwd=lab, env=env, text=True, stdin=to, stdout=to, stderr=to)


def run(lab: Path, *words: str) -> str:
    """What a command that ends well prints."""
    out, err = start(lab, *words).communicate(timeout=300)
    assert err == "", out + err
    return out


def wait_for(what: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    for _ in range(int(seconds / 0.01)):
        if what():
            return
        assert process.poll() is None, f"ended before: {process.communicate()}"
        time.sleep(0.01)
    process.kill()
    raise TimeoutError


CALM = ("--tensorboard", "--checkpoint-seconds", "600")  # also if the machine is busy


@pytest.fixture(scope="session")
def whole(lab: Path) -> tuple[Path, str]:
    """A run that nothing disturbs, at its default place, and what it printed."""
    with once(lab / "whole.txt") as missing:
        if missing:
            (lab / "whole.txt").write_text(run(lab, *WORDS, *CALM))
    (path,) = (lab / "runs").glob("pqn-mine_walk-*")
    return path, (lab / "whole.txt").read_text()


@pytest.fixture(scope="session")
def killed(lab: Path, whole: tuple[Path, str]) -> Path:
    """The folder of a run that was killed in the middle, for each test to copy."""
    path = lab / "killed"
    with once(path) as missing:
        if missing:
            process = start(lab, *WORDS, "--out", "killed", "--checkpoint-seconds", "0")
            wait_for(lambda: len(parts(path)) >= 4 and len(checkpoints(path)) >= 2, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
    assert not (path / "summary.json").exists() and len(parts(path)) < EVALS
    return path


def parts(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "metrics").glob("part-*.parquet"))


def checkpoints(path: Path) -> list[int]:
    """Those that are complete, as orbax marks them with a last rename."""
    found = path.glob("checkpoints/*-*/*")
    return sorted(int(each.name) for each in found if each.name.isdecimal())


@pytest.fixture
def inside(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process in the directory of the commands."""
    monkeypatch.chdir(lab)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    return lab


def state_of(path: Path) -> list[np.ndarray]:
    """Every array of the last checkpoint; of keys, their data."""
    opened = records.RunDir(path)
    state = restore.read_state(restore.prepare(restore.settings_of(opened, TRUSTED)), opened)
    leaves = [x if hasattr(x, "dtype") else np.asarray(x) for x in jax.tree.leaves(state)]
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def assert_went_on(path: Path, before: Path, update: int) -> None:
    """The chunks up to `update` are those of the killed run, which were not made again."""
    done = [name for name in parts(before) if int(re.split(r"[-.]", name)[2]) <= update]
    assert done
    for name in done:
        here, there = (each / "metrics" / name for each in (path, before))
        assert here.stat().st_mtime_ns == there.stat().st_mtime_ns


def assert_same_run(path: Path, other: Path) -> None:
    """The same results, bit for bit: last checkpoint, metrics, members, and what follows."""
    state, expected = state_of(path), state_of(other)
    assert len(state) == len(expected) > 10
    assert all(map(same_bits, state, expected))
    assert (path / "members.csv").read_bytes() == (other / "members.csv").read_bytes()
    assert parts(path) == parts(other)
    for name in parts(path):
        here, there = (pq.read_table(each / "metrics" / name) for each in (path, other))
        assert here.schema == there.schema
        for column in here.column_names:
            pair = (table[column].to_numpy() for table in (here, there))
            assert column == "stage" or same_bits(*pair), (name, column)
    summaries = [records.RunDir(each).summary() or {} for each in (path, other)]
    timing = ("wall_s", "compile_s", "steps_per_s", "updates_per_s")
    mine, theirs = ({k: v for k, v in s.items() if k not in timing} for s in summaries)
    assert mine == theirs


# --- what a run leaves ---------------------------------------------------------------------------


def test_summary_agrees_with_metrics_and_members(whole: tuple[Path, str]) -> None:
    opened = records.RunDir(whole[0])
    summary, members, history = opened.summary(), opened.members(), records.read_metrics(opened)
    assert summary is not None and summary["finished"] is True
    assert (summary["agent"], summary["env"]) == ("pqn", "mine:walk")
    assert (summary["members"], summary["updates"]) == (MEMBERS, UPDATES)
    assert summary["env_steps"] == MEMBERS * UPDATES * WINDOW
    assert 0 < summary["compile_s"] < summary["wall_s"]
    speed = summary["env_steps"] / (summary["wall_s"] - summary["compile_s"])
    assert summary["steps_per_s"] == pytest.approx(speed)
    assert summary["failed_members"] == []
    assert summary["versions"]["jax"] == jax.__version__ and summary["device"] == "cpu"

    returns = history["return"].reshape(EVALS, MEMBERS)
    result, last = summary["return"], returns[-1]
    assert result["iqm"] == pytest.approx(last.mean())  # of three, none are cut off
    assert (result["mean"], result["std"]) == pytest.approx((last.mean(), last.std(ddof=1)))
    assert (result["min"], result["max"]) == pytest.approx((last.min(), last.max()))
    low, high = result["ci95"]
    assert last.min() <= low <= result["iqm"] <= high <= last.max() and result["episodes"] == 4

    np.testing.assert_array_equal(members["id"], range(MEMBERS))
    np.testing.assert_array_equal(members["seed"], range(MEMBERS))
    np.testing.assert_allclose(members["final_return"], last)
    np.testing.assert_allclose(members["best_return"], returns.max(0))
    assert not members["failed"].any()


def test_metrics_have_a_row_for_each_member_and_evaluation(whole: tuple[Path, str]) -> None:
    history = records.read_metrics(whole[0])
    assert len(parts(whole[0])) == EVALS and set(history["stage"]) == {"agent"}
    np.testing.assert_array_equal(history["member"], np.tile(np.arange(MEMBERS), EVALS))
    updates = UPDATES * np.arange(1, EVALS + 1) // EVALS
    np.testing.assert_array_equal(history["update"], np.repeat(updates, MEMBERS))
    np.testing.assert_array_equal(history["env_steps"], history["update"] * WINDOW)
    for name in ("return", "length", "episode_return", "loss", "q", "eps"):
        assert np.isfinite(history[name]).all(), name
    assert (history["finite"] == 1).all() and len(set(history["return"])) > EVALS


def test_folder_holds_what_it_should(whole: tuple[Path, str]) -> None:
    path = whole[0]
    assert (path / "plots/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (path / "tensorboard").iterdir()
    steps = [event.step for event in read_events(events) if tag_of(event) == "return/median"]
    assert steps == sorted(set(records.read_metrics(path)["env_steps"]))
    config = json.loads((path / "config.json").read_text())
    assert config["config"]["settings"]["hidden"] == [8] and config["config"]["seeds"] == 3
    assert config["context"]["width"] == 2 and config["context"]["command"][1:] == [
        *WORDS,
        *CALM,
    ]
    assert checkpoints(path) == [UPDATES]
    assert not [file for file in path.rglob("*") if "tmp" in file.name]


def read_events(file: Path) -> Iterator[Any]:
    """Events of a TensorBoard file: length, check, event, check."""
    data = file.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def tag_of(event: Any) -> str:
    return event.summary.value[0].tag if event.summary.value else ""


def test_plain_lines_tell_of_compiling_and_progress(whole: tuple[Path, str]) -> None:
    lines = whole[1].splitlines()
    assert lines[0] == "pqn on mine:walk: 3 members x 62 updates = 5.952k environment steps"
    assert lines[1].startswith("2 cpu devices, tiles of 2 members")
    compiled = [line for line in lines if re.match(r"compiling \w+ \.\.\. \d+\.\d s, \d+", line)]
    assert [line.split()[1] for line in compiled] == ["initialisation", "training", "evaluation"]
    told = r" *(\d+)%  return \S+  \S+ steps/s  .+ left"
    percents = [int(found[1]) for line in lines if (found := re.fullmatch(told, line))]
    assert len(percents) == EVALS and percents == sorted(percents) and percents[-1] == 100
    name = f"runs/{whole[0].name}"
    assert lines[-6].startswith("return ") and lines[-5].endswith(f"; {name}")
    begun = [line.partition(name)[0] + line.partition(name)[2][:8] for line in lines[-4:]]
    assert begun == [  # own code, which has no drawing
        "next:",
        "  jaxrl report         ",
        "  jaxrl eval    --trust",
        "  jaxrl export  --trust",
    ]
    assert "\x1b" not in whole[1] and "\r" not in whole[1]


def test_finished_run_says_so_and_does_nothing(lab: Path, whole: tuple[Path, str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole[0].rglob("*")}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = run(lab, *WORDS)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "is finished: return " in out and "--overwrite" in out and out.count("\n") == 1
    assert {file: file.stat().st_mtime_ns for file in whole[0].rglob("*")} == before
    # Of the processor, since others may use it too.
    assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < 2.5


def test_settings_come_back(inside: Path, whole: tuple[Path, str]) -> None:
    made = resolve("pqn", tokenise(WORDS[2:])[1])
    found = restore.settings_of(records.RunDir(whole[0]), TRUSTED)
    assert identity(found, {}) == identity(made, {})
    assert (found.cfg, found.hp, found.agent) == (made.cfg, made.hp, "pqn")
    # All episodes are played at every evaluation, by default as there are few.
    few = dataclasses.replace(made.options, interim_episodes=made.options.eval_episodes)
    assert dataclasses.replace(found.options, trust=False) == few
    name = records.default_name("pqn", "mine:walk", identity(found, {}))
    assert whole[0].name == name


def test_other_settings_are_another_run(
    inside: Path, whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(whole[0].rglob("*"))
    assert cli.main([*WORDS, "--agent.lr", "0.5", "--out", str(whole[0])]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "settings.lr is 0.0001 there and 0.5 here" in told
    assert sorted(whole[0].rglob("*")) == before


# --- using it ------------------------------------------------------------------------------------


def test_loaded_member_plays_the_last_evaluation_again(
    inside: Path, whole: tuple[Path, str]
) -> None:
    member = 1
    policy, state, hp = jaxrl.load(whole[0], member, trust=True)
    opened = records.RunDir(whole[0])
    ready = restore.prepare(restore.settings_of(opened, TRUSTED))
    saved = restore.read_state(ready, opened)
    assert (saved.stage, saved.step) == (0, UPDATES)
    own = jax.tree.map(lambda x: x[member], saved.member)
    own = own._replace(learner=state, hp=own.hp._replace(agent=hp))
    # The same episodes, since evaluations draw from the member's own key and update.
    stage = dataclasses.replace(
        ready.program.stages[0], evaluate=evaluator(ready.env, policy, episodes=4)
    )
    shared = {"inputs": {}, "step": jnp.int32(UPDATES)}
    _, episodes = jax.jit(evaluate_fn(stage))((), {"state": own, "inputs": {}}, shared)
    expected = opened.members()["final_return"][member]
    assert float(episodes.returns.mean()) == pytest.approx(expected, abs=1e-5)
    assert episodes.finished.all()
    with pytest.raises(ValueError, match="members 0 to 2"):
        jaxrl.load(whole[0], MEMBERS, trust=True)


def test_eval_plays_fresh_episodes(lab: Path, whole: tuple[Path, str]) -> None:
    out = run(lab, "eval", "--trust", str(whole[0]), "--episodes", "4", "--seed", "1")
    heading, *rows, note, last = out.splitlines()
    assert note.startswith("CVaR10%: mean return")
    assert heading.split() == ["seed", "mean", "std", "min", "CVaR10%", "max", "length"]
    numbers = np.array([[float(x) for x in row.split()] for row in rows])
    assert numbers.shape == (MEMBERS, 7)
    seed, mean, _, low, tail, high, length = numbers.T
    np.testing.assert_array_equal(seed, range(MEMBERS))
    assert ((low <= tail) & (tail <= mean)).all()
    assert ((low <= mean) & (mean <= high) & (high <= 5) & (1 <= length) & (length <= 5)).all()
    assert last.startswith("return ") and last.endswith("4 episodes each")
    final = records.RunDir(whole[0]).members()["final_return"]
    assert not np.allclose(mean, final)  # other episodes than those of training


def test_report_after_a_run(
    inside: Path, whole: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(whole[0]), "--out", str(tmp_path / "all.png")]) == 0
    _, row, *notes = capsys.readouterr().out.splitlines()
    assert any("fewer than 5 members are unreliable" in note for note in notes)
    assert row.split()[:2] == [whole[0].name, "3"] and row.split()[-1] == "finished"
    summary = records.RunDir(whole[0]).summary() or {}
    assert f"{summary['return']['iqm']:.4g}" in row.split()
    assert (tmp_path / "all.png").is_file()


@pytest.mark.slow
def test_members_do_not_depend_on_the_population(lab: Path, whole: tuple[Path, str]) -> None:
    """Seeds 1 and 2 among other seeds, in other places, are the same."""
    run(lab, *WORDS, "--seed", "1", "--seeds", "4", "--out", "others")
    assert list(records.RunDir(lab / "others").members()["seed"]) == [1, 2, 3, 4]
    mine, theirs = records.read_metrics(whole[0]), records.read_metrics(lab / "others")
    assert set(mine) == set(theirs)
    for name in set(mine) - {"stage", "member"}:
        curves = mine[name].reshape(EVALS, MEMBERS)[:, 1:]
        others = theirs[name].reshape(EVALS, 4)
        np.testing.assert_allclose(others[:, :2], curves, atol=1e-5, err_msg=name)
    returns = theirs["return"].reshape(EVALS, 4)
    assert len({tuple(curve) for curve in returns.T}) == 4  # and each is another


# --- killed, damaged, interrupted ----------------------------------------------------------------


def test_killed_run_continues_to_the_same_bits(
    inside: Path, whole: tuple[Path, str], killed: Path
) -> None:
    path = inside / "continued"
    shutil.copytree(killed, path)
    newest = checkpoints(path)[-1]
    out = run(inside, *WORDS, "--out", "continued", "--checkpoint-seconds", "0")
    assert f"continuing from update {newest} " in out
    assert_went_on(path, killed, newest)
    assert_same_run(path, whole[0])
    summary = records.RunDir(path).summary() or {}
    assert 0 < summary["compile_s"] < summary["wall_s"]


def test_unfinished_runs_are_told_of(
    inside: Path, killed: Path, whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = inside / "short"
    shutil.copytree(killed, path)
    told = f"training is not finished: {checkpoints(path)[-1]} of {UPDATES} updates"
    for run, says in ((path, True), (whole[0], False)):
        assert (restore.read_member(run, 0, TRUSTED)[1] == told) is says
        assert cli.main(["export", "--trust", str(run), "--out", f"{run.name}-policy"]) == 0
        words = " ".join(capsys.readouterr().out.split())
        card = (inside / f"{run.name}-policy/README.md").read_text()
        assert (told in words) is (told in card) is says
        assert ("not finished" in words) is ("not finished" in card) is says
    assert restore.evaluate(path, 2, 0, trust=TRUSTED).unfinished == told


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_one_before(
    inside: Path, whole: tuple[Path, str], killed: Path
) -> None:
    path = inside / "damaged"
    shutil.copytree(killed, path)
    before, newest = checkpoints(path)[-2:]
    files = [f for f in path.glob(f"checkpoints/*/{newest}/**/*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    out = run(inside, *WORDS, "--out", "damaged")
    assert f"checkpoint {newest} is damaged" in out
    assert f"continuing from update {before} " in out
    assert_went_on(path, killed, before)
    assert_same_run(path, whole[0])


def test_killed_after_the_last_checkpoint(
    inside: Path, whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train; the results are written."""
    path = inside / "late"
    shutil.copytree(whole[0], path)
    for file in ("summary.json", "members.csv", "plots/learning_curve.png"):
        (path / file).unlink()
    with monkeypatch.context() as patch:
        compiled = lambda *args, **kw: pytest.fail("something is compiled")
        patch.setattr(jax.stages.Lowered, "compile", compiled)
        assert cli.main([*WORDS, "--out", "late"]) == 0
    assert_same_run(path, whole[0])


def test_overwrite_starts_again(
    inside: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = inside / "again"
    shutil.copytree(killed, path)

    def interrupted(ready: Plan, opened: records.RunDir, *rest: Any, **more: Any) -> NoReturn:
        assert not opened.resumed and not parts(path) and not checkpoints(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_loop, "run", interrupted)
    words = [*WORDS, "--agent.lr", "0.5", "--out", "again"]
    assert cli.main(words) == 2
    assert checkpoints(path) == checkpoints(killed)
    assert cli.main([*words, "--overwrite"]) == 130
    assert records.RunDir(path).config()["config"]["settings"]["lr"] == 0.5


def test_terminal_shows_live_progress_until_interrupted(lab: Path, whole: tuple[Path, str]) -> None:
    """On a terminal of 80 columns: a line that changes, then Ctrl-C."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [*WORDS, "--evals", "62", "--out", "shown", "--checkpoint-seconds", "0"]
    process = start(lab, *words, terminal=there)
    os.close(there)
    seen, deadline, interrupted = "", time.monotonic() + 300, False
    while time.monotonic() < deadline:
        ready, _, _ = select.select([here], [], [], 0.1)
        try:
            seen += os.read(here, 65536).decode(errors="replace") if ready else ""
        except OSError:  # closed on the other side
            break
        if " left" in seen and not interrupted:
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(here)
    assert process.wait(60) == 130, seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    lines = re.split(r"[\r\n]+", text)
    assert "compiled training in" in text
    assert re.search(r"0%  compiling \w+, \d+ s", text)
    assert re.search(r"[1-9]%  return \S+  \S+ steps/s  .+ left", text)
    assert all(len(line) <= 80 for line in lines if " left" in line)
    told = [line for line in lines if line.startswith("jaxrl: ")]
    assert told[-1] == "jaxrl: stopped by SIGINT and saved; the same command continues from there"
    assert all("stopping soon; " in line for line in told[:-1])
    assert "Traceback" not in text and lines[-2:] == [told[-1], ""], lines[-4:]
