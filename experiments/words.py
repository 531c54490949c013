"""A look at the words of a command line before they are parsed; JAX is not imported."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def value_of(name: str, words: Sequence[str]) -> str | None:
    """The last value given to --name, None without one; the next option is no value."""
    found = None
    for word, after in itertools.pairwise([*words, ""]):
        if word == f"--{name}":
            found = None if after.startswith("--") else after
        elif word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found or None
