"""Results of a search: its best trials, the importance of settings, and plots of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from jaxrl.errors import UserError
from jaxrl.experiments.console import clock, plural, print_line, shown, write_csv
from jaxrl.experiments.search import study
from jaxrl.runs import folders, plots, records

if TYPE_CHECKING:
    from optuna import Study

ROWS = 10  # maximum number of printed trials


def summary(book: Study) -> dict[str, Any]:
    """Summary statistics of the study; "best" is its best trial, or {}."""
    from optuna.trial import TrialState

    trials = study.current(book)
    count = lambda state: sum(trial.state == state for trial in trials)
    best = [
        {
            "trial": trial.number,
            "values": trial.params,
            "value": trial.value,
            "scores": trial.user_attrs["scores"],
            **({"final": trial.user_attrs["final"]} if "final" in trial.user_attrs else {}),
        }
        for trial in study.best(book, 1)
    ]
    spent = {"wall_s": 0.0, "compiles": 0, "env_steps": 0} | book.user_attrs.get("spent", {})
    return {
        "finished": True,
        "trials": len(trials),
        "complete": count(TrialState.COMPLETE),
        "stopped_early": count(TrialState.PRUNED),
        "failed": count(TrialState.FAIL),
        **spent,
        "best": best[0] if best else {},
        "importance": study.importance(book),
    }


def report(path: Path) -> None:
    """Prints the best trials, writes trials.csv and draws; also while the search runs.

    Of population-based training the table has the settings at the end, the rest those at the start.
    """
    read_search(path)
    if not (path / study.JOURNAL).is_file():
        raise UserError(f"{path} has no trials yet")
    book = study.read_study(path)
    found = summary(book)
    stored = records.RunDir(path).summary() or {}
    best = study.best(book, ROWS)
    names = list(dict.fromkeys(name for trial in best for name in trial.params))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("trial", *names, "value", "worst seed", "best seed"):
        table.add_column(name, justify="right")
    for trial in best:
        scores = [x for x in trial.user_attrs["scores"] if x is not None]
        values = trial.params | trial.user_attrs.get("final", {})
        cells = (shown(values[name]) for name in names)
        ends = (f"{trial.value:.4g}", f"{min(scores):.4g}", f"{max(scores):.4g}")
        table.add_row(str(trial.number), *cells, *ends)
    print_line(table)
    print_line(
        f"{plural(found['trials'], 'trial')}, {found['stopped_early']} stopped early, "
        f"{found['failed']} failed; {clock(found['wall_s'])}, "
        f"{plural(found['compiles'], 'compile')}"
    )
    for result in stored.get("confirmed", []):
        print_line(_confirmed(result))
    if "bandit" in stored:
        chosen = stored["bandit"]
        print_line(
            f"after {chosen['episodes']} episodes a bandit takes trial {chosen['trial']}: return "
            f"{chosen['return']:.4g}, the best policy {chosen['best_return']:.4g}"
        )
    if found["importance"]:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in found["importance"].items())
        print_line(f"importance (PED-ANOVA): {shares}")
    files = draw(book, path / "plots")
    write_trials(book, path / "trials.csv")
    print_line(f"trials: {path / 'trials.csv'}, pictures: {', '.join(map(str, files))}")


def _confirmed(result: Mapping[str, Any]) -> str:
    found = result["return"]
    values = ", ".join(f"{name}={shown(value)}" for name, value in result["values"].items())
    line = "no return"
    if found["iqm"] is not None:
        low, high = found["ci95"]
        line = f"{found['iqm']:.4g} (IQM, 95 % interval {low:.4g} to {high:.4g})"
    return (
        f"with fresh seeds, trial {result['trial']} ({values}): {line}, {result['failed']} failed"
    )


def draw(book: Study, folder: Path) -> list[Path]:
    """Slices and parallel coordinates of all trials with a value; [] where none has."""
    trials = [trial for trial in study.current(book) if _value(trial) is not None]
    if not trials:
        return []
    names = [*book.user_attrs["static"], *book.user_attrs["traced"]]
    columns = {name: [trial.params[name] for trial in trials] for name in names}
    values = np.array([_value(trial) for trial in trials], np.float64)
    files = [folder / "slices.png", folder / "parallel.png"]
    plots.slices(files[0], columns, values)
    plots.parallel(files[1], columns, values)
    return files


def _value(trial: Any) -> float | None:
    """Of those stopped early too, theirs at the end."""
    from optuna.trial import TrialState

    return trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None


def write_trials(book: Study, file: Path) -> None:
    """A row per trial, in order of their numbers."""
    rows: list[dict[str, Any]] = []
    for trial in study.current(book):
        row = {"trial": trial.number, "state": trial.state.name.lower(), **trial.params}
        scores: Sequence[float | None] = trial.user_attrs.get("scores", [])
        row |= {"value": _value(trial), "run": trial.user_attrs["run"]}
        rows.append(row | {f"seed{i}": score for i, score in enumerate(scores)})
    write_csv(file, rows)


def read_search(path: Path) -> dict[str, Any]:
    """search.json of a folder that has one."""
    known = folders.read_json(path / "search.json")
    if not {"agent", "range", "search", "settings", "context"} <= set(known):
        raise UserError(f"{path / 'search.json'} is not that of a search")
    return known
