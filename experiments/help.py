"""Help of a command with an agent: every option with its type, default and meaning."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl.algorithm import Algorithm
from jaxrl.experiments.options import Options
from jaxrl.experiments.values import Field, fields_of, kind_name, text

WIDTH, INDENT = 100, 6


def agent_help(
    command: str,
    agent: str,
    algorithm: Algorithm,
    extra: type | None = None,
    preset: Mapping[str, Any] | None = None,
) -> str:
    """The text of `jaxrl COMMAND AGENT --help`.

    Args:
      extra: dataclass with the options of this command only.
      preset: values that replace the defaults, by dotted name.
    """
    groups: dict[str, Iterable[Field]] = {}
    if extra is not None:
        groups[f"options of `jaxrl {command}`"] = fields_of(extra, help=True).values()
    groups |= {
        "options of the run": fields_of(Options, help=True).values(),
        "settings of the agent, fixed for all members": _own(algorithm.Config),
        "hyperparameters of the agent, which may differ between members": _own(algorithm.Hypers),
    }
    varied = {
        "sweep": " --sweep NAME=VALUES ...",
        "search": " --range NAME=VALUES ...",
    }.get(command, "")
    lines = [f"usage: jaxrl {command} {agent} --env ENV{varied} [options]", ""]
    lines += [*(sys.modules[algorithm.module].__doc__ or "").strip().splitlines(), ""]
    for title, fields in groups.items():
        lines += [f"{title}:", ""]
        for field in fields:
            default = (preset or {}).get(field.name, field.default)
            lines += describe(field._replace(default=default))
        lines.append("")
    lines.append("The prefix --agent. may be omitted unless the run has an option of that name.")
    return "\n".join(lines)


def _own(record: type) -> Iterable[Field]:
    return fields_of(record, "agent.", help=True).values()


def describe(field: Field) -> list[str]:
    """Help lines of one option."""
    part, dot, bare = field.name.rpartition(".")
    off = f", --{part}{dot}no-{bare}".replace("_", "-")
    kind = off if field.kind is bool else f" {kind_name(field.kind).removesuffix(' or None')}"
    meaning = f"{field.help} {default_of(field)}".strip()
    pad = " " * INDENT
    below = textwrap.wrap(
        meaning, WIDTH, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False
    )
    return [f"  {field.option}{kind}", *below]


def default_of(field: Field) -> str:
    """Text such as "(default: 1)" or "(required)"; "" if the help describes the default."""
    if field.default is dataclasses.MISSING:
        return "(required)"
    if field.default == "" or (field.default is None and "by default" in field.help):
        return ""
    if isinstance(field.default, Mapping) or field.default == ():
        return "(default: none)"
    return f"(default: {_shown(field.default)})"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(text, value))
    return "none" if value is None else text(value)
