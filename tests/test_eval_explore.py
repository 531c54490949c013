"""Evaluation with exploration: `--eval-explore`, for every agent, in runs and in Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxrl
from jaxrl import envs
from jaxrl.errors import UserError
from jaxrl.evaluate import Evaluator, HostEvaluator, evaluator
from jaxrl.experiments import agents, cli, jax_setup, restore, summary
from jaxrl.experiments.restore import prepare
from jaxrl.experiments.settings import identity, resolve
from jaxrl.program import Program
from jaxrl.types import Policy

TINY = "--env probe:match --preset none --total-steps 64 --num-envs 4 --num-steps 8 --evals 1"


def test_evaluations_act_as_asked() -> None:
    """A policy that answers right only while exploring: `probe:match` pays 1 for it, else -1."""

    def act(state, hp, obs, start, memory, noise, explore):
        right = (obs[:, 0] > 0).astype(jnp.int32)
        return (right if explore else 1 - right), memory, {}

    play = evaluator(envs.make("probe:match"), Policy(act=act), 16)
    assert isinstance(play, Evaluator)
    args = ((), jaxrl.HyperParams(()), {}, jax.random.key(0))
    greedy, exploring = play(*args), dataclasses.replace(play, explore=True)(*args)
    assert set(greedy.returns.tolist()) == {-1.0} and set(exploring.returns.tolist()) == {1.0}


@pytest.mark.parametrize("name", ["pqn_rnn", "ppo", "sac", "iql", "ravl", "dql", "pgd_td3bc"])
def test_programs_of_all_kinds_can_be_evaluated_so(name: str) -> None:
    env = envs.make("probe:match" if name == "pqn_rnn" else "probe:aim")
    algorithm = agents.load(name)
    program = algorithm.program(algorithm.Config(), env).exploring()
    plays = [each.evaluate for each in program.stages if each.evaluate is not None]
    assert plays and all(isinstance(x, Evaluator | HostEvaluator) and x.explore for x in plays)


def test_evaluations_of_ones_own_are_refused() -> None:
    (stage,) = prepare(resolve("pqn", {"env": "probe:match"})).program.stages
    own = dataclasses.replace(stage, evaluate=lambda *args: ())
    with pytest.raises(UserError, match="stage 'agent' has its own evaluation"):
        Program((own,)).exploring()
    assert Program((dataclasses.replace(stage, evaluate=None),)).exploring().stages


def test_the_option_is_part_of_the_identity_only_if_given() -> None:
    plain, given = (
        resolve("pqn", {"env": "probe:match", "eval_explore": explore}) for explore in (False, True)
    )
    assert "eval_explore" not in identity(plain, {}) and identity(given, {})["eval_explore"]
    (stage,) = prepare(given).program.stages
    assert isinstance(stage.evaluate, Evaluator) and stage.evaluate.explore


@pytest.mark.slow
def test_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epsilon stays at 1, so exploring returns are those of a coin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    words = ["train", "pqn", *TINY.split(), "--hidden", "4", "--minibatches", "2"]
    words += ["--eps-end", "1", "--lr", "0", "--eval-episodes", "64", "--out", "run"]
    assert cli.main([*words, "--eval-explore"]) == 0
    assert "(IQM, with exploration, no interval" in capsys.readouterr().out
    found: Any = jaxrl.run(
        "pqn", env="probe:match", eval_explore=True, out="run", preset="none", eval_episodes=64,
        evals=1,
        agent={"total_steps": 64, "num_envs": 4, "num_steps": 8, "hidden": 4, "minibatches": 2,
               "eps_end": 1, "lr": 0},
    )  # fmt: skip
    assert found["return"]["explore"] and abs(found["return"]["mean"]) < 0.6
    assert cli.main(words) == 2  # another configuration
    seen = []
    record = lambda *_, **how: seen.append(how["explore"]) or 1 / 0
    monkeypatch.setattr(restore, "evaluate", record)
    assert cli.main(["eval", "run", "--eval-explore"]) == 1 and seen == [True]


def test_summaries_without_the_entry() -> None:
    told = {"iqm": 1.0, "ci95": [0.5, 1.5], "min": 0.0}
    line = summary.result({"return": told, "members": 1, "failed_members": []})
    assert line.startswith("return 1 (IQM, 95 %")
