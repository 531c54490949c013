"""Sizes that no agent can have are refused under the names of their settings."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
import tiny

from jaxrl.agents import AGENTS, bc
from jaxrl.errors import UserError, at_least
from jaxrl.experiments import agents, train
from jaxrl.types import Env

DISCRETE = {"pqn", "pqn_rnn", "dqn"}
TEAMS = {"pqn_vdn", "pqn_vdn_rnn"}
NEEDED = {"uni_o4": {"finetune_steps": 2048}, "hnpg": {"horizon": tiny.LIMIT}}
UNUSED = {
    "prdc": {"finetune_steps", "finetune_gradient_steps", "num_envs", "capacity"},
    "props": {"error_steps"},  # has a `Range`
}
IMAGES = {"conv", "kernels", "strides"}  # the environments here have none


def env_for(name: str) -> Env:
    if name in TEAMS:
        return tiny.pair()
    return tiny.walk() if name in DISCRETE else tiny.glide()


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"token_pg"}))
def test_bad_sizes_are_named(name: str) -> None:
    algorithm, env = agents.load(name), env_for(name)
    base = algorithm.base_points and bc.make(bc.Config(), env.spec)
    more: dict[str, Any] = {"base": base} if base else {}
    whole = algorithm.Config(**NEEDED.get(name, {}))
    hints = typing.get_type_hints(algorithm.Config)
    for setting in {each.name for each in dataclasses.fields(whole)} - UNUSED.get(name, set()):
        bad = {int: -10, tuple[int, ...]: (4, 0)}.get(hints[setting])
        if bad is None or setting in IMAGES:
            continue
        shown = 0 if isinstance(bad, tuple) else bad
        cfg = dataclasses.replace(whole, **{setting: bad})
        with pytest.raises(UserError, match=rf"(?<!\w){setting}={shown}(?!\w)"):
            algorithm.program(cfg, env, evals=2, episodes=3, **more)


def test_several_sizes_are_told_by_the_smallest() -> None:
    at_least(1, hidden=(), conv=(3, 1))
    with pytest.raises(UserError, match="^conv=0 must be at least 1$"):
        at_least(1, hidden=(4,), conv=(3, 0))


@pytest.mark.parametrize(
    ("agent", "own", "says"),
    [
        ("pqn", {"hidden": 0}, "agent.hidden=0 must be at least 1"),
        ("dqn", {"capacity": -10}, "agent.capacity=-10 must be at least 1"),
        ("dqn", {"capacity": 10}, "too few for agent.warmup=10000"),
        ("ppo", {"minibatches": 7}, "agent.minibatches=7 does not divide num_envs * num_steps = "),
    ],
)
def test_runs_name_options(agent: str, own: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"{says.replace('*', '.')}"):
        train.run(agent, env="probe:match", agent=own, dry_run=True)
