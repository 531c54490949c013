"""Pictures of hyperparameter points: learning curves, and returns against swept values."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.agents import AGENTS
from jaxrl.experiments.compare import Point, Result, swept
from jaxrl.experiments.console import label
from jaxrl.runs import plots
from jaxrl.runs.figures import setting

_LINES = 6  # maximum number of lines in one plot
_SETTINGS = 3  # maximum number of settings in the name of a line
_UNITS = {"steps": "environment steps", "updates": "updates"}  # on axes


def draw(compared: Sequence[Result], curves: Path, sensitivity: Path) -> list[Path]:
    """Draws learning curves, and the return against each swept value, for each environment.

    With several environments, each has its own files, named after it. Returns the files, [] if no
    point has returns.
    """
    drawn = [result for result in compared if len(result.point.steps)]
    envs = list(dict.fromkeys(result.point.env for result in drawn))
    files = []
    for env in envs:
        own = [result for result in drawn if result.point.env == env]
        task = f"-{env.replace(':', '_')}" if len(envs) > 1 else ""
        named = lambda path, task=task: path.with_name(f"{path.stem}{task}{path.suffix}")
        files.append(_draw_curves(own, named(curves)))
        points = [result.point for result in own]
        found = panels(points)
        if found:
            plots.sensitivity(named(sensitivity), found, title=title(points))
            files.append(named(sensitivity))
    return files


def _draw_curves(compared: Sequence[Result], file: Path) -> Path:
    """Draws one curve per point; of many points, the best ones and the worst."""
    points = [result.point for result in compared]
    heading, members = title(points), sum(point.seeds.size for point in points)
    if len({point.agent for point in points}) == 1:
        heading += f", {members:,} member{'s' if members > 1 else ''}"
    if len(compared) > _LINES:
        ranked = sorted(compared, key=lambda r: -np.inf if math.isnan(r.iqm) else r.iqm)[::-1]
        points = [result.point for result in (*ranked[: _LINES - 1], ranked[-1])]
        heading += f"\nthe {_LINES - 1} best of {len(compared):,} points, and the worst"
    lines = {
        name: (point.steps, point.returns)
        for name, point in zip(legends(points), points, strict=True)
    }
    units = dict.fromkeys(_UNITS[point.unit] for point in points)
    plots.learning_curves(file, lines, " or ".join(units), title=heading)
    return file


def title(points: Sequence[Point]) -> str:
    """The environment, and the agent if there is only one."""
    agents = {point.agent for point in points}
    env = points[0].env
    return f"{agent_title(agents.pop())} on {env}" if len(agents) == 1 else env


def agent_title(name: str) -> str:
    """PQN-RNN for pqn_rnn; names of custom agents are unchanged."""
    return name.upper().replace("_", "-") if name in AGENTS else name


def legends(points: Sequence[Point]) -> list[str]:
    """One name per point, as short as possible, all different.

    A name consists of the agent if there are several, the swept values, then the settings that
    differ between points of equal names so far. The run is named if nothing else tells them apart.
    """
    if len(points) == 1:
        return [agent_title(points[0].agent)]
    agents = len({point.agent for point in points}) > 1
    named: dict[str, list[int]] = collections.defaultdict(list)
    for i, point in enumerate(points):
        parts = (agent_title(point.agent) if agents else "", _label(point.values))
        named[" ".join(filter(None, parts))].append(i)
    found = [""] * len(points)
    for name, rows in named.items():
        texts = _differences([points[i] for i in rows]) if len(rows) > 1 else [""]
        if len(set(texts)) < len(rows) or not (name or all(texts)):
            texts = [points[i].run for i in rows]
        for i, text in zip(rows, texts, strict=True):
            found[i] = f"{name} {text}".strip()
    if len(set(found)) < len(points):  # the same run twice
        found = [f"{name} ({i + 1})" for i, name in enumerate(found)]
    return found


def _label(values: dict[str, Any]) -> str:
    return label({setting(name): value for name, value in values.items()})


def _differences(points: Sequence[Point]) -> list[str]:
    """The settings in which points differ, as text; "" for each if there are too many."""
    names = dict.fromkeys(name for point in points for name in point.settings)
    differ = [n for n in names if len({repr(point.settings.get(n)) for point in points}) > 1]
    if len(differ) > _SETTINGS:
        return [""] * len(points)
    return [_label({name: point.settings.get(name) for name in differ}) for point in points]


def panels(points: Sequence[Point]) -> list[plots.Panel]:
    """One panel per swept value, with one line per combination of the other values.

    If there are too many combinations, one line pools the members of all combinations; its interval
    is a bootstrap stratified by combination.
    """
    found = []
    for name in swept(points):
        own = [point for point in points if name in point.values]
        axis = {repr(point.values[name]): point.values[name] for point in own}
        others = [{k: v for k, v in p.values.items() if k not in (name, "env")} for p in own]
        lines = {repr(other): _label(other) for other in others}
        if len(lines) > _LINES:
            rest = dict.fromkeys(setting(other) for each in others for other in each)
            lines = {"": f"all values of {', '.join(rest)}"}
        cells: dict[tuple[str, str], list[np.ndarray]] = collections.defaultdict(list)
        for point, other in zip(own, others, strict=True):
            line = repr(other) if repr(other) in lines else ""
            cells[line, repr(point.values[name])].append(point.scores)
        if len(axis) > 1:
            rows = {title: [cells[line, x] for x in axis] for line, title in lines.items()}
            found.append(plots.Panel(name, list(axis.values()), rows))
    return found
