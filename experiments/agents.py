"""Lookup of built-in and custom agents. Importing this file does not import JAX."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from jaxrl import own_code
from jaxrl.agents import AGENTS
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxrl.types import Env, EnvSpec

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


def alternatives(name: str, env: Env, offline: bool) -> str:
    """ "; agents for it: ppo, sac", those of jaxrl that run in `env`; "" for none.

    Args:
      name: of an agent that is not for this environment.
      offline: name agents that learn from a dataset, instead of agents that learn by acting.
    """
    known = {each: load(each) for each in AGENTS if each != name}
    found = [
        each
        for each, other in known.items()
        if other.offline == offline and other.base_points is None and runs_in(other, env)
    ]
    return f"; agents for it: {', '.join(found)}" if found else ""


def runs_in(algorithm: Algorithm, env: Env) -> bool:
    """Whether the agent with default settings supports the environment."""
    try:
        algorithm.program(algorithm.Config(), env)
    except UserError:
        return False
    return True


def acts_in(algorithm: Algorithm, spec: EnvSpec) -> bool:
    """Whether the agent with default settings supports the actions of `spec`."""
    try:
        algorithm.make(algorithm.Config(), dataclasses.replace(spec, obs_shape=(4,)))
    except UserError:
        return False
    return True
