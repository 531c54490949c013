"""Results of `jaxrl ope`: candidates with their estimates, agreement with true values, a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.experiments.console import print_line, shown, write_csv
from jaxrl.experiments.tables import Column, print_table, print_words
from jaxrl.ope import metrics
from jaxrl.ope.estimate import NAMES
from jaxrl.runs import figures

_RANKS = {"fqe": 0, "sndr": 1, "snpdis": 1, "sntis": 2, "dr": 3, "pdis": 3, "tis": 3}
_TOP = 3  # k of the table of agreement


class Found(NamedTuple):
    """Estimates of C candidates.

    Attributes:
      columns: lists [C] by name: "run", "point", "seed" and "spread"; estimates and standard errors
        by estimator, "fqe" and "fqe_se"; "effective"; "true" if the candidates were played.
      behaviour: J(π_b).
      noise: the option that the spread stands for.
    """

    columns: Mapping[str, list[Any]]
    behaviour: float
    noise: str

    def estimate(self, name: str) -> np.ndarray:
        return np.array(self.columns[name], float)


def show(found: Found, csv_file: Path | None, out: Path | None) -> None:
    """Prints the candidates, best first, and their agreement with true values if there are any."""
    columns = found.columns
    order = metrics.order(found.estimate("fqe"))
    sort = lambda name: [columns[name][i] for i in order]
    told = []
    for name in ("run", "point", "seed"):
        if len(set(columns[name])) > 1 or name == "seed":
            told.append(Column(name, list(map(shown, sort(name))), left=name != "seed"))
    told.append(Column(found.noise, list(map(shown, sort("spread")))))
    for name, rank in _RANKS.items():
        told.append(Column(name, list(map(_number, sort(name))), rank))
    told.append(Column("effective", list(map(_number, sort("effective"))), 2))
    if "true" in columns:
        told.append(Column("true", list(map(_number, sort("true")))))
    names = print_table(told)
    print_words(f"behaviour policy: {found.behaviour:.4g}, the discounted return of the data")
    if "effective" in names:
        print_words("effective: number of episodes that the importance weights leave")
    if "true" in columns:
        _agreement(found)
        if out is not None:
            draw(found, out)
            print_line(f"figure: {out}")
    if csv_file is not None:
        rows = zip(*columns.values(), strict=True)
        write_csv(csv_file, [dict(zip(columns, row, strict=True)) for row in rows])
        print_line(f"candidates: {csv_file}")


def agreement(found: Found, name: str) -> dict[str, float]:
    """How well an estimator agrees with the true values: metrics by name (`jaxrl.ope.metrics`)."""
    guess, true = found.estimate(name), found.estimate("true")
    k = min(_TOP, len(true))
    chosen, ratio = metrics.top(guess, true), metrics.sharpe_ratio(guess, true, found.behaviour)
    return {
        "MSE": metrics.mse(guess, true),
        "rank corr.": metrics.rank_correlation(guess, true),
        "regret@1": float(metrics.regret(guess, true)[0]),
        f"regret@{k}": float(metrics.regret(guess, true)[k - 1]),
        f"best@{k}": float(chosen.best[k - 1]),
        f"worst@{k}": float(chosen.worst[k - 1]),
        f"mean@{k}": float(chosen.mean[k - 1]),
        f"SharpeRatio@{k}": float(ratio[k - 1]),
    }


def _estimators(found: Found) -> list[str]:
    """The estimators that have a value for each candidate."""
    return [name for name in NAMES if np.isfinite(found.estimate(name)).all()]


def _agreement(found: Found) -> None:
    names = _estimators(found)
    every = [agreement(found, name) for name in names]
    print_line("")
    columns = [Column("estimator", names, left=True)]
    for head in every[0]:
        columns.append(Column(head, [_number(row[head]) for row in every]))
    print_table(columns)


def draw(found: Found, path: Path) -> None:
    """Draws SharpeRatio@k, best@k, worst@k and std@k of each estimator against k."""
    names, panels = _estimators(found), ("SharpeRatio@k", "best@k", "worst@k", "std@k")
    figure = figures.new(10.0, 6.0 + figures.below(len(names)))
    curves = [by_k(found, name) for name in names]
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(2, 2, i + 1)
        for j, (name, own) in enumerate(zip(names, curves, strict=True)):
            colour, dash = figures.style(j)
            x = np.arange(1, len(own[panel]) + 1)
            axes.plot(x, own[panel], dash, color=colour, lw=1.6, marker=figures.marker(x), ms=3.5)
            axes.lines[-1].set_label(name)
        figures.dress(axes, "k" if i > 1 else "", panel)
        if i == len(panels) - 2:
            figures.legend(axes, len(names))
    figures.save(figure, path)


def by_k(found: Found, name: str) -> dict[str, np.ndarray]:
    """Curves over k of the candidates that an estimator puts on top."""
    guess, true = found.estimate(name), found.estimate("true")
    chosen = metrics.top(guess, true)
    return {
        "SharpeRatio@k": metrics.sharpe_ratio(guess, true, found.behaviour),
        "best@k": chosen.best,
        "worst@k": chosen.worst,
        "std@k": chosen.std,
    }


def _number(x: float) -> str:
    return f"{x:.4g}" if np.isfinite(x) else "-"
