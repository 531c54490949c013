"""`jaxrl data`: descriptions, conversion, generation and refused input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from jaxrl import envs
from jaxrl.envs import datasets, maze
from jaxrl.envs.datasets import Dataset, episodes
from jaxrl.experiments import cli, jax_setup
from jaxrl.experiments.data import cli as data_cli
from jaxrl.experiments.data import collect
from jaxrl.runs.folders import lock_file
from jaxrl.types import Env, Transition

FIXTURE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def jaxrl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs `jaxrl data ...` in an empty folder and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["data", *words])
        told = capsys.readouterr()
        return code, str(told.out), str(told.err)

    return run


# --- info and convert ----------------------------------------------------------------------------


def test_info_describes_and_draws(jaxrl: Run, tmp_path: Path) -> None:
    file = tmp_path / FIXTURE.name
    shutil.copy(FIXTURE, file)
    code, out, _ = jaxrl("info", FIXTURE.name)
    assert code == 0
    returns, _ = datasets.episode_returns(datasets.load(file).transitions)
    for says in (
        "dmsd: 1,000 rows, 10 episodes; obs (6,), action (2,) float32",
        "0 terminated, 10 truncated",
        f"return  mean {returns.mean():.6g}",
        "length  mean 100, std 0, 100 to 100, median 100",
        f"factor  {1000 / (returns.max() - returns.min()):.6g}, IQL's 1000 / (highest - lowest",
        f"score   mean {100 * (returns.mean() - 30.6) / (849.51 - 30.6):.4g}",
        "duplicates: 0 rows",
        f"sha256 {datasets.sha256(datasets.load(file).transitions)}",
    ):
        assert says in out
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.width > 1000
        assert np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).shape[0] > 20


def test_info_suggests_a_reward_shift_if_nothing_terminates() -> None:
    found = datasets.load(FIXTURE)
    t, told = found.transitions, lambda t: "\n".join(data_cli.describe(Dataset(t, found.meta)))
    assert f"--agent.reward-shift={-t.reward.mean():.3g} subtracts" in told(t)
    ends = np.arange(len(t.reward)) == len(t.reward) - 1
    for other in (t._replace(terminated=ends), t._replace(reward=t.reward - t.reward.mean())):
        assert "reward-shift" not in told(other)


def test_duplicates_are_counted() -> None:
    t = datasets.load(FIXTURE).transitions
    rows = np.array([0, 1, 2, 1, 5, 1, 0])
    columns: Any = [x[rows] for x in t[:-1]]
    assert data_cli.duplicates(Dataset(Transition(*columns), {})) == 3


def test_convert_through_all_formats(jaxrl: Run, tmp_path: Path) -> None:
    """A chain through all formats keeps arrays and reference returns."""
    start = datasets.load(FIXTURE)
    chain = [str(FIXTURE), "a.hdf5", "dmsd-v0", "b.npz"]
    for source, target in zip(chain, chain[1:], strict=False):
        code, out, err = jaxrl("convert", source, target)
        assert (code, out) == (0, f"{target}: 1,000 rows\n"), err
    end = datasets.load(tmp_path / "b.npz")
    assert end.meta["sha256"] == start.meta["sha256"]
    assert {k: end.meta[k] for k in ("env", "reference")} == {
        k: start.meta[k] for k in ("env", "reference")
    }
    assert jaxrl("convert", "a.hdf5", "b.npz")[0] == 2  # b.npz exists


def test_convert_with_a_time_limit(jaxrl: Run, tmp_path: Path) -> None:
    t = datasets.load(FIXTURE).transitions
    keys = {"observations": t.obs, "actions": t.action, "rewards": t.reward}
    with h5py.File(tmp_path / "old.hdf5", "w") as file:
        for key, x in {**keys, "terminals": t.terminated}.items():
            file[key] = x
    code, out, err = jaxrl("convert", "old.hdf5", "new.npz")
    assert (code, out) == (2, "") and "--max-episode-steps N" in err and err.count("\n") == 1
    assert jaxrl("convert", "old.hdf5", "new.npz", "--max-episode-steps", "100")[0] == 0
    lengths = datasets.episode_returns(datasets.load(tmp_path / "new.npz").transitions)[1]
    assert set(lengths) == {99}
    code, out, _ = jaxrl("info", "old.hdf5", "--max-episode-steps=100")
    assert code == 0 and "length  mean 99, " in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "jaxrl data info FILE"),
        (["inof", "a.npz"], "did you mean 'info'?"),
        (["info"], "data info needs one dataset"),
        (["info", "none.npz"], "none.npz cannot be read: No such file"),
        (["info", "a.npz", "--out"], "--out needs a value"),
        (["info", "none.npz", "--out", "a.gif"], "figures are written as .png"),
        (["retrieve", "a.npz", "b.npz", "--hidden", "64,0"], "--hidden must be at least 1"),
        (["convert", "a.npz"], "data convert needs two paths"),
        (["convert", str(FIXTURE), "a.csv"], "a.csv: use the suffix .npz"),
        (["convert", "none.npz", "a.csv"], "a.csv: use the suffix .npz"),
        (["info", "a.npz", "--max-episode-steps", "0"], "--max-episode-steps must be at least 1"),
        (["make", "--level", "random"], "data make needs an environment and a level"),
        (["make", "CartPole-v1"], "data make needs an environment and a level"),
        (["make", "CartPole-v2", "--level", "random"], "did you mean 'CartPole-v1'?"),
        (
            ["make", "CartPole-v1", "--level", "random", "--steps", "0"],
            "--steps must be at least 1, not '0'",
        ),
        (
            ["make", "CartPole-v1", "--level", "good"],
            "medium-expert, expert, noisy; not",
        ),
        (["make", "maze:umaze", "--level", "medium"], "random, play, diverse, expert; not"),
        (
            ["make", "maze:umaze", "--level", "play", "--seeds", "2"],
            "unknown option --seeds, did you mean '--seed'",
        ),
        (["make", "maze:huge", "--level", "play"], "maze:huge"),
        (["make", "maze:umaze", "--level", "play,random", "--out", "a.npz"], "2 levels need"),
        (["make", "maze:umaze", "--level", "play", "--out", "a.csv"], "a .npz or .hdf5 file"),
        (["make", "maze:umaze", "--level", "play,random,play"], "play is there twice"),
    ],
)
def test_refused_requests(jaxrl: Run, tmp_path: Path, words: list[str], says: str) -> None:
    code, out, err = jaxrl(*words)
    assert (code, out) == (2, "")
    assert says in err and err.startswith("jaxrl: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["make", "-h"], ["make", "maze:umaze", "--help"]])
def test_help_names_every_level(jaxrl: Run, tmp_path: Path, words: list[str]) -> None:
    code, out, err = jaxrl(*words)
    assert (code, err) == (0, "") and not list(tmp_path.iterdir())
    levels = out.partition("levels")[2]
    for level in (*collect.LEVELS, *collect.MAZE_LEVELS):
        assert level in levels


# --- make ----------------------------------------------------------------------------------------


def check_replay(env: Env, t: Any) -> None:
    """Stepping the environment from each row's state and action gives that row's successor."""
    state, obs = env.reset(jax.random.key(0), env.params)
    leaves = [jnp.asarray(x) for x in t.extras["state"]]
    for leaf, one in zip(leaves, jax.tree.leaves(state), strict=True):
        assert (leaf.shape[1:], leaf.dtype) == (one.shape, one.dtype)
    states = jax.tree.unflatten(jax.tree.structure(state), leaves)
    keys = jax.random.split(jax.random.key(0), len(t.reward))
    step = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))
    _, ts = step(keys, states, t.action, env.params)
    np.testing.assert_allclose(ts.next_obs, t.next_obs, atol=1e-5)
    np.testing.assert_allclose(ts.reward, t.reward, atol=1e-5)
    np.testing.assert_array_equal(ts.terminated, t.terminated)
    assert not (np.asarray(ts.truncated) & ~t.truncated).any()
    inside = ~t.start[1:]
    np.testing.assert_array_equal(t.next_obs[:-1][inside], t.obs[1:][inside])
    np.testing.assert_array_equal(t.start, episodes.starts(t.terminated | t.truncated))


@pytest.mark.slow
def test_make_maze_data(jaxrl: Run, tmp_path: Path) -> None:
    code, _, err = jaxrl("make", "maze:umaze", "--level", "play,random", "--steps", "1_500")
    assert code == 0, err
    env, plan = envs.make("maze:umaze"), maze.parse("umaze")
    for level in ("play", "random"):
        found = datasets.load(tmp_path / "data" / f"maze-umaze-{level}-1500.npz")
        t, meta = found.transitions, found.meta
        assert len(t.reward) == 1500
        datasets.check(found, env.spec)
        check_replay(env, t)
        assert (meta["env"], meta["level"], meta["reference_episodes"]) == (
            "maze:umaze",
            level,
            128,
        )
        assert meta["reference"]["expert"] == 1 and meta["reference"]["random"] < 0.5
        assert meta["versions"]["jax"] == jax.__version__
    t = datasets.load(tmp_path / "data" / "maze-umaze-play-1500.npz").transitions
    # Level play has no complete solution: no episode from the start cell ends at the goal.
    first = np.flatnonzero(t.start)
    last = np.append(first[1:], len(t.start)) - 1
    at_start = np.abs(t.extras["state"][0][first] - plan.cells[plan.start] - 0.5).max(1) < 0.5
    assert at_start.any() and not t.terminated[last[at_start]].any() and t.terminated.any()


def test_make_writes_the_given_file(jaxrl: Run, tmp_path: Path) -> None:
    words = ["make", "maze:umaze", "--level", "random", "--steps", "120", "--out", "own.npz"]
    code, out, err = jaxrl(*words)
    assert code == 0 and out.startswith("own.npz\n"), err
    assert len(datasets.load(tmp_path / "own.npz").transitions.reward) == 120
    assert [file.name for file in tmp_path.iterdir()] == ["own.npz"]


def test_one_process_makes_a_dataset(jaxrl: Run, tmp_path: Path) -> None:
    words = ["make", "maze:umaze", "--level", "random", "--steps", "120", "--out", "own.npz"]
    with lock_file(tmp_path / ".own.npz.lock", tmp_path):
        code, _, err = jaxrl(*words)
    assert code == 2 and err == "jaxrl: another process is writing own.npz\n"


@pytest.mark.slow
def test_make_trains_and_collects(jaxrl: Run, tmp_path: Path) -> None:
    """A small PPO run: simulator states replay; medium-expert mixes two snapshots."""
    sizes = {"total-steps": 256, "num-envs": 4, "num-steps": 16, "minibatches": 1, "epochs": 1}
    options = [f"--agent.{name}={value}" for name, value in sizes.items()]
    options += ["--agent.actor", "4", "--agent.critic", "4", "--evals", "2", "--seed", "3"]
    words = ["make", "tiny:glide", "--level", "random,medium-expert", "--steps", "203"]
    code, out, err = jaxrl(*words, "--agent", "ppo", "--env-options", "noise=0.0", *options)
    assert code == 0, err
    assert out.startswith("training ppo on tiny:glide for 256 steps; ")
    assert out.count("return") >= 2 and "100%" in out
    env = tiny.glide()
    env = Env(env.spec, {"noise": jnp.float32(0)}, env.reset, env.step)
    for level, extras in (("random", {"state"}), ("medium-expert", {"state", "log_prob"})):
        found = datasets.load(tmp_path / "data" / f"tiny-glide-{level}-203.npz")
        t, meta = found.transitions, found.meta
        assert len(t.reward) == 203 and set(t.extras) == extras
        datasets.check(found, env.spec)
        check_replay(env, t)
        _, lengths = datasets.episode_returns(t)
        assert lengths.max() <= tiny.LIMIT
        assert meta["training"]["agent"] == "ppo" and meta["seed"] == 3


@pytest.mark.slow
def test_noisy_experts_have_the_stated_success(jaxrl: Run, tmp_path: Path) -> None:
    """In `reach:sparse`, whose expert always succeeds; from the file's own episodes too."""
    words = ["make", "reach:sparse", "--level", "noisy", "--success", "0.6", "--steps", "6_000"]
    code, _, err = jaxrl(*words, "--out", "noisy.npz")
    assert code == 0, err
    found = datasets.load(tmp_path / "noisy.npz")
    meta = found.meta
    assert meta["reference"]["expert"] == 1 and meta["success"] == 0.6 and meta["spread"] > 0.1
    floor = meta["reference"]["random"]
    np.testing.assert_allclose(meta["return"], floor + 0.6 * (1 - floor), atol=0.05)
    returns, _ = datasets.episode_returns(found.transitions)
    np.testing.assert_allclose(np.mean(returns), meta["return"], atol=0.12)


def test_collected_episodes_are_complete() -> None:
    """Only the end of the data cuts an episode, whatever the length of the episode."""
    env = tiny.glide()
    t: Any = collect.collect(collect.at_random(env), jax.random.key(1), 333)
    assert len(t.reward) == 333
    _, lengths = datasets.episode_returns(t)
    ends = np.flatnonzero(t.truncated)
    begins = np.flatnonzero(t.start)
    for end in ends:  # each truncation is a time limit
        assert end - begins[begins <= end][-1] + 1 == tiny.LIMIT
    assert (lengths <= tiny.LIMIT).all() and t.terminated.sum() > 20
