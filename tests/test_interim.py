"""Fewer episodes at evaluations before a stage's last one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
import toys

from jaxrl import drive, population
from jaxrl.agents import bc
from jaxrl.evaluate import Evaluator, HostEvaluator, divisor, evaluator
from jaxrl.experiments import train_loop
from jaxrl.experiments.requests import of_run
from jaxrl.experiments.restore import prepare
from jaxrl.experiments.settings import identity, resolve
from jaxrl.program import Program
from jaxrl.runs.files import plain
from jaxrl.types import Env, HyperParams, Policy

STAY = Policy(
    act=lambda state, hp, obs, start, memory, noise, explore: (jnp.zeros((len(obs), 1)), (), {})
)


def test_the_last_evaluation_is_several_interim_ones() -> None:
    """Each with episodes of its own; an interim evaluation is the first of them."""
    env = measuring(toys.drift())
    play, key = evaluator(env, STAY, 6), jax.random.key(1)
    assert isinstance(play, Evaluator)
    args = ((), HyperParams((), env.params), {})
    play = jax.jit(play.fewer(2))
    parts = [evaluator(env, STAY, 2)(*args, jax.random.fold_in(key, i)) for i in range(3)]
    want = [np.concatenate(x) for x in list(zip(*parts, strict=True))[:3]]
    last, interim = play(*args, key, True), play(*args, key, False)
    assert len(np.unique(want[0])) == 6
    jax.tree.map(np.testing.assert_array_equal, list(last[:3]), want)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:2], b[:2]), list(interim[:3]), want)
    assert np.isnan(interim.returns[2:]).all() and not interim.lengths[2:].any()
    np.testing.assert_allclose(last.measured["x"], np.mean([x.measured["x"] for x in parts]))
    np.testing.assert_allclose(interim.measured["x"], parts[0].measured["x"])
    kept = jax.tree.map(lambda x: np.asarray(x)[None], interim).played()
    np.testing.assert_array_equal(kept.returns[0], want[0][:2])


def test_measures_are_computed_once() -> None:
    """With the keys of the evaluation, whatever the number of its episodes."""
    env = toys.drift()
    play = evaluator(env, STAY, 6)
    assert isinstance(play, Evaluator)
    drawn = lambda name: lambda state, hp, inputs, key: {name: jax.random.normal(key)}
    play = play.measuring(drawn("a")).measuring(drawn("b"))
    args = ((), HyperParams((), env.params), {}, jax.random.key(1))
    every, fewer = play(*args), play.fewer(2)(*args)
    assert every.measured == fewer.measured and every.measured["a"] != every.measured["b"]


def measuring(env: Env) -> Env:
    """`env` with a measure x, the position."""

    def step(*args: Any) -> Any:
        state, ts = env.step(*args)
        return state, ts._replace(measured={"x": ts.next_obs[0]})

    return dataclasses.replace(env, step=step, spec=dataclasses.replace(env.spec, measures=("x",)))


@pytest.mark.parametrize(
    ("episodes", "least", "found"), [(128, 32, 32), (200, 32, 40), (10, 32, 10), (7, 2, 7)]
)
def test_the_number_divides_the_episodes(episodes: int, least: int, found: int) -> None:
    assert divisor(episodes, least) == found


class Same:
    """An environment of the host: the return of an episode is the seed of its reset."""

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.seed = seed % 1000
        return np.zeros(2), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2), float(self.seed), True, False, {}

    def close(self) -> None: ...


def test_on_the_host() -> None:
    play = evaluator(dataclasses.replace(toys.drift(), host=Same), STAY, 6)
    assert isinstance(play, HostEvaluator)
    args = ((), HyperParams(()), {}, jax.random.key(1))
    last, interim = play.fewer(2)(*args), play.fewer(2)(*args, last=False)
    jax.tree.map(np.testing.assert_array_equal, last, play(*args))
    np.testing.assert_array_equal(interim.returns[:2], last.returns[:2])
    assert interim.lengths.tolist() == [1, 1, 0, 0, 0, 0] and np.isnan(interim.returns[2:]).all()


def test_both_drivers() -> None:
    env = toys.drift()
    cfg = bc.Config(updates=4, batch_size=4, hidden=(4,))
    program: Program = bc.program(cfg, env, evals=2, episodes=4).with_interim(2)
    data = jax.tree.map(jnp.asarray, logged.rows(env.spec, 12, 0))
    hp = bc.Hypers(lr=jnp.full(4, 0.1))
    args = (jax.random.key(0), HyperParams(hp, {"noise": jnp.full(4, 0.3)}), {"data": data})
    layout = population.layout(4, jax.devices()[:2], 2)
    first, last = [r for r in drive.drive(program, layout, *args) if r.evals is not None]
    key, hp, inputs = args
    result = jax.jit(population.train(program, layout))(key, jnp.arange(4), hp, inputs)
    for index, report in enumerate((first, last)):
        want = jax.tree.map(lambda x: x[index], result.evals["agent"])  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, report.evals, want)
    assert first.evals.played().returns.shape == (4, 2)
    assert last.evals.played().returns.shape == (4, 4)
    columns = train_loop.metrics_of(first)
    assert columns is not None
    np.testing.assert_array_equal(columns["return"], first.evals.returns[:, :2].mean(1))


def test_the_option() -> None:
    """It is part of the identity where there are fewer episodes."""
    plain, short = (
        resolve("pqn", {"env": "CartPole-v1", **x}) for x in ({}, {"eval_episodes": 32})
    )
    given = resolve("pqn", {"env": "CartPole-v1", "interim_episodes": 15})
    for settings, count in ((plain, 32), (given, 16)):
        (stage,) = prepare(settings).program.stages
        assert isinstance(stage.evaluate, Evaluator)
        assert (stage.evaluate.episodes, stage.evaluate.interim) == (128, count)
    found = [identity(x, {}).get("interim_episodes") for x in (plain, given, short)]
    assert found == [32, 16, None]


@pytest.mark.parametrize(
    "agent, options",
    [
        ("pqn", {"env": "CartPole-v1"}),
        ("pqn", {"env": "CartPole-v1", "eval_episodes": 8}),
        ("pqn", {"env": "CartPole-v1", "eval_episodes": 128, "interim_episodes": 128}),
        ("pqn", {"env": "CartPole-v1", "eval_episodes": 100, "interim_episodes": 15}),
        ("pqn", {"env": "CartPole-v1", "eval_first": True, "seeds": 3, "env_options": {"a": 1}}),
        ("iql", {"env": "brax:hopper"}),  # whose preset normalises returns
        ("iql", {"env": "brax:hopper", "normalise_returns": False, "agent.hidden": (8,)}),
    ],
)
def test_a_recorded_run_repeats(agent: str, options: dict[str, Any]) -> None:
    """The request in config.json has the identity of the run."""
    own = plain(identity(resolve(agent, options), {}))
    request = of_run({"config": own, "context": {}}, "config.json")
    assert plain(identity(resolve(agent, request.options), {})) == own
