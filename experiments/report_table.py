"""The table of `jaxrl report`, with the notes below it."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence

from jaxrl.experiments import compare
from jaxrl.experiments.compare import Point, Result
from jaxrl.experiments.console import label, shown
from jaxrl.experiments.console import rate as short
from jaxrl.experiments.tables import Column, print_table, print_words
from jaxrl.runs import stats

_ROWS = 40  # maximum number of printed rows
_LOWEST, _CVAR, _BETTER, _INTERVAL = "lowest", "CVaR10%", "P(better)", "95 % interval"


def print_results(compared: Sequence[Result], named: bool, target: float | None = None) -> None:
    """Prints one row per point; `named` adds the names and speeds of runs, `target` the gap."""
    rows = list(compared)
    if len(rows) > _ROWS:
        rows = sorted(rows, key=lambda r: math.inf if math.isnan(r.iqm) else -r.iqm)[:_ROWS]
    names = print_table(list(_columns(rows, compared, named, target)))
    if len(rows) < len(compared):
        print_words(f"the {_ROWS} best of {len(compared):,} points; --csv FILE writes all")
    for note in filter(None, _notes(compared, set(names))):
        print_words(note)
    exploring = dict.fromkeys(r.point.run for r in compared if r.point.settings.get("eval_explore"))
    if exploring:
        print_words(f"evaluated with exploration: {', '.join(exploring)}")


def _columns(
    rows: Sequence[Result], compared: Sequence[Result], named: bool, target: float | None
) -> Iterable[Column]:
    """The columns of `rows`; which there are depends on all results in `compared`."""
    points = [result.point for result in rows]
    if named:
        yield Column("run", [point.run for point in points], left=True)
    for name in compare.swept([result.point for result in compared]):
        yield Column(name, [shown(p.values.get(name, "-")) for p in points], left=True)
    yield Column("members", [_count(point, point.seeds.size) for point in points], 2)
    yield Column("return (IQM)", [_number(result.iqm) for result in rows])
    yield Column(_INTERVAL, list(map(_interval, rows)), 1)
    yield Column(_LOWEST, [_number(result.found.get("min", math.nan)) for result in rows], 5)
    if any(point.risk for point in points):
        cvar = [_number(point.risk.get("cvar_0.1", math.nan)) for point in points]
        yield Column(_CVAR, cvar, 6)
    if target is not None:
        yield Column(_gap_title(target), [_number(gap(r, target)) for r in rows], 2)
    if references := _references(compared):
        better = [
            "reference" if any(r is x for x in references) else _number(r.better) for r in rows
        ]
        yield Column(_BETTER, better, 3)
    failed = [_count(point, int(point.failed.sum())) for point in points]
    yield Column("failed", failed, 4 if set(failed) <= {"0", "-"} else 1)
    if named:  # speeds matter where runs are compared; a sweep prints its own at the end
        units = dict.fromkeys(result.point.unit for result in compared)
        speeds = ["-" if point.speed is None else short(point.speed) for point in points]
        yield Column(f"{' or '.join(units)}/s", speeds, 8)
    if named or any(result.point.state != "finished" for result in compared):
        yield Column("state", [point.state for point in points], 7, left=True)


def gap(result: Result, target: float) -> float:
    """The optimality gap of a point; NaN without returns."""
    if not result.found:
        return math.nan
    return stats.optimality_gap(result.point.scores, target)


def _gap_title(target: float) -> str:
    return f"gap to {target:g}"


def _references(compared: Sequence[Result]) -> list[Result]:
    """The reference of each environment in which another point has results, too."""
    counts = collections.Counter(result.point.env for result in compared if result.found)
    return [r for r in compared if r.is_reference and counts[r.point.env] > 1]


def _count(point: Point, count: int) -> str:
    return str(count) if len(point.steps) or point.state == "finished" else "-"


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.4g}"


def _interval(result: Result) -> str:
    if not result.found or result.found["members"] == 1:
        return "-"
    low, high = result.found["ci95"]
    return f"{_number(low)} to {_number(high)}"


def _notes(compared: Sequence[Result], columns: set[str]) -> Iterable[str]:
    """What the columns mean, and which numbers are unreliable."""
    meanings = {
        _LOWEST: "lowest: return of the worst member",
        _CVAR: "CVaR10%: mean return of a member's worst tenth of episodes, mean over members",
    }
    if any(result.found for result in compared):
        yield "; ".join(text for name, text in meanings.items() if name in columns)
    if _BETTER in columns:
        for result in _references(compared):
            name = label(result.point.values) or result.point.run
            yield f"P(better): probability to score above a member of {name}; ties count half"
    if any(0 < result.found.get("members", 0) < stats.FEW for result in compared):
        yield f"intervals and P(better) of fewer than {stats.FEW} members are unreliable: add seeds"
