"""Evaluation on the host: the episodes that a device plays; gymnasium's environments; refusals."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest

from jaxrl import drive, envs, hosted, population
from jaxrl.agents import bc
from jaxrl.envs import datasets
from jaxrl.envs.names import EnvError
from jaxrl.evaluate import evaluator
from jaxrl.experiments import cli, jax_setup
from jaxrl.program import Program, train
from jaxrl.types import Box, Discrete, Env, EnvSpec, HyperParams, Policy, TimeStep

LIMIT = 4
SPEC = EnvSpec("drift", (1,), Box((-1.0,), (1.0,), (1,)), LIMIT)


def drift() -> Env:
    """x' = x + a from 0, reward x', over beyond 1.5."""

    def step(key: Any, state: Any, action: Any, params: Any) -> Any:
        x, t = state[0] + action, state[1] + 1
        over = x[0] > 1.5
        return (x, t), TimeStep(x, x[0], over, (t >= LIMIT) & ~over)

    reset = lambda key, params: ((jnp.zeros(1), jnp.int32(0)), jnp.zeros(1))
    return Env(SPEC, {}, reset, step)


class Cell(gymnasium.Env):
    """Observations 1, 2 and 3 of {1, 2, 3}, or images of their bytes."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, image: bool = False) -> None:
        box = gymnasium.spaces.Box(0, 255, (2, 2, 1), np.uint8)
        self.observation_space = box if image else gymnasium.spaces.Discrete(3, start=1)

    def reset(self, **_: Any) -> tuple[Any, dict]:
        self.x = 1
        return self.seen(), {}

    def seen(self) -> Any:
        image = isinstance(self.observation_space, gymnasium.spaces.Box)
        return np.full((2, 2, 1), self.x, np.uint8) if image else self.x

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.x += 1
        return self.seen(), 0.0, self.x == 3, False, {}


def test_observations_of_gymnasium() -> None:
    """Discrete observations are one-hot, images stay bytes; other numbers are float32."""
    gymnasium.register("Cell-v0", Cell)
    cell, image = (envs.make("gymnasium:Cell-v0", image=x) for x in (False, True))
    assert cell.spec == EnvSpec("gymnasium:Cell-v0", (3,), Discrete(2))
    assert image.spec == EnvSpec("gymnasium:Cell-v0", (2, 2, 1), Discrete(2), obs_dtype="uint8")
    act = lambda state, hp, obs, start, memory, noise, explore: (start.astype(jnp.int32), (), {})
    for env in (cell, image):
        players = hosted.Players(hosted.HostRollout(env, Policy(act=act), 1, 2), np.zeros((1, 1)))
        action = np.zeros((1, 1), np.int32)
        window = players.window([0], lambda obs, start, memory, t: (action, (), {}))  # noqa: B023
        got = np.stack([window.transitions.obs, window.transitions.next_obs])[:, 0, :, 0]
        assert got.dtype == env.spec.obs_dtype
        want = np.array([[1, 2], [2, 3]])  # obs and next_obs of two steps
        want = np.eye(3)[want - 1] if env is cell else want[..., None, None, None]
        np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))
        players.close()


def test_discrete_observations_of_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(observation_space=gymnasium.spaces.Discrete(3), close=lambda: None)
    fake = SimpleNamespace(make=lambda *_, **__: pool)
    monkeypatch.setitem(sys.modules, "envpool", fake)  # type: ignore[arg-type]
    with pytest.raises(EnvError, match=r"must be an array of numbers, not Discrete\(3\)"):
        envs.make("envpool:Cell-v0")


class Drift:
    """The same with the methods of gymnasium."""

    open = 0

    def __init__(self) -> None:
        Drift.open += 1

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.x, self.t = np.zeros(1), 0
        return self.x, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert not self.x[0] > 1.5 and self.t < LIMIT, "stepped after its end"
        self.x, self.t = self.x + action, self.t + 1
        over = bool(self.x[0] > 1.5)
        return self.x, float(self.x[0]), over, self.t >= LIMIT and not over, {}

    def close(self) -> None:
        Drift.open -= 1


def on_host() -> Env:
    return dataclasses.replace(drift(), host=Drift)


# Environments differ by their noise alone: 0.25, 0.5, ... a step.
POLICY = Policy(
    act=lambda state, hp, obs, start, memory, noise, explore: (
        state * noise,
        memory + jnp.where(start, 0, 1),
        {},
    ),
    memory=lambda n: jnp.zeros(n, jnp.int32),
    noise=lambda key, n: 0.25 * (1 + jnp.arange(n, dtype=jnp.float32))[:, None],
)


def test_plays_what_the_device_plays() -> None:
    """Each environment its first episode, ended ones left alone, everything closed."""
    args = (jnp.float32(1.0), HyperParams(()), {}, jax.random.key(0))
    want = evaluator(drift(), POLICY, 5)(*args)
    found = evaluator(on_host(), POLICY, 5)(*args)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    np.testing.assert_array_equal(found.lengths, [4, 4, 3, 2, 2])
    assert found.returns[0] == 0.25 + 0.5 + 0.75 + 1.0 and Drift.open == 0


def small(env: Env) -> Program:
    return bc.program(bc.Config(updates=4, batch_size=4, hidden=(4,)), env, evals=2, episodes=3)


def reports(env: Env, **more: Any) -> list[drive.Report]:
    data = jax.tree.map(jnp.asarray, logged.rows(SPEC, 12, 0))
    hp = bc.Hypers(lr=jnp.full(3, 0.1))
    layout = population.layout(3, jax.devices()[:2], 2)
    found = drive.drive(small(env), layout, jax.random.key(0), hp, {"data": data}, **more)
    return [report for report in found if report.evals is not None]


def test_a_run_is_evaluated_at_the_end_of_chunks() -> None:
    """Every member, in padded tiles over devices, like the same run evaluated on devices."""
    host, device = reports(on_host()), reports(drift())
    assert [r.step for r in host] == [2, 4]
    for a, b in zip(host, device, strict=True):
        assert a.evals.returns.shape == (3, 3)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a.evals, b.evals)
        assert a.metrics is not None and b.metrics is not None
        np.testing.assert_array_equal(a.metrics["actor_loss"], b.metrics["actor_loss"])
    assert len(np.unique(host[-1].evals.returns[:, 0])) == 3  # members have learned differently


def test_an_error_closes_what_is_open() -> None:
    made = iter([Drift, Drift])
    with pytest.raises(StopIteration):
        hosted.opened(lambda: next(made)(), 3)
    assert Drift.open == 0


def test_no_compiled_program_has_it() -> None:
    with pytest.raises(ValueError, match="on the host"):
        data = jax.tree.map(jnp.asarray, logged.rows(SPEC, 12, 0))
        train(small(on_host()))(jax.random.key(0), bc.Hypers(), data)


def test_gymnasium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Spaces as gymnasium tells them; training, `jaxrl eval`, and what it cannot do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    env = envs.make("gymnasium:Pendulum-v1")
    assert env.spec == EnvSpec(
        "gymnasium:Pendulum-v1", (3,), Box((-2.0,), (2.0,), (1,)), max_steps=200
    )
    data = logged.rows(env.spec, 12, 0)
    ends = np.ones(12, bool)
    data = data._replace(terminated=~ends, truncated=ends, start=ends)
    datasets.save("data.npz", datasets.Dataset(data, {"reference": {"random": 0, "expert": -1000}}))
    words = ["bc", "--env", env.spec.name, "--data", "data.npz", "--agent.updates", "2"]
    words += ["--agent.hidden", "4", "--evals", "1", "--eval-episodes", "2", "--out", "run"]
    assert cli.main(["train", *words]) == 0
    told = capsys.readouterr().out
    value = float(told.split("return ")[-1].split()[0])
    assert -2500 < value < -100 and f"normalised {-value / 10:.1f}" in told
    assert cli.main(["eval", "run", "--episodes", "2"]) == 0
    assert "200" in capsys.readouterr().out.splitlines()[1].split()  # steps of an episode
    for refused, why in [
        (["train", "pqn", "--env", env.spec.name], "needs discrete actions"),
        (["train", *words[:2], "gymnasium:Nothing-v0", *words[3:]], "Nothing"),
    ]:
        assert cli.main(refused) == 2
        err = capsys.readouterr().err
        assert why in err and err.count("\n") == 1, err
