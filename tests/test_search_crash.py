"""Searches that were killed, or have damaged files: the same trials as an undisturbed search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash
import optuna
import pytest
from test_search import (  # noqa: F401
    RANGE,
    asked_for,
    folder,
    formula,
    outcomes,
    results,
    run,
)

from jaxrl.errors import UserError
from jaxrl.experiments import cli, requests, search
from jaxrl.experiments.search import journal, slots, study

KINDS = ("kill", "half", "torn", "lost")


def summary(out: str) -> dict[str, Any]:
    """Of a search, without what continuing may change."""
    found = json.loads((Path(out) / "summary.json").read_text())
    return {name: x for name, x in found.items() if name not in ("wall_s", "compiles")}


def continued(images: list[crash.Image], again: Callable[[str], Any], whole: str) -> None:
    """Continues a search from images of its folder and compares it with the whole one."""
    expected = outcomes(whole), summary(whole)
    for image in images:
        again(str(image.path))
        assert (outcomes(str(image.path)), summary(str(image.path))) == expected, image


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc", "random"])
def test_a_killed_search_proposes_the_same_trials(
    sampler: str,
    formula: list[dict[str, Any]],
    tmp_path: Path,  # noqa: F811
) -> None:
    again = lambda out: run("--sampler", sampler, out=out)
    images = crash.images(tmp_path / "it", tmp_path / "images", lambda: again("it"), KINDS)
    assert len(images) > 10
    continued(crash.some(images, 6), again, "it")
    trials = results()
    assert [trial.number for trial in trials] == list(range(12))
    assert len({json.dumps(trial.params) for trial in trials}) == 12


def test_a_kill_between_two_slots_of_a_batch(
    formula: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """Slots with results are not trained again; those without are, whole."""
    its = [*asked_for(without="agent.epochs"), *RANGE, "--range", "agent.epochs=1,2"]
    its += ["--programs", "2", "--batch", "4", "--trials", "8"]
    again = lambda out: search.run(requests.read("search", [*its, "--out", out]))
    again("it")
    formula.clear()
    train = slots.train

    def dies(engine: Any, settings: Any, path: Path, size: int) -> Any:
        if path.name.startswith("003"):
            raise KeyboardInterrupt
        return train(engine, settings, path, size)

    monkeypatch.setattr(slots, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        again("other")
    monkeypatch.setattr(slots, "train", train)
    again("other")
    assert [each["run"][:3] for each in formula] == ["000", "001", "002", "003"]
    assert (outcomes("other"), summary("other")) == (outcomes("it"), summary("it"))
