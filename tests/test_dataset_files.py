"""Dataset files of strangers: wrong numbers, other files' bytes, sizes, damage, episode ends."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_datasets import PLAIN, d4rl_columns, made, minari_folder, same, write

from jaxrl.envs import datasets
from jaxrl.envs.datasets import Dataset, episodes, layout
from jaxrl.errors import UserError
from jaxrl.runs import memory
from jaxrl.types import Box, Discrete, EnvSpec

FORMATS = (".npz", ".hdf5", "")


def plain(file: Path, **changes: Any) -> Path:
    """An `.npz` of the needed columns only."""
    t = made("....")
    np.savez(file, **{**{name: getattr(t, name) for name in PLAIN}, **changes})
    return file


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        datasets.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- values ---------------------------------------------------------------------------------------


def test_large_integers_keep_their_values(tmp_path: Path) -> None:
    obs = np.full((4, 2), 2**32 + 7)
    changes = {"obs": obs, "next_obs": obs, "reward": np.array([3_000_000_000, -1, 0, 2**40])}
    t: Any = datasets.load(plain(tmp_path / "a.npz", **changes)).transitions
    np.testing.assert_array_equal(t.obs, np.float32(2**32 + 7))
    np.testing.assert_array_equal(t.reward, np.float32(changes["reward"]))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("terminated", 2**32, "terminated, row 1: must be 0 or 1, not 4294967296"),
        ("terminated", 0.5, "terminated, row 1: must be 0 or 1, not 0.5"),
        ("action", 2**31, "action, row 1: beyond 32 bits: 2147483648"),
        ("extras/x", -(2**31) - 1, "extras/x, row 1: beyond 32 bits"),
        ("extras/state", 0, "extras/state: no name for an extra"),
        ("extras/\x1b[2J", 0, "extras/?[2J: no name for an extra"),
        ("extras/", 0, "extras/: no name for an extra"),
        ("extras/next_known", 2, "extras/next_known, row 1: must be 0 or 1"),
    ],
)
def test_integers_that_do_not_fit(tmp_path: Path, column: str, value: Any, says: str) -> None:
    x = np.zeros(4, np.asarray(value).dtype)
    x[1] = value
    assert says in refused(plain(tmp_path / "a.npz", **{column: x}))


def test_bool_bytes_beyond_one(tmp_path: Path) -> None:
    x = np.array([0, 1, 7, 0], np.uint8).view(bool)
    assert "terminated, row 2: bool must be stored as 0" in refused(
        plain(tmp_path / "a.npz", terminated=x)
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_bytes_stay_bytes_and_states_keep_their_dtypes(tmp_path: Path, suffix: str) -> None:
    t, rng = made("...."), np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 2, 2, 3)).astype(np.uint8)
    state = (np.array([0, 1, 2, 2**32 - 1], np.uint32), np.arange(4, dtype=np.int8), t.terminated)
    t = t._replace(obs=frames[:-1], next_obs=frames[1:], extras={"state": state})
    path = tmp_path / f"data{suffix}"
    datasets.save(path, Dataset(t, {}))
    same(datasets.load(path).transitions, t)


def test_one_row(tmp_path: Path) -> None:
    t = made(".")
    path = plain(tmp_path / "a.npz", **{name: getattr(t, name) for name in PLAIN})
    found = datasets.load(path).transitions
    same(found, t)
    assert datasets.episode_returns(found)[1].tolist() == [1]


@pytest.mark.parametrize("limit", [500.7, 1e-3, 3e9])
def test_actions_at_a_bound(limit: float) -> None:
    """Bounds are compared in float32, up to a millionth of their size."""
    space = Box((-limit,), (limit,), (1,))
    spec = EnvSpec("made", (2, 2), space)
    at = lambda *x: made("..")._replace(action=np.array(x, np.float32)[:, None])
    datasets.check(Dataset(at(-limit, limit), {}), spec)
    with pytest.raises(UserError, match="row 1: .*outside the bounds"):
        datasets.check(Dataset(at(limit, 1.0001 * limit), {}), spec)
    free = EnvSpec("made", (2, 2), Box((-limit,), (np.inf,), (1,)))
    with pytest.raises(UserError, match="row 0: .*outside the bounds"):
        datasets.check(Dataset(at(-1.0001 * limit, 1e30), {}), free)


# --- episode ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e6])
@pytest.mark.parametrize("flagged", [True, False])
def test_files_with_next_observations_are_split(
    tmp_path: Path, flagged: bool, scale: float
) -> None:
    """Six trajectories of ten rows, whose timeouts miss the ends; any size of the numbers."""
    t = made(".........t" * 6)
    t = t._replace(obs=np.float32(scale) * t.obs, next_obs=np.float32(scale) * t.next_obs)
    columns = d4rl_columns(t) | {"next_observations": t.next_obs}
    columns["timeouts"] = np.zeros(60, bool)
    if not flagged:
        del columns["timeouts"]
    found = datasets.load(write(tmp_path / "a.hdf5", columns))
    expected = t.truncated & (np.arange(60) < 59)  # nothing shows that the last row is an end
    np.testing.assert_array_equal(found.transitions.truncated, expected)
    np.testing.assert_array_equal(found.transitions.start, episodes.starts(expected))
    assert found.meta["splits"] == 5
    for suffix in FORMATS:
        datasets.save(tmp_path / f"b{suffix}", found)
        again = datasets.load(tmp_path / f"b{suffix}")
        same(again.transitions, found.transitions)
        assert again.meta["sha256"] == found.meta["sha256"]


def test_rounded_copies_are_not_split() -> None:
    """Differences of a few units in the last place, at numbers of any size, are no ends."""
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    obs = obs * np.array([1e-6, 1, 1e6], np.float32)
    rounded = np.roll(obs, -1, 0) * np.float32(1 + 3e-7)
    assert not episodes.jumps(obs, rounded).any()
    assert episodes.jumps(obs, np.roll(obs, -2, 0)).all()


def test_successors_survive_in_every_format(tmp_path: Path) -> None:
    """Rows that do not continue each other, and successors that are not known."""
    t = made("...")
    obs = np.array([[0], [10], [20]], np.float32)
    t = t._replace(obs=obs, next_obs=obs + 1)
    known = np.array([True, False, True])
    t = t._replace(terminated=~known, extras={"next_known": known})
    for suffix in FORMATS:
        datasets.save(tmp_path / f"a{suffix}", Dataset(t, {}))
        found = datasets.load(tmp_path / f"a{suffix}").transitions
        np.testing.assert_array_equal(found.next_obs, t.next_obs)
        np.testing.assert_array_equal(found.extras["next_known"], known)
        assert found.start.all()


def test_time_limit_of_old_files(tmp_path: Path) -> None:
    columns = d4rl_columns(made("." * 10))
    del columns["timeouts"]
    file = write(tmp_path / "pen.hdf5", columns)
    says = refused(file)
    assert "timeouts: missing" in says and "--max-episode-steps N" in says
    found = datasets.load(file, max_episode_steps=4).transitions
    assert np.diff(np.flatnonzero(found.start)).tolist() == [3, 3]
    with pytest.raises(UserError, match="leave out --max-episode-steps"):
        datasets.load(write(tmp_path / "b.hdf5", d4rl_columns(made())), max_episode_steps=4)
    datasets.save(tmp_path / "c.npz", Dataset(made(), {}))
    with pytest.raises(UserError, match="for D4RL's HDF5 files only"):
        datasets.load(tmp_path / "c.npz", max_episode_steps=4)


@pytest.mark.parametrize("ends", ["TTTT", "."])
def test_models_need_known_successors(tmp_path: Path, ends: str) -> None:
    columns = d4rl_columns(made(ends)) | (
        {"next_observations": made(ends).next_obs} if ends == "." else {}
    )
    data = datasets.load(write(tmp_path / "a.hdf5", columns))
    with pytest.raises(UserError, match=r"next_obs: . rows have a known successor, ravl needs"):
        datasets.check_successors(data, "ravl")


# --- other files, sizes, damage -------------------------------------------------------------------


def external(file: Path) -> None:
    (file.parent / "secret").write_bytes(bytes(range(160)))
    with h5py.File(file, "a") as to:
        del to["rewards"]
        to.create_dataset("rewards", (17,), "u1", external=[(str(file.parent / "secret"), 0, 17)])


def linked(file: Path, soft: bool = False) -> None:
    write(file.parent / "other.hdf5", {"x": np.zeros(17)})
    with h5py.File(file, "a") as to:
        del to["rewards"]
        to["outside" if soft else "rewards"] = h5py.ExternalLink("other.hdf5", "/x")
        if soft:
            to["rewards"] = h5py.SoftLink("/outside")


def virtual(file: Path) -> None:
    write(file.parent / "other.hdf5", {"x": np.zeros(17)})
    layout = h5py.VirtualLayout((17,), "f4")
    layout[:] = h5py.VirtualSource(str(file.parent / "other.hdf5"), "x", (17,))
    with h5py.File(file, "a") as to:
        del to["rewards"]
        to.create_virtual_dataset("rewards", layout)


def circle(file: Path) -> None:
    with h5py.File(file, "a") as to:
        del to["rewards"]
        to["rewards"] = h5py.SoftLink("/rewards")


@pytest.mark.parametrize("edit", [external, linked, lambda x: linked(x, True), virtual, circle])
def test_hdf5_reads_no_other_file(tmp_path: Path, edit: Any) -> None:
    file = write(tmp_path / "a.hdf5", d4rl_columns(made()))
    edit(file)
    assert "store the data themselves" in refused(file)


def test_links_inside_a_file_are_followed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.hdf5", d4rl_columns(made()))
    with h5py.File(file, "a") as to:
        to.move("rewards", "group/r")
        to["rewards"] = h5py.SoftLink("/group/r")
    datasets.load(file)


def test_sizes_are_compared_with_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**30)
    file = write(
        tmp_path / "a.hdf5", {k: x for k, x in d4rl_columns(made()).items() if k[0] != "r"}
    )
    with h5py.File(file, "a") as to:
        to.create_dataset("rewards", (2**40,), "f4", chunks=(2**20,))
    assert "rewards: shape (1099511627776,) is declared, but not all rows" in refused(file)
    with h5py.File(file, "a") as to:
        del to["rewards"]
        to.create_dataset("rewards", (2**27,), "f4", chunks=(2**20,))
    assert "rewards: shape (134217728,) is declared, but not all rows" in refused(file)
    obs = np.zeros((4, 2**16), np.float32)
    path = plain(tmp_path / "a.npz", obs=obs, next_obs=obs)
    datasets.load(path)
    monkeypatch.setattr(memory, "free_bytes", lambda: obs.nbytes)
    columns = d4rl_columns(made("....")) | {"observations": obs}
    assert "a.hdf5 needs" in refused(write(file, columns))
    assert "free: use a smaller dataset" in refused(path)


def test_headers_that_declare_more_than_there_is(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**31,)}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("extras/x.npy", header.getvalue() + bytes(24_000))
    assert "extras/x: truncated or damaged, shape (2147483648,)" in refused(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_flipped_bits_are_noticed(tmp_path: Path, suffix: str) -> None:
    """A changed bit of jaxrl's own files is refused, or is in a place without meaning."""
    path = tmp_path / f"own{suffix}"
    datasets.save(path, Dataset(made(extras=True), {"env": "x"}))
    file = path if suffix else path / "data" / "main_data.hdf5"
    expected, whole, rng = datasets.load(path), file.read_bytes(), np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 12):
        broken = bytearray(whole)
        broken[at] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        try:
            found = datasets.load(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert found.meta == expected.meta
            same(found.transitions, expected.transitions)


# --- metadata and layouts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "metadata.json: as a whole: must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"dataset_id": 3}', "as a whole/dataset_id: must be a text, not 3"),
        ('{"ref_min_score": "0"}', "ref_min_score: must be a finite number, not '0'"),
        ('{"ref_min_score": NaN}', "ref_min_score: must be a finite number, not nan"),
        ('{"ref_max_score": true}', "ref_max_score: must be a finite number, not True"),
        ('{"jaxrl": 1}', "as a whole/jaxrl: must be a JSON object"),
        ('{"jaxrl": {"env": []}}', "as a whole/jaxrl/env: must be a text"),
        ('{"jaxrl": {"reference": 5}}', "reference: must have the returns random and expert"),
        ('{"jaxrl": {"action_low": ["a"]}}', "action_low: must be numbers"),
    ],
)
def test_metadata_of_wrong_types(tmp_path: Path, text: str, says: str) -> None:
    folder = minari_folder(tmp_path / "a-v0", made())
    (folder / "data" / "metadata.json").write_text(text)
    assert says in refused(folder)


def test_null_metadata_are_absent_and_equal_references_give_no_score(tmp_path: Path) -> None:
    folder = minari_folder(tmp_path / "a-v0", made())
    about = {"dataset_id": None, "ref_min_score": None, "ref_max_score": 1}
    (folder / "data" / "metadata.json").write_text(json.dumps(about))
    meta = datasets.load(folder).meta
    assert meta["env"] == "a-v0" and "reference" not in meta
    assert datasets.normalised_score({"reference": {"random": 1.0, "expert": 1.0}}, 2.0) is None


def columns_of(name: str, **changes: Any) -> Any:
    def edit(file: Any) -> None:
        for key, x in changes.items():
            del file[f"{name}/{key}"]
            if x is not None:
                file[f"{name}/{key}"] = x

    return edit


def only(*names: str) -> Any:
    def edit(file: Any) -> None:
        for name in [x for x in file if x not in names]:
            del file[name]

    return edit


def renamed(file: Any) -> None:
    file.move("episode_0", "episode_x")


def flat(file: Any) -> None:
    del file["episode_0"]
    file["episode_0"] = np.zeros(3)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (only(), "observations: missing, and so is episode_0"),
        (renamed, "episode_x: is no episode"),
        (flat, "episode_0: is no group"),
        (
            columns_of("episode_1", actions=np.zeros((5, 2))),
            "episode_1/actions: has rows of another shape than (3,) in episode_0",
        ),
        (
            columns_of("episode_1", actions=np.zeros((5, 3), int)),
            "episode_1/actions: holds int32, but float32 in episode_0",
        ),
        (
            columns_of("episode_1", **{"observations/a": np.zeros((6, 3), "S3")}),
            "episode_1/observations: holds",
        ),
        (columns_of("episode_1", **{"observations/a": np.zeros(3)}), "episode_1/observations: its"),
    ],
)
def test_episodes_of_wrong_shapes(tmp_path: Path, edit: Any, says: str) -> None:
    folder = minari_folder(tmp_path / "a-v0", made(), edit)
    assert says in refused(folder / "data" / "main_data.hdf5")


@pytest.mark.parametrize(
    ("action", "count", "space"),
    [
        (np.array([False, True, True]), None, {"type": "Discrete", "start": 0, "n": 2}),
        (np.array([-3, 2, 0]), None, {"type": "Discrete", "start": -3, "n": 6}),
        (np.array([1, 0, 1]), 4, {"type": "Discrete", "start": 0, "n": 4}),
        (
            np.array([[0, 2], [-1, 1], [0, 0]]),
            None,
            {"type": "MultiDiscrete", "start": [-1, 0], "nvec": [2, 3]},
        ),
    ],
)
def test_minari_space_of_integers(tmp_path: Path, action: Any, count: Any, space: Any) -> None:
    """As `minari.load_dataset` reads them, which was tried with minari 0.5.4."""
    meta = {} if count is None else datasets.action_bounds(EnvSpec("x", (2, 2), Discrete(count)))
    datasets.save(tmp_path / "a-v0", Dataset(made("..T")._replace(action=action), meta))
    about = json.loads((tmp_path / "a-v0/data/metadata.json").read_text())
    assert json.loads(about["action_space"]) == {**space, "dtype": "int64"}
    found = datasets.load(tmp_path / "a-v0").transitions
    np.testing.assert_array_equal(found.action, action.astype(np.int32))


@pytest.mark.parametrize("suffix", FORMATS)
def test_places_that_cannot_be_written(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: ") as caught:
        datasets.save(tmp_path / "file" / f"a{suffix}", Dataset(made(), {}))
    assert "\n" not in str(caught.value)
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_saved_arrays_pass_the_checks_of_files(tmp_path: Path) -> None:
    t = made()
    reward = t.reward.copy()
    reward[3] = np.nan
    for suffix in FORMATS:
        with pytest.raises(UserError, match="dataset: reward, row 3: NaN"):
            datasets.save(tmp_path / f"a{suffix}", Dataset(t._replace(reward=reward), {}))
    assert not list(tmp_path.iterdir())
    wide = t._replace(obs=t.obs.astype(np.float64), action=t.action > 0)
    datasets.save(tmp_path / "a.npz", Dataset(wide, {}))
    assert layout.arrays(datasets.load(tmp_path / "a.npz").transitions)["action"].dtype == np.int32
