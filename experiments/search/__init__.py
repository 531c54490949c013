"""Hyperparameter search, `jaxrl search`."""

from jaxrl.experiments.search.loop import run, search
from jaxrl.experiments.search.options import Options

__all__ = ["Options", "run", "search"]
