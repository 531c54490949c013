"""Plan of a sweep: traced values become members, static values become programs.

Bounds of observations and actions are static: a bound that depends on a swept parameter of the
environment keeps its default.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl import envs
from jaxrl.algorithm import Algorithm
from jaxrl.envs.wrappers import british, with_params
from jaxrl.errors import UserError, nearest
from jaxrl.experiments import agents
from jaxrl.experiments.console import label, shown
from jaxrl.experiments.peers import ours
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.requests import INDEXED, Request
from jaxrl.experiments.restore import prepare, settle
from jaxrl.experiments.settings import Settings, canonical, known_fields
from jaxrl.experiments.values import read_value, within
from jaxrl.runs import memory
from jaxrl.runs.processes import ALONE, Processes
from jaxrl.types import Env

RENAMED = {"agent.run": "base"}  # earlier names of what can be swept


class Program(NamedTuple):
    """One program of a sweep, with the static values that distinguish it."""

    folder: str
    static: dict[str, Any]
    plan: Plan


def full_names(request: Request) -> Request:
    """The request with swept names in full: lr as agent.lr, env.normalize_obs as normalise_obs.

    Raises:
      UserError: a name is swept twice.
    """
    algorithm = agents.load(request.agent)
    found: dict[str, list[str]] = {}
    for given, values in request.sweep.items():
        part, dot, field = given.partition(".")
        name = f"env.{british(field)}" if part == "env" and dot else given
        with contextlib.suppress(UserError):  # refused later, where its values are read
            (name,) = canonical(algorithm, {name: ()})
        if name in found:
            raise UserError(f"{name} is swept twice")
        found[name] = values
    return request._replace(sweep=found)


def programs(request: Request, processes: Processes = ALONE) -> list[Program]:
    """The planned programs of a sweep; nothing is compiled.

    Raises:
      UserError: an unknown name, an invalid value or an invalid program.
    """
    if not request.sweep:
        raise UserError("nothing is swept: pass --sweep, as in --sweep agent.lr=1e-4,3e-4")
    algorithm = agents.load(request.agent)
    set_too = set(canonical(algorithm, request.options)) & set(request.sweep).difference(INDEXED)
    if set_too:
        raise UserError(f"{min(set_too)} is both swept and set")
    rest = {name: values for name, values in request.sweep.items() if name != "env"}
    found = []
    for env in request.sweep.get("env", [None]):
        static = {} if env is None else {"env": env}
        own = request.replace(static)._replace(sweep=rest)
        found += _of_one_env(own, algorithm, processes, static, len(found))
    seen = [program.static for program in found]
    for static in seen:
        if seen.count(static) > 1:
            raise UserError(f"{label(static)} is swept twice")
    return found


def _of_one_env(
    request: Request, algorithm: Algorithm, processes: Processes, static: dict[str, Any], first: int
) -> list[Program]:
    """The programs in one environment; `static` names it if the sweep has several."""
    base = settle(request.agent, request.options)
    given = base.options.env_options
    if "env_options" in request.options:
        for name in given:
            if f"env.{name}" in request.sweep:
                raise UserError(f"env.{name} is both swept and set")
    count = math.prod(map(len, request.sweep.values()))
    # A dictionary per point, and its JSON.
    memory.check_fits(count * 500, f"a sweep of {count:,} points", "pass fewer values")
    # The first value of each swept option, since the environment may require it.
    chosen = {n[4:]: read_value(v[0]) for n, v in request.sweep.items() if n.startswith("env.")}
    env = envs.make(base.options.env, **given | chosen)
    columns = {
        name: _traced(name, values, algorithm, env)
        for name, values in request.sweep.items()
        if _is_traced(name, algorithm, env)
    }
    points = tuple(
        dict(zip(columns, point, strict=True)) for point in itertools.product(*columns.values())
    )
    fixed = {name: values for name, values in request.sweep.items() if name not in columns}
    found = []
    for combination in itertools.product(*fixed.values()):
        settings, typed = _with_static(request, dict(zip(fixed, combination, strict=True)), points)
        own = static | typed
        try:
            plan = prepare(settings, processes)
        except UserError as error:
            raise UserError(f"{label(own)}: {error}" if own else str(error)) from None
        found.append(Program(_folder(first + len(found), own), own, plan))
    return found


def _is_traced(name: str, algorithm: Algorithm, env: Env) -> bool:
    """Whether members of one program may differ in `name`; UserError for an unknown name."""
    part, _, field = name.partition(".")
    names = lambda record: [each.name for each in dataclasses.fields(record)]
    hypers, config = names(algorithm.Hypers), names(algorithm.Config)
    if name in INDEXED and algorithm.base_points is not None:
        return True
    if part == "agent" and field in (*hypers, *config):
        return field in hypers
    if part == "env" and field:
        # Other names are options of the environment; `envs.make` refuses unknown ones.
        return isinstance(env.params, dict) and np.ndim(env.params.get(field, [])) == 0
    if name in RENAMED and algorithm.base_points is not None:
        raise UserError(f"{name} is now {RENAMED[name]}: pass --sweep {RENAMED[name]}=0,1")
    known = ["env", *(f"agent.{field}" for field in (*hypers, *config))]
    peer = ours(name, known)
    hint = f", did you mean {peer!r}?" if peer else nearest(name, known)
    hint = hint or "; agent.NAME, env.NAME and env can be"
    raise UserError(f"{name} cannot be swept{hint}")


def _traced(name: str, texts: Sequence[str], algorithm: Algorithm, env: Env) -> list[Any]:
    """Typed values of a traced name: numbers, and booleans of environments."""
    part, _, field = name.partition(".")
    values = []
    for text in texts:
        if part == "env":
            value = read_value(text)
            with_params(env, **{field: value})  # refuses invalid values
            kind = np.asarray(env.params[field]).dtype.kind
            values.append(float(value) if kind == "f" else value)
            continue
        if name in INDEXED:
            values.append(index(name, text))
        else:
            values.append(number(name, text, algorithm))
    for value, count in collections.Counter(values).items():
        if count > 1:
            raise UserError(f"{name} has the value {shown(value)} twice")
    return values


def number(name: str, text: str, algorithm: Algorithm) -> float:
    """A value of a hyperparameter; UserError if it is not a number or out of its range."""
    try:
        found = float(text)
    except ValueError:
        raise UserError(f"{name}: {text!r} is not a number") from None
    if np.isnan(found):
        raise UserError(f"{name} must be a number, not nan")
    return within(known_fields(algorithm)[name], found, text)


def index(name: str, text: str) -> int:
    """An index of the values of an option; UserError if it is not an index."""
    if not text.isdecimal():
        raise UserError(f"{name}: {text!r} is not an index, which counts the --{name} from 0")
    return int(text)


def _with_static(
    request: Request, chosen: Mapping[str, str], points: tuple[dict[str, Any], ...]
) -> tuple[Settings, dict[str, Any]]:
    """The settings with these static values, and the typed values."""
    of_agent = {name: text for name, text in chosen.items() if name.startswith("agent.")}
    settings = settle(request.agent, request.replace(of_agent).options)
    of_env = {name: read_value(text) for name, text in chosen.items() if name not in of_agent}
    pairs = settings.options.env_options | {n[4:]: value for n, value in of_env.items()}
    own = dataclasses.replace(settings.options, env_options=pairs)
    typed = {
        name: of_env[name] if name in of_env else getattr(settings.cfg, name[6:]) for name in chosen
    }
    return dataclasses.replace(settings, options=own, points=points), typed


def _folder(index: int, static: Mapping[str, Any]) -> str:
    """Such as 001-num_steps=32,hidden=64x64."""
    text = ",".join(f"{name.removeprefix('agent.')}={shown(v)}" for name, v in static.items())
    text = re.sub(r"[^A-Za-z0-9.=,_-]+", "_", text)[:80]
    return f"{index:03d}-{text}" if text else f"{index:03d}"
