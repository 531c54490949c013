"""What a command asks for, from its words or a YAML file, before anything is parsed.

JAX is not imported here, so that slips in names are told at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxrl.errors import UserError


class Request(NamedTuple):
    """What to train: an agent, options as words of the command line, and what is swept."""

    agent: str
    words: list[str]
    sweep: dict[str, list[str]]  # dotted name -> values, as one would type each, or a range


def value_of(name: str, words: Sequence[str]) -> str | None:
    """The last value given to --name, None without one; the next option is no value."""
    found = None
    for word, after in itertools.pairwise([*words, ""]):
        if word == f"--{name}":
            found = None if after.startswith("--") else after
        elif word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found or None


# --- whole requests ------------------------------------------------------------------------------


def read(command: str, words: Sequence[str]) -> Request:
    """The request in `AGENT [options]` or `FILE.yaml [options]`, where options win over the file.

    An option takes the place of what the file sets or sweeps under that name, and so does a sweep.
    """
    if not words or words[0].startswith("-"):
        raise UserError(f"which agent? As in: jaxrl {command} pqn --env CartPole-v1")
    first, *rest = words
    what = "range" if command == "search" else "sweep"
    rest, texts = _take_sweeps(rest, what)
    swept = {}
    for text in texts:
        name, values = _sweep(text, what)
        if name in swept:
            raise UserError(f"{name} is {'searched' if what == 'range' else 'swept'} twice")
        swept[name] = values
    if not first.endswith((".yaml", ".yml")):
        return Request(first, rest, swept)
    agent, options, of_file = _split(_load(Path(first)), first, what)
    given = option_names(rest)
    given |= {f"agent.{name}" for name in given}  # which may be left out
    of_file = {name: values for name, values in of_file.items() if name not in given}
    return Request(agent, [*_words(options, without=swept), *rest], of_file | swept)


def from_mapping(mapping: Mapping[str, Any], what: str, varied: str = "sweep") -> Request:
    """The request in a mapping as of a YAML file, which `what` names in complaints.

    Keys are the names of options: `env`, `seeds`, `env_options` (a mapping) and so on; `agent` is a
    name, or a mapping of the agent's own settings with `name` among them; `sweep` maps dotted names
    to lists or to texts such as log:1e-5:1e-2:4, and so does `range` where that is `varied`.
    """
    agent, options, swept = _split(mapping, what, varied)
    return Request(agent, _words(options, without={}), swept)


def _load(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {error}") from None


def _split(
    mapping: Any, what: str, varied: str
) -> tuple[str, dict[str, Any], dict[str, list[str]]]:
    """Agent, options by dotted name, and sweep."""
    if not isinstance(mapping, Mapping):
        raise UserError(f"{what} must hold names and values, as in env: CartPole-v1")
    options = {_name(name): value for name, value in mapping.items()}
    agent, swept = options.pop("agent", None), options.pop(varied, None) or {}
    own = dict(agent) if isinstance(agent, Mapping) else {"name": agent}
    agent = own.pop("name", None)
    if not isinstance(agent, str):
        raise UserError(f"{what} names no agent, as in agent: pqn or agent: {{name: pqn, lr: 0.1}}")
    if not isinstance(swept, Mapping):
        raise UserError(f"{what}: {varied} must hold names and values, as in agent.lr: [0.1, 0.2]")
    options |= {f"agent.{_name(name)}": value for name, value in own.items()}
    swept = {_name(name): _values(_name(name), value, varied) for name, value in swept.items()}
    return agent, options, swept


def _words(options: Mapping[str, Any], without: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if isinstance(value, Mapping):  # env_options
            value = {k: v for k, v in value.items() if f"env.{k}" not in without}
        if name not in without:
            words += option(name, value)
    return words


def option(name: str, value: Any) -> list[str]:
    """A setting as words of the command line: ("agent.lr", 0.1) is ["--agent.lr=0.1"]."""
    part, dot, field = name.rpartition(".")
    if isinstance(value, bool):
        field = field if value else f"no-{field}"
    flag = f"--{part}{dot}{field}".replace("_", "-")
    if isinstance(value, bool):
        return [flag]
    if isinstance(value, Mapping):
        return [flag, *(f"{key}={text(each)}" for key, each in value.items())]
    if isinstance(value, list | tuple):
        return [flag, *map(text, value)]
    return [f"{flag}={'None' if value is None else text(value)}"]


def option_names(words: Sequence[str]) -> set[str]:
    """Dotted names of the options among words; a switch counts under both of its names."""
    names = {_name(word[2:].partition("=")[0]) for word in words if word.startswith("--")}
    return names | {name.replace("no_", "", 1) for name in names}


def text(value: Any) -> str:
    """A value as one would type it: true, null, 0.1, [64, 64]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return str(value)


def _name(name: Any) -> str:
    return str(name).replace("-", "_")


# --- sweeps --------------------------------------------------------------------------------------


def _take_sweeps(words: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """The words without `--sweep NAME=VALUES ...` (or --range), and those NAME=VALUES."""
    rest, taken, sweeping = [], [], False
    for word in words:
        if word.startswith("--"):
            sweeping = word.partition("=")[0] == f"--{what}"
            if not sweeping:
                rest.append(word)
            elif "=" in word:
                taken.append(word.partition("=")[2])
        else:
            (taken if sweeping else rest).append(word)
    return rest, taken


def _sweep(word: str, what: str) -> tuple[str, list[str]]:
    name, equals, values = word.partition("=")
    if not name or not equals:
        raise UserError(f"--{what} takes NAME=VALUES, as in agent.lr=1e-4,3e-4, not {word!r}")
    return _name(name), _values(_name(name), values, what)


def _values(name: str, given: Any, what: str) -> list[str]:
    """Values as one would type each, from a text or a list; a range without N as it is."""
    if what == "range" and isinstance(given, str) and given[:4] in ("log:", "lin:"):
        if given.count(":") == 2:
            return [given]
    if isinstance(given, str):
        found = expand(name, given)
    else:
        found = [text(each) for each in (given if isinstance(given, list | tuple) else [given])]
    if not found:
        raise UserError(f"{name} is swept over nothing")
    if not all(found):
        raise UserError(f"{name}: one of its values is empty")
    return found


def expand(name: str, given: str) -> list[str]:
    """["1", "2"] of "1,2" (commas in brackets do not part); log:LOW:HIGH:N and lin:LOW:HIGH:N give
    N values at equal ratios or distances, both ends included."""
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
        raise UserError(f"{name}: {given!r} has an end that is not finite")
    if count < 2:
        raise UserError(f"{name}: {given!r} has {max(count, 0)} values; a range has 2 or more")
    if low == high:
        raise UserError(f"{name}: {given!r} is one value only")
    shares = [i / (count - 1) for i in range(count)]
    if kind == "lin":
        return [low + (high - low) * share for share in shares]
    if min(low, high) <= 0:
        raise UserError(f"{name}: {given!r} has ends that are not above 0")
    return [low * (high / low) ** share for share in shares]
