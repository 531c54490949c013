"""Finding agents: those of jaxrl and users' own. Importing this file does not import JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxrl.agents import AGENTS
from jaxrl.envs import modules
from jaxrl.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxrl.program import Algorithm

NEEDED = ("Config", "Hypers", "make", "program")


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, unless `load(name)` has something to try."""
    if name in AGENTS:
        return
    module, _ = modules.split(name)
    if modules.exists(module):
        return
    if module.endswith(".py"):
        raise UserError(f"agent {name!r}: there is no file {module}")
    if "." in name or ":" in name:
        top = module.partition(".")[0]
        raise UserError(f"agent {name!r}: no module {top!r} here or among installed packages")
    raise UserError(
        f"unknown agent {name!r}{nearest(name, AGENTS)}; `jaxrl list agents` names them all, and "
        "a module or file.py gives your own"
    )


def load(name: str) -> Algorithm:
    """The algorithm of a name.

    Args:
      name: one of `AGENTS`, or a module or file of your own (`jaxrl.envs.modules`), which
        `:attribute` follows where the agent is not the module itself.

    Raises:
      UserError: there is no such agent, or importing it failed.
    """
    check_name(name)
    if name in AGENTS:
        return importlib.import_module(f"jaxrl.agents.{name}").ALGORITHM
    module, attribute = modules.split(name)
    try:
        found = modules.load(module)
        if attribute and not hasattr(found, attribute):
            found = modules.load(f"{module}.{attribute}")  # a module of a package
        elif attribute:
            found = getattr(found, attribute)
    except Exception as error:
        raise UserError(f"agent {name!r}: importing it failed: {error!r}") from error
    return as_algorithm(found, name)


def as_algorithm(found: Any, name: str) -> Algorithm:
    """`found` itself, its `ALGORITHM`, or a record of its Config, Hypers, make and program.

    Raises:
      UserError: `found`, which `name` names in the message, is no agent.
    """
    from jaxrl.program import Algorithm  # imports JAX

    found = getattr(found, "ALGORITHM", found)
    if isinstance(found, Algorithm):
        return found
    for needed in NEEDED:
        if not hasattr(found, needed):
            raise UserError(f"agent {name!r}: {getattr(found, '__file__', name)} has no {needed}")
    return Algorithm(*(getattr(found, needed) for needed in NEEDED))
