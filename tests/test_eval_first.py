"""An evaluation before the first update: `--eval-first`, in programs and in runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

import jaxrl
from jaxrl import envs
from jaxrl.agents import pqn
from jaxrl.errors import UserError
from jaxrl.experiments import requests
from jaxrl.experiments.search import loop
from jaxrl.program import Program, evaluate_fn, initialise_fn, stage_key, train
from jaxrl.runs.metrics import by_chunk
from jaxrl.runs.records import RunDir, read_metrics
from jaxrl.types import HyperParams

TINY: Any = {"total_steps": 96, "num_envs": 4, "num_steps": 8, "hidden": (4,), "minibatches": 2}


@pytest.mark.slow
def test_one_more_row_and_the_same_bits() -> None:
    env = tiny.walk()
    program = pqn.program(pqn.Config(**TINY), env, evals=2, episodes=4)
    longer = program.from_the_start()
    key, hypers = jax.random.key(3), pqn.Hypers()
    plain, found = (jax.jit(train(each))(key, hypers) for each in (program, longer))
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, plain.states, found.states)
    jax.tree.map(
        lambda a, b: same(a, b[1:]), (plain.evals, plain.metrics), (found.evals, found.metrics)
    )
    assert not found.metrics["agent"]["loss"].weight[0]

    (stage,) = longer.stages
    hp = HyperParams(hypers, env.params)
    own = {"key": stage_key(key, 0), "hp": jax.tree.map(np.float32, hp), "inputs": {}}
    _, state = jax.jit(initialise_fn(stage))((), own, {"inputs": {}})
    shared = {"inputs": {}, "step": np.int32(0)}
    _, first = jax.jit(evaluate_fn(stage))((), {"state": state, "inputs": {}}, shared)
    same(first.returns, found.returns[0])


def test_only_the_first_evaluated_stage() -> None:
    (stage,) = pqn.program(pqn.Config(**TINY), envs.make("CartPole-v1")).stages
    blind = dataclasses.replace(stage, name="blind", evaluate=None)
    later = dataclasses.replace(stage, name="later", start="agent")
    marked = [each.first for each in Program((blind, stage, later)).from_the_start().stages]
    assert marked == [False, True, False]
    hosted = dataclasses.replace(stage, source=dataclasses.replace(stage.source, host=object()))
    with pytest.raises(UserError, match="acts on the host"):
        Program((hosted,)).from_the_start()


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds; the row of update 0 has returns and no losses."""
    monkeypatch.chdir(tmp_path)
    given: Any = {"env": "probe:match", "preset": "none", "seeds": 2, "evals": 2, "agent": TINY}
    jaxrl.run("pqn", eval_first=True, eval_episodes=4, out="run", **given)
    run = RunDir(Path("run"))
    rows = by_chunk(read_metrics(run), 2)
    assert rows["update"][:, 0].tolist() == [0, 2, 3]
    assert np.isfinite(rows["return"]).all() and (np.abs(rows["return"]) <= 1).all()
    assert np.isnan(rows["loss"][0]).all() and np.isfinite(rows["loss"][1:]).all()
    assert run.members()["best_return"].tolist() == np.nanmax(rows["return"], 0).tolist()
    words = "pqn --env CartPole-v1 --eval-first --trials 1 --range agent.lr=0.1,0.2".split()
    with pytest.raises(UserError, match="remove --eval-first"):
        loop.run(requests.read("search", words))
