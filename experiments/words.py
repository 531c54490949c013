"""A look at the words of a command line before they are parsed; JAX is not imported."""

from __future__ import annotations

from collections.abc import Sequence


def value_of(name: str, words: Sequence[str]) -> str | None:
    """The last value given to --name, None without one."""
    found = None
    for i, word in enumerate(words):
        if word == f"--{name}":
            found = words[i + 1] if i + 1 < len(words) else None
        elif word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found
