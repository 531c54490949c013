"""Results of a search: best trials, importance of the settings, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from jaxrl.errors import UserError
from jaxrl.experiments.console import clock, interval, plural, print_line, shown, write_csv
from jaxrl.experiments.pictures import agent_title
from jaxrl.experiments.search import study
from jaxrl.runs import folders, records, trial_plots

if TYPE_CHECKING:
    from optuna import Study

ROWS = 10  # maximum number of printed trials


def summary(book: Study) -> dict[str, Any]:
    """Summary statistics of a study; "best" is the best trial, or {}."""
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
    """Prints the best trials, writes trials.csv and plots; works while the search is running.

    For population-based training, the table has the final settings; trials.csv, the plots and the
    importance use the initial ones.
    """
    known = read_search(path)
    book = study.read_study(path)
    found = summary(book)
    stored = records.read_summary(path / "summary.json", ("trials", "best"), print_line) or {}
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
            f"bandit, {chosen['episodes']} episodes: trial {chosen['trial']} selected, return "
            f"{chosen['return']:.4g}; best policy {chosen['best_return']:.4g}"
        )
    if found["importance"]:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in found["importance"].items())
        print_line(f"importance (PED-ANOVA): {shares}")
    if "command" in stored:
        print_line(f"to train the best trial: {stored['command']}")
    title = f"{agent_title(known['agent'])} on {known['settings']['env']}"
    files = draw(book, path / "plots", known["search"]["objective"], title)
    write_trials(book, path / "trials.csv")
    print_line(f"trials: {path / 'trials.csv'}, pictures: {', '.join(map(str, files))}")


def _confirmed(result: Mapping[str, Any]) -> str:
    found = result["return"]
    values = ", ".join(f"{name}={shown(value)}" for name, value in result["values"].items())
    line = "no return"
    if found["iqm"] is not None:
        line = f"{found['iqm']:.4g} (IQM, {interval(found)})"
    return (
        f"with fresh seeds, trial {result['trial']} ({values}): {line}, {result['failed']} failed"
    )


def draw(book: Study, folder: Path, objective: str, title: str) -> list[Path]:
    """Draws slices and parallel coordinates of all trials with a value; [] if there are none."""
    trials = [trial for trial in study.current(book) if _value(trial) is not None]
    if not trials:
        return []
    names = [*book.user_attrs["static"], *book.user_attrs["traced"]]
    columns = {name: [trial.params[name] for trial in trials] for name in names}
    values = np.array([_value(trial) for trial in trials], np.float64)
    files = [folder / "slices.png", folder / "parallel.png"]
    trial_plots.slices(files[0], columns, values, objective, title)
    trial_plots.parallel(files[1], columns, values, objective, title)
    return files


def _value(trial: Any) -> float | None:
    """The objective of a trial; for a trial stopped early, at the last rung it was trained to."""
    from optuna.trial import TrialState

    return trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None


def write_trials(book: Study, file: Path) -> None:
    """Writes one row per trial, in order of their numbers."""
    rows: list[dict[str, Any]] = []
    for trial in study.current(book):
        row = {"trial": trial.number, "state": trial.state.name.lower(), **trial.params}
        scores: Sequence[float | None] = trial.user_attrs.get("scores", [])
        row |= {"value": _value(trial), "run": trial.user_attrs["run"]}
        rows.append(row | {f"seed{i}": score for i, score in enumerate(scores)})
    write_csv(file, rows)


def read_search(path: Path) -> dict[str, Any]:
    """The contents of search.json in `path`; raises UserError for another file."""
    known = folders.read_json(path / "search.json")
    if not {"agent", "range", "search", "settings", "context"} <= set(known):
        raise UserError(f"{path / 'search.json'} is not the record of a search")
    return known
