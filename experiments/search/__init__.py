"""Hyperparameter search, `jaxrl search`."""

from jaxrl.experiments.search.loop import run, search

__all__ = ["run", "search"]
