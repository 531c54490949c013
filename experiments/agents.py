"""Lookup of built-in and custom agents. Importing this file does not import JAX."""

from __future__ import annotations

import importlib
from typing import Any

from jaxrl import own_code
from jaxrl.agents import AGENTS
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, nearest

NEEDED = ("Config", "Hypers", "make", "program")


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, if no agent of this name can exist."""
    if name in AGENTS:
        return
    module, _ = own_code.split(name)
    reason = own_code.missing(module)
    if not reason:
        return
    if "." in name or ":" in name:
        raise UserError(f"agent {name!r}: {reason}")
    raise UserError(
        f"unknown agent {name!r}{nearest(name.lower(), AGENTS)}; `jaxrl list agents` lists all, "
        "and your own are named by module or file.py"
    )


def load(name: str) -> Algorithm:
    """Loads the algorithm of a name.

    Args:
      name: one of `AGENTS`, or a module or file of your own (`jaxrl.own_code`), followed
        by `:attribute` if the agent is not the module itself.

    Raises:
      UserError: there is no such agent, or its import failed.
    """
    check_name(name)
    if name in AGENTS:
        return importlib.import_module(f"jaxrl.agents.{name}").ALGORITHM
    return as_algorithm(own_code.load_attribute(name, default=None), name)


def as_algorithm(found: Any, name: str) -> Algorithm:
    """`found` itself, its `ALGORITHM`, or a record of its Config, Hypers, make and program.

    Raises:
      UserError: `found` is not an agent; the message calls it `name`.
    """
    found = getattr(found, "ALGORITHM", found)
    if isinstance(found, Algorithm):
        return found
    for needed in NEEDED:
        if not hasattr(found, needed):
            raise UserError(f"agent {name!r}: {getattr(found, '__file__', name)} has no {needed}")
    return Algorithm(*(getattr(found, needed) for needed in NEEDED))
