"""Reinforcement learning compiled end to end."""

from __future__ import annotations

from typing import Any

_HOMES = {"load": "restore", "run": "train", "sweep": "sweep", "search": "search"}


def __getattr__(name: str) -> Any:
    # The package's front door; the engine itself knows neither agents nor environments.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"jaxrl.experiments.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")
