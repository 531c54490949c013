"""The record of an experiment, and what the lists of experiments share."""

from __future__ import annotations

import itertools
from typing import NamedTuple

DMSD = "data/DMSD-high-100000-train.npz"
"""dataset of NeoRL-2, which has to be fetched by hand"""


class Reproduction(NamedTuple):
    """One claim and its experiment; `small` and `full` are lines for a shell."""

    name: str
    agent: str
    claim: str
    small: tuple[str, ...]
    full: tuple[str, ...]
    published: str  # the paper's result, or what is known of it
    minutes: float | None = None  # of the small form on one CPU core, where measured
    full_minutes: float | None = None  # of the full form there, see profiling/reproductions.py


def each(template: str, **values: str | float | tuple[str | float, ...]) -> tuple[str, ...]:
    """`template` with {name} replaced, once per combination of the values that are tuples.

    {name:file} is the value as a part of a path, without ":".
    """
    columns = [x if isinstance(x, tuple) else (x,) for x in values.values()]
    told = []
    for row in itertools.product(*columns):
        text = template
        for name, value in zip(values, row, strict=True):
            text = text.replace(f"{{{name}:file}}", str(value).replace(":", "-"))
            text = text.replace(f"{{{name}}}", str(value))
        told.append(text)
    return tuple(told)


def dataset(env: str, level: str) -> str:
    """The path of a dataset of 100,000 rows that `made` makes."""
    return f"data/{env.replace(':', '-')}-{level}.npz"


QUICK = " --agent ppo --preset small"
"""the policy of a dataset of brax for a small setting, instead of a million steps of SAC"""


def made(env: str, *levels: str, more: str = "") -> tuple[str, ...]:
    """The commands that collect datasets, each with the training of its policy."""
    words = "jaxrl data make {env} --level {level} --steps 100000 --out data/{env:file}-{level}.npz"
    return each(words + more, env=env, level=levels)


def study(words: str) -> tuple[str, ...]:
    """A study of `jaxrl.experiments.studies`."""
    return (f"python -m jaxrl.experiments.studies.{words}",)
