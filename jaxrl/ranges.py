"""Ranges of settings, declared with the fields of a dataclass. Importing this file loads no JAX.

    lr: Any = bounded(3e-4, least=0)
    gamma: Any = bounded(0.99, least=0, most=1)

The command line, files, sweeps, searches and Python calls all check values with `Range.refusal`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

INFINITY = float("inf")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, above `above` and below `below`; NaN is never one of them.

    `finite` excludes ±infinity.
    """

    least: float = -INFINITY
    most: float = INFINITY
    above: float = -INFINITY
    below: float = INFINITY
    finite: bool = True

    def refusal(self, value: Any) -> str:
        """ "in [0, 1]", what a number or the numbers of a tuple must be, or "" for valid ones."""
        numbers = value if isinstance(value, tuple | list) else (value,)
        if all(map(self.contains, numbers)):
            return ""
        infinite = self.finite and any(map(math.isinf, numbers))
        half_open = INFINITY in (-self.least, self.most) and str(self) != "finite"
        return f"finite and {self}" if infinite and half_open else str(self)

    def contains(self, number: float) -> bool:
        """Whether the number is in the range."""
        if math.isinf(number) and self.finite:
            return False
        above = number > self.above or self.above == -INFINITY
        below = number < self.below or self.below == INFINITY
        return self.least <= number <= self.most and above and below

    def __str__(self) -> str:
        """Such as "at least 0", "above 0", "in [0, 1)" or "finite"."""
        low, high = max(self.least, self.above), min(self.most, self.below)
        if low == -INFINITY and high == INFINITY:
            return "finite" if self.finite else "a number"
        if high == INFINITY:
            return f"above {low:g}" if self.above == low else f"at least {low:g}"
        if low == -INFINITY:
            return f"below {high:g}" if self.below == high else f"at most {high:g}"
        left, right = "(" if self.above == low else "[", ")" if self.below == high else "]"
        return f"in {left}{low:g}, {high:g}{right}"


def bounded(
    default: Any,
    *,
    least: float = -INFINITY,
    most: float = INFINITY,
    above: float = -INFINITY,
    below: float = INFINITY,
    finite: bool = True,
) -> Any:
    """A dataclass field with a default and a `Range`."""
    found = Range(least, most, above, below, finite)
    return dataclasses.field(default=default, metadata={"range": found})


def ranges_of(record: Any) -> dict[str, Range]:
    """The declared ranges of a dataclass or of an instance, by field name; {} for other records."""
    fields = dataclasses.fields(record) if dataclasses.is_dataclass(record) else ()
    return {each.name: each.metadata["range"] for each in fields if "range" in each.metadata}
