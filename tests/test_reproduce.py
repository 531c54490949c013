"""`jaxrl reproduce`: commands run in order, and results stand beside the claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxrl.experiments import cli, reproduce
from jaxrl.experiments.reproductions import REPRODUCTIONS, Reproduction
from jaxrl.runs import records
from jaxrl.runs.files import write_json

FOUND = {"iqm": 5.0, "ci95": [4.0, 6.0], "members": 8}
CLAIM = "One is better than two."


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduction:
    """A record whose commands write files, in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    lines = ("import sys", "open('log', 'a').write(sys.argv[1] + ' ')", "print('ℓ2', sys.argv[1])")
    (tmp_path / "step.py").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "stop.py").write_text("raise SystemExit(3)\n")
    small = ("python -m step one", "jaxrl data make CartPole-v1 --out d.npz", "python -m step two")
    full = ("python -m stop", *small)
    found = Reproduction("toy", "pqn", CLAIM, small, full, "7 of 8", 1.5, 1_200)
    monkeypatch.setitem(REPRODUCTIONS, "toy", found)
    return found


def summary(path: Path, **more: Any) -> None:
    numbers: dict[str, Any] = dict.fromkeys(records.RESULTS, 1)
    numbers |= {"return": FOUND, "failed_members": []}
    write_json(
        path / "summary.json", numbers | {"finished": True, "agent": "pqn", "env": "x"} | more
    )


def test_commands_in_order(toy: Reproduction, capfd: pytest.CaptureFixture[str]) -> None:
    """A dataset that exists is not made again."""
    Path("d.npz").touch()
    assert cli.main(["reproduce", "toy"]) == 0
    assert Path("log").read_text() == "one two "
    record = json.loads(Path("reproductions/toy-small.json").read_text())
    assert record["claim"] == CLAIM and record["runs"] == [] and record["full"] is False
    assert record["tables"] == {f"python -m step {x}": [f"ℓ2 {x}"] for x in ("one", "two")}
    assert 0 <= record["cpu_minutes"] < 1 and 0 <= record["wall_minutes"] < 1
    assert record["device"] == {"platform": "cpu", "kind": "cpu", "count": 8}
    assert record["versions"]["jax"]
    assert not record["whole"]  # the dataset was there
    out = capfd.readouterr().out
    assert "about 1.5 min on one CPU core" in out and "[2 of 3] there already" in out
    assert "\nℓ2 two\n" in out
    assert "published: 7 of 8\nreproductions/toy-small.json\n" in out


def test_a_record_is_whole_if_no_output_existed(
    toy: Reproduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = toy._replace(small=("python -m step one --out log",))
    monkeypatch.setitem(REPRODUCTIONS, "toy", once)
    for whole in (True, False):
        assert reproduce.reproduce("toy") == 0
        assert json.loads(Path("reproductions/toy-small.json").read_text())["whole"] is whole


def test_a_failing_command_ends_it() -> None:
    assert cli.main(["reproduce", "toy", "--full"]) == 3
    assert not Path("log").exists() and not Path("reproductions").exists()


def test_dry_run_list_and_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "toy", "--dry-run"]) == 0
    assert "  python -m step two\n" in capsys.readouterr().out
    assert cli.main(["reproduce", "toy", "--full", "--dry-run"]) == 0
    assert "full setting, expected 20 h on one CPU core:" in capsys.readouterr().out
    assert not Path("log").exists()
    assert cli.main(["reproduce", "toi"]) == 2
    assert "did you mean 'toy'" in capsys.readouterr().err
    assert cli.main(["list", "reproductions"]) == 0
    out = capsys.readouterr().out
    assert CLAIM in out and all(name in out for name in REPRODUCTIONS)
    assert max(map(len, out.splitlines())) <= 96


def test_times_on_a_gpu_are_those_of_whole_records() -> None:
    """The column is there if a record in the folder has such a time."""

    def listed(platform: str, whole: bool) -> tuple[str, list[str]]:
        record = {"whole": whole, "wall_minutes": 12.3, "device": {"platform": platform}}
        write_json(Path("reproductions/toy-full.json"), record)
        lines = reproduce.listing().splitlines()
        (row,) = [line for line in lines if line.startswith("toy ")]
        return lines[0], row.split()

    for platform, whole in (("cpu", True), ("gpu", False)):
        head, row = listed(platform, whole)
        assert head.split() == ["small", "full", "claim"]
        assert row[:5] == ["toy", "1.5", "min", "20", "h"]
        assert "No time on a GPU" in reproduce.listing()
    head, row = listed("gpu", True)
    assert head.split() == ["small", "full", "GPU", "claim"]
    assert row[:8] == ["toy", "1.5", "min", "20", "h", "full", "12", "min"]
    assert "No time on a GPU" not in reproduce.listing()


def test_durations() -> None:
    given = (None, 0.31, 9.94, 99.4, 100, 600, 2_900, 30_000)
    told = ["not measured", "0.31 min", "9.9 min", "99 min", "1.7 h", "10 h", "2 days", "21 days"]
    assert list(map(reproduce.duration, given)) == told


def test_results(toy: Reproduction) -> None:
    """Of runs, of the runs of a sweep, and of the points of a run."""
    summary(Path("runs/a"), score={"iqm": 81.25})
    point = {"values": {"agent.lr": 0.1}, "return": FOUND | {"iqm": 3.0}}
    summary(Path("runs/b/x"), points=[point, point])
    write_json(Path("runs/b/summary.json"), {"finished": True, "best": {}})
    commands = ("jaxrl train pqn --env x --out runs/a", "jaxrl sweep pqn --env x --out runs/b")
    found = list(reproduce.results((*commands, "jaxrl train pqn --env x --out runs/missing")))
    assert [row["return"]["iqm"] for row in found] == [5, 3, 3]
    assert found[1]["run"] == "runs/b/x" and found[1]["values"] == {"agent.lr": 0.1}
    shown = reproduce.beside(toy, found).splitlines()
    assert shown[0] == "runs/a: return 5 (4 to 6), n = 8, normalised 81.2"
    assert shown[1].startswith("runs/b/x agent.lr=0.1: return 3 ")
    assert shown[-2:] == [f"claim: {CLAIM}", "published: 7 of 8"]


def test_page(toy: Reproduction) -> None:
    """The results of a file, beside the claim and the published result."""
    assert f"\n| `toy` | {CLAIM} | 7 of 8 |\n" in reproduce.page(Path("reproductions"))
    run = {"run": "runs/a", "values": {"agent.lr": 0.1}, "return": FOUND}
    record = {"full": False, "cpu_minutes": 1.234, "versions": {"jax": "0.10.2"}}
    record |= {"runs": [run], "tables": {"python -m step one": ["ℓ2  0.1"]}}
    write_json(Path("reproductions/toy-small.json"), record)
    section = reproduce.page(Path("reproductions")).partition("## toy\n")[2]
    assert section.startswith(f"\n{CLAIM}\n\nPublished: 7 of 8.\n\n")
    assert "in the small setting, 1.2 minutes of CPU time, JAX 0.10.2:" in section
    assert "\n| toy | 1.5 min | 20 h |\n" in reproduce.page(Path("reproductions"))
    device = {"platform": "gpu", "kind": "NVIDIA H200", "count": 2}
    record |= {"whole": True, "wall_minutes": 3.21, "device": device}
    write_json(Path("reproductions/toy-small.json"), record)
    shown = reproduce.page(Path("reproductions"))
    assert "setting, 3.2 minutes on 2 x NVIDIA H200, 1.2 minutes of CPU time, JAX" in shown
    assert "\n| toy | 1.5 min | 20 h | small 3.2 min |\n" in shown
    assert "\n| `a` | lr 0.1 | 5 | 4 to 6 | 8 |\n" in section
    assert "```text\n$ python -m step one\nℓ2  0.1\n```" in section


def test_recorded_results_are_of_the_present_commands() -> None:
    """Each file under docs/reproductions; a measured time is that of its file."""
    files = sorted((Path(__file__).parent.parent / "docs" / "reproductions").glob("*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        each = REPRODUCTIONS[record["name"]]
        commands = each.full if record["full"] else each.small
        assert tuple(record["commands"]) == commands, file.name
        assert (record["claim"], record["published"]) == (each.claim, each.published), file.name
        assert record["runs"] or record["tables"], file.name
        if not record["full"]:
            assert each.minutes == pytest.approx(record["cpu_minutes"], rel=0.1), file.name


def test_expected_times_are_those_of_the_measurement() -> None:
    """All full settings; the sums of their parts."""
    file = Path(__file__).parent.parent / "profiling" / "results" / "reproductions_cpu.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    found = {row["name"]: row for row in rows if row["setting"] == "full"}
    for name, each in REPRODUCTIONS.items():
        if name == "toy":
            continue
        row = found.pop(name)
        assert each.full_minutes == pytest.approx(row["minutes"], rel=0.01), name
        parts = sum(part["seconds"] for part in row["commands"])
        assert row["minutes"] == pytest.approx(parts / 60), name
    assert not found


def test_tables_of_studies_that_train(tmp_path: Path) -> None:
    """Progress is left out; a table in Markdown stays one."""
    rows = ["| a | b |", "|---|---|", "| 1 | 2 |"]
    assert (
        reproduce.after_training(["100%  ...", "best on x: 1", "50%", "best on x: 2", *rows])
        == rows
    )
    assert reproduce.after_training(rows) == rows
    record = {"name": "toy", "full": True, "cpu_minutes": 1.0, "versions": {"jax": "0.10.2"}}
    write_json(tmp_path / "toy-full.json", record | {"runs": [], "tables": {"python -m x": rows}})
    section = reproduce.page(tmp_path).partition("## toy\n")[2]
    assert "\n`python -m x`\n\n| a | b |\n" in section and "full setting" in section


def test_words() -> None:
    assert reproduce.words("jaxrl train pqn")[:3] == [sys.executable, "-m", "jaxrl.experiments.cli"]
    assert reproduce.words("python -m x")[1:] == ["-m", "x"]
