"""Reports on runs and sweeps, finished or in progress: a table, plots and CSV files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxrl.errors import UserError
from jaxrl.experiments import compare
from jaxrl.experiments.compare import Point, Result
from jaxrl.experiments.console import label, print_line, shown, write_csv
from jaxrl.experiments.console import rate as short
from jaxrl.experiments.run_folders import open_run_folder, read_sweep
from jaxrl.runs import records, stats

_ROWS = 40  # maximum number of printed rows


def report(
    paths: Sequence[Path],
    out: Path | None = None,
    over: str | None = None,
    csv_file: Path | None = None,
) -> None:
    """Prints one row per point of runs and sweeps, and draws them.

    Args:
      out: PNG file of the learning curves; the sensitivity plot goes to NAME-sensitivity.png. By
        default report.png, in the plots folder of a single run or sweep, else here.
      over: reference point of the comparison, see `compare.reference`.
      csv_file: CSV file with one row per point; NAME-members.csv gets one row per member.
    """
    found = gather(paths)
    compared = compare.results(found, over)
    _print(compared, named=len(paths) > 1 or not compare.swept(found))
    if csv_file is not None:
        members = csv_file.with_name(f"{csv_file.stem}-members{csv_file.suffix}")
        write_csv(csv_file, _point_rows(compared))
        write_csv(members, _member_rows(found))
        print_line(f"points: {csv_file}, members: {members}")
    file = out or (paths[0] / "plots" if len(paths) == 1 else Path.cwd()) / "report.png"
    try:
        drawn = compare.draw(compared, file, file.with_stem(f"{file.stem}-sensitivity"))
    except OSError as error:  # a run folder that may be read only
        told = f"{file} cannot be written: {error.strerror}"
        if out is not None:
            raise UserError(told) from error
        print_line(f"no pictures: {told}; pass --out FILE.png")
        return
    if drawn:
        print_line(f"pictures: {', '.join(map(str, drawn))}")


def draw_run(run: records.RunDir) -> None:
    """Draws plots/learning_curve.png of one run, and sensitivity.png if it has several points.

    A run without returns has no plots.
    """
    compared = compare.results(_points_of(run, run.path.name, run.config()["config"], {}, None))
    compare.draw(compared, run.plots / "learning_curve.png", run.plots / "sensitivity.png")


# --- reading -------------------------------------------------------------------------------------


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
    """The points of one run, which may have no metrics yet; `say` is told of damaged files."""
    summary, seeds = run.summary(say), config["seeds"]
    values = config.get("points", [{}])
    unit, steps, returns, failed = curves(run, len(values) * seeds, say)
    risk = last_risk(run, len(values) * seeds)
    state, speed = "nothing yet", None
    if len(steps):
        state = f"{len(steps)} evaluation{'s' if len(steps) > 1 else ''}"
    if summary is not None:
        state, speed = "finished", summary[f"{unit}_per_s"]
    found = []
    for index, own in enumerate(values):
        rows = slice(index * seeds, (index + 1) * seeds)
        point = Point(
            run=name,
            agent=config["agent"],
            env=config["env"],
            values=static | own,
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
    return found


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
            rows = metrics["stage"] == metrics["stage"][known][-1]
            steps, values = _by_step(metrics, rows, name, members)
            failed = _by_step(metrics, rows, "finite", members)[1]
            unit = "steps" if _axis(metrics, rows) == "env_steps" else "updates"
            return unit, steps, values, failed[-1] < 1 if len(failed) else nobody
    if "finite" in metrics:  # all members have failed
        failed = _by_step(metrics, metrics["stage"] == metrics["stage"][-1], "finite", members)[1]
        nobody = failed[-1] < 1 if len(failed) else nobody
    return "steps", np.zeros(0), np.zeros((0, members)), nobody


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


# --- printing ------------------------------------------------------------------------------------


def _print(compared: Sequence[Result], named: bool) -> None:
    """Prints the table; `named` adds a column with the names of the runs."""
    swept = compare.swept([result.point for result in compared])
    several = sum(bool(result.found) for result in compared) > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (["run"] if named else []) + swept:
        table.add_column(name, overflow="fold")
    for name in ("members", "return (IQM)", "95 % interval", "lowest", "CVaR10%"):
        table.add_column(name, justify="right")
    if several:
        table.add_column("P(better)", justify="right")
    table.add_column("failed", justify="right")
    # Speeds matter where runs are compared; a sweep prints its own at the end.
    if named:
        units = dict.fromkeys(result.point.unit for result in compared)
        table.add_column(f"{' or '.join(units)}/s", justify="right")
    unfinished = named or any(result.point.state != "finished" for result in compared)
    if unfinished:
        table.add_column("state")
    rows = list(compared)
    if len(rows) > _ROWS:
        rows = sorted(rows, key=lambda r: math.inf if math.isnan(r.iqm) else -r.iqm)[:_ROWS]
    for result in rows:
        point, speed = result.point, result.point.speed
        table.add_row(
            *([point.run] if named else []),
            *(shown(point.values.get(name, "-")) for name in swept),
            *_cells(result, several),
            *(["-" if speed is None else short(speed)] if named else []),
            *([point.state] if unfinished else []),
        )
    print_line(table)
    if len(rows) < len(compared):
        print_line(f"the {_ROWS} best of {len(compared):,} points; --csv FILE writes all")
    for result in compared if several else []:
        if result.is_reference:
            name = label(result.point.values) or result.point.run
            print_line(
                f"P(better): probability that a member scores above one of {name}; ties count half"
            )


def _cells(result: Result, several: bool) -> list[str]:
    """Cells with the latest results of a point."""
    point, found = result.point, result.found
    number = lambda x: "-" if math.isnan(x) else f"{x:.4g}"
    low, high = found.get("ci95", (math.nan, math.nan))
    better = "reference" if result.is_reference else number(result.better)
    begun = len(point.steps) > 0 or point.state == "finished"
    return [
        str(point.seeds.size) if begun else "-",
        number(result.iqm),
        f"{number(low)} to {number(high)}" if found else "-",
        number(found.get("min", math.nan)),
        number(point.risk.get("cvar_0.1", math.nan)),
        *([better] if several else []),
        str(int(point.failed.sum())) if begun else "-",
    ]


def print_episodes(columns: Mapping[str, np.ndarray], outcome: Any) -> None:
    """Prints one row per member of an evaluation [P, K], and the result over all members below.

    `columns` identify the members, [P] each: swept values and seeds.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*columns, "mean", "std", "min", "CVaR10%", "max", "length"):
        table.add_column(name, justify="right")
    names = zip(*(map(shown, column.tolist()) for column in columns.values()), strict=True)
    for name, returns, lengths in zip(names, outcome.returns, outcome.lengths, strict=True):
        low = (returns.min(), stats.cvar(returns, 0.1))
        numbers = (returns.mean(), returns.std(), *low, returns.max(), lengths.mean())
        table.add_row(*name, *(f"{x:.4g}" for x in numbers))
    result = stats.summarise(outcome.returns)
    low, high = result["ci95"]
    print_line(table)
    print_line(
        f"return {result['iqm']:.4g} (IQM over members, 95 % interval {low:.4g} to {high:.4g}), "
        f"{result['episodes']} episodes each"
    )


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
