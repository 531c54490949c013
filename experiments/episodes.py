"""Results of `jaxrl eval`: one row per member, in a table or a CSV file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.experiments.console import interval, print_line, shown, write_csv
from jaxrl.experiments.tables import Column, print_table, print_words
from jaxrl.runs import stats

_SHOWN = {"CVaR10%": "cvar_0.1"}  # headings that differ from the names of columns


def show(
    columns: Mapping[str, np.ndarray],
    outcome: Any,
    member: int | None,
    csv_file: Path | None,
    unfinished: str = "",
) -> None:
    """Prints an evaluation of all members or of one, and writes it as CSV if there is a file.

    Other arguments as in `print_episodes`.
    """
    if member is not None:
        rows = slice(member, member + 1)
        columns = {name: column[rows] for name, column in columns.items()}
        outcome = outcome._replace(returns=outcome.returns[rows], lengths=outcome.lengths[rows])
    print_episodes(columns, outcome, unfinished)
    if csv_file is not None:
        write_episodes(csv_file, columns, outcome)


def print_episodes(columns: Mapping[str, np.ndarray], outcome: Any, unfinished: str = "") -> None:
    """Prints one row per member of an evaluation [P, K], and the result over all members below.

    Args:
      columns: what identifies the members, [P] each: swept values and seeds.
      outcome: `Episodes` [P, K].
      unfinished: that training is not finished, see `restore.unfinished`.
    """
    numbers = member_statistics(outcome)
    heads = {"mean": 0, "std": 1, "min": 2, "CVaR10%": 3, "max": 2, "length": 4}  # with ranks
    told = [Column(name, list(map(shown, column.tolist()))) for name, column in columns.items()]
    for head, rank in heads.items():
        told.append(Column(head, [_number(x) for x in numbers[_SHOWN.get(head, head)]], rank))
    names = print_table(told)
    if "CVaR10%" in names:
        print_words("CVaR10%: mean return of a member's worst tenth of episodes")
    result = stats.summarise(outcome.returns)
    print_words(
        f"return {result['iqm']:.4g} (IQM over members, {interval(result)}), "
        f"{result['episodes']} episodes each{unfinished and f'; {unfinished}'}"
    )


def _number(x: float) -> str:
    return "-" if np.isnan(x) else f"{x:.4g}"


def member_statistics(outcome: Any) -> dict[str, np.ndarray]:
    """Statistics [P] of the episodes [P, K] of each member, by name."""
    returns = np.asarray(outcome.returns, np.float64)
    return {
        "mean": returns.mean(1),
        "std": stats.std(returns, 1),
        "min": returns.min(1),
        **stats.risk(returns),
        "max": returns.max(1),
        "length": np.asarray(outcome.lengths, np.float64).mean(1),
    }


def write_episodes(file: Path, columns: Mapping[str, np.ndarray], outcome: Any) -> None:
    """Writes one CSV row per member: its values and seed, statistics, and number of episodes."""
    returns = np.asarray(outcome.returns)
    table = {**columns, **member_statistics(outcome)}
    table["episodes"] = np.full(len(returns), returns.shape[1])
    rows = zip(*(np.asarray(column).tolist() for column in table.values()), strict=True)
    write_csv(file, [dict(zip(table, row, strict=True)) for row in rows])
    print_line(f"members: {file}")
