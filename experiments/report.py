"""Reports on runs, finished or in progress: a table, and learning curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl import plots, records, stats
from jaxrl.errors import UserError
from jaxrl.experiments.progress import rate as short


def curves(run: records.RunDir) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps [C] and returns [C, P] of the last stage that has any: of whole
    evaluation episodes, or else of training episodes. Empty where there are none yet."""
    metrics = records.read_metrics(run)
    for name in ("return", "episode_return"):
        if name not in metrics:
            continue
        known = np.isfinite(metrics[name])
        if not known.any():
            continue
        stage = metrics["stage"][known][-1]
        rows = metrics["stage"] == stage
        count = len(np.unique(metrics["member"][rows]))
        steps = metrics["env_steps"][rows].reshape(-1, count)[:, 0]
        return steps, metrics[name][rows].reshape(-1, count)
    return np.zeros(0), np.zeros((0, 0))


def draw_run(run: records.RunDir) -> None:
    """plots/learning_curve.png of one run; nothing where it has no returns."""
    identity = run.config()["config"]
    x, y = curves(run)
    title = f"{identity['agent']} on {identity['env']}, {identity['seeds']} members"
    if x.size:
        file = run.plots / "learning_curve.png"
        plots.learning_curves(file, {identity["agent"]: (x, y)}, title=title)


def report(paths: list[Path], out: Path | None) -> None:
    """Prints one row per run, and draws their learning curves into one picture."""
    runs = [open_for_reading(path) for path in paths]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "members", "return (IQM)", "95 % interval", "lowest", "failed", "steps/s"):
        table.add_column(name, justify="left" if name == "run" else "right")
    table.add_column("state")
    drawn: dict[str, Any] = {}
    names = [run.path.name for run in runs]
    for run, name in zip(runs, names, strict=True):
        # Runs of one name in several folders are told apart by their paths.
        label = name if names.count(name) == 1 else str(run.path)
        x, y = curves(run)
        if x.size:
            drawn[label] = (x, y)
        table.add_row(label, *_row(run, y))
    console = _console()
    console.print(table)
    if not drawn:
        return
    file = out or (runs[0].plots if len(runs) == 1 else Path.cwd()) / "report.png"
    plots.learning_curves(file, drawn)
    console.print(f"learning curves: {file}", soft_wrap=True)


def _row(run: records.RunDir, returns: np.ndarray) -> list[str]:
    """What is known of a run with returns [C, P] so far."""
    summary = run.summary()
    if summary is not None:
        result, members = summary["return"], summary["members"]
        failed, rate = len(summary["failed_members"]), short(summary["steps_per_s"])
        state = "finished"
    elif returns.size:
        result, members = records.plain(stats.summarise(returns[-1])), returns.shape[1]
        failed, rate, state = result["failed"], "-", f"{len(returns)} evaluations"
    else:
        return ["-"] * 6 + ["nothing yet"]
    number = lambda x: "-" if x is None else f"{x:.4g}"
    low, high = map(number, result["ci95"])
    middle, lowest = number(result["iqm"]), number(result["min"])
    return [str(members), middle, f"{low} to {high}", lowest, str(failed), rate, state]


def _console() -> Console:
    """Tables keep their width where no terminal limits it."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def open_for_reading(path: Path) -> records.RunDir:
    """The run in a folder; UserError where there is none."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not the folder of a run: it has no config.json")
    run = records.RunDir(path.resolve())
    try:
        known = run.config()
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} cannot be read: {error}") from error
    if not isinstance(known, dict) or not known.get("config") or not known.get("context"):
        raise UserError(f"{path / 'config.json'} is not that of a run")
    return run


def print_episodes(seeds: np.ndarray, outcome: Any) -> None:
    """A row per member of an evaluation [P, K], and the whole population below."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("seed", "mean", "std", "min", "max", "length"):
        table.add_column(name, justify="right")
    for seed, returns, lengths in zip(seeds, outcome.returns, outcome.lengths, strict=True):
        numbers = (returns.mean(), returns.std(), returns.min(), returns.max(), lengths.mean())
        table.add_row(str(seed), *(f"{x:.4g}" for x in numbers))
    result = stats.summarise(outcome.returns)
    low, high = result["ci95"]
    console = _console()
    console.print(table)
    console.print(
        f"return {result['iqm']:.4g} (IQM over members, 95 % interval {low:.4g} to {high:.4g}), "
        f"{result['episodes']} episodes each"
    )
