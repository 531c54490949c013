"""Kills and power failures at every file operation; first, what the images of `crash` hold.

An undisturbed run of each kind is the reference. A second run is recorded, and continues from each
image of its folder to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash
import jax
import numpy as np
import pytest
import toys
from flax import struct

from jaxrl.algorithm import Algorithm
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.experiments import jax_setup, report, restore, sweep, train, train_loop
from jaxrl.runs import figures, files, records, shards

KINDS = ("kill", "half", "torn", "lost")


def held(image: crash.Image) -> dict[str, str] | None:
    """The files of an image."""
    found = sorted(x for x in image.path.rglob("*") if x.is_file())
    at = lambda file: str(file.relative_to(image.path))
    return {at(x): x.read_text() for x in found} if image.path.exists() else None


def test_images_of_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        folder.mkdir()
        (folder / "a").write_text("four")
        (folder / "a").rename(folder / "b")
        (folder / "b").unlink()

    found = crash.images(folder, tmp_path / "images", work, ("kill", "half"))
    kills = [held(image) for image in found if image.kind == "kill"]
    assert kills == [None, {}, {"a": "four"}, {"b": "four"}]  # the end is empty once more
    assert [held(image) for image in found if image.kind == "half"] == [{"a": "fo"}]


def test_images_of_a_power_failure(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        folder.mkdir()
        files.sync_folder(tmp_path)
        with (folder / "a").open("w") as file:
            file.write("four")
            file.flush()
            os.fsync(file.fileno())
        (folder / "b").write_text("never synced")
        files.sync_folder(folder)
        (folder / "a").rename(folder / "c")

    found = crash.images(folder, tmp_path / "images", work, ("torn", "lost"))
    end = {image.kind: held(image) for image in found}
    assert end == {"torn": {"b": "", "c": "four"}, "lost": {"a": "four", "b": ""}}


# --- runs that continue --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    """No settings."""


@struct.dataclass
class Hypers:
    """Of `toys`."""

    lr: float = 0.01
    gamma: float = 0.9
    model_lr: float = 0.05
    weight: float = 0.1


def _program(cfg: Config, env: Any, *, evals: int, episodes: int) -> Any:
    return toys.row_shared_model()


# Two stages: a model that members share, then an agent that learns from the model.
ALGORITHM = Algorithm(Config, Hypers, lambda cfg, spec: toys.agent(), _program, offline=True)

TINY = {
    "env": "probe:match", "seeds": 2, "evals": 2, "eval_episodes": 2, "devices": 1,
    "checkpoint_seconds": 0,
}  # fmt: skip
AGENT = {"num_envs": 2, "num_steps": 4, "total_steps": 64, "hidden": (4,), "minibatches": 1}


def train_tiny(out: Path) -> None:
    train.run("pqn", **TINY, agent=AGENT | {"epochs": 1}, out=out)


def train_stages(out: Path) -> None:
    data = out.parent.parent / "data.npz"
    train.run(ALGORITHM, **TINY | {"env": "toys:drift", "data": data}, out=out)


def overwrite_tiny(out: Path) -> None:
    """A finished run is started again; a kill leaves a run that continues without --overwrite."""
    if not out.exists():
        train_tiny(out)
        train.run("pqn", **TINY, agent=AGENT | {"epochs": 1}, out=out, overwrite=True)
    else:
        train_tiny(out)


def sweep_tiny(out: Path) -> None:
    swept = {"agent.epochs": [1, 2], "agent.lr": [1e-3, 1e-4]}
    sweep.sweep("pqn", **TINY | {"seeds": 1}, agent=AGENT, sweep=swept, out=out)


WORK: dict[str, Callable[[Path], None]] = {
    "train": train_tiny,
    "stages": train_stages,
    "sweep": sweep_tiny,
    "overwrite": overwrite_tiny,
}


@dataclasses.dataclass(frozen=True)
class Lab:
    """Runs of each kind, each made when first asked for."""

    folder: Path
    recorded: dict[str, list[crash.Image]] = dataclasses.field(default_factory=dict)

    def reference(self, kind: str) -> Path:
        """An undisturbed run."""
        path = self.folder / kind / "reference"
        if not path.exists():
            path.parent.mkdir()
            WORK[kind](path)
        return path

    def images(self, kind: str) -> list[crash.Image]:
        """The images of a second run."""
        if kind not in self.recorded:
            its = self.reference(kind).parent
            work = lambda: WORK[kind](its / "run")
            self.recorded[kind] = crash.images(its / "run", its / "images", work, KINDS)
        return self.recorded[kind]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Runs that share their compiled programs, and draw nothing."""
    folder = tmp_path_factory.mktemp("crash")
    t = jax.device_get(toys.dataset(jax.random.key(7)))
    t = t._replace(action=np.clip(t.action, -1, 1))
    datasets.save(folder / "data.npz", datasets.Dataset(t, {"env": "toys:drift"}))
    with crash.shared_programs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_run", lambda run: None)  # takes longer than all the rest
        patch.setattr(sweep, "report", types.SimpleNamespace(report=lambda paths: None))
        yield Lab(folder)


def results(path: Path) -> Any:
    """What must be the same to the last bit: checksums of all leaves, metrics, members, summary."""
    if (path / "sweep.json").is_file():
        return {run.name: results(run) for run in sorted(path.glob("[0-9]*"))}
    newest = max(shards.indices(path / "checkpoints"))
    (shard,) = (path / "checkpoints").glob(f"*/{newest}/meta/metadata")
    leaves = json.loads(shard.read_text())["leaves"]
    columns = {k: x.tobytes() for k, x in records.read_metrics(path, say=pytest.fail).items()}
    summary = records.RunDir(path).summary() or {}
    timing = ("wall_s", "compile_s", "steps_per_s", "updates_per_s")
    rest = {k: v for k, v in summary.items() if k not in timing}
    return leaves, columns, (path / "members.csv").read_bytes(), rest


def assert_continues(lab: Lab, kind: str, images: list[crash.Image]) -> None:
    """The same command gives the same results from every image."""
    expected, path = results(lab.reference(kind)), lab.folder / kind / "again"
    for image in images:
        if image.path.exists():
            shutil.copytree(image.path, path)
        try:
            WORK[kind](path)
            assert results(path) == expected
        except BaseException as error:
            error.add_note(f"{image.kind} before {image.before}, in {image.path}")
            raise
        assert not [x for x in path.rglob("*") if "tmp" in x.name]
        shutil.rmtree(path)


@pytest.mark.slow
def test_some_images_continue(lab: Lab) -> None:
    found = lab.images("train")
    assert {image.kind for image in found} == set(KINDS)
    assert_continues(lab, "train", crash.some(found, 8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORK)
def test_all_images_continue(kind: str, lab: Lab) -> None:
    assert_continues(lab, kind, lab.images(kind))


def test_checkpoints_survive_a_power_failure(lab: Lab) -> None:
    """Once a checkpoint is on disk, there is always one."""
    lost = [image for image in lab.images("train") if image.kind == "lost"]
    counts = [len(shards.indices(image.path / "checkpoints")) for image in lost]
    first = next(i for i, count in enumerate(counts) if count)
    assert min(counts[first:]) >= 1 and len(counts) > 8


# --- damaged folders -----------------------------------------------------------------------------


@pytest.fixture
def finished(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A copy of a finished run of `train_tiny`; nothing is compiled again."""
    shutil.copytree(lab.reference("train"), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        compiled = lambda *args, **kw: pytest.fail("something is compiled")
        patch.setattr(jax.stages.Lowered, "compile", compiled)
        yield tmp_path / "run"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def without(*names: str) -> Callable[[Path], None]:
    """Removes an entry of nested JSON."""

    def remove(file: Path) -> None:
        known = inner = json.loads(file.read_text())
        for name in names[:-1]:
            inner = inner[name]
        del inner[names[-1]]
        file.write_text(json.dumps(known))

    return remove


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("summary.json", cut, "summary.json is damaged ("),
        ("summary.json", lambda file: file.write_text(""), "summary.json is damaged ("),
        ("summary.json", lambda file: file.write_text("[]"), "summary.json is damaged ("),
        ("summary.json", without("return"), "summary.json is damaged (no 'return')"),
        ("summary.json", delete, "continuing from update 8"),
        ("members.csv", delete, "return "),
        ("members.csv", cut, "return "),
        ("members.csv", lambda file: file.write_text(""), "return "),
        ("plots", shutil.rmtree, "is finished: return "),
    ],
)
def test_results_are_made_again(
    name: str,
    damage: Callable[[Path], Any],
    says: str,
    finished: Path,
    lab: Lab,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (finished / "plots").mkdir(exist_ok=True)
    damage(finished / name)
    train_tiny(finished)
    out = capsys.readouterr().out
    assert sum(says in line for line in out.splitlines()) == 1, out
    assert results(finished) == results(lab.reference("train"))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("config.json", cut, "is damaged ("),
        ("config.json", without("context"), "is damaged (no 'context')"),
        ("config.json", without("config"), "is damaged (no 'config')"),
        ("config.json", without("context", "width"), "is damaged (no width in its context)"),
        ("config.json", without("format"), "was made by jaxrl 0.1"),
        ("config.json", without("config", "seeds"), "seeds is absent there and 2 here"),
    ],
)
def test_damaged_configurations_are_refused(
    name: str, damage: Callable[[Path], Any], says: str, finished: Path
) -> None:
    damage(finished / name)
    delete(finished / "summary.json")
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    with pytest.raises(UserError) as error:
        train_tiny(finished)
    assert says in str(error.value) and "\n" not in str(error.value)
    for read in (lambda: restore.load(finished), lambda: report.report([finished])):
        with pytest.raises(UserError, match=r"config\.json|jaxrl 0\.1"):
            read()
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("*")} == before


def test_a_finished_run_without_checkpoints(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(finished / "checkpoints")
    delete(finished / "members.csv")
    train_tiny(finished)
    assert (finished / "members.csv").is_file() and not (finished / "checkpoints").exists()
    capsys.readouterr()
    train_tiny(finished)
    assert "its checkpoints are missing; --overwrite starts again" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"checkpoints has no undamaged .* --overwrite"):
        restore.load(finished)


def test_a_run_is_finished_without_one_of_its_parts(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = sorted((finished / "metrics").iterdir())
    expected = results(finished)
    delete(finished / "summary.json")
    cut(first)
    train_tiny(finished)
    out = capsys.readouterr().out.replace("\n", "")
    assert out.count("is damaged and left out") == 1 and first.name in out
    assert (finished / "members.csv").read_bytes() != b""
    found = records.RunDir(finished).summary() or {}
    assert found["return"] == expected[-1]["return"]  # that of the last part
    for file in (first, last):
        delete(file)
    delete(finished / "summary.json")
    with pytest.raises(UserError, match=r"metrics has no undamaged part of stage 'agent'"):
        train_tiny(finished)


def test_checkpoints_of_another_run_are_refused(finished: Path) -> None:
    seven = finished.with_name("seven")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "seed", 7)
        train_tiny(seven)
    shutil.rmtree(finished / "checkpoints")
    shutil.copytree(seven / "checkpoints", finished / "checkpoints")
    delete(finished / "summary.json")
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    says = "checkpoints holds another run's checkpoints: seed is 7 there and 0 here; put back"
    for attempt in (lambda: train_tiny(finished), lambda: restore.load(finished)):
        with pytest.raises(UserError, match=says):
            attempt()
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("*")} == before


def test_a_damaged_checkpoint_is_told_when_a_policy_is_loaded(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (newest,) = (finished / "checkpoints").glob("*/8/meta/metadata")
    cut(newest)
    capsys.readouterr()
    restore.load(finished)
    assert "checkpoint 8 is damaged and passed over" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_with_a_damaged_record_starts_again(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(lab.reference("sweep"), path)
    cut(path / "summary.json")
    sweep_tiny(path)  # the summary is made again
    assert results(path) == results(lab.reference("sweep"))
    for damage in (without("programs"), lambda file: file.write_text('{"programs": ".."}'), cut):
        damage(path / "sweep.json")
        with pytest.raises(UserError, match=r"sweep\.json is damaged|made by|another sweep"):
            sweep_tiny(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "overwrite", True)
        sweep_tiny(path)
    assert results(path) == results(lab.reference("sweep"))


# --- two processes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("train", {}),
        ("train", {"overwrite": True}),
        ("train", {"overwrite": True, "evals": 1}),
        pytest.param("sweep", {"overwrite": True}, marks=pytest.mark.slow),
    ],
)
def test_a_run_in_progress_is_left_alone(
    kind: str,
    change: dict[str, Any],
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second process meets the folder in the middle of the run."""
    reference, out = lab.reference(kind), tmp_path / "run"
    shown, met = train_loop.shown, []

    def kept() -> set[Path]:
        """Files, except those of checkpoints, which another thread writes and removes."""
        found = set()
        for folder, below, names in os.walk(out):
            below[:] = [name for name in below if name != "checkpoints"]
            found |= {Path(folder, name) for name in names}
        return found

    def second(columns: Any) -> Any:
        if not met:
            met.append(kept())
            (out / ".summary.json.1.tmp").write_text("being written")
            with monkeypatch.context() as patch, pytest.raises(UserError, match="another process"):
                patch.setattr(sys.modules[__name__], "TINY", TINY | change)
                WORK[kind](out)
            assert met[0] < kept()
            (out / ".summary.json.1.tmp").unlink()
        return shown(columns)

    monkeypatch.setattr(train_loop, "shown", second)
    WORK[kind](out)
    assert met and results(out) == results(reference)


# --- places --------------------------------------------------------------------------------------


def test_a_report_in_a_folder_that_cannot_be_written(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(figures, "atomic_write", refuse)
    report.report([finished])
    out = capsys.readouterr().out
    assert " finished" in out and "no pictures: " in out and "Permission denied; pass --out" in out
    with pytest.raises(UserError, match="Permission denied"):
        report.report([finished], out=finished / "x.png")


def test_the_cache_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(jax_setup.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(jax_setup.Path, "home", homeless)
    folder = jax_setup.cache_folder()
    assert folder == tmp_path / f"jaxrl-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # others could put programs there
    assert jax_setup.cache_folder() is None
    monkeypatch.setattr(jax_setup.Path, "home", lambda: tmp_path / "home")
    assert jax_setup.cache_folder() == tmp_path / "home/.cache/jaxrl"
    assert not (tmp_path / "home").exists()
