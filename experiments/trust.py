"""Custom agents and environments that only a file names are not imported: the files of others.

Importing a module runs its code, and an environment's options are arguments of a function. Names in
run folders and request files therefore have to be among those of `jaxrl list`, unless the user
gives the same name or says `trust`. Importing this file does not import JAX.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxrl.agents import AGENTS
from jaxrl.envs import names as env_names
from jaxrl.errors import UserError


class Trust(NamedTuple):
    """What the user allows to import in addition to what comes with jaxrl.

    Attributes:
      names: agents and environments that the user has named.
      everything: whether the user has passed `--trust`.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False


NOBODY = Trust()


def trusting(*names: str | None, everything: bool = False) -> Trust:
    """`Trust` in these names; None is no name."""
    return Trust(frozenset(name for name in names if name), everything)


def check(where: str, agent: Any, envs: Iterable[Any], trust: Trust) -> None:
    """Checks the names that a file gives, before anything is imported.

    Args:
      where: the file or folder, for the message.

    Raises:
      UserError: a name is neither listed nor trusted.
    """
    named = [("agent", agent, isinstance(agent, str) and agent in AGENTS)]
    named += [("env", env, isinstance(env, str) and _is_listed(env)) for env in envs]
    for kind, name, is_listed in named:
        if not is_listed and not trust.everything and name not in trust.names:
            command = "agents" if kind == "agent" else "envs"
            raise UserError(
                f"{where} asks for {kind} {name!r}, which is not in `jaxrl list {command}`: if you "
                f"trust its code, pass --{kind} {name} or --trust"
            )


def are_listed(agent: str, env: str) -> bool:
    """Whether a run of these names can be loaded without trust."""
    return agent in AGENTS and _is_listed(env)


def _is_listed(env: str) -> bool:
    return env in dict(env_names.names()) or _in_simulator(env)


def _in_simulator(env: str) -> bool:
    """Whether a name is one of a suite, or of gymnasium's registry and imports no other module.

    "gymnasium:MODULE:ID" imports MODULE, and so may options of the adapters of old gym versions.
    """
    simulator, _, name = env.partition(":")
    registered = simulator == "gymnasium" and ":" not in name and not name.startswith("GymV")
    return simulator in (*env_names.SUITES, "envpool") or registered


def check_same(where: str, stored: dict[str, Any], agent: str | None, env: str | None) -> None:
    """Raises UserError if a given `--agent` or `--env` is another one than a run's."""
    for kind, given in (("agent", agent), ("env", env)):
        if given is not None and given != stored.get(kind):
            raise UserError(
                f"{where} has the {kind} {stored.get(kind)!r}: remove --{kind} {given}, which only "
                "confirms this name"
            )
