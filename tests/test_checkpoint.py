"""Checkpoints: what goes in comes out, and damage of every kind is survived."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.runs.checkpoint import SKIP, CheckpointMismatch, Checkpoints

pytestmark = pytest.mark.filterwarnings("error")


class State(NamedTuple):
    w: Any
    keys: Any
    count: Any


def make(i: int, width: int = 300) -> dict[str, Any]:
    """A tree with every kind of leaf, all of whose values depend on i."""
    return {
        "member": State(
            w=jnp.arange(width, dtype=jnp.float32) * i,
            keys=jax.random.split(jax.random.key(i), 3),
            count=np.int32(i),
        ),
        "half": (jnp.full((2, 3), i, jnp.bfloat16), np.array([True, False, i % 2 == 0])),
        "key": jax.random.key(i, impl="rbg"),
        "empty": np.zeros((0, 4), np.float32),
        "nothing": (None, ()),
        "step": i,
        "nan": np.array([np.nan, np.inf, -0.0]),
    }


def like(tree: Any) -> Any:
    one = lambda x: x if isinstance(x, int) else jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.tree.map(one, tree)


def target(meta: dict[str, Any]) -> Any:
    return like(make(1))


def raw(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if isinstance(x, jax.Array) else x)


def assert_same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if isinstance(b, int):
            assert type(a) is int and a == b
            continue
        assert a.dtype == b.dtype and a.shape == b.shape
        key = jnp.issubdtype(b.dtype, jax.dtypes.prng_key)
        assert isinstance(a, jax.Array if key else np.ndarray)
        b = np.asarray(jax.random.key_data(b) if key else b)
        assert raw(a).tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints 1 and 2, not to be changed."""
    path = tmp_path_factory.mktemp("written")
    with Checkpoints(path) as ckpt:
        ckpt.save(1, make(1), {"stage": "a"})
        ckpt.save(2, make(2), {"stage": "b"})
    return path


def files(path: Path) -> list[Path]:
    return sorted(x.relative_to(path) for x in path.rglob("*") if x.is_file())


# --- sound checkpoints ---------------------------------------------------------------------------


def test_round_trip_keeps_types_bits_and_meta(tmp_path: Path) -> None:
    meta = {"stage": "agent", "step": 7, "score": 0.1, "list": [1, None, {"10": 1, "9": 2}]}
    with Checkpoints(tmp_path) as ckpt:
        assert ckpt.restore(target) is None
        ckpt.save(5, make(5), meta)
        found = ckpt.restore(target)
    assert found is not None and (found.index, found.meta, found.notes) == (5, meta, [])
    assert_same(found.tree, make(5))
    assert isinstance(found.tree["member"], State)
    a, b = found.tree["member"].keys, make(5)["member"].keys
    assert jnp.array_equal(jax.random.normal(a[1]), jax.random.normal(b[1]))


def test_structure_of_the_target_follows_the_meta(tmp_path: Path) -> None:
    trees = {"a": {"x": np.arange(3.0)}, "b": State(np.arange(2), np.arange(4), np.arange(1))}
    with Checkpoints(tmp_path, keep=1) as ckpt:
        for index, stage in enumerate(trees):
            ckpt.save(index, trees[stage], {"stage": stage})
            found = ckpt.restore(lambda meta: like(trees[meta["stage"]]))
            assert found is not None
            assert_same(found.tree, trees[stage])


def test_tree_without_arrays(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(0, {"a": (), "b": None}, {})
        found = ckpt.restore(lambda meta: {"a": (), "b": None})
    assert found is not None and found.tree == {"a": (), "b": None}


def test_saved_values_are_those_at_the_call(tmp_path: Path) -> None:
    x = np.zeros(1_000_000, np.float32)
    y = jnp.zeros(1_000_000)
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(0, {"x": x, "y": y}, {})
        x += 1
        jax.block_until_ready(jax.jit(lambda v: v + 1, donate_argnums=0)(y))
        found = ckpt.restore(lambda meta: like({"x": x, "y": x}))
    assert found is not None and not found.tree["x"].any() and not found.tree["y"].any()


def test_sharded_arrays_are_gathered(tmp_path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("pop",))
    x = np.arange(mesh.size * 3, dtype=np.float32).reshape(-1, 3)
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pop")))
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(0, split, {})
        found = ckpt.restore(lambda meta: like(x))
    assert found is not None
    assert_same(found.tree, x)


def test_last_k_are_kept_and_indices_grow(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=3) as ckpt:
        for i in range(6):
            ckpt.save(i, {"x": np.arange(i + 1)}, {"n": i + 1})
        ckpt.wait()
        assert sorted(x.name for x in tmp_path.iterdir()) == ["3", "4", "5"]
        for i in (5, 4):
            with pytest.raises(ValueError, match=f"checkpoint {i} must come after 5"):
                ckpt.save(i, {"x": np.arange(1)}, {})
        shapes = lambda meta: {"x": jax.ShapeDtypeStruct((meta["n"],), np.int64)}
        found = ckpt.restore(shapes, index=4)
        assert found is not None and found.index == 4 and found.tree["x"].size == 5
        assert ckpt.restore(shapes, index=1) is None


def test_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path) as ckpt:
        with pytest.raises(TypeError, match="holds numbers"):
            ckpt.save(0, {"x": np.array(["text"])}, {})
        with pytest.raises(TypeError):
            ckpt.save(0, {"x": np.zeros(1)}, {"meta": np.zeros(3)})
        ckpt.save(0, {"x": np.zeros(1)}, {})  # neither left anything in the way


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"nan": np.zeros(4)}, r"leaf nan is float64\[3\], not float64\[4\]"),
        (lambda t: t | {"nan": np.zeros(3, "f4")}, r"leaf nan is float64\[3\], not float32\[3\]"),
        (lambda t: t | {"more": np.zeros(1)}, r"leaf more is absent, not float64\[1\]"),
        (lambda t: {k: v for k, v in t.items() if k != "nan"}, r"nan is float64\[3\], not absent"),
        (lambda t: t | {"key": jax.random.key(0)}, r"leaf key is key<rbg>\[\], not key<fry>\[\]"),
        (lambda t: t | {"member": t["member"]._replace(w=np.zeros(9, "f4"))}, r"leaf member\.w is"),
    ],
)
def test_another_configuration_is_an_error_not_damage(written: Path, change, message) -> None:
    before = files(written)
    with Checkpoints(written) as ckpt, pytest.raises(CheckpointMismatch, match=message) as error:
        ckpt.restore(lambda meta: like(change(make(1))))
    assert "\n" not in str(error.value)
    assert files(written) == before


def test_errors_of_the_target_are_not_damage(written: Path) -> None:
    before = files(written)
    with Checkpoints(written) as ckpt, pytest.raises(KeyError, match="other"):
        ckpt.restore(lambda meta: meta["other"])
    assert files(written) == before


# --- parts of a tree -----------------------------------------------------------------------------


def partial(meta: dict[str, Any]) -> Any:
    """The target without the member's weights and without the subtree `half`."""
    whole = like(make(1))
    return whole | {"member": whole["member"]._replace(w=SKIP), "half": SKIP}


def test_skipped_subtrees_are_neither_read_nor_verified(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxrl.runs import arrays

    path, read, names = tmp_path / "copy", arrays.read, []
    shutil.copytree(written, path)
    monkeypatch.setattr(arrays, "read", lambda *x: (names.append(x[1]), read(*x))[1])
    with Checkpoints(path) as ckpt:
        found = ckpt.restore(partial)
    assert found is not None and (found.index, found.notes) == (2, [])
    want = make(2)
    want |= {"half": None, "member": want["member"]._replace(w=None)}
    assert found.tree["half"] is SKIP and found.tree["member"].w is SKIP
    got = dict(found.tree, half=None, member=found.tree["member"]._replace(w=None))
    assert_same(got, want)
    paths, _ = jax.tree_util.tree_flatten_with_path(make(2))
    names_of = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in paths]
    skipped = {names_of.index(x) for x in ("half.0", "half.1", "member.w")}
    assert {int(x) for x in names}.isdisjoint(skipped) and len(names) == len(names_of) - 4  # empty


def test_damage_in_a_skipped_leaf_goes_unnoticed(tmp_path: Path) -> None:
    small = np.arange(4.0)
    big = np.random.default_rng(0).integers(0, 256, 500_000, dtype=np.uint8)
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(0, {"policy": small, "buffer": {"x": big}}, {})
    sizes = {x: x.stat().st_size for x in tmp_path.rglob("*") if x.is_file()}
    flip(max(sizes, key=lambda x: sizes[x]))
    with Checkpoints(tmp_path) as ckpt:
        found = ckpt.restore(lambda meta: {"policy": small, "buffer": SKIP})
        assert found is not None and found.notes == []
        assert_same(found.tree["policy"], small)
        assert ckpt.restore(lambda meta: {"policy": small, "buffer": {"x": big}}) is None


def test_a_partial_target_of_another_configuration_is_an_error(written: Path) -> None:
    with Checkpoints(written, read_only=True) as ckpt:
        with pytest.raises(CheckpointMismatch, match=r"leaf nan is float64\[3\], not absent"):
            ckpt.restore(lambda meta: {k: v for k, v in partial(meta).items() if k != "nan"})
        with pytest.raises(CheckpointMismatch, match="leaf more is absent"):
            ckpt.restore(lambda meta: partial(meta) | {"more": np.zeros(1)})
        found = ckpt.restore(lambda meta: SKIP)
        assert found is not None and found.tree is SKIP and found.meta == {"stage": "b"}
        # Nothing was saved in the place of a subtree that is skipped.
        assert ckpt.restore(lambda meta: partial(meta) | {"nothing": SKIP}) is not None


# --- the rest of the process ---------------------------------------------------------------------


SETTINGS = """
import logging
import absl.logging
from orbax.checkpoint._src.multihost import multihost

def settings():
    functions = {k: v for k, v in vars(multihost).items() if callable(v)}
    loggers = [None, "absl", "asyncio", "orbax", "jax"]
    levels = [(logging.getLogger(x).level, logging.getLogger(x).disabled) for x in loggers]
    filters = [tuple(logging.getLogger(x).filters) for x in loggers]
    return functions, absl.logging.get_verbosity(), levels, filters
"""
OTHERS = """
import sys
from pathlib import Path
import jax
import numpy as np
if len(sys.argv) > 2:
    jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import orbax.checkpoint as ocp
from jaxrl.runs.checkpoint import Checkpoints
{SETTINGS}
path, me = Path(sys.argv[1]), jax.process_index()
tree = {{"x": np.arange(4.0) + me, "y": {{"z": np.ones((2, 3))}}}}

def others(name):
    # What a user does with orbax, all processes together.
    state = {{"x": np.arange(3)}}
    with ocp.CheckpointManager(path / "manager") as manager:
        assert manager.save(len(name), args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        assert manager.latest_step() == len(name)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / name, state)
    assert (path / name).is_dir()

before = settings()
others("one")
with Checkpoints(path / f"own-{{me}}") as ckpt:
    for i in range(3 + 2 * me):  # each process saves as often as it likes
        ckpt.save(i, tree, {{"i": i}})
    found = ckpt.restore(lambda meta: tree)
assert found.index == 2 + 2 * me and found.notes == []
for a, b in zip(jax.tree.leaves(found.tree), jax.tree.leaves(tree)):
    np.testing.assert_array_equal(a, b)
others("three")
assert settings() == before
print("same")
"""


def run_code(code: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def test_orbax_and_logging_stay_as_they_were(tmp_path: Path) -> None:
    out, errors = run_code(OTHERS.format(SETTINGS=SETTINGS), str(tmp_path)).communicate(timeout=120)
    assert out == "same\n", errors


def test_two_processes_of_one_cluster_save_without_each_other(tmp_path: Path) -> None:
    """Checkpoints of their own, in different numbers; a user's own orbax managers go on working."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = OTHERS.format(SETTINGS=SETTINGS)
    started = [run_code(code, str(tmp_path), address, str(i)) for i in range(2)]
    try:
        ended = [each.communicate(timeout=120) for each in started]
    finally:
        for each in started:
            each.kill()
    assert [out.splitlines()[-1:] for out, _ in ended] == [["same"]] * 2, (
        ended
    )  # after Gloo's lines
    for i in range(2):
        folder = tmp_path / f"own-{i}"
        assert sorted(x.name for x in folder.iterdir()) == [str(1 + 2 * i), str(2 + 2 * i)]


# --- damage --------------------------------------------------------------------------------------


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [halve, flip, Path.unlink])
def test_every_file_damaged_in_turn(written: Path, tmp_path: Path, capfd, damage) -> None:
    """What comes back is right to the bit, or the one before it, and saving goes on."""
    lost = set()
    for name in files(written / "2"):
        path = tmp_path / "copy"
        shutil.copytree(written, path)
        damage(path / "2" / name)
        said: list[str] = []
        with Checkpoints(path, say=said.append) as ckpt:
            found = ckpt.restore(target)
            assert found is not None and found.notes == said
            assert_same(found.tree, make(found.index))
            assert found.meta == {"stage": "ab"[found.index - 1]}
            if found.index == 1:
                lost.add("state" if name.parts[0] == "state" else str(name))
                (line,) = said
                assert line.startswith("checkpoint 2 is damaged and passed over: ")
                assert "\n" not in line and len(line) < 250
            else:
                assert said == []
            ckpt.save(found.index + 1, make(9), {"stage": "c"})
        with Checkpoints(path) as ckpt:
            again = ckpt.restore(target)
            assert again is not None and again.index == found.index + 1 and again.notes == []
            assert_same(again.tree, make(9))
        shutil.rmtree(path)
    assert lost == {"meta/metadata", "state"}  # orbax's own notes are not needed
    assert capfd.readouterr().err == ""  # neither orbax nor tensorstore talk


@pytest.mark.parametrize("tries", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_flipped_bits_are_never_read_as_other_numbers(
    written: Path, tmp_path: Path, capfd, tries: int
) -> None:
    rng, names = np.random.default_rng(2), files(written / "2")
    sizes = np.array([(written / "2" / name).stat().st_size for name in names])
    path, noticed = tmp_path / "copy", 0
    shutil.copytree(written, path)
    for _ in range(tries):
        file = path / "2" / names[rng.choice(len(names), p=sizes / sizes.sum())]
        before = file.read_bytes()
        data = bytearray(before)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        file.write_bytes(data)
        with Checkpoints(path, read_only=True) as ckpt:
            found = ckpt.restore(target)
        assert found is not None
        assert_same(found.tree, make(found.index))
        assert (
            found.meta == {"stage": "ab"[found.index - 1]} and len(found.notes) == 2 - found.index
        )
        noticed += found.index == 1
        file.write_bytes(before)
    assert noticed > tries / 4 and capfd.readouterr().err == ""
    print(f"{noticed} of {tries} flips noticed, the others without effect")


def test_wrong_value_in_the_largest_file(tmp_path: Path) -> None:
    """Random data are stored uncompressed, so that only the crc can notice."""
    x = np.random.default_rng(0).integers(0, 256, 500_000, dtype=np.uint8)
    with Checkpoints(tmp_path) as ckpt:
        ckpt.save(0, {"x": x}, {})
        ckpt.save(1, {"x": x}, {})
    flip(max((tmp_path / "1").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0))
    with Checkpoints(tmp_path) as ckpt:
        found = ckpt.restore(lambda meta: like({"x": x}))
    assert found is not None and found.index == 0 and "leaf x is not the one" in found.notes[0]
    assert_same(found.tree, {"x": x})


def test_whole_folders_lost(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(written, path)
    shutil.rmtree(path / "2" / "state")
    for file in files(path / "1"):
        (path / "1" / file).unlink()
    said: list[str] = []
    with Checkpoints(path, say=said.append) as ckpt:
        assert ckpt.restore(target) is None
        assert [line.split(" is ")[0] for line in said] == ["checkpoint 2", "checkpoint 1"]
        ckpt.save(1, make(1), {})
        assert ckpt.restore(target) is not None


def test_read_only_touches_nothing(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(written, path)
    (path / "3.orbax-checkpoint-tmp").mkdir()
    (path / "2" / "meta" / "metadata").write_bytes(b"")
    before = sorted(path.rglob("*"))
    with Checkpoints(path, read_only=True) as ckpt:
        found = ckpt.restore(target)
        assert found is not None and found.index == 1 and len(found.notes) == 1
        with pytest.raises(ValueError, match="reading only"):
            ckpt.save(9, make(9), {})
    assert sorted(path.rglob("*")) == before
    with Checkpoints(tmp_path / "none", read_only=True) as ckpt:
        assert ckpt.restore(target) is None
    assert not (tmp_path / "none").exists()


def test_write_error_is_raised_and_survived(tmp_path: Path) -> None:
    """A disk that is full, here a limit on the size of files."""
    code = f"""
import resource, signal
import numpy as np, jax
from jaxrl.runs.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tree = {{"x": np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8)}}
with Checkpoints({str(tmp_path)!r}) as ckpt:
    ckpt.save(1, tree, {{}})
    ckpt.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    ckpt.save(2, tree, {{}})
    try:
        ckpt.wait()
    except Exception as error:
        print("raised")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found = ckpt.restore(lambda meta: tree)
    print(found.index, found.notes, np.array_equal(found.tree["x"], tree["x"]))
    ckpt.save(2, tree, {{}})
    print(ckpt.restore(lambda meta: tree).index)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["raised", "1 [] True", "2"], done.stderr
    assert done.stderr == ""  # orbax, absl and tensorstore are silent


def heavy(i: int) -> dict[str, np.ndarray]:
    """8 MB that do not compress, and differ from one i to the next."""
    rng = np.random.default_rng(i)
    return {name: rng.standard_normal(500_000, dtype=np.float32) for name in "abcd"}


LOOP = f"""
import sys
import numpy as np
from jaxrl.runs.checkpoint import Checkpoints
{inspect.getsource(heavy)}
with Checkpoints(sys.argv[1], keep=2) as ckpt:
    found = ckpt.restore(lambda meta: heavy(0))
    index = found.index + 1 if found else 0
    while True:
        ckpt.save(index, heavy(index), {{"index": index}})
        ckpt.wait()
        print(index, flush=True)
        index += 1
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    cut = 0
    for delay in (0.0, 0.03):
        command = [sys.executable, "-c", LOOP, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            try:
                complete = [int(child.stdout.readline()) for _ in range(3)][-1]
                end = time.monotonic() + 20
                while not any(tmp_path.glob("*.orbax-checkpoint-tmp")) and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(delay)
            finally:
                os.kill(child.pid, signal.SIGKILL)
            complete = max([complete, *map(int, child.stdout.read().split())])
        cut += any(tmp_path.glob("*.orbax-checkpoint-tmp"))
        with Checkpoints(tmp_path) as ckpt:
            assert not any(tmp_path.glob("*tmp*"))
            found = ckpt.restore(lambda meta: heavy(0))
        assert found is not None and found.notes == [] and found.meta == {"index": found.index}
        assert found.index in (complete, complete + 1)
        assert_same(found.tree, heavy(found.index))
    assert cut, "no kill fell into a save"
