"""Point mazes and journeys through them: walls, goals, shortest paths, and what data they give."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import envs
from jaxrl.envs import maze, maze_walks, names, registry
from jaxrl.envs.names import EnvError

ALL = pytest.mark.parametrize("layout", maze.LAYOUTS)
SPEED = 0.2


@ALL
def test_drawings_are_closed_and_connected(layout: str) -> None:
    plan = maze.parse(layout)
    walls = plan.walls
    assert walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()
    assert len(plan.cells) == (~walls).sum()
    between = maze_walks.distances(plan)
    assert (between >= 0).all()
    np.testing.assert_array_equal(between, between.T)
    # Counted in the drawings.
    assert between[plan.start, plan.goal] == {"umaze": 6, "medium": 10, "large": 14}[layout]


@ALL
def test_distances_are_those_of_paths_of_unit_steps(layout: str) -> None:
    """Floyd and Warshall's recursion as the oracle."""
    plan = maze.parse(layout)
    count = len(plan.cells)
    oracle = np.full((count, count), 10**6)
    for i, j in itertools.product(range(count), repeat=2):
        gap = np.abs(plan.cells[i] - plan.cells[j]).sum()
        oracle[i, j] = gap if gap <= 1 else oracle[i, j]
    for k in range(count):
        oracle = np.minimum(oracle, oracle[:, k, None] + oracle[k])
    between = maze_walks.distances(plan)
    np.testing.assert_array_equal(between, oracle)
    onward = maze_walks.next_cells(plan)
    target = np.arange(count)[None]
    np.testing.assert_array_equal(between[onward, target], np.maximum(between - 1, 0))
    assert (np.take_along_axis(between, onward, 1) == (between > 0)).all()  # a neighbour


def loop_move(walls: np.ndarray, position: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """`maze.move` by hand: one axis after the other, back to the wall's face."""
    position = position.copy()
    for axis in range(2):
        target = position.copy()
        target[axis] = np.float32(position[axis] + delta[axis])
        if walls[int(target[0]), int(target[1])]:
            cell = np.floor(position[axis])
            target[axis] = cell + 1 - maze.GAP if delta[axis] > 0 else cell + maze.GAP
        position = target
    return position


PLAN = maze.parse("medium")
MOVE = jax.jit(lambda position, delta: maze.move(PLAN.walls, position, delta))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(PLAN.cells) - 1), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_walls_stop_and_nothing_enters_them(cell: int, numbers: list[float]) -> None:
    inside = maze.GAP + (1 - 2 * maze.GAP) * np.array(numbers[:2])
    position = (PLAN.cells[cell] + inside).astype(np.float32)
    delta = (SPEED * (2 * np.array(numbers[2:]) - 1)).astype(np.float32)
    after = np.asarray(MOVE(position, delta))
    np.testing.assert_allclose(after, loop_move(PLAN.walls, position, delta), atol=1e-5)
    row, column = np.floor(after).astype(int)
    assert not PLAN.walls[row, column]
    assert (np.abs(after - position) <= SPEED + 1e-5).all()


def test_the_goal_terminates_and_the_limit_truncates() -> None:
    env = envs.make("maze:umaze", max_steps=3)
    plan = maze.parse("umaze")
    goal = plan.cells[plan.goal] + 0.5
    step = jax.jit(env.step)
    for away, t, there in [(0.45, 0, True), (0.45, 2, True), (0.55, 0, False), (0.55, 2, False)]:
        state = maze.MazeState(jnp.asarray(goal + np.float32([0, away])), jnp.int32(t))
        after, ts = step(jax.random.key(0), state, jnp.zeros(2), env.params)
        assert (bool(ts.terminated), float(ts.reward)) == (there, float(there))
        assert bool(ts.truncated) == (t == 2 and not there)
        assert int(after.t) == t + 1
        np.testing.assert_allclose(ts.next_obs, goal + [0, away] - 2.5, atol=1e-6)
    state, _ = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 100), env.params)
    spread = np.asarray(state.position) - plan.cells[plan.start] - 0.5
    assert np.abs(spread).max() <= maze.SPREAD and np.abs(spread.mean(0)).max() < 0.05


@ALL
@pytest.mark.parametrize("level", ["play", "diverse"])
def test_commands_are_short_and_cover_the_way(layout: str, level: str) -> None:
    """None goes further than half of the way; together they lead from start to goal."""
    plan = maze.parse(layout)
    between, onward = maze_walks.distances(plan), maze_walks.next_cells(plan)
    pairs = maze_walks.commands(plan, level)
    assert 0 < between[tuple(pairs.T)].min() and pairs.dtype == np.int32
    assert between[tuple(pairs.T)].max() <= between[plan.start, plan.goal] / 2
    walked = set()
    for begin, target in pairs:
        while begin != target:
            walked.add((begin, onward[begin, target]))
            begin = onward[begin, target]
    at = plan.start
    while at != plan.goal:
        assert (at, onward[at, plan.goal]) in walked
        at = onward[at, plan.goal]
    if level == "play":
        assert set(np.unique(pairs)) == set(np.flatnonzero(maze_walks.places(plan)))
    else:
        near = (between > 0) & (between <= between[plan.start, plan.goal] / 2)
        assert len(pairs) == np.delete(near, plan.goal, 0).sum()


def test_places_of_the_medium_maze() -> None:
    """Start, goal, dead ends, junctions, bends, drawn by hand as o; corners of rooms are none."""
    drawn = """
        ########
        #o.##..#
        #.o#oo.#
        ##o.o###
        #oo#o.o#
        #.#oo#.#
        #o.o#oo#
        ########"""
    found = np.array([list(row) for row in drawn.split()])
    cells = PLAN.cells.astype(int)
    np.testing.assert_array_equal(found[tuple(cells.T)] == "o", maze_walks.places(PLAN))


def test_levels_are_named() -> None:
    with pytest.raises(EnvError, match="play, diverse, expert"):
        maze_walks.make("umaze", "medium")


@pytest.fixture(scope="module")
def played() -> tuple:
    """States [T, N], TimeSteps and ends of journeys in the medium maze, noisy and noiseless."""
    env, policy = maze_walks.make("medium", "diverse"), maze_walks.controller("medium")
    count, steps = 64, 150

    @jax.jit
    def play(key, explore):
        key_reset, key_noise = jax.random.split(key)
        first, _ = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, count), env.params)

        def step(carry, noise):
            state, live = carry
            action, _, _ = policy.act((), (), state, live, (), explore * noise, True)
            keys = jax.random.split(key, count)
            after, ts = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, env.params)
            return (after, live & ~(ts.terminated | ts.truncated)), (state, ts, live)

        noise = jax.vmap(lambda k: policy.noise(k, count))(jax.random.split(key_noise, steps))
        return jax.lax.scan(step, (first, jnp.ones(count, bool)), noise)[1]

    return tuple(jax.device_get(play(jax.random.key(3), x)) for x in (0.0, 1.0))


@pytest.mark.parametrize("noisy", [0, 1])
def test_journeys_arrive(played: tuple, noisy: int) -> None:
    """All of them, without noise as fast as a walk of unit steps at full speed, or faster."""
    plan = maze.parse("medium")
    state, ts, live = played[noisy]
    last = live.sum(0) - 1
    each = np.arange(live.shape[1])
    assert (ts.terminated | ts.truncated)[last, each].all()
    position = state.maze.position[last, each]
    gap = np.abs(position - plan.cells[state.target[0]] - 0.5 - state.lane[0]).max(1)
    arrived = ts.truncated[last, each]
    assert (gap[arrived] <= maze_walks.NEAR + SPEED + 1e-5).all() and arrived.mean() > 0.8
    assert np.abs(state.lane).max() <= maze_walks.LANE and np.ptp(state.lane[0], 0).min() > 0.5
    begin = np.floor(state.maze.position[0]).astype(int)
    index = np.full(plan.walls.shape, -1)
    index[~plan.walls] = np.arange(len(plan.cells))
    cells = maze_walks.distances(plan)[index[tuple(begin.T)], state.target[0]]
    if not noisy:
        assert (last + 1 <= cells / SPEED + 3).all()
    assert not plan.walls[tuple(np.floor(state.maze.position).astype(int).reshape(-1, 2).T)].any()


@pytest.mark.parametrize("name", names.OWN)
def test_own_environments_keep_the_contract(name: str) -> None:
    env = envs.make(name)
    registry.check_env(env)
    names.check_name(name)
    assert registry.describe(env.spec) == names.OWN[name] == dict(names.names())[name]
    assert env.spec.name == name
    for leaf in jax.tree.leaves(env.params):
        assert isinstance(leaf, jax.Array) and not leaf.weak_type
    with pytest.raises(EnvError, match="did you mean"):
        names.check_name(name[:-1])
