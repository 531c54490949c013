"""Reproductions: every command is one that the programs take, with settings that exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
from pathlib import Path

import pytest

from jaxrl.agents import AGENTS
from jaxrl.envs import names
from jaxrl.experiments.commands import MakeOptions
from jaxrl.experiments.reproductions import REPRODUCTIONS, Reproduction
from jaxrl.experiments.requests import read, tokenise
from jaxrl.experiments.settings import resolve
from jaxrl.experiments.values import fields_of, take

PAGES = Path(__file__).parent.parent / "docs" / "agents"


def check_data(words: list[str]) -> str:
    """`jaxrl data make`; the path that it writes."""
    (env,), given = tokenise(words, fields_of(MakeOptions))
    own, rest = take(MakeOptions, given)
    names.check_name(env)
    assert own.level and own.steps > 0
    assert all(name == "preset" or name.startswith("agent.") for name in rest)
    return str(own.out)


def test_commands_of_runs() -> None:
    """Agents, options, presets and swept settings exist; data and bases come before their use."""
    for each in REPRODUCTIONS.values():
        for commands in (each.small, each.full):
            check_in_order(each, commands)


def check_in_order(each: Reproduction, commands: tuple[str, ...]) -> None:
    made, runs = {"data/DMSD-high-100000-train.npz"}, set()
    assert len(set(commands)) == len(commands), each.name
    for command in commands:
        first, *words = shlex.split(command)
        if first == "python":
            assert words[:1] == ["-m"]
            parts = words[2:]
            found = importlib.util.find_spec(words[1])
            assert found is not None and found.origin is not None
            text = Path(found.origin).read_text()
            assert all(f'"{x}"' in text for x in parts if x.startswith("--")), command
            if "--data" in parts:
                assert parts[parts.index("--data") + 1] in made, command
            continue
        verb, *words = words
        assert first == "jaxrl" and verb in ("train", "sweep", "data"), command
        if verb == "data":
            assert words.pop(0) == "make"
            made.add(check_data(words))
            continue
        asked = read(verb, words)
        settings = resolve(asked.agent, asked.options)
        own = settings.options
        assert (own.data is None) or str(own.data) in made, command
        assert {str(path) for path in own.base} <= runs, command
        fields = {f.name for f in dataclasses.fields(settings.cfg)}
        fields |= {f.name for f in dataclasses.fields(settings.hp)}
        assert {name.removeprefix("agent.") for name in asked.sweep} <= fields, command
        assert bool(asked.sweep) == (verb == "sweep"), command
        assert str(own.out) not in runs, command
        runs.add(str(own.out))


@pytest.mark.parametrize("each", REPRODUCTIONS.values(), ids=lambda each: each.name)
def test_records(each: Reproduction) -> None:
    assert each.agent in AGENTS and each.claim.endswith(".") and each.published
    assert each.small and each.full
    text = "".join(page.read_text() for page in PAGES.glob("*.md"))
    assert f"`{each.name}`" in text, "no page names the experiment"
