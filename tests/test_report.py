"""Reports on runs and sweeps that were never trained, against plain numpy."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxrl.errors import UserError
from jaxrl.experiments import cli, pictures, report, report_html, tables
from jaxrl.experiments.console import label, shown
from jaxrl.runs import files, folders, records, stats
from jaxrl.runs.metrics import part_name

SEEDS = 6
LRS = (1e-3, 1e-2, 1e-1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    seen: list[Figure] = []
    save = Figure.savefig

    def spy(self: Figure, *args: Any, **kwargs: Any) -> None:
        seen.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[list[dict[str, str]], str]]:
    """Runs `jaxrl report`: the rows of its table by column, and what follows."""

    def run(*words: str) -> tuple[list[dict[str, str]], str]:
        assert cli.main(["report", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        split = lambda line: [cell.strip() for cell in line.split("  ") if cell.strip()]
        heading = split(lines[0])
        count = next((i for i, x in enumerate(lines) if ":" in x or "best of" in x), len(lines))
        rows = [dict(zip(heading, split(line), strict=True)) for line in lines[1:count]]
        return rows, "\n".join(lines[count:])

    return run


def config(env: str, values: list[dict[str, Any]], seeds: int = SEEDS) -> dict[str, Any]:
    """As much of a run's configuration as a report reads."""
    own = {"agent": "pqn", "env": env, "seeds": seeds, "seed": 10}
    return own | ({"points": values} if values != [{}] else {})


def write_run(
    path: Path,
    known: dict[str, Any],
    returns: np.ndarray,
    hosts: int = 1,
    steps: int = 100,
    **context: Any,
) -> None:
    """Metrics of returns [C, P], each chunk in as many parts as there are hosts."""
    with records.open_run(path, known, {"width": 1} | context) as run:
        for chunk, row in enumerate(returns, start=1):
            for members in np.array_split(np.arange(row.size), hosts):
                index = {"stage": "agent", "member": members, "update": chunk}
                index |= {"env_steps": steps * chunk}
                columns = {"return": row[members], "finite": np.isfinite(row[members])}
                run.write_part(part_name(0, chunk, members[0]), index | columns)


def write_sweep(path: Path, chunks: int = 3, env: str = "walk") -> dict[int, np.ndarray]:
    """A sweep of two programs, num_steps 8 and 16, over LRS; returns [C, 3 * SEEDS] of each."""
    rng, made, programs = np.random.default_rng(0), {}, []
    for index, num_steps in enumerate((8, 16)):
        known = config(env, [{"agent.lr": lr} for lr in LRS])
        level = np.repeat([1.0, 5.0, 3.0], SEEDS) + index
        made[num_steps] = rng.normal(level, 1.0, (chunks, 3 * SEEDS))
        program = {"folder": f"{index:03d}", "values": {"agent.num_steps": num_steps}}
        programs.append(program | {"config": known})
        write_run(path / f"{index:03d}", known, made[num_steps])
    swept = {"agent.num_steps": [8, 16], "agent.lr": list(LRS)}
    known = {"agent": "pqn", "sweep": swept, "programs": programs}
    files.write_json(path / "sweep.json", {"format": folders.FORMAT} | known)
    return made


def scores_of(made: dict[int, np.ndarray], num_steps: int, lr: int) -> np.ndarray:
    return made[num_steps][-1, lr * SEEDS : (lr + 1) * SEEDS]


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.sign(x[:, None] - y[None, :]) / 2 + 0.5))


# --- the table -----------------------------------------------------------------------------------


def test_sweep_against_numpy(folder: Path, table: Callable) -> None:
    made = write_sweep(folder / "it")
    made[8][-1, 2] = np.nan  # a failed member, and its part written anew
    write_run(folder / "it/000", config("walk", [{"agent.lr": lr} for lr in LRS]), made[8])
    rows, told = table("it")
    assert len(rows) == 6
    first = scores_of(made, 8, 0)
    for row, (num_steps, lr) in zip(rows, ((n, i) for n in (8, 16) for i in range(3)), strict=True):
        scores = scores_of(made, num_steps, lr)
        fine = scores[np.isfinite(scores)]
        assert (row["agent.num_steps"], row["agent.lr"]) == (str(num_steps), f"{LRS[lr]:.4g}")
        cut = np.sort(fine)[fine.size // 4 : fine.size - fine.size // 4]
        assert row["return (IQM)"] == f"{cut.mean():.4g}"
        low, high = stats.bootstrap_ci(fine)
        assert row["95 % interval"] == f"{low:.4g} to {high:.4g}"
        assert row["lowest"] == f"{fine.min():.4g}"
        assert (row["members"], row["failed"]) == (str(SEEDS), str(SEEDS - fine.size))
        is_first = (num_steps, lr) == (8, 0)
        expected = improvement(fine, first[np.isfinite(first)])
        assert row["P(better)"] == ("reference" if is_first else f"{expected:.4g}")
        assert row["state"] == "3 evaluations"
    assert "member of agent.num_steps=8,agent.lr=0.001; ties" in told
    assert {path.name for path in (folder / "it/plots").iterdir()} == {
        *("report.png", "report-sensitivity.png"),
    }


def test_another_reference(folder: Path, table: Callable) -> None:
    made = write_sweep(folder / "it")
    for over, num_steps in (("lr=0.1", 8), ("agent.lr=1e-1,num_steps=16", 16)):
        rows, _ = table("it", "--over", over)
        found = [row["P(better)"] for row in rows]
        assert found.index("reference") == (2 if num_steps == 8 else 5)
        expected = improvement(scores_of(made, 8, 1), scores_of(made, num_steps, 2))
        assert found[1] == f"{expected:.4g}"
    example = "agent.lr=0.5 matches no point; an example is --over agent"
    with pytest.raises(UserError, match=example):
        report.report([folder / "it"], over="agent.lr=0.5")


def test_run_in_progress_of_several_hosts(folder: Path, table: Callable) -> None:
    """A chunk counts once all members are in it."""
    known = config("walk", [{"agent.lr": lr} for lr in LRS], seeds=2)
    returns = np.arange(18.0).reshape(3, 6)
    write_run(folder / "run", known, returns, hosts=2)
    (folder / "run/metrics/part-00-0000000003-0000003.parquet").unlink()
    rows, _ = table("run")
    assert [row["return (IQM)"] for row in rows] == ["6.5", "8.5", "10.5"]  # of the second chunk
    assert {row["state"] for row in rows} == {"2 evaluations"}
    assert [row["P(better)"] for row in rows] == ["reference", "1", "1"]


def test_runs_sweeps_and_what_has_not_begun(folder: Path, table: Callable) -> None:
    write_sweep(folder / "it", chunks=1)
    for file in (folder / "it/001/metrics").iterdir():
        file.unlink()
    write_run(folder / "run", config("walk", [{}]), np.full((2, SEEDS), 9.0))
    write_run(folder / "new", config("walk", [{}]), np.zeros((0, SEEDS)))
    write_run(folder / "failed", config("walk", [{}]), np.full((2, SEEDS), np.nan))
    rows, _ = table("it", "run", "new", "failed")
    names = [*["it/000"] * 3, *["it/001"] * 3, "run", "new", "failed"]
    assert [row["run"] for row in rows] == names
    assert [row["state"] for row in rows][2:5] == ["1 evaluation", "nothing yet", "nothing yet"]
    run, new, failed = rows[-3:]
    assert (run["return (IQM)"], run["95 % interval"], run["agent.lr"]) == ("9", "9 to 9", "-")
    assert run["P(better)"] == "1" and new["members"] == "-" and new["state"] == "nothing yet"
    assert failed["return (IQM)"] == "-" and failed["P(better)"] == "-"
    assert sorted(path.name for path in folder.glob("*.png")) == [
        *("report-sensitivity.png", "report.png"),
    ]


def test_environments_are_not_compared(folder: Path, table: Callable) -> None:
    """Each has its own reference and its own pictures."""
    made = write_sweep(folder / "a"), write_sweep(folder / "b", env="mine:glide")
    rows, told = table("a", "b", "--over", "agent.num_steps=16", "--out", "all.png")
    found = [row["P(better)"] for row in rows]
    assert [i for i, better in enumerate(found) if better == "reference"] == [3, 9]
    expected = improvement(scores_of(made[1], 8, 1), scores_of(made[1], 16, 0))
    assert found[7] == f"{expected:.4g}"
    kinds = ("all", "all-sensitivity")
    names = {f"{kind}-{env}.png" for env in ("mine_glide", "walk") for kind in kinds}
    assert {path.name for path in folder.glob("*.png")} == names
    assert all(name in told for name in names)


def test_thousands_of_points(folder: Path, table: Callable) -> None:
    values = [{"agent.lr": float(lr)} for lr in np.geomspace(1e-5, 1e-1, 2048)]
    returns = np.random.default_rng(0).normal(size=(20, 4096))
    write_run(folder / "run", config("walk", values, seeds=2), returns)
    start = time.process_time()
    rows, told = table("run", "--csv", "all.csv")
    assert time.process_time() - start < 15
    final = returns[-1].reshape(-1, 2).mean(1)
    assert [row["return (IQM)"] for row in rows] == [f"{x:.4g}" for x in np.sort(final)[::-1][:40]]
    assert "the 40 best of 2,048 points; --csv FILE writes all" in told
    assert len((folder / "all.csv").read_text().splitlines()) == 2049
    assert len((folder / "all-members.csv").read_text().splitlines()) == 4097


def test_few_members_are_noted(folder: Path, table: Callable) -> None:
    """No interval of one member, and a note below five."""
    for seeds, interval in ((1, "-"), (2, "1 to 1"), (5, "1 to 1")):
        write_run(folder / f"of{seeds}", config("walk", [{}], seeds), np.ones((1, seeds)))
        rows, told = table(f"of{seeds}")
        assert (rows[0]["members"], rows[0]["95 % interval"]) == (str(seeds), interval)
        assert ("fewer than 5 members are unreliable" in told) == (seeds < 5)


def test_a_folder_of_runs(folder: Path) -> None:
    """Its runs and sweeps are reported; searches and what cannot be read are skipped."""
    write_sweep(folder / "runs/it")
    write_run(folder / "runs/b", config("walk", [{}]), np.full((2, SEEDS), 9.0))
    for name, text in (("search", "search.json"), ("broken", "config.json"), ("else", "a.txt")):
        (folder / "runs" / name).mkdir()
        (folder / "runs" / name / text).write_text("{}")
    points = report.gather(report.expand([Path("runs")]))
    assert [point.run for point in points] == ["b", *["it/000"] * 3, *["it/001"] * 3]
    assert cli.main(["report", "runs/else"]) == 2


def test_each_run_is_reported_once(folder: Path) -> None:
    write_run(folder / "runs/b", config("walk", [{}]), np.full((2, SEEDS), 9.0))
    write_run(folder / "runs/c", config("walk", [{}]), np.full((2, SEEDS), 9.0))
    paths = [Path("runs/c"), Path("runs"), folder / "runs/b", Path("runs/b")]
    assert report.expand(paths) == [Path("runs/c"), Path("runs/b")]


def test_a_folder_of_runs_says_what_is_skipped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(folder / "runs/b", config("walk", [{}]), np.full((2, SEEDS), 9.0))
    (folder / "runs/s").mkdir()
    (folder / "runs/s/search.json").write_text("{}")
    assert cli.main(["report", "runs"]) == 0
    out = capsys.readouterr().out
    assert "skipped: runs/s is a search: jaxrl report runs/s" in out
    assert "9 to 9" in out and "pictures: runs/b/plots/report.png" in out


@pytest.mark.parametrize("width", [60, 80, 90, 110, 120])
def test_no_word_is_broken_in_a_terminal(
    width: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns are dropped until the rest fits; the return stays."""
    write_sweep(folder / "it")
    write_run(folder / "run", config("walk", [{}]), np.full((2, SEEDS), 9.0))
    monkeypatch.setattr(tables, "terminal_width", lambda: width)
    assert cli.main(["report", "it", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines[:-1] if "pictures" not in line]
    assert max(map(len, (line.rstrip() for line in rows))) <= width
    assert "return (IQM)" in lines[0] and "agent.num_steps" in lines[0]
    text = " ".join(lines)
    assert "a wider terminal also shows:" in text and "steps/s" not in lines[0]


def test_narrow_terminals_get_a_block_per_point(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(folder / "it")
    monkeypatch.setattr(tables, "terminal_width", lambda: 30)
    assert cli.main(["report", "it"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["agent.num_steps", "8"]
    assert lines[1].split() == ["agent.lr", "0.001"]
    assert sum(line.startswith("return (IQM)") for line in lines) == 6


# --- CSV -----------------------------------------------------------------------------------------


def test_csv_has_a_row_per_point_and_per_member(folder: Path, table: Callable) -> None:
    made = write_sweep(folder / "it")
    write_run(folder / "run", config("walk", [{}]), np.full((1, SEEDS), np.nan))
    table("it", "run", "--csv", "out/all.csv")
    with (folder / "out/all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    row, scores = rows[4], scores_of(made, 16, 1)
    assert (row["run"], row["env"], row["agent.num_steps"]) == ("it/001", "walk", "16")
    assert (float(row["agent.lr"]), row["env_steps"], row["failed"]) == (1e-2, "300", "0")
    expected = {"mean": scores.mean(), "std": scores.std(ddof=1), "min": scores.min()}
    expected |= {"iqm": np.sort(scores)[1:-1].mean(), "max": scores.max()}
    expected |= {"p_better": improvement(scores, scores_of(made, 8, 0))}
    # Six members: the worst quarter is the worst one and half of the next.
    worst, next_worst = np.sort(scores)[:2]
    expected |= {"var_0.05": worst, "cvar_0.05": worst, "var_0.25": next_worst}
    expected |= {"cvar_0.25": (worst + 0.5 * next_worst) / 1.5}
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-6), name
    assert rows[6]["iqm"] == rows[6]["agent.lr"] == "" and rows[6]["failed"] == str(SEEDS)

    with (folder / "out/all-members.csv").open(newline="") as file:
        members = list(csv.DictReader(file))
    assert len(members) == 7 * SEEDS
    member, returns = members[2 * SEEDS + 3], made[8][:, 2 * SEEDS + 3]
    assert (member["seed"], float(member["agent.lr"])) == ("13", 1e-1)
    assert float(member["final_return"]) == pytest.approx(returns[-1], rel=1e-6)
    assert float(member["best_return"]) == pytest.approx(returns.max(), rel=1e-6)
    assert members[-1]["best_return"] == "" and members[-1]["failed"] == "true"
    assert cli.main(["report", "it", "--csv", "it"]) == 2  # a folder


# --- pictures ------------------------------------------------------------------------------------


def test_curves_of_the_best_and_the_worst(folder: Path, drawn: list[Figure]) -> None:
    values = [{"agent.lr": float(i)} for i in range(9)]
    level = np.array([3, 8, 1, 0, 7, 2, 6, 5, 4])
    write_run(folder / "run", config("walk", values), np.repeat(level, SEEDS)[None] * [[1.0], [2]])
    report.report([folder / "run"])
    axes = drawn[0].axes[0]
    assert "the 5 best of 9 points, and the worst" in axes.get_title(loc="left")
    assert [line.get_ydata()[-1] for line in axes.lines] == [16, 14, 12, 10, 8, 0]
    assert axes.lines[0].get_label() == "lr=1  (n = 6)"


def test_axes_and_the_table_say_what_is_counted(
    folder: Path, drawn: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where agents learn from data no environment is stepped."""
    rng = np.random.default_rng(0)
    for name, steps in {"one": 100, "on": 50, "off": 0}.items():
        write_run(folder / name, config("walk", [{}]), rng.normal(size=(2, SEEDS)), steps=steps)
    heads = {("one", "on"): " steps/s", ("off",): " updates/s", ("on", "off"): "steps or updates/s"}
    for names, head in heads.items():
        report.report([folder / name for name in names])
        assert head in capsys.readouterr().out
    labels = [figure.axes[0].get_xlabel() for figure in drawn]
    assert labels == ["environment steps", "updates", "environment steps or updates"]


def test_offline_training_beside_its_fine_tuning(
    folder: Path, drawn: list[Figure], table: Callable
) -> None:
    """Two stages with returns: a row and a curve each, the last stage first; none in sweeps."""
    rng = np.random.default_rng(0)
    made = {"offline": rng.normal(0, 1, (2, SEEDS)), "online": rng.normal(4, 1, (3, SEEDS))}
    with records.open_run(folder / "both", config("walk", [{}]), {"width": 1}) as run:
        for stage, (name, returns) in enumerate(made.items()):
            for chunk, row in enumerate(returns, start=1):
                index = {"stage": name, "member": np.arange(SEEDS), "update": chunk}
                index |= {"env_steps": 100 * chunk * stage}
                columns = {"return": row, "finite": np.ones(SEEDS)}
                run.write_part(part_name(stage, chunk, 0), index | columns)
    rows, _ = table("both", "--over", "both (offline)")
    assert [row["run"] for row in rows] == ["both", "both (offline)"]
    for row, name in zip(rows, ("online", "offline"), strict=True):
        np.testing.assert_allclose(float(row["return (IQM)"]), stats.iqm(made[name][-1]), rtol=1e-3)
    better = improvement(made["online"][-1], made["offline"][-1])
    np.testing.assert_allclose(float(rows[0]["P(better)"]), better, rtol=1e-3)
    (axes,) = drawn[0].axes
    assert sorted(len(line.get_xdata()) for line in axes.lines) == [2, 3]
    assert axes.get_xlabel() == "environment steps or updates"


def test_sensitivity_has_lines_for_few_combinations(folder: Path, drawn: list[Figure]) -> None:
    made = write_sweep(folder / "it")
    report.report([folder / "it"])
    num_steps, lr = drawn[1].axes
    assert (lr.get_xlabel(), lr.get_xscale(), num_steps.get_xscale()) == (*("lr", "log", "linear"),)
    assert [line.get_label() for line in lr.lines] == ["num_steps=8", "num_steps=16"]
    for line, steps in zip(lr.lines, (8, 16), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), LRS)
        expected = [stats.iqm(scores_of(made, steps, i)) for i in range(3)]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    assert len(num_steps.lines) == 3


def test_sensitivity_over_many_combinations(folder: Path, drawn: list[Figure]) -> None:
    """One line over all of them; what separates the combinations is not part of the interval."""
    values = [{"a.x": x, "a.y": y} for x in (1, 2) for y in range(7)]
    returns = np.array([10.0 * p["a.x"] + p["a.y"] for p in values])
    write_run(folder / "run", config("walk", values), np.repeat(returns, SEEDS)[None])
    report.report([folder / "run"])
    of_x, of_y = drawn[1].axes
    (line,) = of_x.lines
    assert line.get_label() == "all values of a.y"
    np.testing.assert_allclose(line.get_ydata(), [13, 23])
    band = of_x.collections[0].get_paths()[0].vertices
    assert set(band[:, 1].round(6)) == {13, 23}
    assert [line.get_label() for line in of_y.lines] == ["a.x=1", "a.x=2"]


def named(agent: str, values: dict[str, Any], **settings: Any) -> Any:
    """As much of a `Point` as its name in a legend needs."""
    run = f"{agent}-walk-{len(settings)}a3fa9c2d"
    return SimpleNamespace(agent=agent, values=values, settings=settings, run=run)


@pytest.mark.parametrize(
    ("points", "names"),
    [
        ([named("dqn", {}), named("ppo", {})], ["DQN", "PPO"]),
        ([named("pqn_rnn", {}), named("my_agent", {})], ["PQN-RNN", "my_agent"]),
        ([named("dqn", {})], ["DQN"]),
        ([named("dqn", {"agent.lr": lr}) for lr in (1.0, 2.0)], ["lr=1", "lr=2"]),
        ([named("dqn", {}, lr=lr, n=3) for lr in (1.0, 2.0)], ["lr=1", "lr=2"]),
        (
            [named("dqn", {}, n=1), named("dqn", {}, n=2), named("ppo", {}, n=3)],
            ["DQN n=1", "DQN n=2", "PPO"],
        ),
        ([named("dqn", {"agent.lr": 1.0}), named("dqn", {})], ["lr=1", "dqn-walk-0a3fa9c2d"]),
        ([named("dqn", {}), named("dqn", {})], [f"dqn-walk-0a3fa9c2d ({i})" for i in (1, 2)]),
    ],
    ids=lambda value: ", ".join(map(str, value)) if isinstance(value[0], str) else "",
)
def test_legends_are_short_and_different(points: list[Any], names: list[str]) -> None:
    assert pictures.legends(points) == names


def test_the_title_names_what_is_shared(folder: Path, drawn: list[Figure]) -> None:
    for agent in ("dqn", "ppo"):
        known = config("walk", [{}]) | {"agent": agent}
        write_run(folder / f"{agent}-walk-3fa9c2d1", known, np.ones((2, SEEDS)))
    report.report(sorted(folder.glob("*-walk-*")), out=folder / "x.pdf")
    (axes,) = drawn[0].axes
    assert axes.get_title(loc="left") == "walk"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["DQN  (n = 6)", "PPO  (n = 6)"]
    assert (folder / "x.pdf").read_bytes().startswith(b"%PDF")
    report.report([folder / "dqn-walk-3fa9c2d1"])
    assert drawn[1].axes[0].get_title(loc="left") == "DQN on walk, 6 members"


def test_unknown_suffixes_are_refused_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(folder / "it")
    before = sorted(folder.rglob("*"))
    assert cli.main(["report", "it", "--out", "x.jpg"]) == 2
    told = capsys.readouterr()
    assert not told.out and "x.jpg: figures are written as .png, .pdf, .svg files" in told.err
    assert sorted(folder.rglob("*")) == before


def test_names_of_points() -> None:
    values = {"agent.lr": 3.16227766e-4, "agent.hidden": [64, 64], "env.on": True, "agent.n": 3}
    assert label(values) == "agent.lr=0.0003162,agent.hidden=64x64,env.on=true,agent.n=3"
    assert shown([]) == "[]" and shown("gru") == "gru"


@pytest.mark.parametrize("scores", ([500.0, 500.0], [0.0], [-3.0, np.nan], [-1.0, 4.0]))
def test_thresholds_of_profiles(scores: list[float]) -> None:
    """All scores exceed the first threshold, none the last, also if all scores are equal."""
    taus = report_html.thresholds(np.array(scores))
    known = np.array(scores)[np.isfinite(scores)]
    assert taus[0] < known.min() and known.max() < taus[-1]
    assert not report_html.thresholds(np.array([np.nan])).size


def test_a_page_holds_its_data_and_no_addresses(table: Callable[..., Any], folder: Path) -> None:
    """The numbers of the table, curves and profiles; nothing is fetched when it is opened."""
    returns = np.stack([np.arange(6.0), 100 + 10 * np.arange(6.0)])
    write_run(folder / "a", config("</script>", [{}]), returns)
    write_run(folder / "b", config("</script>", [{}]), returns + 20)
    rows, _ = table("a", "b", "--html", "page.html", "--target", "140")
    page = (folder / "page.html").read_text()
    assert page.count("</script>") == 2 and "&lt;/script&gt;" in page
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"} and "{{" not in page
    assert not re.search(r"(src|href)=|@import|fetch\(", page)
    text = page.partition('type="application/json">')[2].partition("</script>")[0]
    (task,) = json.loads(text)["tasks"]
    assert task["env"] == "</script>" and task["best"] == [1, 0] and task["few"] == []
    assert sorted([-2.0, None, 0.0, 3.0], key=report_html._descending) == [3.0, 0.0, -2.0, None]
    first, second = task["rows"]
    assert first["iqm"] == 125 and first["curve"]["y"] == [2.5, 125]
    assert first["gap"] == pytest.approx(140 - np.minimum(returns[1], 140).mean(), rel=1e-5)
    assert [float(row["gap to 140"]) for row in rows] == pytest.approx(
        [first["gap"], second["gap"]], rel=1e-3
    )
    assert task["taus"][0] == 96.5 and task["taus"][-1] == 173.5
    assert first["profile"][0] == 1 and first["profile"][-1] == 0
    assert first["curve"]["low"][1] < 125 < first["curve"]["high"][1]
