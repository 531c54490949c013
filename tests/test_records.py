"""Run folders: names, opening, continuing, and files that are whole or absent."""

from __future__ import annotations

import dataclasses
import enum
import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxrl.errors import UserError
from jaxrl.runs import files, provenance
from jaxrl.runs.files import plain
from jaxrl.runs.folders import FORMAT, ConfigMismatch, difference, lock
from jaxrl.runs.metrics import by_chunk, part_name
from jaxrl.runs.records import RESULTS, RunDir, default_name, open_run, read_metrics


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 3e-4
    widths: tuple[int, ...] = (64, 64)
    clip: float | None = None


CONFIG = {"agent": Config(), "env": {"name": "CartPole-v1", "bound": np.inf}, "seeds": 4}


def opened(*args, **options) -> RunDir:
    """A run that was opened and is no longer locked."""
    with open_run(*args, **options) as run:
        return run


# --- JSON ----------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    a: int
    b: object


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.bool_(True), True),
        (np.int64(3), 3),
        (float("-inf"), "-inf"),
        (np.array([[1.0, np.nan], [np.inf, 2.0]]), [[1.0, None], ["inf", 2.0]]),
        (jnp.float32(0.25), 0.25),
        (jnp.ones(2, jnp.bfloat16), [1.0, 1.0]),
        (jnp.arange(3), [0, 1, 2]),
        (Pair(1, Pair(2, None)), {"a": 1, "b": {"a": 2, "b": None}}),
        (Config(), {"lr": 3e-4, "widths": [64, 64], "clip": None}),
        (Colour.RED, "RED"),
        (Path("a/b"), "a/b"),
        ({1: {"x", "w"}}, {"1": ["w", "x"]}),
        (range(3), [0, 1, 2]),
        (Config, f"{__name__}:Config"),
        ("é\n", "é\n"),
    ],
)
def test_plain_is_valid_json(value, expected, tmp_path: Path) -> None:
    got = plain(value)
    assert got == expected and type(got) is type(expected)
    files.write_json(tmp_path / "x.json", {"v": value})
    strict = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"v": expected}


@pytest.mark.parametrize("value", [object(), b"bytes", jax.random.key(0)])
def test_plain_refuses_the_rest(value) -> None:
    with pytest.raises(TypeError):
        plain({"x": [value]})


# --- names ---------------------------------------------------------------------------------------


def test_default_name_depends_on_the_configuration_alone() -> None:
    name = default_name("pqn", "CartPole-v1", CONFIG)
    assert name.startswith("pqn-CartPole-v1-") and len(name.split("-")[-1]) == 8
    again = {"seeds": 4, "env": {"bound": float("inf"), "name": "CartPole-v1"}, "agent": Config()}
    assert default_name("pqn", "CartPole-v1", again) == name
    other = CONFIG | {"agent": Config(lr=3.0000001e-4)}
    assert default_name("pqn", "CartPole-v1", other) != name


def test_default_name_is_the_same_on_every_day() -> None:
    """A changed hash would orphan every run there is."""
    assert default_name("pqn", "CartPole-v1", {"b": [1, 2.5, None], "a": "x"}) == (
        "pqn-CartPole-v1-ce74053d"
    )


@pytest.mark.parametrize("task", ["MinAtar/Breakout", "/data/my set.npz", "../up", "my.mod:make"])
def test_default_name_is_one_folder(task: str) -> None:
    name = default_name("my.agents:pqn", task, {})
    assert Path(name).name == name and not name.startswith(".") and " " not in name


def test_versions_do_not_import() -> None:
    code = """
import sys
from jaxrl.runs.provenance import versions
found = versions()
assert not {"flax", "optax", "orbax", "gymnax"} & set(sys.modules), sorted(sys.modules)
assert "pyarrow" not in sys.modules and "matplotlib" not in sys.modules
print(found["python"], found["jax"], found["orbax-checkpoint"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = provenance.versions()
    assert done.stdout.split() == [found["python"], jax.__version__, found["orbax-checkpoint"]], (
        done.stderr
    )
    assert set(found) >= {"jaxlib", "flax", "optax", "gymnax", "numpy", "jaxrl"}


def test_git_hash(tmp_path: Path) -> None:
    assert provenance.git_hash(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=b"]
    commit = [*git, "commit", "-q", "--allow-empty", "-m", "first"]
    subprocess.run([*git, "init", "-q", "."], cwd=tmp_path, check=True)
    assert provenance.git_hash(tmp_path) is None
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    subprocess.run(commit, cwd=tmp_path, check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    assert provenance.git_hash(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert provenance.git_hash(tmp_path) == f"{head}-dirty"


# --- opening -------------------------------------------------------------------------------------


def test_new_resumed_finished(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    run = opened(path, CONFIG, {"width": 4})
    assert (run.resumed, run.finished) == (False, False)
    again = opened(path, CONFIG, {"width": 8, "versions": provenance.versions()})
    assert (again.resumed, again.finished) == (True, False)
    assert again.config() == {"format": FORMAT, "config": plain(CONFIG), "context": {"width": 4}}
    assert run.summary() is None
    run.write_summary({"finished": False, "iqm": np.float32("nan")})
    assert opened(path, CONFIG).finished is False
    done = {"finished": True, **dict.fromkeys(RESULTS, np.float32(1.5))}
    run.write_summary(done)
    assert opened(path, CONFIG).finished is True
    assert run.summary() == {"finished": True, **dict.fromkeys(RESULTS, 1.5)}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (CONFIG | {"agent": Config(lr=1e-3)}, "agent.lr is 0.0003 there and 0.001 here"),
        (CONFIG | {"agent": Config(widths=(64,))}, r"agent.widths is \[64, 64\] there and \[64\]"),
        (CONFIG | {"more": {"x": "y"}}, 'more.x is absent there and "y" here'),
        ({"agent": Config(), "seeds": 4}, 'env.name is "CartPole-v1" there and absent here'),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, other, message: str) -> None:
    opened(tmp_path, CONFIG)
    with pytest.raises(ConfigMismatch, match=message) as error:
        opened(tmp_path, other)
    assert "\n" not in str(error.value) and isinstance(error.value, UserError)


def test_overwrite_starts_again_and_spares_what_is_not_its_own(tmp_path: Path) -> None:
    run = opened(tmp_path, CONFIG)
    run.write_part(part_name(0, 1, 0), part("a", [0], 1, x=[1.0]))
    run.write_members({"id": [0]})
    run.write_summary({"finished": True})
    (run.checkpoints / "1").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    run = opened(tmp_path, {"seeds": 1}, overwrite=True)
    assert (run.resumed, run.finished) == (False, False)
    assert sorted(x.name for x in tmp_path.iterdir()) == [".lock", "config.json", "notes.txt"]
    assert run.config()["config"] == {"seeds": 1} and read_metrics(run) == {} == run.members()


def test_folders_that_are_no_runs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not the folder of a run"):
            opened(tmp_path, CONFIG, overwrite=overwrite)
    assert [x.name for x in tmp_path.iterdir()] == ["thesis.tex"]


def test_unreadable_config_is_an_error_until_overwritten(tmp_path: Path) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        opened(tmp_path, CONFIG)
    assert not opened(tmp_path, CONFIG, overwrite=True).resumed
    assert opened(tmp_path, CONFIG).resumed


def test_config_that_is_not_json_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        opened(tmp_path / "run", {"x": object()})
    assert not (tmp_path / "run").exists()


# --- atomic files --------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "x"
    files.atomic_write(file, b"old")

    def fail(out) -> None:
        out.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.atomic_write(file, fail)
    assert file.read_bytes() == b"old" and os.listdir(file.parent) == ["x"]
    files.atomic_write(file, lambda out: out.write(b"new"))
    assert file.read_bytes() == b"new"


def test_killed_while_writing(tmp_path: Path) -> None:
    """A reader beside a writer that is killed sees whole files at every moment."""
    code = f"""
import itertools
from jaxrl.runs.records import open_run
with open_run({str(tmp_path)!r}, {{}}) as run:
    print("ready", flush=True)
    for i in itertools.count():
        run.write_summary({{"finished": False, "i": i, "same": i, "long": "x" * 500_000}})
        run.write_members({{"id": range(1000), "i": [i] * 1000}})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            run, seen, end = RunDir(tmp_path), set(), time.monotonic() + 20
            while len(seen) < 20 and time.monotonic() < end:
                summary, members = run.summary(), run.members()
                if summary is not None:
                    assert summary["i"] == summary["same"] and len(summary["long"]) == 500_000
                    seen.add(summary["i"])
                if members:
                    assert members["id"].size == 1000 and np.unique(members["i"]).size == 1
        finally:
            child.kill()
    assert len(seen) == 20
    (tmp_path / ".summary.json.1.tmp").write_text("half")  # as a kill may leave it
    assert opened(tmp_path, {}).resumed and not list(tmp_path.glob(".*.tmp"))


# --- members and metrics -------------------------------------------------------------------------


def test_members(tmp_path: Path) -> None:
    columns = {
        "id": np.arange(3),
        "seed": [0, 1, 0],
        "agent.lr": jnp.array([1e-3, 1e-4, 3e-4], jnp.float32),
        "agent.widths": [(64, 64), (32,), (64, 64)],
        "env.name": ["a", "b, c", 'd"'],
        "final": np.array([1.5, np.nan, -np.inf]),
        "failed": np.array([False, True, True]),
    }
    run = RunDir(tmp_path)
    run.write_members(columns)
    text = (tmp_path / "members.csv").read_text().splitlines()
    assert text[0] == "id,seed,agent.lr,agent.widths,env.name,final,failed"
    assert text[2] == '1,1,9.999999747378752e-05,[32],"b, c",,true'
    members = run.members()
    assert list(members) == list(columns)
    for name in ("id", "seed", "agent.lr", "env.name", "final", "failed"):
        np.testing.assert_array_equal(members[name], columns[name])
    assert members["id"].dtype == np.int64 and members["failed"].dtype == bool
    with pytest.raises(ValueError):
        run.write_members({"id": [1, 2], "seed": [1]})


def part(stage, members, update, **metrics) -> dict:
    return {"stage": stage, "member": members, "update": update, "env_steps": 64 * update} | metrics


def test_parts_are_read_in_order_while_more_are_written(tmp_path: Path) -> None:
    run = opened(tmp_path / "lr=0.1", {})  # not a partition of a data set
    assert read_metrics(run) == {}
    run.write_part(part_name(0, 10, 0), part("model", [0, 1], 10, loss=np.float32([0.5, 0.25])))
    later = part("agent", [1, 0], 20, loss=[4.0, 3.0], value=jnp.ones(2))
    run.write_part(part_name(1, 20, 0), later)
    run.write_part(part_name(1, 10, 0), part("agent", [1, 0], 10, loss=[2.0, np.nan]))
    (run.path / "metrics" / f".{part_name(1, 30, 0)}.1.tmp").write_bytes(b"PAR1 half")
    seen = read_metrics(run.path)
    assert list(seen) == ["stage", "member", "update", "env_steps", "loss", "value"]
    assert seen["stage"].tolist() == ["model"] * 2 + ["agent"] * 4
    assert seen["member"].tolist() == [0, 1, 0, 1, 0, 1]
    assert seen["update"].tolist() == [10, 10, 10, 10, 20, 20]
    assert seen["env_steps"].tolist() == [640, 640, 640, 640, 1280, 1280]
    np.testing.assert_array_equal(seen["loss"], [0.5, 0.25, np.nan, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(seen["value"], [np.nan] * 4 + [1, 1])
    assert seen["loss"].dtype == np.float64 and seen["member"].dtype == np.int64
    model = read_metrics(run, stage="model")
    assert "value" not in model and model["loss"].tolist() == [0.5, 0.25]
    assert read_metrics(run, stage="none") == {}


def test_rewritten_part_replaces_the_old(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_part(part_name(0, 1, 0), part("a", [0, 1], 10, x=[1.0, 2.0]))
    run.write_part(part_name(0, 1, 0), part("a", [0, 1], 10, x=[1.0, 3.0]))
    assert read_metrics(run)["x"].tolist() == [1.0, 3.0]


def test_rows_met_twice_are_one(tmp_path: Path) -> None:
    """Two hosts wrote the second half, then one host went on with all members."""
    run = RunDir(tmp_path)
    run.write_part(part_name(1, 10, 0), part("a", [0, 1, 2, 3], 10, x=[0.0, 1.0, 2.0, 3.0]))
    run.write_part(part_name(1, 10, 2), part("a", [2, 3], 10, x=[2.0, np.nan], y=[5.0, np.nan]))
    seen = read_metrics(run)
    assert seen["member"].tolist() == [0, 1, 2, 3] and seen["x"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(seen["y"], [np.nan, np.nan, 5, np.nan])


def test_parts_keep_precision_and_refuse_ragged_columns(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    big = 2**40 + 1
    columns = part("a", [0], 1, count=np.array([big]), d=[0.1], f=np.float32([0.1]))
    run.write_part(part_name(0, 1, 0), columns | {"env_steps": big})
    seen = read_metrics(run)
    assert seen["env_steps"][0] == big and seen["count"][0] == big
    assert seen["d"][0] == 0.1 and seen["f"][0] == np.float32(0.1)
    with pytest.raises(ValueError, match=r"-0000000.parquet: column x is \[3\], not \[4\]"):
        run.write_part(part_name(0, 2, 0), part("a", range(4), 1, x=np.zeros(3)))
    with pytest.raises(ValueError, match="no column env_steps"):
        run.write_part(part_name(0, 2, 0), {"stage": "a", "member": 0, "update": 1})
    assert len(list((tmp_path / "metrics").iterdir())) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_in_progress_loses_no_file_to_a_second_process(
    tmp_path: Path, overwrite: bool
) -> None:
    run = opened(tmp_path / "run", CONFIG)
    with lock(run.path):
        run.write_part(part_name(0, 1, 0), part("a", [0], 1, x=[1.0]))
        (run.path / "metrics" / ".part-2.parquet.1.tmp").write_bytes(b"being written")
        before = sorted(run.path.rglob("*"))
        with pytest.raises(UserError, match="another process is writing"):
            opened(run.path, CONFIG, overwrite=overwrite)
        assert sorted(run.path.rglob("*")) == before
    assert opened(run.path, CONFIG, overwrite=overwrite).resumed is not overwrite
    assert not list(run.path.glob("*/.*.tmp"))


# --- damaged and missing parts -------------------------------------------------------------------


def three_parts(path: Path, seed: int = 0) -> RunDir:
    """Three chunks of two members, and a plan that says so."""
    stages = {"a": {"updates": 30, "evals": 3, "every": 1}}
    run = opened(path, CONFIG, {"members": 2, "stages": stages})
    rng = np.random.default_rng(seed)
    for update in (10, 20, 30):
        row = part("a", [0, 1], update, x=rng.normal(size=2), y=rng.normal(size=2))
        run.write_part(part_name(0, update, 0), row)
    return run


def told(run: RunDir, **how) -> tuple[dict[str, np.ndarray], list[str]]:
    lines: list[str] = []
    return read_metrics(run, say=lines.append, **how), lines


@pytest.mark.parametrize("tries", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_flipped_bits_are_never_read_as_other_numbers(tmp_path: Path, tries: int) -> None:
    run = three_parts(tmp_path)
    whole, lines = told(run, complete=True)
    assert lines == [] and whole["update"].tolist() == [10, 10, 20, 20, 30, 30]
    rng, files_ = np.random.default_rng(1), sorted((tmp_path / "metrics").iterdir())
    for _ in range(tries):
        file = files_[rng.integers(3)]
        before = file.read_bytes()
        data = bytearray(before)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        file.write_bytes(data)
        seen, lines = told(run, complete=True)
        assert lines == [f"{file} is damaged and left out"]
        rest = whole["update"] != int(file.name.split("-")[2])
        for name, values in whole.items():
            np.testing.assert_array_equal(seen[name], values[rest])
        file.write_bytes(before)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1" * 3, b"\0" * 5000])
def test_parts_that_are_no_parquet(tmp_path: Path, damage: bytes) -> None:
    run = three_parts(tmp_path)
    first, second, _ = sorted((tmp_path / "metrics").iterdir())
    first.write_bytes(damage)
    assert told(run)[1] == [f"{first} is damaged and left out"]
    second.write_bytes(damage)
    assert told(run)[1] == [f"{first} and 1 more are damaged and left out"]


def test_parts_are_read_by_others(tmp_path: Path) -> None:
    three_parts(tmp_path)
    table = pq.read_table(tmp_path / "metrics" / part_name(0, 20, 0))
    assert table["update"].to_pylist() == [20, 20]
    assert pq.read_table(tmp_path / "metrics").num_rows == 6


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux")
def test_reading_starts_no_thread(tmp_path: Path) -> None:
    """A thread of pyarrow that let go of a part's bytes while the process ended would abort it."""
    for i in range(3):
        columns = {"stage": "agent", "member": np.arange(2), "update": i, "env_steps": 0, "x": 1.0}
        RunDir(tmp_path).write_part(part_name(0, i, 0), columns)
    code = """
import sys
from pathlib import Path
from jaxrl.runs.records import read_metrics
import pyarrow.compute, pyarrow.parquet
def threads():
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    return sum("jemalloc" not in name for name in names)
before = threads()
assert len(read_metrics(Path(sys.argv[1]))["x"]) == 6
assert threads() <= before
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120)


def test_parts_need_no_pandas(tmp_path: Path) -> None:
    """pyarrow imports pandas where it is installed, in a third of a second of every run."""
    pytest.importorskip("pandas")
    code = """
import sys
from pathlib import Path
from jaxrl.runs import metrics
index = {"stage": ["a", "b"], "member": [0, 0], "update": 5, "env_steps": 0}
metrics.write_part(Path(sys.argv[1]) / metrics.part_name(0, 5, 0), index | {"x": [1.0, 2.0]})
whole = {"stage": "a", "member": [0, 1], "update": 9, "env_steps": 0, "x": [3.0, 4.0]}
metrics.write_part(Path(sys.argv[1]) / metrics.part_name(0, 9, 0), whole)
assert metrics.read_parts(sys.argv[1])[0]["x"].tolist() == [1.0, 3.0, 4.0, 2.0]
assert "pandas" not in sys.modules
assert metrics.read_parts(sys.argv[1], "a")[0]["x"].tolist() == [1.0, 3.0, 4.0]
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    run = three_parts(tmp_path)
    (tmp_path / "metrics" / part_name(0, 20, 0)).unlink()
    line = f"{tmp_path / 'metrics' / part_name(0, 20, '*')} is missing: members without metrics "
    assert told(run)[1] == [f"{line}at update 20 of stage a: 2"]
    (tmp_path / "metrics" / part_name(0, 30, 0)).unlink()
    assert told(run)[1] == []  # of a run in progress
    assert told(run, complete=True)[1] == [
        f"{line.replace(' is missing', ' and 1 more are missing')}at update 20 of stage a: 2"
    ]
    run.write_part(part_name(0, 20, 1), part("a", [1], 20, x=[0.0]))  # by one of two processes
    seen, lines = told(run, complete=True)
    assert lines[0].endswith("members without metrics at update 20 of stage a: 1")
    table = by_chunk(seen, 2)
    np.testing.assert_array_equal(table["update"], [[10, 10], [20, 20]])
    np.testing.assert_array_equal(table["env_steps"], [[640, 640], [1280, 1280]])
    assert np.isnan(table["x"][1]).tolist() == [True, False]


def test_chunks_are_of_one_stage(tmp_path: Path) -> None:
    """Two stages may have rows of the same update."""
    run = opened(tmp_path, CONFIG)
    run.write_part(part_name(0, 10, 0), part("a", [0, 1], 10, x=[1.0, 2.0]))
    run.write_part(part_name(1, 10, 0), part("b", [0, 1], 10, x=[3.0, 4.0]))
    with pytest.raises(ValueError, match="rows of several stages"):
        by_chunk(read_metrics(run), 2)
    assert by_chunk(read_metrics(run, "b"), 2)["x"].tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"finished": true}', "é" * 9])
def test_damaged_summary_is_none_and_told(tmp_path: Path, text: str) -> None:
    run = opened(tmp_path, CONFIG)
    (tmp_path / "summary.json").write_text(text, encoding="latin-1")
    lines: list[str] = []
    assert run.summary(lines.append) is None
    assert len(lines) == 1 and lines[0].startswith(f"{tmp_path / 'summary.json'} is damaged (")
    assert opened(tmp_path, CONFIG).finished is False


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"config": 1}', f'{{"format": {FORMAT}, "config": {{}}}}', "[" * 9999]
)
def test_damaged_config_is_one_line(tmp_path: Path, text: str) -> None:
    opened(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(text)
    for attempt in (lambda: opened(tmp_path, CONFIG), RunDir(tmp_path).config):
        with pytest.raises(UserError, match=r"config.json is damaged|cannot be read") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_text() == text


# --- locks ---------------------------------------------------------------------------------------


def test_a_run_is_locked_while_it_is_open(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG):
        for other in (CONFIG, {"seeds": 1}):
            for overwrite in (False, True):
                with pytest.raises(UserError, match="another process is writing|seeds is 4"):
                    opened(tmp_path, other, overwrite=overwrite)
    assert opened(tmp_path, CONFIG).resumed


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked: No locks available; choose .*--out"):
        opened(tmp_path / "a" / "b", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [".config.json.1.tmp", ".lock", ".search.json.99.tmp"])
def test_a_kill_at_the_first_file_leaves_a_folder_to_start_in(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("half")
    assert not opened(tmp_path, CONFIG).resumed
    assert {x.name for x in tmp_path.iterdir()} == {".lock", "config.json"}


def test_difference_names_the_first_field() -> None:
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == ""
    assert (
        difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c is 2 there and 3 here"
    )
    assert difference([{"x": 1}], [{"x": 1}, {"x": 2}]) == "1.x is absent there and 2 here"
