"""Adapters of environment suites; those that are not installed are skipped."""

import enum
import itertools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxrl import envs
from jaxrl.agents import ppo, pqn
from jaxrl.envs import EnvError, UnknownEnv, check_name, names, registry
from jaxrl.envs.suites import TASKS, common, craftax, jumanji, playground
from jaxrl.envs.suites.pgx import random_opponent
from jaxrl.experiments import cli, render
from jaxrl.masks import Masked, Views
from jaxrl.program import train
from jaxrl.types import Box, Discrete

# Traced at once by tests without the mark `slow`; the others take seconds each.
QUICK = (
    "craftax:Craftax-Classic-Symbolic-v1",
    "jaxmarl:MPE_simple_spread_v3",
    "jaxmarl:SMAX-2s3z",
    "jumanji:Game2048-v1",
    "navix:Navix-Empty-5x5-v0",
    "pgx:connect_four",
    "playground:CartpoleBalance",
    "xminigrid:MiniGrid-Empty-5x5",
)
EVERY = [f"{suite}:{task}" for suite, tasks in TASKS.items() for task in tasks]


def needed(name: str) -> str:
    """`name`, or the test is skipped."""
    suite = name.partition(":")[0]
    if not names.installed(suite):
        pytest.skip(f"{suite} is not installed")
    return name


# --- names ---------------------------------------------------------------------------------------


def test_listed_if_installed(monkeypatch, capsys):
    monkeypatch.setattr(names, "installed", lambda suite: suite == "pgx")
    listed = dict(names.names())
    assert "pgx:connect_four" in listed and "CartPole-v1" in listed
    assert not [name for name in listed if name.startswith(("brax:", "craftax:", "jumanji:"))]
    assert cli.main(["list", "envs"]) in (None, 0)
    out = capsys.readouterr().out
    assert "pgx:connect_four" in out and 'pip install -e ".[craftax]"' in out
    assert f"craftax: {len(TASKS['craftax'])} environments" in out
    assert 'envpool: environments on the host, pip install -e ".[envpool]"' in out
    assert "on the host:" not in out


def test_all_installed(monkeypatch, capsys):
    monkeypatch.setattr(names, "installed", lambda suite: True)
    assert names.missing() == [] and set(EVERY) < set(dict(names.names()))
    assert cli.main(["list", "envs"]) in (None, 0)
    out = capsys.readouterr().out
    assert "not installed" not in out
    assert "\non the host:\n  gymnasium:ID  " in out and "\n  envpool:ID    " in out


@pytest.mark.parametrize("suite", TASKS)
def test_not_installed(monkeypatch, suite):
    monkeypatch.setattr(names, "installed", lambda suite: False)
    for function in (check_name, envs.make):
        with pytest.raises(
            EnvError, match=f"^{suite} is not installed: (pip install|needs Py)"
        ) as e:
            function(f"{suite}:Some-Task")
        assert "\n" not in str(e.value)


def test_suites_are_those_with_tasks_and_modules():
    assert set(names.SUITES) == {*TASKS, "brax"} and all(TASKS.values())
    with pytest.raises(UnknownEnv, match="did you mean 'Snake-v1'"):
        common.check_task("jumanji", "Snake", ["Snake-v1", "Maze-v0"])


def test_import_errors_are_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pgx", None)
    with pytest.raises(
        EnvError, match=r'^pgx cannot be imported \(.*\): pip install -e "\.\[pgx\]"$'
    ):
        common.load("pgx", "pgx")


# --- parts of adapters ---------------------------------------------------------------------------


def test_joint_masks():
    """A joint action is legal if its mask says so, or if all of its parts are legal."""
    sizes, rng = (3, 3), np.random.default_rng(0)
    joint = rng.random(sizes) < 0.5
    np.testing.assert_array_equal(jumanji.joint_mask(jnp.asarray(joint), sizes), joint.ravel())
    for count in (1, 2, 3):
        sizes = (3,) * count
        rows = rng.random((count, 3)) < 0.6
        parts = itertools.product(range(3), repeat=count)
        expected = [all(rows[i, x] for i, x in enumerate(part)) for part in parts]
        found = jumanji.joint_mask(jnp.asarray(rows), sizes)
        np.testing.assert_array_equal(found, expected if count > 1 else rows[0])


def test_random_opponents_choose_legal_actions():
    legal = jnp.array([False, True, False, True])
    keys = jax.random.split(jax.random.key(0), 64)
    found = jax.vmap(random_opponent, (0, None, None))(keys, jnp.zeros(1), legal)
    assert set(np.asarray(found)) == {1, 3}


class Achievement(enum.Enum):
    WOOD = 0
    STONE = 1


@struct.dataclass
class Params:
    max_timesteps: int = 10


@struct.dataclass
class World:
    achievements: jax.Array
    timestep: int


class Game:
    """Like Craftax: `done` is death, after action 2, or the time limit."""

    default_params = Params()
    num_actions = 3

    def reset_env(self, key, params):
        return jnp.zeros(2), World(jnp.zeros(2, bool), 0)

    def step_env(self, key, state, action, params):
        state = World(state.achievements.at[action % 2].set(True), state.timestep + 1)
        done = (action == 2) | (state.timestep >= params.max_timesteps)
        return jnp.ones(2) * state.timestep, state, 1.0, done, {}


def test_craftax_time_limit_and_achievements(monkeypatch):
    game = types.SimpleNamespace(make_craftax_env_from_name=lambda task, auto_reset: Game())
    constants = types.SimpleNamespace(Achievement=Achievement)
    found = {"craftax.craftax_env": game, "craftax.craftax_classic.constants": constants}
    monkeypatch.setattr(craftax, "load", lambda module, suite: found[module])
    env = craftax.make("Craftax-Classic-Symbolic-v1", max_steps=3)
    registry.check_env(env)
    assert env.spec.measures == ("achievement_wood", "achievement_stone")

    def play(actions):
        state, _ = env.reset(jax.random.key(0), {})
        for action in actions:
            state, ts = env.step(jax.random.key(0), state, jnp.int32(action), {})
        return ts

    last = play([1, 1, 1])
    assert bool(last.truncated) and not bool(last.terminated) and float(last.next_obs[0]) == 3
    assert [float(x) for x in last.measured.values()] == [0, 1]
    died = play([0, 1, 2])
    assert bool(died.terminated) and not bool(died.truncated)
    assert not bool(play([1, 1]).truncated)


# --- with the suites -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
def test_contract(name):
    env = envs.make(needed(name))
    registry.check_env(env)
    suite, _, task = name.partition(":")
    assert registry.describe(env.spec) == TASKS[suite][task] and env.spec.name == name


def test_svg_pages():
    page = common.svg_page(['<?xml version="1.0"?><svg>a</svg>', "<svg>b</svg>"])
    assert "<div><svg>a</svg></div><div><svg>b</svg></div>" in page and 'max="1"' in page


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_drawings(name):
    """Two steps are drawn, as images that differ or as a page."""
    env = envs.make(needed(name))
    state, _ = env.reset(jax.random.key(0), env.params)
    states = [state]
    for t in range(2):
        act = jnp.full(env.spec.agents or (), 3)
        act = act if isinstance(env.spec.action, Discrete) else jnp.ones(1)
        states.append(jax.jit(env.step)(jax.random.key(t), states[-1], act, env.params)[0])
    plain = [jax.tree.map(np.asarray, render._plain(each)) for each in states]
    drawn = env.render(jax.tree.map(lambda *x: np.stack(x), *plain), env.params)
    if isinstance(drawn, str):
        assert drawn.lstrip().lower().startswith(("<!doctype html", "<html"))
    else:
        assert drawn.dtype == np.uint8 and drawn.shape[0] == 3 and drawn.shape[3] == 3
        assert drawn.std() > 5


def test_connect_four():
    """Moves in turn, full columns illegal, and games end with a reward of 1, 0 or -1."""
    env = envs.make(needed("pgx:connect_four"), max_steps=100)
    first = lambda key, obs, legal: jnp.argmax(legal)
    against = envs.make("pgx:connect_four", opponent=first)

    def game(env, choose, key):
        def move(carry, key):
            state, seen, over = carry
            after, ts = env.step(key, state, choose(seen.legal), {})
            keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(over, x, y), a, b)
            pieces = jnp.sum(ts.next_obs.obs)
            out = (~over, ts.reward, ts.terminated, pieces, seen.legal)
            return (keep(state, after), keep(seen, ts.next_obs), over | ts.terminated), out

        keys = jax.random.split(key, 22)
        state, seen = env.reset(keys[0], {})
        return jax.lax.scan(move, (state, seen, jnp.zeros((), bool)), keys)[1]

    keys = jax.random.split(jax.random.key(0), 8)
    for played in (env, against):
        run = jax.jit(jax.vmap(lambda key, env=played: game(env, jnp.argmax, key)))
        live, reward, ended, pieces, legal = map(np.asarray, run(keys))
        assert ended[live].sum() == 8 and np.isin(reward[live & ended], [-1, 0, 1]).all()
        assert not reward[live & ~ended].any()
        assert np.isin(np.diff(pieces)[live[:, 1:] & ~ended[:, 1:]], [2]).all()
        assert legal.any(-1).all()
    with pytest.raises(EnvError, match="opponent of pgx:connect_four must be random"):
        envs.make("pgx:connect_four", opponent="strong")


@pytest.mark.slow
def test_pqn_beats_the_random_player_at_connect_four():
    env = envs.make(needed("pgx:connect_four"))
    cfg = pqn.Config(total_steps=200_000, num_envs=64, num_steps=16, minibatches=4, hidden=(128,))
    result = jax.jit(train(pqn.program(cfg, env, evals=1, episodes=256)))(
        jax.random.key(0), pqn.Hypers(lr=1e-3, reward_scale=1.0)
    )
    assert float(np.mean(result.returns)) > 0.6


@pytest.mark.slow
def test_playground_is_deterministic_and_bounded():
    env = envs.make(needed("playground:CartpoleBalance"), max_steps=5)
    assert isinstance(env.spec.action, Box) and env.spec.max_steps == 5

    def play(key):
        state, obs = env.reset(key, {})
        step = lambda state, key: env.step(key, state, jnp.full(1, 9.0), {})
        return obs, jax.lax.scan(step, state, jax.random.split(key, 5))[1]

    obs, ts = jax.jit(play)(jax.random.key(0))
    assert np.asarray(ts.truncated).tolist() == [False] * 4 + [True]
    assert not np.asarray(ts.terminated).any() and (np.asarray(ts.reward) <= 1).all()
    assert not np.array_equal(ts.next_obs[-1], obs)


class Privileged:
    """A task of Playground whose observations have two entries, as those of locomotion do."""

    def __init__(self, task):
        self.task, self.action_size = task, task.action_size

    def reset(self, key):
        return self._two(self.task.reset(key))

    def step(self, state, action):
        return self._two(self.task.step(state, action))

    def _two(self, state):
        return state.replace(obs={"state": state.obs[:2], "privileged_state": state.obs})


@pytest.mark.slow
def test_playground_has_views_of_two_entries(monkeypatch):
    """Tasks with several entries need models that are cloned, so a small task stands for them."""
    name, load = needed("playground:CartpoleBalance"), playground._load
    whole = envs.make(name)
    two = lambda *words: (Privileged((loaded := load(*words))[0]), loaded[1])
    monkeypatch.setattr(playground, "_load", two)
    env = envs.make(name, critic_obs="privileged_state")
    assert env.spec.obs_shape == (2,) and env.spec.critic_shape == whole.spec.obs_shape == (5,)

    def play(env):
        state, seen = env.reset(jax.random.key(0), {})
        return seen, env.step(jax.random.key(1), state, jnp.full(1, 0.5), {})[1].next_obs

    found, expected = (jax.jit(lambda env=x: play(env))() for x in (env, whole))
    for views, obs in zip(found, expected, strict=True):
        assert isinstance(views, Views)
        np.testing.assert_array_equal(views.critic, obs)
        np.testing.assert_array_equal(views.obs, obs[:2])
    cfg = ppo.Config(
        total_steps=32, num_envs=4, num_steps=8, minibatches=2, actor=(4,), critic=(4,)
    )
    result = jax.jit(train(ppo.program(cfg, env, evals=1, episodes=2)))(
        jax.random.key(0), ppo.Hypers()
    )
    assert np.isfinite(result.returns).all()
    with pytest.raises(EnvError, match="has no obs=all: it has state, privileged_state"):
        envs.make(name, obs="all")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jumanji:Maze-v0", "jumanji:Tetris-v0", "jumanji:Cleaner-v0"])
def test_jumanji_masks_and_time_limits(name):
    """Time limits truncate, also where the game would terminate."""
    env = envs.make(needed(name), max_steps=4)
    state, seen = jax.jit(env.reset)(jax.random.key(0), {})
    assert isinstance(seen, Masked)
    step = jax.jit(env.step)
    for _ in range(4):
        state, ts = step(jax.random.key(1), state, jnp.argmax(seen.legal), {})
        seen = ts.next_obs
        if bool(ts.terminated):
            return
    assert bool(ts.truncated)
