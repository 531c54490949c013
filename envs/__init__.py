"""Environments and datasets behind `jaxrl.types`.

    env = jaxrl.envs.make("CartPole-v1")
    env = jaxrl.envs.make("CartPole-v1", max_steps=200, gravity=1.6)
    env = jaxrl.envs.make("probe:delay")
    env = jaxrl.envs.make("my_module:my_env")

Importing this package does not import JAX, so that a command line can check names and print help at
once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ == "envs":  # found in the working directory, it would be a second module object
    raise ImportError("import jaxrl.envs, not envs")

from jaxrl.envs.names import EnvError, UnknownEnv, check_name

if TYPE_CHECKING:
    from jaxrl.types import Env

__all__ = ["EnvError", "UnknownEnv", "check_name", "make"]


def make(name: str, /, **options: Any) -> Env:
    """Environment by name; see `jaxrl.envs.registry.make`."""
    from jaxrl.envs import registry

    return registry.make(name, **options)
