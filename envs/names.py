"""Names of environments and their checks, without JAX.

The notes are those of `registry.describe`, written out because making all environments takes
seconds. A test compares them with the environments.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys

from jaxrl import own_code
from jaxrl.envs.suites import TASKS
from jaxrl.errors import UserError, install_extra, nearest

GYMNAX = {
    "CartPole-v1": "obs (4,), 2 actions, 500 steps",
    "Pendulum-v1": "obs (3,), actions (1,), 200 steps",
    "Acrobot-v1": "obs (6,), 3 actions, 500 steps",
    "MountainCar-v0": "obs (2,), 3 actions, 200 steps",
    "MountainCarContinuous-v0": "obs (2,), actions (1,), 999 steps",
    "Asterix-MinAtar": "obs (10, 10, 4), 5 actions, 1000 steps",
    "Breakout-MinAtar": "obs (10, 10, 4), 3 actions, 1000 steps",
    "Freeway-MinAtar": "obs (10, 10, 7), 3 actions, 2500 steps",
    "Seaquest-MinAtar": "obs (10, 10, 10), 6 actions, 1000 steps",
    "SpaceInvaders-MinAtar": "obs (10, 10, 6), 4 actions, 1000 steps",
    "Catch-bsuite": "obs (10, 5), 3 actions, 1000 steps",
    "DeepSea-bsuite": "obs (8, 8), 2 actions, 8 steps",
    "MemoryChain-bsuite": "obs (3,), 2 actions, 1000 steps",
    "UmbrellaChain-bsuite": "obs (3,), 2 actions, 100 steps",
    "DiscountingChain-bsuite": "obs (2,), 5 actions, 100 steps",
    "MNISTBandit-bsuite": "obs (28, 28), 10 actions, 1 step",
    "SimpleBandit-bsuite": "obs (1, 1), 11 actions, 100 steps",
    "FourRooms-misc": "obs (4,), 4 actions, 500 steps",
    "MetaMaze-misc": "obs (15,), 4 actions, 200 steps",
    "PointRobot-misc": "obs (6,), actions (2,), 100 steps",
    "BernoulliBandit-misc": "obs (4,), 2 actions, 100 steps",
    "GaussianBandit-misc": "obs (4,), 2 actions, 100 steps",
    "Reacher-misc": "obs (8,), actions (2,), 100 steps",
    "Swimmer-misc": "obs (16,), actions (2,), 500 steps",
    "Pong-misc": "obs (30, 40, 3), 3 actions, 1000 steps",
    "FrozenLake-misc": "obs (16,), 4 actions, 100 steps",
}

PROBES = {
    "probe:constant": "obs (1,), 2 actions, 1 step",
    "probe:obs": "obs (1,), 2 actions, 1 step",
    "probe:delay": "obs (1,), 2 actions, 2 steps",
    "probe:action": "obs (1,), 2 actions, 1 step",
    "probe:match": "obs (1,), 2 actions, 1 step",
    "probe:aim": "obs (1,), actions (1,), 1 step",
    "probe:limit": "obs (1,), 2 actions, 5 steps",
    "probe:cue": "obs (1,), 2 actions, 4 steps",
    "probe:gift": "obs (1,), 2 actions, 1 step, team of 2",
}

BRAX = {
    "brax:ant": "obs (27,), actions (8,), 1000 steps",
    "brax:halfcheetah": "obs (17,), actions (6,), 1000 steps",
    "brax:hopper": "obs (11,), actions (3,), 1000 steps",
    "brax:humanoid": "obs (244,), actions (17,), 1000 steps",
    "brax:humanoidstandup": "obs (244,), actions (17,), 1000 steps",
    "brax:inverted_pendulum": "obs (4,), actions (1,), 1000 steps",
    "brax:inverted_double_pendulum": "obs (8,), actions (1,), 1000 steps",
    "brax:pusher": "obs (23,), actions (7,), 1000 steps",
    "brax:reacher": "obs (11,), actions (2,), 1000 steps",
    "brax:walker2d": "obs (17,), actions (6,), 1000 steps",
}

OWN = {
    "dmsd": "obs (6,), actions (2,), 100 steps",
    "reach": "obs (2,), actions (2,), 30 steps",
    "reach:sparse": "obs (2,), actions (2,), 12 steps",
    "lock": "obs (16,), actions (10,), 10 steps",
    "maze:umaze": "obs (2,), actions (2,), 100 steps",
    "maze:medium": "obs (2,), actions (2,), 200 steps",
    "maze:large": "obs (2,), actions (2,), 300 steps",
    "tokens:modsum": "obs (18,), 5 actions, 3 steps",
    "tokens:carry-add": "obs (28,), 5 actions, 3 steps",
    "tokens:reverse": "obs (23,), 5 actions, 3 steps",
    "tokens:lock": "obs (18,), 5 actions, 3 steps",
}

BACKENDS = ("spring", "positional", "generalized", "mjx")  # of brax; the first is the default


HOSTS = {  # packages with environments that run on the host; the prefixes are also the extras
    "gymnasium": "every environment of gymnasium, such as gymnasium:HalfCheetah-v5",
    "envpool": "every environment of EnvPool, such as envpool:Pong-v5",
}
ON_HOST = tuple(f"{package}:" for package in HOSTS)

SUITES = {  # modules of the suites by prefix, which is also the name of the extra
    "brax": "brax",
    "craftax": "craftax",
    "jaxmarl": "jaxmarl",
    "jumanji": "jumanji",
    "navix": "navix",
    "pgx": "pgx",
    "playground": "mujoco_playground",
    "xminigrid": "xminigrid",
}


class EnvError(UserError):
    """The environment cannot be made; the message is one line with the reason."""


class UnknownEnv(EnvError):
    """There is no environment of this name."""


def names() -> list[tuple[str, str]]:
    """(name, note) of all environments that can be made, as in `jaxrl list envs`.

    Those of suites are listed if the suite is installed.
    """
    brax = BRAX if installed("brax") else {}
    suites = [
        (f"{suite}:{task}", note)
        for suite, tasks in TASKS.items()
        if installed(suite)
        for task, note in tasks.items()
    ]
    return [*GYMNAX.items(), *brax.items(), *OWN.items(), *PROBES.items(), *suites]


def on_host() -> list[tuple[str, str]]:
    """(name, note) of each installed package with environments of the host."""
    return [(f"{package}:ID", note) for package, note in HOSTS.items() if installed(package)]


def installed(suite: str) -> bool:
    """Whether the module of a suite can be found; it is not imported."""
    return importlib.util.find_spec(SUITES.get(suite, suite)) is not None


def missing() -> list[str]:
    """A line per suite that is not installed, with its number of tasks and its extra."""
    counts = {"brax": len(BRAX)} | {suite: len(tasks) for suite, tasks in TASKS.items()}
    told = {suite: f"{counts[suite]} environments" for suite in SUITES}
    told |= dict.fromkeys(HOSTS, "environments on the host")
    return [
        f"{suite}: {what}, {install_hint(suite)}"
        for suite, what in told.items()
        if not installed(suite)
    ]


def install_hint(suite: str) -> str:
    """How to install a suite, for messages."""
    old = suite == "navix" and sys.version_info < (3, 12)
    return "needs Python 3.12 or newer" if old else install_extra(suite)


def check_name(name: str) -> None:
    """Checks that an environment of this name can exist, without importing it.

    Tasks of gymnasium and of suites are not checked, only whether the suite is installed. Of the
    user's own environments (`jaxrl.own_code`) only the file or the top-level package is looked for.

    Raises:
      UnknownEnv: there is no such environment; the message has the nearest name.
      EnvError: its suite is not installed.
    """
    if name in GYMNAX or name in OWN or name in PROBES:
        return
    suite, _, task = name.partition(":")
    if suite in SUITES and task:
        if suite == "brax":
            brax_parts(name)
        if not installed(suite):
            raise EnvError(f"{suite} is not installed: {install_hint(suite)}")
        return
    if name.startswith(ON_HOST) and task:
        return  # gymnasium suggests its nearest name itself
    module, attribute = own_code.split(name)
    reason, is_file = own_code.missing(module), module.endswith(".py")
    is_own = module not in ("maze", "probe", "reach", "tokens") and (
        attribute or is_file or not reason
    )
    if not is_own or (":" in name and not attribute):
        raise UnknownEnv(
            f"unknown environment {name!r}{_nearest_env(name)}; `jaxrl list envs` lists all, and "
            "your own are named module:attribute or file.py:attribute"
        )
    parts = [attribute or "make", *([] if is_file else module.split("."))]
    if not all(part.isidentifier() for part in parts):
        raise UnknownEnv(f"{name!r} is not of the form module:attribute, as in my_module:my_env")
    if reason:
        raise UnknownEnv(f"{name}: {reason}")


def brax_parts(name: str) -> tuple[str, str]:
    """(task, backend) of a name: ("hopper", "spring") for "brax:hopper".

    Raises:
      UnknownEnv: brax has no such task or backend, or the task does not work.
    """
    task, *rest = name.removeprefix("brax:").split(":")
    if task == "swimmer":
        raise UnknownEnv(f"{name!r}: brax's swimmer does not work with this version of JAX")
    if f"brax:{task}" in BRAX and (not rest or (len(rest) == 1 and rest[0] in BACKENDS)):
        return task, (rest or BACKENDS)[0]
    full = [f"{each}:{backend}" for each in BRAX for backend in BACKENDS]
    raise UnknownEnv(
        f"unknown environment {name!r}{nearest(name.lower(), [*BRAX, *full])}; `jaxrl list envs` "
        f"lists all, and one of {', '.join(BACKENDS)} may follow, as in brax:hopper:mjx"
    )


def _nearest_env(name: str) -> str:
    """ ", did you mean 'x'?" for the nearest name, or nothing.

    Names are compared in lower case, with and without prefix and suffix: "pong" finds "Pong-misc".
    """
    table = {}
    for known in [*BRAX, *OWN, *GYMNAX, *PROBES]:  # later ones win: "reacher" finds Reacher-misc
        full = known.lower()
        table |= {full: known, re.sub("^(brax|maze|probe|reach|tokens):|-.*$", "", full): known}
    close = difflib.get_close_matches(name.lower(), table, n=1)
    return f", did you mean {table[close[0]]!r}?" if close else ""
