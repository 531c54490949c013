"""Search spaces: the syntax of `--range NAME=...`, and which settings may differ in one program.

agent.lr=log:1e-5:1e-2      log-uniform                         traced settings only
agent.gamma=lin:0.9:0.999   uniform                             traced settings only
agent.num_steps=16,32,64    a list of values or log:LOW:HIGH:N  traced and static settings
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments import agents
from jaxrl.experiments.console import shown
from jaxrl.experiments.requests import Request
from jaxrl.experiments.settings import Settings
from jaxrl.experiments.sweep_plan import Program, number, programs
from jaxrl.experiments.values import read_value
from jaxrl.runs.processes import ALONE, Processes


@dataclasses.dataclass(frozen=True)
class Range:
    """Values of one setting: an interval, or `choices` if there are any."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def values(self, units: np.ndarray) -> list[Any]:
        """Values at `units` [Q] in [0, 1]; choices have equal parts of this interval."""
        if self.choices:
            index = np.minimum((units * len(self.choices)).astype(int), len(self.choices) - 1)
            return [self.choices[i] for i in index]
        if self.log:
            found = [self.low * (self.high / self.low) ** u for u in units.tolist()]
        else:
            found = [self.low + (self.high - self.low) * u for u in units.tolist()]
        return [min(max(x, self.low), self.high) for x in found]  # rounding may leave the range

    def units(self, values: Sequence[Any]) -> np.ndarray:
        """Inverse of `values`, [Q]: the middle of its part for a choice. Numbers may have been
        rounded to single precision."""
        if self.choices:
            index = [self._index(value) for value in values]
            return (np.array(index) + 0.5) / len(self.choices)
        x = np.asarray(values, np.float64)
        if self.log:
            found = np.log(x / self.low) / math.log(self.high / self.low)
        else:
            found = (x - self.low) / (self.high - self.low)
        return np.clip(found, 0, 1)

    def _index(self, value: Any) -> int:
        if value in self.choices:
            return self.choices.index(value)
        return int(np.argmin(np.abs(np.array(self.choices, np.float64) - value)))

    def plain(self) -> Any:
        """JSON form, for search.json."""
        if self.choices:
            return list(self.choices)
        return f"{'log' if self.log else 'lin'}:{self.low:.12g}:{self.high:.12g}"


class Space(NamedTuple):
    """A search space.

    Attributes:
      traced: may differ between the members of one program.
      static: each combination of values is a program of its own; choices are texts.
      programs: the settings of every combination, in the order of `combinations`.
      digests: of the dataset and of earlier runs, see `settings.identity`.
    """

    traced: dict[str, Range]
    static: dict[str, Range]
    programs: list[Settings]
    digests: dict[str, Any]

    @property
    def ranges(self) -> dict[str, Range]:
        return self.static | self.traced

    @property
    def combinations(self) -> list[dict[str, Any]]:
        choices = [each.choices for each in self.static.values()]
        return [dict(zip(self.static, some, strict=True)) for some in itertools.product(*choices)]

    def settings(self, static: Mapping[str, Any], points: Sequence[dict[str, Any]]) -> Settings:
        """Trials with these static values as points of one program."""
        settings = self.programs[self.combinations.index(dict(static))]
        return dataclasses.replace(settings, points=tuple(points))


def read_space(request: Request, processes: Processes = ALONE) -> Space:
    """The space of a request. Every combination of static values is planned; nothing is compiled.

    Raises:
      UserError: a bad range, an unknown name, or a setting that cannot be searched.
    """
    if not request.sweep:
        raise UserError("nothing is searched: pass --range, as in --range agent.lr=log:1e-5:1e-2")
    if "env" in request.sweep:
        raise UserError("env cannot be searched: returns of two environments are not comparable")
    algorithm = agents.load(request.agent)
    fixed = {field.name for field in dataclasses.fields(algorithm.Config)}
    hypers = {field.name for field in dataclasses.fields(algorithm.Hypers)}
    found, tried = {}, {}
    # The plans have one trial each, which may be fewer members than a tile of the search.
    plan = request.replace({"width": None})
    for name, texts in request.sweep.items():
        found[name] = _range(name, texts)
        if name.removeprefix("agent.") in hypers and name.startswith("agent."):
            for text in texts if found[name].choices else texts[0].split(":")[1:]:
                number(name, text, algorithm)  # refuses values out of the declared range
        part, _, field = name.partition(".")
        if found[name].choices:
            is_static = part == "agent" and field in fixed
            tried[name] = texts if is_static else texts[:1]
        elif part == "agent" and field in fixed:
            raise UserError(f"{name} is static: list its values, as in --range {name}=1,2,3")
        else:
            tried[name] = [str(found[name].low)]
    # Planning a sweep over one value of each traced setting checks all names and values.
    planned = programs(plan._replace(sweep=tried), processes)
    traced = {name: found[name] for name in planned[0].plan.settings.swept}
    static = {name: each for name, each in found.items() if name not in traced}
    for name in static:
        if len(found[name].choices) > len(tried[name]):  # an option of the environment
            tried[name] = request.sweep[name]
    if sum(map(len, tried.values())) > len(tried):
        planned = programs(plan._replace(sweep=tried), processes)
    for name, each in traced.items():
        if each.choices:
            traced[name] = Range(choices=tuple(_number(name, x) for x in each.choices))
    settings = [program.plan.settings for program in planned]
    return Space(traced, _typed(static, planned), settings, planned[0].plan.digests)


def _typed(static: Mapping[str, Range], programs: Sequence[Program]) -> dict[str, Range]:
    """Static choices as parsed by the programs; lists stay texts, since Optuna stores no lists."""
    found: dict[str, dict[str, Any]] = {name: {} for name in static}
    combinations = itertools.product(*(each.choices for each in static.values()))
    for texts, program in zip(combinations, programs, strict=True):
        for name, text in zip(static, texts, strict=True):
            value = program.static[name]
            found[name][text] = value if isinstance(value, bool | int | float) else text
    return {name: Range(choices=tuple(values.values())) for name, values in found.items()}


def _range(name: str, texts: Sequence[str]) -> Range:
    kind, *ends = texts[0].split(":")
    if len(texts) > 1 or kind not in ("log", "lin") or len(ends) != 2:
        if len(set(texts)) < len(texts):
            raise UserError(f"{name}: a value is listed twice")
        return Range(choices=tuple(texts))
    try:
        low, high = map(float, ends)
    except ValueError:
        raise UserError(f"{name}: {texts[0]!r} is not {kind}:LOW:HIGH") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{name}: {texts[0]!r} is not a range: LOW must be below HIGH, both finite")
    if kind == "log" and low <= 0:
        raise UserError(f"{name}: {texts[0]!r}: both ends of a log range must be above 0")
    return Range(low, high, kind == "log")


def _number(name: str, text: str) -> float | bool:
    value = read_value(text)
    if not isinstance(value, bool | int | float) or math.isnan(value):
        raise UserError(f"{name}: {text!r} is not a number")
    return value if isinstance(value, bool) else float(value)


def label(point: Mapping[str, Any]) -> str:
    """Values with short names: lr=0.001, num_steps=32."""
    return ", ".join(f"{name.partition('.')[2]}={shown(value)}" for name, value in point.items())
