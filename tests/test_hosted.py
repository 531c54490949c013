"""Training in environments of the host: windows against a loop in numpy, members, resume, runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import drive, envs, population
from jaxrl.agents import pqn
from jaxrl.envs.gymnasium import Processes
from jaxrl.errors import UserError
from jaxrl.experiments import cli, jax_setup
from jaxrl.experiments import train as experiments_train
from jaxrl.hosted import Sequential
from jaxrl.program import Program, Stage, train
from jaxrl.rollout import rollout
from jaxrl.sources import replay
from jaxrl.types import Agent, Box, Env, EnvSpec, HyperParams, Policy, PyTree, Transition

N, T, LIMIT = 2, 5, 4
UPDATES = 3
SPEC = EnvSpec("walk", (2,), Box((-9.0,), (9.0,), (1,)), LIMIT)


class Walk:
    """x' = x + a from a start that depends on seed and episode; reward x', over beyond 7.

    It has no time limit of its own, and refuses steps after its end.
    """

    made: list[Walk] = []
    open = 0

    def __init__(self) -> None:
        Walk.made.append(self)
        Walk.open += 1
        self.episode = 0

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self.seed = seed
        self.episode += 1
        self.over, self.x = False, np.float32(self.seed % 7 / 8 + self.episode / 16)
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        return np.array([self.x, self.episode], np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert not self.over
        self.x = np.float32(self.x + action[0])
        self.over = bool(self.x > 7)
        return self.seen(), float(self.x), self.over, False, {}

    def close(self) -> None:
        Walk.open -= 1


def refuse(*_: Any) -> Any:
    raise AssertionError("compiled")


WALK = Env(SPEC, {}, refuse, refuse, Walk)


class Kept(NamedTuple):
    speed: Any  # action at the first step of an episode
    window: Transition
    memory: Any


def keeper() -> Agent:
    """Moves by `speed` plus the steps since the start; keeps its last window, and speeds up."""

    def init(key: Any, hp: Any, inputs: PyTree) -> Kept:
        zeros, none = jnp.zeros((T, N)), jnp.zeros((T, N), bool)
        obs, action = jnp.zeros((T, N, 2)), jnp.zeros((T, N, 1))
        window = Transition(obs, action, zeros, obs, none, none, none, {"age": zeros})
        return Kept(hp["speed"], window, jnp.zeros(N))

    def act(state: Kept, hp: Any, obs: Any, start: Any, memory: Any, noise: Any, explore: bool):
        age = jnp.where(start, 0.0, memory)
        return (state.speed + age)[:, None], age + 1, {"age": age}

    def update(state: Kept, hp: Any, batch: Any, key: Any, step: Any):
        return Kept(state.speed + 0.25, batch.transitions, batch.memory), {"step": step * 1.0}

    return Agent(init=init, act=act, update=update, memory=lambda n: jnp.zeros(n))


def stage(source: Any, learner: Any = None) -> Program:
    return Program((Stage(name="agent", learner=learner, source=source, updates=UPDATES),))


def windows(start: Walk, speed: float) -> list[dict[str, Any]]:
    """One row per step of UPDATES windows in an environment like `start`, by a plain loop."""
    game, rows, fresh, age, total, length = Walk(), [], True, 0, 0.0, 0
    obs, _ = game.reset(start.seed)
    for step in range(UPDATES * T):
        before, age = age, 0 if fresh else age
        action = np.float32(speed + 0.25 * (step // T) + age)
        next_obs, reward, terminated, _, _ = game.step(np.array([action]))
        total, length = total + reward, length + 1
        truncated = length >= LIMIT and not terminated
        row = {"obs": obs, "action": [action], "reward": reward, "next_obs": next_obs}
        row |= {"terminated": terminated, "truncated": truncated, "start": fresh, "age": age}
        rows.append(row | {"total": total, "length": length, "memory": before})
        obs, fresh, age = next_obs, terminated or truncated, age + 1
        if fresh:
            obs, total, length = game.reset()[0], 0.0, 0
    return rows


def run(program: Program, speeds: list[float], **more: Any) -> list[drive.Report]:
    Walk.made = []
    hp = {"speed": jnp.array(speeds)}
    layout = population.layout(len(speeds), jax.devices()[:2], 2 if len(speeds) > 1 else 1)
    return list(drive.drive(program, layout, jax.random.key(0), hp, {}, **more))


def test_windows() -> None:
    """Members in padded tiles over devices see what a loop sees; a resumed run starts episodes."""
    agent, built, speeds = keeper(), {}, [0.0, 0.5, 3.0]
    program = stage(rollout(WALK, agent, N, T), agent)
    hooks = drive.Hooks(built=built, pace=1e-9, snapshot=lambda *_: True)
    reports = run(program, speeds, hooks=hooks)
    games, last = Walk.made[: len(speeds) * N], reports[-1]
    assert len({game.seed for game in games}) == len(games) and Walk.open == 0
    found: Kept = last.snapshot.member.learner  # type: ignore[union-attr]
    ends = []
    for member, speed in enumerate(speeds):
        for i in range(N):
            rows = windows(games[member * N + i], speed)
            for t, row in enumerate(rows[-T:]):
                for name in Transition._fields[:-1]:
                    at = getattr(found.window, name)[member, t, i]
                    np.testing.assert_array_equal(at, row[name], err_msg=f"{name} {member} {t} {i}")
                assert found.window.extras["age"][member, t, i] == row["age"]
            assert found.memory[member, i] == rows[-T]["memory"]
            ends += [(member, r) for r in rows if r["terminated"] or r["truncated"]]
    assert {r["terminated"] for _, r in ends} == {True, False}
    for member in range(len(speeds)):  # the metrics of the whole chunk
        own = [r for m, r in ends if m == member]
        assert last.metrics is not None
        mean = lambda name, own=own: np.mean([r[name] for r in own])
        np.testing.assert_allclose(last.metrics["episode_return"][member], mean("total"), 1e-6)
        np.testing.assert_allclose(last.metrics["episode_length"][member], mean("length"), 1e-6)
        assert last.metrics["step"][member] == np.mean(range(UPDATES))

    saved = next(r.snapshot for r in reports if r.step == UPDATES - 1)
    seeds = {game.seed for game in games}
    again = run(program, speeds, resume=saved, hooks=drive.Hooks(built=built))[-1]
    kept: Kept = again.snapshot.member.learner  # type: ignore[union-attr]
    assert kept.window.start[:, 0].all() and seeds.isdisjoint(g.seed for g in Walk.made)
    np.testing.assert_array_equal(kept.speed, found.speed)


def test_a_member_is_its_solo_run() -> None:
    agent = keeper()
    program = stage(rollout(WALK, agent, N, T), agent)
    final = lambda reports: reports[-1].snapshot.member.learner
    pair = final(run(program, [0.0, 1.0]))
    seeds = [game.seed for game in Walk.made]
    solo = final(run(program, [1.0], ids=np.array([1], np.int32)))
    assert [game.seed for game in Walk.made] == seeds[N:]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[0]), pair, solo)


def test_replay() -> None:
    """A ring with the warm-up's windows first: its actions, played again, give its rows."""
    agent = Agent(init=lambda key, hp, inputs: hp["speed"], act=keeper().act, update=nothing)

    def act(state: Any, hp: Any, obs: Any, start: Any, memory: Any, noise: Any, explore: bool):
        return jnp.full((len(obs), 1), state + 0.5), (), {}

    def idle(state: Any, hp: Any, obs: Any, start: Any, memory: Any, noise: Any, explore: bool):
        return jnp.full((len(obs), 1), 0.1), (), {}

    start, inner = Policy(act=idle), rollout(WALK, Policy(act=act), N, T)
    source = replay(inner, 99 * N * T, 4, warmup=2, first=rollout(WALK, start, N, T))
    ring = run(stage(source, agent), [0.5])[-1].snapshot.member.source.ring  # type: ignore
    seeds = [game.seed for game in Walk.made]
    steps = jax.tree.map(lambda x: x[0, : 2 + UPDATES].reshape(-1, N, *x.shape[4:]), ring)
    assert (steps.action[: 2 * T] == np.float32(0.1)).all()
    assert (steps.action[2 * T :] == 1).all() and not ring.action[0, 2 + UPDATES :].any()
    for i, seed in enumerate(seeds):
        game = Walk()
        obs, _ = game.reset(seed)
        for t, action in enumerate(steps.action[:, i]):
            np.testing.assert_array_equal(steps.obs[t, i], obs)
            obs = game.step(action)[0]
            np.testing.assert_array_equal(steps.next_obs[t, i], obs)
            if steps.done[t, i]:
                obs = game.reset()[0]


def nothing(state: Any, hp: Any, batch: Any, key: Any, step: Any) -> Any:
    return state, {"reward": jnp.mean(batch.transitions.reward)}


def test_refusals() -> None:
    agent = keeper()
    with pytest.raises(UserError, match="runs on the host"):
        rollout(WALK, agent, N, T, keep=1)
    other = r"do not overlap: pass --agent.memory-window 0; agents for it: pqn, (\w+, )*ppo"
    with pytest.raises(UserError, match=other):
        experiments_train.run("pqn_rnn", env="gymnasium:CartPole-v1", dry_run=True)
    own = {"memory_window": 0, "hidden": 0}
    with pytest.raises(UserError, match="agent.hidden=0 must be at least 1$"):
        experiments_train.run("pqn_rnn", env="gymnasium:CartPole-v1", agent=own, dry_run=True)
    source = rollout(WALK, agent, N, T)
    with pytest.raises(UserError, match="walk runs on the host, which no compiled function"):
        source.next((), None, HyperParams(()), {}, jax.random.key(0), jnp.int32(0))
    with pytest.raises(ValueError, match="acts on the host"):
        train(stage(rollout(WALK, agent, N, T), agent))(jax.random.key(0), {"speed": 1.0})
    with pytest.raises(UserError, match="vector of gymnasium:CartPole-v1 must be sync or async"):
        envs.make("gymnasium:CartPole-v1", vector="both")
    assert envs.make("gymnasium:CartPole-v1", max_steps=7).spec.max_steps == 7


@pytest.mark.slow
def test_processes() -> None:
    """Environments in processes are those of one process, ends and restarts included."""
    env = envs.make("gymnasium:CartPole-v1")
    assert env.host is not None
    together = (Sequential(env.host, 3), Processes(env.host, 3))

    def both(f: Any) -> None:
        a, b = (np.array(f(each)) for each in together)
        np.testing.assert_array_equal(a, b)

    both(lambda games: games.reset([1, 2, 3]))
    ended, ends = np.zeros(3, bool), 0
    for t in range(60):
        if ended.any():
            both(lambda games, ended=ended: games.restart(ended)[ended])
        action = np.array([1, t % 2, 1], np.int32)
        a, b = (games.step(action) for games in together)
        jax.tree.map(np.testing.assert_array_equal, a[:1] + a[2:], b[:1] + b[2:])
        ended = a[2]
        ends += ended.sum()
    assert ends > 5
    for games in together:
        games.close()


@pytest.mark.slow
@pytest.mark.optimised
def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """PQN learns CartPole on the host; the files of a run, `jaxrl eval`, other agents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    words = ["--env", "gymnasium:CartPole-v1", "--eval-episodes", "8", "--out"]
    sizes = ["--agent.total-steps", "200000", "--agent.hidden", "64,64", "--evals", "3"]
    sizes += ["--agent.num-steps", "32", "--agent.minibatches", "8", "--agent.lr", "5e-4"]
    sizes += ["--agent.reward-scale", "0.1"]
    assert cli.main(["train", "pqn", *words, "pqn", *sizes]) == 0
    assert "new episodes" in capsys.readouterr().out
    summary = json.loads(Path("pqn/summary.json").read_text())
    assert summary["return"]["iqm"] > 300, summary["return"]
    assert cli.main(["eval", "pqn", "--episodes", "2"]) == 0
    steps = ["--agent.total-steps", "2000", "--evals", "2"]
    small = {"ppo": ["--agent.num-steps", "32", "--agent.num-envs", "8"]}
    small["ppo"] += ["--agent.actor", "8", "--agent.critic", "8", "--agent.minibatches", "4"]
    small["dqn"] = ["--agent.warmup", "200", "--agent.num-envs", "4", "--agent.hidden", "8"]
    for agent, own in small.items():
        assert cli.main(["train", agent, *words, agent, *steps, *own, "--seeds", "2"]) == 0


def test_spec() -> None:
    """Agents see a host environment by its spec alone."""
    env = envs.make("gymnasium:CartPole-v1")
    program = pqn.program(pqn.Config(num_envs=4, num_steps=8, minibatches=2), env)
    source = program.stages[0].source
    assert source.env_steps == 32 and source.host.make().reset([0, 1, 2, 3]).shape == (4, 4)
