"""Trained runs that an agent builds on (`--base RUN`): read, checked, and compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.run_folders import count_members, open_run_folder
from jaxrl.policies import Trained
from jaxrl.runs import stats
from jaxrl.types import Agent, Policy

if TYPE_CHECKING:
    from jaxrl.experiments.options import Options
    from jaxrl.experiments.plan import Plan


class Bases(NamedTuple):
    """The base runs: how each acts, and what it has learnt."""

    policies: tuple[Policy, ...]
    trained: tuple[Trained, ...]  # leaves [M, ...], M the first members of the run


def read(options: Options, data: str) -> Bases:
    """The runs of `--base`, of whose members there are at least those asked for.

    Args:
      data: the hash of the dataset that all of them have to come from.

    Raises:
      UserError: a run of another environment or dataset, of too few members, or without policies.
    """
    found = [_read(path, options, data) for path in options.base]
    return Bases(tuple(policy for policy, _ in found), tuple(trained for _, trained in found))


def _read(path: Path, options: Options, data: str) -> tuple[Policy, Trained]:
    from jaxrl.experiments import load
    from jaxrl.experiments.plan import (
        make_plan,
    )

    run = open_run_folder(path)
    config = run.config()["config"]
    if (config["env"], tuple(config["env_options"])) != (options.env, options.env_options):
        raise UserError(f"{path} was trained in another environment: {config['env']}")
    if config.get("data") != data:
        raise UserError(f"{path} was not trained on {options.data}")
    count = options.seed + options.seeds
    if count > count_members(path):
        raise UserError(
            f"{path} has {count_members(path)} members, of which --seeds asks for {count}"
        )
    ready = make_plan(load.settings_of(run))
    state = load.restore(ready, run, (0, count))
    policy = ready.program.stages[state.stage].learner
    if not isinstance(policy, Agent):
        raise UserError(f"{path} has not come to its policy yet")
    return policy, Trained(state.member.learner, state.member.hp.agent)


# --- results -------------------------------------------------------------------------------------

SHOWN = ("return", "var_0.1", "cvar_0.1")


def compare(ready: Plan, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row per point, beside the point of the same base run whose strengths are zero.

    {"run": the folder's name, "values": of the point, "corrected": bool, "members": sound ones,
    and for the return and each of `stats.RISKS` the IQM over members with its interval; "change",
    the same of differences between members of equal seeds, where the point is corrected}.

    Args:
      columns: by name, what members [P] came to.
    """
    settings = ready.settings
    hp = {f"agent.{name}": np.asarray(x) for name, x in vars(ready.hp.agent).items()}
    groups = np.split(np.arange(ready.members), len(settings.points))
    value = lambda rows, name: float(hp[f"agent.{name}"][rows[0]])
    plain = lambda rows: value(rows, "alpha") == 0 and value(rows, "w") == 0
    reference = {value(rows, "run"): rows for rows in reversed(groups) if plain(rows)}
    names = [name for name in ("return", *stats.RISKS) if name in columns]
    found = []
    for point, rows in zip(settings.points, groups, strict=True):
        beside = reference.get(value(rows, "run"))
        row: dict[str, Any] = {
            "run": settings.options.base[int(value(rows, "run"))].resolve().name,
            "values": {name: x for name, x in point.items() if name != "agent.run"},
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
    """What `compare` found, as lines: returns and risk at 0.1 of every base run, with intervals."""
    lines = [["base", "correction", *SHOWN, "change of the return"]]
    for row in rows:
        strengths = [f"{k.removeprefix('agent.')} {v:g}" for k, v in row["values"].items() if v]
        change = row.get("change", {}).get("return")
        lines.append([
            row["run"],
            ", ".join(strengths) if row["corrected"] else "none",
            *(_told(row[name]) if name in row else "" for name in SHOWN),
            _told(change) if change else "",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[x.ljust(w) for x, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _told(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    if found["iqm"] is None or np.isnan(found["iqm"]):
        return "failed"
    return f"{found['iqm']:.4g} ({low:.4g} to {high:.4g})"
