"""Hyperparameter search, `jaxrl search`."""

from jaxrl.experiments.search.driver import run, search

__all__ = ["run", "search"]
