"""Datasets: round trips through all formats, D4RL's rule against a loop, and invalid files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.envs import datasets
from jaxrl.envs.datasets import Dataset, d4rl, episodes, layout
from jaxrl.envs.datasets.scores import LIMITS, reference, task
from jaxrl.errors import UserError
from jaxrl.types import Box, Discrete, EnvSpec, Transition

ENDS = "..T....t..T.tt..."  # T terminated, t truncated; data stop in the middle of an episode


def made(ends: str = ENDS, *, discrete: bool = False, extras: bool = False, seed: int = 0) -> Any:
    """Random transitions with the given ends: obs [2, 2], actions [3] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    rows = len(ends)
    normal = lambda *shape: rng.normal(size=(rows, *shape)).astype(np.float32)
    terminated, truncated = (np.array([c == end for c in ends]) for end in "Tt")
    start = episodes.starts(terminated | truncated)
    obs, next_obs = normal(2, 2), normal(2, 2)
    inside = ~start[1:]
    next_obs[:-1][inside] = obs[1:][inside]
    action: Any = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
    if discrete:
        action = rng.integers(0, 4, rows).astype(np.int32)
    more: Any = {}
    if extras:
        known = ~terminated
        state = (normal(3), rng.integers(0, 9, rows).astype(np.int32))
        more = {"log_prob": normal(), "state": state, "next_known": known}
    columns: Any = (obs, action, normal(), next_obs, terminated, truncated, start)
    return Transition(*columns, more)


def same(a: Transition, b: Transition) -> None:
    left, right = layout.arrays(a), layout.arrays(b)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ""])
def test_round_trip(tmp_path: Path, suffix: str, discrete: bool) -> None:
    t = made(discrete=discrete, extras=True)
    meta = {"env": "some:env", "reference": {"random": -1.5, "expert": 10.0}, "seed": 3}
    path = tmp_path / f"data{suffix}"
    datasets.save(path, Dataset(t, meta))
    found = datasets.load(path)
    same(found.transitions, t)
    known = {"sha256": datasets.sha256(t), "file": str(path)}
    assert found.meta == meta | known
    datasets.save(tmp_path / "again.npz", found)
    assert datasets.load(tmp_path / "again.npz").meta["sha256"] == known["sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "again.npz"])
    if suffix == "":  # data/ and the file inside are accepted, too
        same(datasets.load(path / "data").transitions, t)
        same(datasets.load(path / "data" / "main_data.hdf5").transitions, t)


def test_the_hash_is_of_all_contents() -> None:
    t = made(extras=True)
    changed = [
        t._replace(**{name: x + 1}) for name, x in t._asdict().items() if name in ("obs", "reward")
    ]
    changed += [t._replace(extras={}), t._replace(action=t.action.astype(np.float64))]
    changed += [t._replace(truncated=~t.truncated)]
    hashes = {datasets.sha256(x) for x in [t, *changed]}
    assert len(hashes) == 1 + len(changed)
    assert datasets.sha256(made(extras=True)) == datasets.sha256(t)


PLAIN = ("obs", "action", "reward", "next_obs", "terminated")


def test_plain_arrays(tmp_path: Path) -> None:
    """Without truncated and start, episodes end where next_obs differs from the next row's obs."""
    t = made()
    columns = {name: getattr(t, name) for name in PLAIN}
    columns |= {"reward": t.reward.astype(np.float64)[:, None], "terminated": t.terminated * 1.0}
    np.savez(tmp_path / "plain.npz", **columns)
    same(datasets.load(tmp_path / "plain.npz").transitions, t)
    np.savez(tmp_path / "start.npz", **columns, start=t.start)
    same(datasets.load(tmp_path / "start.npz").transitions, t)
    columns["done"] = columns.pop("terminated")  # with both flags set, terminated wins
    np.savez(tmp_path / "neorl.npz", **columns, truncated=t.truncated | t.terminated)
    same(datasets.load(tmp_path / "neorl.npz").transitions, t)


# --- D4RL ----------------------------------------------------------------------------------------


def write(file: Path, columns: dict[str, Any]) -> Path:
    with h5py.File(file, "w") as to:
        for key, x in columns.items():
            to[key] = x
    return file


def d4rl_columns(t: Transition) -> dict[str, Any]:
    return {
        "observations": t.obs,
        "actions": t.action,
        "rewards": t.reward,
        "terminals": t.terminated,
        "timeouts": t.truncated,
    }


def loop(columns: dict[str, Any]) -> list[tuple[int, bool]]:
    """(row, next observation is known) of the rows that D4RL's `qlearning_dataset` keeps."""
    kept = []
    for i in range(len(columns["rewards"]) - 1):
        if columns["timeouts"][i]:
            continue
        kept.append((i, not columns["terminals"][i]))
    return kept


@settings(max_examples=60, deadline=None)
@given(st.text("..Ttb", min_size=2, max_size=12))
def test_the_rule_of_d4rl(tmp_path_factory: pytest.TempPathFactory, ends: str) -> None:
    """Kept rows, successors and ends as in a plain loop; b: a row that is terminal and timeout."""
    t = made(ends)
    both = np.array([c == "b" for c in ends])
    columns = d4rl_columns(t)
    columns["terminals"], columns["timeouts"] = t.terminated | both, t.truncated | both
    file = write(tmp_path_factory.mktemp("d4rl") / "a.hdf5", columns)
    kept = loop(columns)
    if not kept:
        with pytest.raises(UserError, match="timeouts"):
            datasets.load(file)
        return
    found: Any = datasets.load(file).transitions
    rows = [i for i, _ in kept]
    np.testing.assert_array_equal(found.extras["next_known"], [known for _, known in kept])
    np.testing.assert_array_equal(found.next_obs, t.obs[[i + 1 for i in rows]])
    for name, key in (("obs", "observations"), ("action", "actions"), ("reward", "rewards")):
        np.testing.assert_array_equal(getattr(found, name), columns[key][rows])
    np.testing.assert_array_equal(found.terminated, columns["terminals"][rows])
    for j, i in enumerate(rows):  # dropping the next row truncates the episode
        goes_on = i + 1 in rows
        assert found.truncated[j] == (not goes_on and not columns["terminals"][i])
        assert found.start[j] == (j == 0 or found.terminated[j - 1] or found.truncated[j - 1])


def test_d4rl_with_next_observations_keeps_every_row(tmp_path: Path) -> None:
    t = made()
    columns = d4rl_columns(t) | {"next_observations": t.next_obs}
    columns["terminals"] = t.terminated[:, None]
    same(datasets.load(write(tmp_path / "a.hdf5", columns)).transitions, t)


def test_old_files_end_episodes_at_the_time_limit(tmp_path: Path) -> None:
    """Files without timeouts use the limit of the environment in the file name."""
    limit = LIMITS["hopper"]
    rows, died = 2 * limit + 500, 300
    terminated = np.arange(rows) == died
    columns = {
        "observations": np.arange(rows, dtype=np.float32)[:, None],
        "actions": np.zeros((rows, 1), np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": terminated,
    }
    found = datasets.load(write(tmp_path / "hopper-medium-v0.hdf5", columns))
    ends = died + limit * np.arange(1, 3)
    assert set(np.arange(rows)) - set(found.transitions.obs[:, 0].astype(int)) == {*ends, rows - 1}
    assert found.meta["reference"] == reference("hopper-medium-v0")
    with pytest.raises(UserError, match=r"other\.hdf5: timeouts: missing"):
        datasets.load(write(tmp_path / "other.hdf5", columns))


# --- Minari --------------------------------------------------------------------------------------


def minari_folder(
    folder: Path, t: Transition, edit: Callable[[Any], None] = lambda f: None
) -> Path:
    """Minari's documented layout with dictionary observations {"a", "b"}."""
    first = [*np.flatnonzero(t.start), len(t.reward)]
    (folder / "data").mkdir(parents=True)
    about = {"dataset_id": "some/thing-v0", "ref_min_score": 1.0, "ref_max_score": 3.0}
    (folder / "data" / "metadata.json").write_text(json.dumps(about))
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for i, (a, b) in enumerate(zip(first, first[1:], strict=False)):
            group = file.create_group(f"episode_{i}")
            obs = np.concatenate([t.obs[a:b], t.next_obs[b - 1 : b]]).astype(np.float64)
            group["observations/b"], group["observations/a"] = obs[:, 1], obs[:, 0]
            group["actions"], group["rewards"] = t.action[a:b], t.reward[a:b].astype(np.float64)
            group["terminations"], group["truncations"] = t.terminated[a:b], t.truncated[a:b]
            group.create_group("infos")
        edit(file)
    return folder


def test_minari_by_its_documented_layout(tmp_path: Path) -> None:
    t = made(ENDS * 3)  # more than ten episodes, so that order by name would differ
    assert t.start.sum() > 11
    found = datasets.load(minari_folder(tmp_path / "thing-v0", t))
    flat = t._replace(obs=t.obs.reshape(-1, 4), next_obs=t.next_obs.reshape(-1, 4))
    same(found.transitions, flat)
    assert found.meta["env"] == "some/thing-v0"
    assert datasets.normalised_score(found.meta, 2.0) == pytest.approx(50)


def test_minari_episodes_without_an_end_were_cut(tmp_path: Path) -> None:
    t = made("..t.T..")
    folder = minari_folder(
        tmp_path / "a",
        t,
        lambda file: file["episode_0/truncations"].write_direct(np.zeros(3, bool)),
    )
    np.testing.assert_array_equal(datasets.load(folder).transitions.truncated, t.truncated)


@pytest.mark.parametrize("known", [True, False])
def test_minari_space_of_actions(known: bool, tmp_path: Path) -> None:
    t = made("..T")._replace(action=np.zeros((3, 2), np.float32))
    space = Box((-1.0, -2.0), (1.0, 3.0), (2,))
    meta = datasets.action_bounds(EnvSpec("thing", (2, 2), space, 9)) if known else {}
    datasets.save(tmp_path / "thing-v0", Dataset(t, meta))
    about = json.loads((tmp_path / "thing-v0/data/metadata.json").read_text())
    space = json.loads(about["action_space"])
    expected = ([-1, -2], [1, 3]) if known else ([-np.inf] * 2, [np.inf] * 2)
    assert (space["low"], space["high"]) == expected


# --- contents ------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.text("..Tt", min_size=1, max_size=20))
def test_returns_and_lengths_by_a_loop(ends: str) -> None:
    t = made(ends)
    episodes, total, length = [], 0.0, 0
    for reward, done in zip(t.reward, t.done, strict=True):
        total, length = total + float(reward), length + 1
        if done:
            episodes.append((total, length))
            total, length = 0.0, 0
    episodes = episodes or [(total, length)]
    returns, lengths = datasets.episode_returns(t)
    np.testing.assert_allclose(returns, [r for r, _ in episodes], atol=1e-5)
    np.testing.assert_array_equal(lengths, [n for _, n in episodes])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hopper-medium-v2", "hopper"),
        ("hopper_medium_replay-v2", "hopper"),
        ("HalfCheetah-v5", "halfcheetah"),
        ("antmaze-large-play-v2", "antmaze"),
        ("Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse", "antmaze"),
        ("ant-expert-v1", "ant"),
        ("maze2d-umaze-v1", "maze2d-umaze"),
        ("maze2d-umaze-dense-v1", None),
        ("dmsd", "dmsd"),
        ("brax:hopper", None),
        ("maze:umaze", None),
        ("pen_data", None),
        ("door-log", None),
        ("ant-colony", None),
        ("hopper-medium", "hopper"),
        ("pen-human-v1", "pen"),
        ("pen-demos-v0-bc-combined", "pen"),
        ("kitchen_microwave_kettle_light_slider-v0", "kitchen"),
    ],
)
def test_reference_returns_by_name(name: str, found: str | None) -> None:
    assert task(name) == found
    assert (reference(name) is None) == (found is None)


def test_normalised_scores() -> None:
    """D4RL: hopper's 3234.3 is a score of 100; reference returns in the metadata come first."""
    score = datasets.normalised_score(
        {"env": "hopper-medium-v2"}, [3234.3, -20.272305, 1607.013848]
    )
    assert score == pytest.approx([100, 0, 50])
    own = {"env": "hopper-medium-v2", "reference": {"random": 0.0, "expert": 10.0}}
    assert datasets.normalised_score(own, 2.5) == pytest.approx(25)
    assert datasets.normalised_score({"env": "something"}, 1.0) is None


def spec(action: Box | Discrete, obs: tuple[int, ...] = (2, 2)) -> EnvSpec:
    return EnvSpec("made", obs, action)


UNIT = Box((-1.0,) * 3, (1.0,) * 3, (3,))


def test_check_against_an_environment() -> None:
    data = Dataset(made(), {"file": "some.npz"})
    datasets.check(data, spec(UNIT))
    row = int(np.argmax(np.abs(data.transitions.action).max(1) > 0.9))
    narrow = Box((-0.9,) * 3, (0.9,) * 3, (3,))
    for bad, says in (
        (spec(narrow), f"some.npz: action, row {row}: .* outside the bounds of made"),
        (spec(UNIT, (4,)), "some.npz: obs: has shape"),
        (spec(Box((-1.0,), (1.0,), (1,))), "some.npz: action: has shape"),
        (spec(Discrete(4)), "some.npz: action: has shape"),
    ):
        with pytest.raises(UserError, match=says):
            datasets.check(data, bad)
    whole = Dataset(made(discrete=True), {"file": "some.npz"})
    datasets.check(whole, spec(Discrete(4)))
    with pytest.raises(UserError, match="row .*outside the bounds"):
        datasets.check(whole, spec(Discrete(3)))


# --- bad files -----------------------------------------------------------------------------------


def npz_file(**changes: Any) -> Callable[[Path], Path]:
    """A file in jaxrl's layout with changed columns; None leaves a column out."""

    def make(folder: Path) -> Path:
        columns = layout.arrays(made(extras=True)) | changes
        file = folder / "bad.npz"
        np.savez(file, **{k: np.asarray(v) for k, v in columns.items() if v is not None})
        return file

    return make


def hdf5(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        columns = d4rl_columns(made()) | changes
        return write(folder / "bad.hdf5", {k: v for k, v in columns.items() if v is not None})

    return make


def folder_of(edit: Callable[[Any], None]) -> Callable[[Path], Path]:
    return lambda folder: minari_folder(folder / "bad-v0", made(), edit)


def replaced(key: str, value: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        del file[key]
        if value is not None:
            file[key] = value

    return edit


def text(contents: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "bad.npz").write_bytes(contents)
        return folder / "bad.npz"

    return make


def with_value(x: np.ndarray, row: int, value: float) -> np.ndarray:
    x = x.copy()
    x[row] = value
    return x


T = made(extras=True)
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (npz_file(reward=None), "bad.npz: reward: missing; the file has action, "),
    "no termination": (npz_file(terminated=None), "bad.npz: done: missing"),
    "rows": (npz_file(action=T.action[:-1]), "bad.npz: action: has 16 rows"),
    "shape": (npz_file(next_obs=T.obs[:, 0]), "bad.npz: next_obs: has shape"),
    "wide reward": (npz_file(reward=T.obs), "bad.npz: reward: must have one number"),
    "scalar": (npz_file(obs=1.0), "bad.npz: obs: has no rows"),
    "nothing": (npz_file(obs=T.obs[:0]), "bad.npz: obs: has no rows"),
    "nan": (npz_file(obs=with_value(T.obs, 5, np.nan)), "bad.npz: obs, row 5: NaN or infinite"),
    "infinite": (npz_file(reward=with_value(T.reward, 7, np.inf)), "bad.npz: reward, row 7: NaN"),
    "too large": (npz_file(action=np.full((17, 3), 1e300)), "bad.npz: action, row 0: NaN"),
    "nan in extras": (
        npz_file(**{"extras/log_prob": with_value(T.reward, 2, np.nan)}),
        "bad.npz: extras/log_prob, row 2",
    ),
    "flag": (
        npz_file(truncated=with_value(T.reward * 0, 3, 0.5)),
        "bad.npz: truncated, row 3: must be",
    ),
    "texts": (npz_file(action=np.array(["a"] * 17)), "bad.npz: action: holds <U1"),
    "objects": (npz_file(action=np.array([None] * 17)), "bad.npz: action: holds object"),
    "state": (npz_file(**{"state/0": None}), "bad.npz: state/0: missing"),
    "meta": (npz_file(meta="{"), "bad.npz: meta: is not JSON"),
    "meta, a list": (npz_file(meta="[]"), "bad.npz: meta: must be a JSON object"),
    "changed": (npz_file(meta='{"sha256": "0"}'), "bad.npz: meta: the arrays have another sha256"),
    "zip": (text(b"PK\x03\x04"), "bad.npz: as a whole: cannot be read"),
    "other": (text(b"hello"), "bad.npz is neither"),
    "empty": (text(b""), "bad.npz is neither"),
    "not there": (lambda folder: folder / "bad.npz", "bad.npz cannot be read: No such file"),
    "folder": (lambda folder: folder, "not a Minari folder"),
    "hdf5": (hdf5(observations=None), "bad.hdf5: observations: missing, and so is episode_0"),
    "hdf5, cut": (text(b"\x89HDF\r\n\x1a\n1234"), "bad.npz: as a whole: cannot be read"),
    "hdf5, nan": (hdf5(rewards=with_value(T.reward, 4, np.nan)), "bad.hdf5: rewards, row 4: NaN"),
    "hdf5, rows": (hdf5(terminals=np.zeros(3)), "bad.hdf5: terminals: has 3 rows"),
    "hdf5, missing": (hdf5(actions=None), "bad.hdf5: actions: missing"),
    "minari, missing": (
        folder_of(replaced("episode_1/rewards", None)),
        "main_data.hdf5: episode_1/rewards: missing",
    ),
    "minari, empty": (
        folder_of(replaced("episode_2/actions", np.zeros((0, 3)))),
        "main_data.hdf5: episode_2/actions: has no rows",
    ),
    "minari, rows": (
        folder_of(replaced("episode_0/actions", np.zeros((4, 3)))),
        "episode_0/observations: has 4 rows for 4 actions",
    ),
    "minari, nan": (
        folder_of(replaced("episode_0/rewards", [0, np.nan, 0])),
        "episode_0/rewards, row 1: NaN",
    ),
    "minari, early": (
        folder_of(replaced("episode_0/terminations", [True, False, True])),
        "episode_0/terminations, row 0: the episode ends before",
    ),
    "minari, shapes": (
        folder_of(replaced("episode_1/observations/a", np.zeros((6, 3)))),
        "episode_1/observations: has rows of another shape than (4,) in episode_0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_data_raise_a_line_with_the_place(tmp_path: Path, name: str) -> None:
    build, says = BAD[name]
    with pytest.raises(UserError) as caught:
        datasets.load(build(tmp_path))
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    datasets.save(whole, Dataset(made(), {}))
    contents = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for size in np.linspace(1, len(contents) - 1, 15).astype(int):
        cut.write_bytes(contents[:size])
        with pytest.raises(UserError):
            datasets.load(cut)


def test_save_needs_a_known_suffix_and_a_new_folder(tmp_path: Path) -> None:
    data = Dataset(made(), {})
    with pytest.raises(UserError, match=r"use the suffix \.npz"):
        datasets.save(tmp_path / "a.csv", data)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        datasets.save(tmp_path / "there", data)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_limits_count_from_the_last_termination() -> None:
    terminated = np.zeros(25, bool)
    terminated[[3, 20]] = True
    limit = LIMITS["hopper"]
    assert not d4rl.limits(Path("hopper-random-v0.hdf5"), terminated).any()
    long = np.concatenate([terminated, np.zeros(limit, bool)])
    cut = np.flatnonzero(d4rl.limits(Path("hopper-random-v0.hdf5"), long))
    assert cut.tolist() == [20 + limit]
