"""Searches that were killed, or have damaged files: the same trials as an undisturbed search."""
# ruff: noqa: F401, F811 (fixtures of another file)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash
import numpy as np
import pytest
from test_search import (
    ASKED,
    FAST,
    RANGE,
    asked_for,
    columns,
    folder,
    formula,
    outcomes,
    results,
    run,
)

from jaxrl.experiments import cli, requests
from jaxrl.experiments.search import confirm, loop, slots, study

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
    tmp_path: Path,
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots with results are not trained again; those without are, whole."""
    its = [*asked_for(without="agent.epochs"), *RANGE, "--range", "agent.epochs=1,2"]
    its += ["--programs", "2", "--batch", "4", "--trials", "8"]
    again = lambda out: loop.run(requests.read("search", [*its, "--out", out]))
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


# --- damaged files -------------------------------------------------------------------------------


def cut(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-3], lines[-3][:20]]


def flipped(lines: list[bytes]) -> list[bytes]:
    line = lines[20]
    return [*lines[:20], line[:40] + bytes([line[40] ^ 1]) + line[41:], *lines[21:]]


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "removed": lambda lines: [],
    "cut": cut,
    "a bit flipped": flipped,
    "a line missing": lambda lines: [*lines[:15], *lines[16:]],
    "two lines swapped": lambda lines: [*lines[:15], lines[16], lines[15], *lines[17:]],
    "garbage": lambda lines: [*lines[:30], b"\xff\x00garbage\n", *lines[30:]],
    "nothing but garbage": lambda lines: [b"[]\n"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_made_again(
    damage: str,
    formula: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(out="it")
    expected = outcomes("it"), summary("it")
    file = Path("it") / study.JOURNAL
    old = b"".join(DAMAGES[damage](file.read_bytes().splitlines(keepends=True)))
    file.write_bytes(old)
    read = cli.main(["report", "it"])  # changes nothing
    assert file.read_bytes() == old and read in (0, 2)
    capsys.readouterr()
    run(out="it")
    assert (outcomes("it"), summary("it")) == expected
    out = capsys.readouterr().out
    told = damage not in ("removed", "cut")
    assert ("journal.log is damaged from line" in out) == told
    aside = file.with_name("journal.log.damaged")
    assert aside.exists() == told and (not told or aside.read_bytes() == old)


def test_lines_of_other_programs_stay_in_the_journal(formula: list[dict[str, Any]]) -> None:
    run(trials=4)
    file = Path("it") / study.JOURNAL
    line = b'{"op_code":3,"worker_id":"dashboard","study_id":0,"system_attr":{"note":"mine"}}\n'
    file.write_bytes(file.read_bytes() + line)
    run(trials=8)
    book = study.read_study(Path("it"))
    assert (
        book._storage.get_study_system_attrs(book._study_id)["note"] == "mine"
        and len(results()) == 8
    )
    assert line in file.read_bytes()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is damaged"),
        ("[]", "is damaged (no JSON object)"),
        ("{}", "is damaged (no 'agent')"),
        (None, "is damaged (no width in its context)"),
    ],
)
def test_a_damaged_search_json_is_named(
    text: str | None,
    told: str,
    formula: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(trials=4)
    file = Path("it/search.json")
    if text is None:
        text = json.dumps(json.loads(file.read_text()) | {"context": {}})
    file.write_text(text)
    asked = [*asked_for(), *RANGE, "--trials", "4", "--batch", "4", "--out", "it"]
    capsys.readouterr()
    assert cli.main(["search", *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and "it" in line and "--overwrite" not in line


def test_removed_runs_are_trained_again_for_the_bandit(
    formula: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"episodes": 12, "trial": 0, "return": 1.0, "best_return": 1.0}
    monkeypatch.setattr(confirm, "choose", lambda *args: chosen)
    run("--eval-budget", "12")
    before = outcomes("it")
    for name in ("000", "002"):
        Path("it", name).mkdir()
        Path("it", name, "config.json").write_text("{}")
    formula.clear()
    run()  # needs no policies
    assert not formula
    run("--eval-budget", "12")
    assert [each["run"] for each in formula] == ["001"]
    assert outcomes("it") == before


# --- trained, in all kinds of searches -----------------------------------------------------------

METHODS = {
    "tpe": ["--sampler", "tpe"],
    "cmaes": ["--sampler", "cmaes"],
    "pbt": ["--sampler", "random", "--pbt"],
    "halving": ["--sampler", "tpe", "--halving", "--eta", "2"],
    "bandit": ["--sampler", "qmc", "--confirm", "1", "--confirm-seeds", "2", "--eval-budget", "8"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_search_that_was_killed(method: str, tmp_path: Path) -> None:
    """Killed before file operations all over a search, and half-way through writes."""
    asked = [*ASKED, *FAST, "--trials", "8", "--batch", "4", *METHODS[method]]
    asked += ["--checkpoint-seconds", "0"]
    again = lambda out: loop.run(requests.read("search", [*asked, "--out", out]))
    with crash.shared_programs():
        kinds = ("kill", "half")
        images = crash.images(tmp_path / "it", tmp_path / "images", lambda: again("it"), kinds)
        assert len(images) > 50
        continued(crash.some(images, 20), again, "it")
    for slot in {trial.user_attrs["run"] for trial in results()}:
        whole = columns(tmp_path / "it" / slot)
        for image in crash.some(images, 20):
            for name, values in columns(image.path / slot).items():
                np.testing.assert_array_equal(values, whole[name], err_msg=f"{image} {name}")
