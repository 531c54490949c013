"""Comparison of every corrected policy with its base policy, as of CDSA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.experiments.plan import Plan
from jaxrl.runs import stats

SHOWN = ("return", "var_0.1", "cvar_0.1")


def compare(ready: Plan, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row per point, compared with the point that acts as the same base run does.

    {"run": folder name of the base run, "values": of the point, "corrected": bool, "members":
    number of sound members, and for the return and each of `stats.RISKS` the IQM over members with
    its interval; "change": for corrected points, the same for differences between equal seeds}.

    Args:
      columns: final metrics of the members by name, [P] each.
    """
    settings = ready.settings
    groups = np.split(np.arange(ready.members), len(settings.points))
    assert ready.algorithm.base_acts is not None
    acts = np.asarray(ready.algorithm.base_acts(ready.hp.agent))
    plain = lambda rows: bool(acts[rows[0]])
    of_each = list(zip(settings.bases, groups, strict=True))
    reference = {base: rows for base, rows in reversed(of_each) if plain(rows)}
    names = [name for name in ("return", *stats.RISKS) if name in columns]
    found = []
    for point, (base, rows) in zip(settings.points, of_each, strict=True):
        beside = reference.get(base)
        row: dict[str, Any] = {
            "run": settings.options.base[base].resolve().name,
            "values": {name: x for name, x in point.items() if name != "base"},
            "corrected": not plain(rows),
            "members": int(np.isfinite(columns["return"][rows]).sum()),
        }
        row |= {name: _interval(columns[name][rows]) for name in names}
        if beside is not None and row["corrected"]:
            row["change"] = {
                name: _interval(columns[name][rows] - columns[name][beside]) for name in names
            }
        found.append(row)
    return found


def _interval(values: np.ndarray) -> dict[str, Any]:
    found = stats.summarise(values)
    return {key: found[key] for key in ("iqm", "ci95", "mean")}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `compare` as text: return and risk at 0.1 per point, with intervals."""
    lines = [["base", "correction", *SHOWN, "change of the return"]]
    for row in rows:
        strengths = [f"{k.removeprefix('agent.')} {v:g}" for k, v in row["values"].items() if v]
        change = row.get("change", {}).get("return")
        lines.append([
            row["run"],
            ", ".join(strengths) if row["corrected"] else "none",
            *(_cell(row[name]) if name in row else "" for name in SHOWN),
            _cell(change) if change else "",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[x.ljust(w) for x, w in zip(line, widths, strict=True)] for line in lines]
    few = any(row["members"] < stats.FEW for row in rows)
    note = [f"intervals of fewer than {stats.FEW} members are unreliable: add seeds"] if few else []
    return "\n".join([*("  ".join(line).rstrip() for line in padded), *note])


def _cell(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    if found["iqm"] is None or np.isnan(found["iqm"]):
        return "failed"
    return f"{found['iqm']:.4g} ({low:.4g} to {high:.4g})"
