"""Adapters of environment suites, each with an extra of its own, imported when one is made.

    env = jaxrl.envs.make("craftax:Craftax-Symbolic-v1")

The module named like a suite has `make(task, **options)`. Importing this package imports neither
JAX nor a suite.
"""

from jaxrl.envs.suites.tasks import TASKS

__all__ = ["TASKS"]
