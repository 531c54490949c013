"""Kills and power failures at every file operation; first, what the images of `crash` hold.

An undisturbed run of each kind is the reference. A second run is recorded, and continues from each
image of its folder to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import crash
import jax
import numpy as np
import pytest
import toys

from jaxrl.algorithm import Algorithm
from jaxrl.envs import datasets
from jaxrl.experiments import sweep, train
from jaxrl.runs import files, records, shards

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


@dataclasses.dataclass(frozen=True)
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


def sweep_tiny(out: Path) -> None:
    swept = {"agent.epochs": [1, 2], "agent.lr": [1e-3, 1e-4]}
    sweep.sweep("pqn", **TINY | {"seeds": 1}, agent=AGENT, sweep=swept, out=out)


WORK: dict[str, Callable[[Path], None]] = {
    "train": train_tiny,
    "stages": train_stages,
    "sweep": sweep_tiny,
}


class Recorded(NamedTuple):
    reference: Path
    images: list[crash.Image]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Recorded]]:
    """The undisturbed run of a kind, and images of another one; all share their programs."""
    folder, done = tmp_path_factory.mktemp("crash"), {}
    t = jax.device_get(toys.dataset(jax.random.key(7)))
    t = t._replace(action=np.clip(t.action, -1, 1))
    datasets.save(folder / "data.npz", datasets.Dataset(t, {"env": "toys:drift"}))

    def record(kind: str) -> Recorded:
        if kind not in done:
            its, work = folder / kind, WORK[kind]
            its.mkdir()
            work(its / "reference")
            images = crash.images(its / "run", its / "images", lambda: work(its / "run"), KINDS)
            done[kind] = Recorded(its / "reference", images)
        return done[kind]

    with crash.shared_programs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_run", lambda run: None)  # takes longer than all the rest
        patch.setattr(sweep.report, "report", lambda paths: None)
        yield record


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


def assert_continues(kind: str, found: Recorded, images: list[crash.Image]) -> None:
    expected = results(found.reference)
    for image in images:
        path = found.reference.parent / "again"
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


@pytest.mark.parametrize("kind", ["train"])
def test_some_images_continue(kind: str, recorded: Callable[[str], Recorded]) -> None:
    found = recorded(kind)
    assert {image.kind for image in found.images} == set(KINDS)
    assert_continues(kind, found, crash.some(found.images, 8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORK)
def test_all_images_continue(kind: str, recorded: Callable[[str], Recorded]) -> None:
    found = recorded(kind)
    assert_continues(kind, found, found.images)


def test_checkpoints_survive_a_power_failure(recorded: Callable[[str], Recorded]) -> None:
    """Once a checkpoint is on disk, there is always one."""
    found = recorded("train")
    lost = [image for image in found.images if image.kind == "lost"]
    counts = [len(shards.indices(image.path / "checkpoints")) for image in lost]
    first = next(i for i, count in enumerate(counts) if count)
    assert min(counts[first:]) >= 1 and len(counts) > 8
