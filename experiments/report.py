"""Reports on runs and sweeps, finished or in progress: a table, plots and CSV files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments import compare, diagnose, report_html
from jaxrl.experiments.compare import Point, Result
from jaxrl.experiments.console import print_line, write_csv
from jaxrl.experiments.pictures import draw
from jaxrl.experiments.report_table import print_results
from jaxrl.experiments.run_folders import RECORDS, distinct, open_run_folder, read_sweep
from jaxrl.runs import figures, files, records, stats


def report(
    paths: Sequence[Path],
    out: Path | None = None,
    over: str | None = None,
    csv_file: Path | None = None,
    html: Path | None = None,
    target: float | None = None,
) -> None:
    """Prints one row per point of runs and sweeps, and draws them.

    Args:
      paths: runs, sweeps, and folders of runs and sweeps.
      out: PNG, PDF or SVG file of the learning curves; the sensitivity plot goes to
        NAME-sensitivity. By default report.png, in the plots folder of a single run or sweep, else
        here.
      over: reference point of the comparison, see `compare.reference`.
      csv_file: CSV file with one row per point; NAME-members.csv gets one row per member.
      html: page with interactive curves, see `report_html`.
      target: return of the optimality gap; None for no gap.
    """
    if out is not None:
        figures.check_format(out)
    files.check_writable(out, csv_file, html)
    runs = expand(paths)
    found = gather(runs)
    compared = compare.results(found, over)
    print_results(compared, len(runs) > 1 or not compare.swept(found), target)
    for line in _diagnoses(runs):
        print_line(line)
    if csv_file is not None:
        members = csv_file.with_name(f"{csv_file.stem}-members{csv_file.suffix}")
        write_csv(csv_file, _point_rows(compared))
        write_csv(members, _member_rows(found))
        print_line(f"points: {csv_file}, members: {members}")
    if html is not None:
        report_html.write(html, compared, target)
        print_line(f"page: {html}")
    file = out or (runs[0] / "plots" if len(runs) == 1 else Path.cwd()) / "report.png"
    try:
        drawn = draw(compared, file, file.with_stem(f"{file.stem}-sensitivity"))
    except UserError as error:  # the folder of the run may be read-only
        if out is not None:
            raise
        print_line(f"no pictures: {error}")
        return
    if drawn:
        print_line(f"pictures: {', '.join(map(str, drawn))}")


def draw_run(run: records.RunDir) -> None:
    """Draws plots/learning_curve.png of one run, and sensitivity.png if it has several points.

    A run without returns has no plots.
    """
    compared = compare.results(_points_of(run, run.path.name, run.config()["config"], {}, None))
    draw(compared, run.plots / "learning_curve.png", run.plots / "sensitivity.png")


def _diagnoses(paths: Iterable[Path]) -> Iterable[str]:
    """Lines about offline runs that over- or underfit."""
    for path in paths:
        if (path / "sweep.json").is_file():
            folders = [(path / each["folder"]) for each in read_sweep(path)["programs"]]
        else:
            folders = [path]
        for folder in folders:
            if (folder / "config.json").is_file():
                yield from diagnose.lines(open_run_folder(folder), folder.resolve().name)


# --- reading -------------------------------------------------------------------------------------


def expand(paths: Iterable[Path]) -> list[Path]:
    """The runs and sweeps in `paths`, each once; a folder of runs stands for all runs in it.

    Searches and unreadable runs of such a folder are skipped with a line.
    """
    found = []
    for path in paths:
        inner = sorted(x.parent for name in RECORDS for x in path.glob(f"*/{name}"))
        if not inner or any((path / name).is_file() for name in RECORDS):
            found.append(path)  # a run, or an error with a message of its own
            continue
        for each in inner:
            try:
                if (each / "search.json").is_file():
                    raise UserError(f"{each} is a search: jaxrl report {each}")
                (read_sweep if (each / "sweep.json").is_file() else open_run_folder)(each)
                found.append(each)
            except UserError as error:
                print_line(f"skipped: {error}")
    return distinct(found)


def gather(paths: Iterable[Path]) -> list[Point]:
    """The points of all given runs and of all runs of given sweeps, in order."""
    found = []
    paths = list(paths)
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        # Runs of equal names in different folders are shown with their paths.
        name = name if names.count(name) == 1 else str(path.resolve())
        if (path / "sweep.json").is_file():
            for program in read_sweep(path)["programs"]:
                run = records.RunDir(path / program["folder"])
                label = f"{name}/{program['folder']}"
                found += _points_of(run, label, program["config"], program["values"])
        else:
            run = open_run_folder(path)
            found += _points_of(run, name, run.config()["config"], {})
    return found


def _points_of(
    run: records.RunDir,
    name: str,
    config: dict[str, Any],
    static: dict[str, Any],
    say: Callable[[str], None] | None = print_line,
) -> list[Point]:
    """The points of one run, which may have no metrics yet; `say` is told of damaged files.

    They show the last stage. A run of one point has further ones for earlier stages with
    evaluations, such as offline training before fine-tuning.
    """
    summary, seeds = run.summary(say), config["seeds"]
    values = config.get("points", [{}])
    unit, steps, returns, failed = curves(run, len(values) * seeds, say)
    risk = last_risk(run, len(values) * seeds)
    state, speed = "nothing yet", None
    if len(steps):
        state = f"{len(steps)} evaluation{'s' if len(steps) > 1 else ''}"
    if summary is not None:
        state, speed = "finished", summary[f"{unit}_per_s"]
    settings = {f"agent.{key}": x for key, x in config.get("settings", {}).items()}
    settings |= {f"env.{key}": x for key, x in config.get("env_options", {}).items()}
    settings |= {"eval_explore": True} if config.get("eval_explore") else {}
    found = []
    for index, own in enumerate(values):
        rows = slice(index * seeds, (index + 1) * seeds)
        point = Point(
            run=name,
            agent=config["agent"],
            env=config["env"],
            values=static | own,
            settings={key: x for key, x in settings.items() if key not in static | own},
            seeds=config["seed"] + np.arange(seeds),
            steps=steps,
            unit=unit,
            returns=returns[:, rows],
            failed=failed[rows],
            state=state,
            speed=speed,
            risk={name: _mean(x[rows]) for name, x in risk.items()},
        )
        found.append(point)
    if len(found) == 1 and not found[0].values:  # else columns of values could not tell them apart
        metrics = records.read_metrics(run, complete=run.as_found().finished)
        for stage in earlier_stages(metrics):
            unit, steps, returns, failed = curve(metrics, stage, "return", seeds)
            name = f"{found[0].run} ({stage})"
            own = {"unit": unit, "steps": steps, "returns": returns, "failed": failed}
            found.append(found[0]._replace(run=name, speed=None, risk={}, **own))
    return found


def earlier_stages(metrics: dict[str, np.ndarray]) -> list[str]:
    """Stages before the last one that have evaluations, such as "offline" before fine-tuning."""
    known = np.isfinite(metrics.get("return", np.zeros(0)))
    stages = dict.fromkeys(metrics["stage"][known].tolist()) if known.any() else {}
    return list(stages)[:-1]


def curves(
    run: records.RunDir, members: int, say: Callable[[str], None] | None = None
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """(unit, steps [C], returns [C, P], failed [P]) of the last stage with returns.

    Returns are those of evaluation episodes, or of training episodes if there are no evaluations.
    The unit is "steps" (environment steps), or "updates" in a stage without environment steps.
    """
    metrics = records.read_metrics(run, say=say, complete=run.as_found().finished)
    nobody = np.zeros(members, bool)
    for name in ("return", "episode_return"):
        known = np.isfinite(metrics.get(name, np.zeros(0)))
        if known.any():
            return curve(metrics, metrics["stage"][known][-1], name, members)
    if "finite" in metrics:  # all members have failed
        failed = _by_step(metrics, metrics["stage"] == metrics["stage"][-1], "finite", members)[1]
        nobody = failed[-1] < 1 if len(failed) else nobody
    return "steps", np.zeros(0), np.zeros((0, members)), nobody


def curve(
    metrics: dict[str, np.ndarray], stage: str, name: str, members: int
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """(unit, steps [C], values [C, P], failed [P]) of the metric `name` in one stage."""
    rows = metrics["stage"] == stage
    steps, values = _by_step(metrics, rows, name, members)
    failed = _by_step(metrics, rows, "finite", members)[1]
    unit = "steps" if _axis(metrics, rows) == "env_steps" else "updates"
    return unit, steps, values, failed[-1] < 1 if len(failed) else np.zeros(members, bool)


def last_risk(run: records.RunDir, members: int) -> dict[str, np.ndarray]:
    """`stats.risk` of the newest evaluation of the last stage, [P] each; {} if there is none."""
    metrics = records.read_metrics(run)
    if not set(stats.RISKS) <= set(metrics) or not np.isfinite(metrics[stats.RISKS[0]]).any():
        return {}
    rows = metrics["stage"] == metrics["stage"][np.isfinite(metrics[stats.RISKS[0]])][-1]
    found = {name: _by_step(metrics, rows, name, members)[1] for name in stats.RISKS}
    return {name: x[-1] for name, x in found.items() if len(x)}


def _mean(values: np.ndarray) -> float:
    """Mean of the finite values, or NaN."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _axis(metrics: dict[str, np.ndarray], rows: np.ndarray) -> str:
    """The column for the horizontal axis of one stage: env_steps, or update if the stage makes no
    environment steps."""
    steps = metrics["env_steps"]
    before = steps[: np.flatnonzero(rows)[0]].max(initial=0)  # rows are in order of the stages
    return "env_steps" if steps[rows].max() > before else "update"


def _by_step(
    metrics: dict[str, np.ndarray], rows: np.ndarray, name: str, members: int
) -> tuple[np.ndarray, np.ndarray]:
    """The horizontal axis [C] and one metric [C, P], at the steps that all members have reached."""
    axis = metrics[_axis(metrics, rows)][rows]
    steps, chunk, counts = np.unique(axis, return_inverse=True, return_counts=True)
    values = np.full((steps.size, members), np.nan)
    values[chunk, metrics["member"][rows]] = metrics[name][rows]
    whole = counts == members
    return steps[whole], values[whole]


# --- CSV -----------------------------------------------------------------------------------------


def _point_rows(compared: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per point. var and cvar are over the last returns of members; episode_var and
    episode_cvar are over the episodes of one member."""
    rows = []
    for result in compared:
        point, found = result.point, result.found
        low, high = found.get("ci95", (math.nan, math.nan))
        row = {"run": point.run, "agent": point.agent, "env": point.env} | point.values
        row |= {"members": point.seeds.size, "failed": point.failed.sum(), "state": point.state}
        axis = "env_steps" if point.unit == "steps" else "updates"
        row |= {axis: point.steps[-1] if len(point.steps) else 0}
        row |= {"iqm": result.iqm, "ci95_low": low, "ci95_high": high}
        row |= {name: found.get(name, math.nan) for name in ("mean", "std", "min", "max")}
        row |= {"p_better": result.better}
        for alpha in stats.ALPHAS:
            row[f"var_{alpha}"] = stats.var(point.scores, alpha) if found else math.nan
            row[f"cvar_{alpha}"] = stats.cvar(point.scores, alpha) if found else math.nan
        row |= {f"episode_{name}": x for name, x in point.risk.items()}
        rows.append(row)
    return rows


def _member_rows(found: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per member."""
    rows = []
    for point in found:
        finite = np.where(np.isfinite(point.returns), point.returns, -np.inf)
        best = finite.max(0, initial=-np.inf)
        last = point.scores if point.scores.size else np.full(point.seeds.size, math.nan)
        name = {"run": point.run, "env": point.env} | point.values
        for seed, final, top, failed in zip(point.seeds, last, best, point.failed, strict=True):
            results = {"final_return": final, "best_return": top, "failed": failed}
            rows.append(name | {"seed": seed} | results)
    return rows
