"""Declared ranges of hyperparameters: the same refusals wherever values come in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.agents import AGENTS, pqn, sac
from jaxrl.envs.wrappers import OPTIONS
from jaxrl.errors import UserError
from jaxrl.experiments import agents, cli, peers, train
from jaxrl.experiments.restore import prepare
from jaxrl.experiments.search.space import Range as Searched
from jaxrl.experiments.settings import known_fields, resolve
from jaxrl.experiments.values import fields_of
from jaxrl.program import Program
from jaxrl.ranges import Range, bounded, ranges_of

INF = float("inf")


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "told"),
    [
        (Range(), [0, -1e30, 5], [INF, -INF, np.nan], "finite"),
        (Range(least=0), [0, 1e30], [-1e-9, INF, np.nan], "at least 0"),
        (Range(above=0, finite=False), [1e-9, INF], [0, -1, np.nan], "above 0"),
        (Range(least=0, most=1), [0, 0.5, 1], [-0.1, 1.5, INF, np.nan], "in [0, 1]"),
        (Range(above=0, below=1), [0.5], [0, 1], "in (0, 1)"),
        (Range(most=2.5), [-7, 2.5], [3], "at most 2.5"),
        (Range(least=1), [(1, 2)], [(1, 0), [0]], "at least 1"),
    ],
)
def test_refusal(allowed: Range, inside: list[Any], outside: list[Any], told: str) -> None:
    assert [allowed.refusal(x) for x in inside] == [""] * len(inside)
    for x in outside:
        both = allowed == Range(least=0) and x == INF
        assert allowed.refusal(x) == (f"finite and {told}" if both else told), x


def test_every_hyperparameter_has_a_range_that_holds_its_default() -> None:
    for name in AGENTS:
        record = agents.load(name).Hypers
        fields, ranges = fields_of(record), ranges_of(record)
        assert fields.keys() == ranges.keys(), name
        assert not any(ranges[x].refusal(each.default) for x, each in fields.items()), name


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("agent", "words", "told"),
    [
        ("pqn", "--lr=-0.001", "--agent.lr must be at least 0, not '-0.001'"),
        ("pqn", "--agent.gamma 1.5", "--agent.gamma must be in [0, 1], not '1.5'"),
        ("pqn", "--max-grad-norm 0", "--agent.max-grad-norm must be above 0, not '0'"),
        ("pqn", "--lr inf", "--agent.lr must be finite and at least 0, not 'inf'"),
        ("iql", "--expectile 1.5", "--agent.expectile must be in (0, 1), not '1.5'"),
        ("cql", "--temperature 0", "--agent.temperature must be above 0, not '0'"),
        ("sac", "--temperature 0", "--agent.temperature must be above 0, not '0'"),
        ("sac", "--target-entropy inf", "--agent.target-entropy must be finite, not 'inf'"),
    ],
)
def test_options_out_of_range(
    agent: str, words: str, told: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", agent, "--env", "Pendulum-v1", *words.split()]) == 2
    assert capsys.readouterr().err == f"jaxrl: {told}\n"
    with pytest.raises(UserError, match=r"agent\..* must be"):
        name, value = words.replace("=", " ").removeprefix("--").removeprefix("agent.").split()
        number: Any = float(value)
        jaxrl.run(agent, env="Pendulum-v1", agent={name.replace("-", "_"): number})
    assert not list(nowhere.iterdir())


def test_calls_of_train_out_of_range() -> None:
    cfg = pqn.Config(total_steps=64, num_envs=4, num_steps=8, minibatches=2, hidden=(4,))
    train = jaxrl.train(pqn.program(cfg, jaxrl.make("CartPole-v1")))
    key = jax.random.key(0)
    with pytest.raises(UserError, match=r"gamma must be in \[0, 1\], not 1.5"):
        train(key, pqn.Hypers(gamma=1.5))
    with pytest.raises(UserError, match="lr must be at least 0, not -1"):
        train(key, jaxrl.HyperParams(pqn.Hypers(lr=jnp.array([0.1, -1.0]))))
    with pytest.raises(UserError, match="max_grad_norm must be above 0, not nan"):
        train(key, pqn.Hypers(max_grad_norm=np.float32("nan")))
    jax.eval_shape(train, key, jax.tree.map(jnp.float32, pqn.Hypers(gamma=1.5)))  # traced


def test_records_without_ranges_are_not_checked() -> None:
    assert ranges_of({"lr": -1.0}) == {} == ranges_of(sac.State)

    @dataclasses.dataclass
    class Own:
        lr: Any = -1.0
        gamma: Any = bounded(0.5, most=1)

    assert ranges_of(Own) == {"gamma": Range(most=1)}


@pytest.mark.parametrize(
    ("total", "told"),
    [
        ("20000", ["total_steps 20,000 is rounded down to 18,432, whole rollouts of 2,048 steps"]),
        ("2.048e4", []),
        ("5e5", ["total_steps 500,000 is rounded down to 499,712, whole rollouts of 2,048 steps"]),
    ],
)
def test_steps_in_scientific_notation_and_rounded(total: str, told: list[str]) -> None:
    request = {"env": "probe:match", "preset": "none", "agent.total_steps": total}
    ready = prepare(resolve("ppo", request))
    assert ready.settings.cfg.total_steps == float(total)
    assert train.rounding(ready) == told
    (stage,) = ready.program.stages
    judge = dataclasses.replace(stage, name="judge", updates=50_000)  # learns from data alone
    two = ready._replace(program=Program((judge, stage)), steps=[0, *ready.steps])
    assert train.rounding(two) == told
    with pytest.raises(UserError, match="takes a whole number, not '5.5'"):
        resolve("ppo", request | {"agent.total_steps": "5.5"})


PEERS = {
    "learning-rate": ("pqn", "--agent.lr"),
    "agent.learning_rate": ("pqn", "--agent.lr"),
    "batch-size": ("ppo", "--agent.minibatches"),
    "buffer-size": ("sac", "--agent.capacity"),
    "num-seeds": ("pqn", "--seeds"),
    "total_timesteps": ("ppo", "--agent.total-steps"),
    "ent_coef": ("ppo", "--agent.entropy-weight"),
    "ent-coef": ("sac", "--agent.temperature"),
    "lambda": ("pqn", "--agent.lam"),
    "env-id": ("pqn", "--env"),
    "normalize-obs": ("dqn", "--env-options normalise_obs=true"),
    "lrr": ("pqn", "--agent.lr"),  # no peer's name, but near
}


@pytest.mark.parametrize("name", PEERS)
def test_names_of_other_libraries(name: str) -> None:
    agent, ours = PEERS[name]
    with pytest.raises(UserError) as caught:
        resolve(agent, {"env": "CartPole-v1", name.replace("-", "_"): "1"})
    assert str(caught.value).endswith(f", did you mean '{ours}'?")


def test_hints_are_options_of_some_agent() -> None:
    own = {x for name in AGENTS for x in known_fields(agents.load(name))}
    for name, hints in peers.PEERS.items():
        assert all({hint, f"agent.{hint}"} & own for hint in hints), name
    for hint in peers.ENV_OPTIONS.values():
        assert hint.partition("=")[0] in (*OPTIONS, "NAME")


def test_values_of_a_search_stay_between_its_ends() -> None:
    units = np.array([0.0, 1.0])
    for low, high, log in [(0.9, 1.0, True), (1e-5, 3e-3, True), (0.1, 0.7, False)]:
        assert Searched(low, high, log).values(units) == [low, high]
