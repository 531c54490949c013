"""Reinforcement learning compiled end to end."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # The package's front door; the engine itself knows neither agents nor environments.
    if name == "load":
        from jaxrl.experiments.load import load

        return load
    raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")
