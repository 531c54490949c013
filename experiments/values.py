"""Conversion of user input (command-line words, YAML, Python values) to typed fields.

Importing this file does not import JAX.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from jaxrl.errors import UserError
from jaxrl.experiments.peers import ours
from jaxrl.ranges import Range

T = TypeVar("T")

# Every error of a conversion: {option} as the user would type it, such as --agent.num-steps.
ERRORS = {
    "unknown": "unknown option {option}{nearest}",
    "missing": "{option} needs a value",
    "type": "{option} takes {kind}, not {value!r}",
    "switch": "{option} is true or false, not {value!r}",
    "count": "{option} takes one value, not {value!r}",
    "range": "{option} must be {range}, not {value!r}",
    "nan": "{option} must be a number, not nan",
    "pair": "{option} takes name=value, not {value!r}",
    "yaml": "{option}: {value!r} is not valid YAML",
}


class Words(tuple[str, ...]):
    """The words after an option on the command line: none for a switch, or one or more."""


class Field(NamedTuple):
    """One setting.

    Attributes:
      name: dotted, such as "seeds" or "agent.lr".
      kind: its type, such as int, `float | None`, `tuple[int, ...]` or a Literal.
      default: `dataclasses.MISSING` if a value is required.
      help: the docstring below the field.
      range: the numbers allowed, or None.
    """

    name: str
    kind: Any
    default: Any
    help: str
    range: Range | None = None

    @property
    def option(self) -> str:
        return spelled(self.name)


def fields_of(record: type, prefix: str = "", help: bool = False) -> dict[str, Field]:
    """The fields of a dataclass by dotted name, with `help` read from its source."""
    hints, docs = typing.get_type_hints(record), _docstrings(record) if help else {}
    found = {}
    for each in dataclasses.fields(record):
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        kind = hints[each.name]
        kind = type(default) if kind is Any else kind
        name = f"{prefix}{each.name}"
        found[name] = Field(
            name, kind, default, docs.get(each.name, ""), each.metadata.get("range")
        )
    return found


def fill(record: type[T], given: Mapping[str, Any]) -> T:
    """The record with these values, keyed by names with underscores; UserError in one line."""
    known, values = fields_of(record), {}
    for name, value in named(known, given).items():
        values[name] = convert(known[name], value)
    for name, field in known.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise _error("missing", field.option)
    return record(**values)


def take(record: type[T], given: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """The record filled from the entries named like its fields, and the other entries."""
    known = fields_of(record)
    own = {name: value for name, value in given.items() if _find(name, known)}
    return fill(record, own), {name: x for name, x in given.items() if name not in own}


def named(
    known: Mapping[str, Field], given: Mapping[str, Any], aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The entries under the names of fields; later entries replace earlier ones.

    A name may be spelt -ize or -ise, and no_NAME turns a switch off.

    Args:
      aliases: other names -> names of fields.
    """
    aliases = aliases or {}
    table = dict(known) | {alias: known[name] for alias, name in aliases.items()}
    found: dict[str, Any] = {}
    for name, value in given.items():
        hit = _find(name, table)
        if hit is None:
            nearest = nearest_option(name, known)
            raise _error("unknown", spelled(name), nearest=nearest)
        field, off = hit
        if off:
            value = not convert(field, value)
        found.pop(field.name, None)
        found[field.name] = value
    return found


def _find(name: str, known: Mapping[str, Field]) -> tuple[Field, bool] | None:
    """The field of that name, and whether the name turns a switch off."""
    for each in (name, name.replace("ize", "ise"), name.replace("ise", "ize")):
        if each in known:
            return known[each], False
        on = switch_of(each)
        if on != each and on in known and known[on].kind is bool:
            return known[on], True
    return None


def switch_of(name: str) -> str:
    """agent.hybrid of agent.no_hybrid, which turns it off; other names are unchanged."""
    part, dot, bare = name.rpartition(".")
    return f"{part}{dot}{bare.removeprefix('no_')}"


def spelled(name: str) -> str:
    """A name as an option of the command line: agent.num_steps as --agent.num-steps."""
    return f"--{name.replace('_', '-')}"


def nearest_option(name: str, known: Iterable[str]) -> str:
    """ ", did you mean '--agent.lr'?" for another library's name or the nearest one, or nothing."""
    if peer := ours(name, set(known)):
        return f", did you mean '--{peer}'?"
    bare = lambda name: name.removeprefix("agent.")  # --lrr should find --agent.lr
    table = {bare(each): each for each in known}
    close = difflib.get_close_matches(bare(name), table, n=1)
    return f", did you mean {spelled(table[close[0]])!r}?" if close else ""


# --- conversion ----------------------------------------------------------------------------------


def convert(field: Field, value: Any) -> Any:
    """A value of the field's type, from words, YAML or Python; UserError in one line."""
    if isinstance(value, Words):
        value = _from_words(field, value)
    found = _typed(field, field.kind, value)
    if isinstance(found, float) and math.isnan(found):
        raise _error("nan", field.option)
    return within(field, found, value)


def within(field: Field, value: Any, given: Any) -> Any:
    """The typed value if it is None or in the range of its field.

    Raises:
      UserError: the value, which the user gave as `given`, is out of range.
    """
    if field.range is not None and value is not None and (what := field.range.refusal(value)):
        raise _error("range", field.option, range=what, value=given)
    return value


def _from_words(field: Field, words: Words) -> Any:
    kind = _without_none(field.kind)
    if kind is bool and not words:
        return True
    if typing.get_origin(kind) is tuple:
        return words[0] if len(words) == 1 else list(words)
    if typing.get_origin(kind) is dict:
        return list(words)
    if not words or not words[0]:
        raise _error("missing", field.option)
    if len(words) > 1:
        raise _error("count", field.option, value=" ".join(words))
    return words[0]


def _typed(field: Field, kind: Any, value: Any) -> Any:
    inner, origin = _without_none(kind), typing.get_origin(_without_none(kind))
    if inner is not kind and (value is None or value in ("None", "null")):
        return None
    if origin is tuple:
        each = typing.get_args(inner)[0]
        return tuple(_typed(field, each, item) for item in _items(each, value))
    if origin is dict:
        return _pairs(field, value)
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()  # a scalar of numpy or JAX
    if origin is Literal:
        if value in typing.get_args(inner):
            return value
    elif inner is bool:
        if value in (True, False) and isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise _error("switch", field.option, value=value)
    elif inner in (str, Path):
        if isinstance(value, str | Path):
            return inner(value)
    elif not isinstance(value, bool) and isinstance(value, int | float | str):
        number = _number(inner, value)
        if number is not None and (isinstance(value, str) or number == value or value != value):
            return number
    raise _error("type", field.option, kind=_kind_words(field.kind), value=value)


def _number(kind: Any, value: Any) -> Any:
    """The int or float of a number or a text, such as 5e5 for an int too; None if there is none."""
    try:
        if kind is int and isinstance(value, str) and not re.fullmatch(r"\s*[-+]?[\d_]+\s*", value):
            number = float(value)
            return int(number) if number.is_integer() else None
        return kind(value)
    except (ValueError, OverflowError):
        return None


def _items(kind: Any, value: Any) -> Sequence[Any]:
    """The elements of a list, or of a text such as 64x64, [64, 64] or 64,64."""
    if not isinstance(value, str):
        return value if isinstance(value, list | tuple) else [value]
    if kind in (str, Path):
        return [value]
    if re.fullmatch(r"\d+(x\d+)*", value):
        return value.split("x")
    inner = value.strip().strip("[]()")
    return [each.strip() for each in inner.split(",") if each.strip()]


def _pairs(field: Field, value: Any) -> dict[str, Any]:
    """{"gravity": 1.6} from a mapping, or from texts such as gravity=1.6."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(each) for name, each in value.items()}
    if not isinstance(value, list | tuple):
        raise _error("type", field.option, kind=_kind_words(field.kind), value=value)
    found = {}
    for word in value:
        name, equals, text = str(word).partition("=")
        if not name or not equals:
            raise _error("pair", field.option, value=word)
        found[name] = read_value(text, field.option)
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice; PyYAML keeps the last value without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(
                    f"line {line} has {key.value!r} again, after line {lines[name]}: remove one"
                )
            lines[name] = line
        return node


def load_yaml(text: str) -> Any:
    """The content of a YAML document, in which no mapping has a key twice."""
    return yaml.load(text, _Loader)


def read_value(text: str, option: str = "--env-options") -> Any:
    """Parses a text without a declared type: 1.6, true, [1, 3]."""
    try:
        return plain_value(load_yaml(text))
    except yaml.YAMLError:
        raise _error("yaml", option, value=text) from None


def plain_value(value: Any) -> Any:
    """A value without a declared type: lists for tuples, and a number for 1e-4, which YAML reads
    as text."""
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def text(value: Any) -> str:
    """A value as a user would type it: true, null, 0.1, [64, 64]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    return str(value)


def kind_name(kind: Any) -> str:
    """A type as help names it: INT, FLOAT or None, INT ..., {gru,lstm}."""
    inner = _without_none(kind)
    if inner is not kind:
        return f"{kind_name(inner)} or None"
    origin = typing.get_origin(kind)
    if origin is tuple:
        return f"{kind_name(typing.get_args(kind)[0])} ..."
    if origin is dict:
        return "NAME=VALUE ..."
    if origin is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    names = {str: "TEXT", bool: "true or false"}
    return names[kind] if kind in names else kind.__name__.upper()


def _kind_words(kind: Any) -> str:
    """A type as errors name it: a number, whole numbers, one of gru, lstm."""
    kind = _without_none(kind)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return {int: "whole numbers", float: "numbers", Path: "paths"}.get(parts[0], "texts")
    if origin is dict:
        return "name=value"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    return {int: "a whole number", float: "a number", Path: "a path"}.get(kind, "a text")


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(kind) if each is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _error(which: str, option: str, **details: Any) -> UserError:
    return UserError(ERRORS[which].format(option=option, **details))


def _docstrings(record: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of the classes it extends."""
    found = {}
    for each in reversed(record.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # no readable source
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, below in zip(body, body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found
