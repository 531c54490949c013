"""The command line that trains one trial of a search as a run of its own."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from jaxrl.experiments.options import INCIDENTAL
from jaxrl.experiments.settings import Settings, resolve
from jaxrl.experiments.values import spelled, text

_PATHS = ("data", "base", "from_run")  # determine the results, though not by their names


def train_command(settings: Settings, point: Mapping[str, Any]) -> str:
    """`jaxrl train ...` with every option that differs from its default or preset.

    Args:
      settings: the program of the trial.
      point: traced values of the trial, by dotted name.
    """
    options = settings.options
    of = lambda part: {k[len(part) :]: x for k, x in point.items() if k.startswith(part)}
    pairs = {"env_options": options.env_options | of("env.")}
    options = dataclasses.replace(options, **pairs)
    wanted = _flat(dataclasses.replace(settings, options=options), of("agent."))
    usual = resolve(settings.agent, {"env": options.env, "preset": options.preset})
    words = ["jaxrl", "train", settings.agent, "--env", options.env]
    if options.preset != "auto":
        words += ["--preset", options.preset]
    for name, value in wanted.items():
        if value != _flat(usual, {})[name]:
            words += _option(name, value)
    return shlex.join(words)


def _flat(settings: Settings, traced: Mapping[str, Any]) -> dict[str, Any]:
    """Options and settings of a run that determine its results, by dotted name."""
    own = dataclasses.asdict(settings.options)
    kept = {k: x for k, x in own.items() if k in _PATHS or k not in INCIDENTAL}
    agent = dataclasses.asdict(settings.cfg) | dataclasses.asdict(settings.hp) | dict(traced)
    return kept | {f"agent.{name}": value for name, value in agent.items()}


def _option(name: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    if isinstance(value, Mapping):
        return [spelled(name), *(f"{each}={text(x)}" for each, x in value.items())]
    if name == "base":
        return [spelled(name), *map(str, value)]
    return [f"{spelled(name)}={text(value)}"]
