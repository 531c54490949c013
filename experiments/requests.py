"""Requests of train, sweep and search, parsed from words, a file or keyword arguments.

    {"env": "CartPole-v1", "seeds": 8, "env_options": {"gravity": 1.6},
     "agent": {"name": "pqn", "lr": 1e-4}, "sweep": {"agent.num_steps": [32, 64]}}

Importing this file does not import JAX, so misspelt names are reported at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

from jaxrl.errors import UserError
from jaxrl.experiments.options import INCIDENTAL, LATER, Options
from jaxrl.experiments.trust import check as check_names
from jaxrl.experiments.trust import check_same, trusting
from jaxrl.experiments.values import Field, Words, load_yaml, switch_of, take, text

MOST_VALUES = 1_000_000  # of a range, which is written out
RECORD_PARTS = ("program", "Config")  # parts of an `Algorithm` that name its module
REPEATED = ("base", "sweep", "range")  # options whose values accumulate when repeated
INDEXED = ("base",)  # options of several values, swept by their indices


class Request(NamedTuple):
    """A parsed request.

    Attributes:
      agent: its name.
      options: dotted name -> value, as in {"seeds": 8, "agent.lr": 1e-4}, in any form that
        `values.convert` accepts.
      sweep: dotted name -> values as typed, or a range.
    """

    agent: str
    options: dict[str, Any]
    sweep: dict[str, list[str]]

    @property
    def env(self) -> str | None:
        """Name of the environment, or None."""
        value = self.options.get("env")
        if isinstance(value, Words):
            return value[0] if value and value[0] else None
        return value if isinstance(value, str) and value else None

    def replace(self, options: Mapping[str, Any]) -> Request:
        """The request with some options replaced."""
        return self._replace(options=merged(self.options, options))


# --- words ---------------------------------------------------------------------------------------


def tokenise(
    words: Sequence[str], single: Mapping[str, Field] | None = None
) -> tuple[list[str], dict[str, Words]]:
    """Positional words, and the words after each option, keyed by names with underscores.

    The last occurrence of a repeated option counts, except for options that accumulate.

    Args:
      single: options that take one word, and switches that take none but true or false; later
        words are positional.
    """
    single = single or {}
    positional: list[str] = []
    found: dict[str, Words] = {}
    name = ""
    for word in words:
        if not _is_option(word):
            if name in single and (found[name] or not _takes(single[name], word)):
                name = ""
            if name:
                found[name] = Words((*found[name], word))
            else:
                positional.append(word)
            continue
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            raise UserError(f"unknown option {flag}; options begin with two dashes")
        name = _name(flag[2:])
        before = found.pop(name, Words())
        start = before if name in REPEATED else ()
        found[name] = Words((*start, value) if equals else start)
    return positional, found


def _takes(option: Field, word: str) -> bool:
    """Whether a word is the value of an option, and not a path after a switch."""
    return option.kind is not bool or word.lower() in ("true", "false")


def _is_option(word: str) -> bool:
    """Whether a word is an option and not a value such as -1 or -.5."""
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] not in (".", "")


def _name(name: Any) -> str:
    return str(name).replace("-", "_")


# --- whole requests ------------------------------------------------------------------------------


def read(command: str, words: Sequence[str]) -> Request:
    """The request in `AGENT [options]` or `FILE [options]`, where options win over the file.

    FILE is YAML, or the config.json of a run. An option or a sweep on the command line replaces
    the value or the sweep of the same name in the file.
    """
    if not words or words[0].startswith("-"):
        raise UserError(f"{command} needs an agent: jaxrl {command} pqn --env CartPole-v1")
    (first, *more), given = tokenise(words)
    if more:
        raise UserError(f"unexpected word {more[0]!r}; values follow options, as in --seeds 8")
    what = "range" if command == "search" else "sweep"
    swept = {}
    for word in given.pop(what, ()):
        name, values = _sweep(word, what)
        if name in swept:
            raise UserError(f"{name} is {'searched' if what == 'range' else 'swept'} twice")
        swept[name] = values
    if first.endswith((".json", ".yaml", ".yml")):
        return _of_file(first, what, dict(given), swept)
    if (Path(first) / "config.json").is_file():
        raise UserError(
            f"{first} is the folder of a run: jaxrl {command} {Path(first) / 'config.json'} "
            "has its settings; a new run needs an agent and --env"
        )
    return Request(first, dict(given), swept)


def _of_file(
    file: str, what: str, given: dict[str, Any], swept: Mapping[str, list[str]]
) -> Request:
    """The request in a file, with the options and sweeps of the command line."""
    is_json = file.endswith(".json")
    content = _load(Path(file))
    found = of_run(content, file) if is_json else from_mapping(content, file, what)
    if is_json and "derived" in content["config"]:
        raise UserError(f"{file} is of a run that was derived from others, not trained")
    if "trust" in found.options:
        raise UserError(f"{file} cannot vouch for itself: remove trust, and pass --trust if you do")
    if any(":" in str(name) for name in _texts(found.options.get("track"))):
        raise UserError(f"{file} may not name a tracker's code: pass --track on the command line")
    own, given = take(_Confirmed, given)
    check_same(file, {"agent": found.agent}, own.agent, None)
    names = option_names(given).difference(INDEXED)
    of_file = {name: values for name, values in found.sweep.items() if name not in names}
    options = merged(_without(found.options, swept), given)
    request = Request(found.agent, options | {"trust": own.trust}, of_file | dict(swept))
    typed = [*given.get("env", ()), *swept.get("env", ())]
    trust = trusting(own.agent, *typed, everything=own.trust)
    check_names(
        file, request.agent, [*_texts(options.get("env")), *request.sweep.get("env", ())], trust
    )
    return request


@dataclasses.dataclass(frozen=True)
class _Confirmed:
    """Options that confirm the custom names of a request file, see `jaxrl.experiments.trust`."""

    agent: str | None = None
    trust: bool = False


def _texts(value: Any) -> list[Any]:
    """The values of an option that may be missing, one, or several."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]


def from_call(agent: Any, given: Mapping[str, Any], varied: str = "sweep") -> Request:
    """The request in the keyword arguments of a call.

    Args:
      agent: a name, the agent's module, or its `Algorithm` record.
      given: options; the agent's own settings under "agent", a mapping.
      varied: the key of what is swept or searched.
    """
    own = given.get("agent") or {}
    if not isinstance(own, Mapping):
        raise UserError('the agent\'s settings are a mapping, as in agent={"lr": 1e-4}')
    return from_mapping({**given, "agent": {**own, "name": agent_name(agent)}}, "the call", varied)


def agent_name(agent: Any) -> str:
    """The name under which `agents.load` finds an agent.

    Args:
      agent: a name, a module, or an `Algorithm` that is an attribute of the module that defines its
        `program` or `Config`.

    Raises:
      UserError: `agent` is something else, or is defined in a script or notebook.
    """
    if isinstance(agent, str):
        return agent
    if isinstance(agent, ModuleType):
        name = agent.__name__
    else:
        homes = [getattr(getattr(agent, part, None), "__module__", "") for part in RECORD_PARTS]
        found = (name for home in homes for name in _attributes(home, agent))
        name = next(found, "__main__")
    if name.partition(":")[0] == "__main__":
        raise UserError(
            "an agent is a name, an importable module or an Algorithm in one, as ALGORITHM = "
            f"Algorithm(...) in a file.py, not {str(agent)[:80]}"
        )
    return name.removeprefix("jaxrl.agents.")


def _attributes(module: str, agent: Any) -> list[str]:
    """Names of `agent` in the imported module: `module` for ALGORITHM, else `module:attribute`."""
    held = vars(sys.modules[module]) if module in sys.modules else {}
    if held.get("ALGORITHM") is agent:
        return [module]
    return [f"{module}:{name}" for name, value in held.items() if value is agent]


def from_mapping(mapping: Any, what: str, varied: str = "sweep") -> Request:
    """The request in a mapping, such as the content of a YAML file; errors call it `what`.

    Keys are the names of options: `env`, `seeds`, `env_options` (a mapping) and so on; `agent` is a
    name, or a mapping of the agent's own settings with `name` among them; `sweep` maps dotted names
    to lists or to texts such as log:1e-5:1e-2:4, and so does `range` where that is `varied`.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{what} must hold names and values, as in env: CartPole-v1")
    options = {_name(name): value for name, value in mapping.items()}
    own, swept = options.pop("agent", None), options.pop(varied, None) or {}
    own = dict(own) if isinstance(own, Mapping) else {"name": own}
    agent = own.pop("name", None)
    if not isinstance(agent, str):
        raise UserError(f"{what} names no agent, as in agent: pqn or agent: {{name: pqn, lr: 0.1}}")
    if not isinstance(swept, Mapping):
        raise UserError(f"{what}: {varied} must hold names and values, as in agent.lr: [0.1, 0.2]")
    swept = {_name(name): _values(_name(name), value, varied) for name, value in swept.items()}
    return Request(agent, flatten(options | {"agent": own}), swept)


def of_run(known: Any, what: str) -> Request:
    """The request recorded in the config.json of a run.

    "config" holds hashes of files and other runs, "context" their paths. Options that are not
    recorded have their defaults, whatever the preset of the environment says.
    """
    try:
        stored, context = dict(known["config"]), dict(known["context"])
        agent, own = stored.pop("agent"), stored.pop("settings")
    except (KeyError, TypeError):
        raise UserError(f"{what} is not the config.json of a run") from None
    if not isinstance(agent, str) or not isinstance(own, Mapping):
        raise UserError(f"{what} is not the config.json of a run")
    stored = {name: value for name, value in stored.items() if name not in INCIDENTAL}
    for name in ("data", "base", "from", "from_run", "derived"):
        stored.pop(name, None)
        if name in context:
            stored[name] = context[name]
    if "eval_episodes" in stored:  # all episodes at every evaluation are not recorded
        stored.setdefault("interim_episodes", stored["eval_episodes"])
    unrecorded = {name: getattr(Options, name) for name in LATER}  # not those of a preset
    return Request(agent, flatten({**unrecorded, **stored, "agent": own}), {})


def flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted name: {"agent": {"lr": 0.1}} as {"agent.lr": 0.1}."""
    found = {}
    for name, value in options.items():
        if name == "agent" and isinstance(value, Mapping):
            found |= {f"agent.{_name(each)}": x for each, x in value.items()}
        else:
            found[_name(name)] = value
    return found


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Old entries, then new ones: the later of two spellings of a name wins."""
    return {name: value for name, value in old.items() if name not in new} | dict(new)


def option_names(given: Mapping[str, Any]) -> set[str]:
    """Possible full names of options, which may begin with "no_" or omit "agent."."""
    names = set(given) | {switch_of(name) for name in given}
    return names | {f"agent.{name}" for name in names}


def _without(options: Mapping[str, Any], swept: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not swept."""
    gone = option_names(swept).difference(INDEXED)
    left = {name: value for name, value in options.items() if name not in gone}
    if isinstance(pairs := left.get("env_options"), Mapping):
        left["env_options"] = {k: v for k, v in pairs.items() if f"env.{k}" not in swept}
    return left


def _load(file: Path) -> Any:
    kind = "JSON" if file.suffix == ".json" else "YAML"
    try:
        content = file.read_text(encoding="utf-8")
        if kind == "YAML":
            return load_yaml(content)
        return json.loads(content, object_pairs_hook=_unique)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is not valid {kind}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text; ValueError if it has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice: remove one")
    return found


# --- sweeps --------------------------------------------------------------------------------------


def _sweep(word: str, what: str) -> tuple[str, list[str]]:
    name, equals, values = word.partition("=")
    if not name or not equals:
        raise UserError(f"--{what} takes NAME=VALUES, as in agent.lr=1e-4,3e-4, not {word!r}")
    return _name(name), _values(_name(name), values, what)


def _values(name: str, given: Any, what: str) -> list[str]:
    """Values as typed, from a text or a list; a range without N is unchanged."""
    if what == "range" and isinstance(given, str) and given[:4] in ("log:", "lin:"):
        if given.count(":") == 2:
            return [given]
    if isinstance(given, str):
        if re.fullmatch(r"[-+.\de]+(:[-+.\de]+)+", given):
            more = ":N" if what == "sweep" and given.count(":") == 1 else ""
            raise UserError(
                f"{name}: write log:{given}{more} for equal ratios, or lin:{given}{more} for equal "
                "distances"
            )
        found = expand(name, given)
    else:
        found = [text(each) for each in (given if isinstance(given, list | tuple) else [given])]
    if not found:
        raise UserError(f"{name} has no values to sweep")
    if not all(found):
        raise UserError(f"{name} has an empty value")
    return found


def expand(name: str, given: str) -> list[str]:
    """ "1,2" as ["1", "2"]; commas in brackets do not separate values. log:LOW:HIGH:N and
    lin:LOW:HIGH:N give N values at equal ratios or distances, both ends included."""
    kind, *parts = given.split(":")
    if kind in ("log", "lin"):
        return [f"{value:.12g}" for value in _range(name, given, kind, parts)]
    found, depth = [""], 0
    for letter in given:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [each.strip() for each in found] if given.strip() else []


def _range(name: str, given: str, kind: str, parts: list[str]) -> list[float]:
    try:
        first, last, number = parts
        low, high, count = float(first), float(last), int(number)
    except ValueError:
        raise UserError(f"{name}: {given!r} is not {kind}:LOW:HIGH:N") from None
    if not math.isfinite(low + high):
        raise UserError(f"{name}: {given!r} must have finite ends")
    if count < 2:
        raise UserError(f"{name}: {given!r} has {max(count, 0)} values; a range has 2 or more")
    if count > MOST_VALUES:
        raise UserError(f"{name}: {given!r} has more than {MOST_VALUES:,} values")
    if low == high:
        raise UserError(f"{name}: {given!r} is a single value")
    shares = [i / (count - 1) for i in range(count)]
    if kind == "lin":
        return [low + (high - low) * share for share in shares]
    if min(low, high) <= 0:
        raise UserError(f"{name}: {given!r} must have ends above 0")
    return [low * (high / low) ** share for share in shares]
