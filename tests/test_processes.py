"""Several processes are one run: the bits of one process, whatever happens to any of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cluster
import numpy as np
import pytest

from jaxrl import population
from jaxrl.errors import UserError
from jaxrl.runs import checkpoint, records, shards
from jaxrl.runs.processes import ALONE, Processes, in_cluster, join

SLOW = cluster.SLOW
DIE_WHILE_SAVING = """
import os, signal
from jaxrl.runs.checkpoint import Checkpoints
save, count = Checkpoints.save, 0
def dying(self, *args):
    global count
    count += 1
    save(self, *args)
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = dying
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with two devices, undisturbed."""
    out = tmp_path_factory.mktemp("reference") / "run"
    (ended,) = cluster.finish(cluster.start(out))
    assert ended.code == 0, ended.text
    return out


def go_on(out: Path, reference: Path, processes: int = 2, devices: int = 2) -> None:
    """The same command again gives the bits of an undisturbed run."""
    ended = cluster.finish(cluster.start(out, processes, devices))
    assert [e.code for e in ended] == [0] * processes, ended
    assert "continuing from update" in ended[0].text
    cluster.assert_same(out, reference)


def kill_one(out: Path, victim: int) -> float:
    """Kills a process of two after some checkpoints; seconds until the other one has ended."""
    running = cluster.start(out, 2, inject=[SLOW])
    cluster.until(lambda: len(cluster.saved(out)) >= 4)
    running[victim].kill()
    clock = time.monotonic()
    ended = cluster.finish(running, 60)
    assert ended[1 - victim].code not in (0, 2), ended
    return time.monotonic() - clock


def test_two_processes_give_the_bits_of_one(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    leader, other = cluster.finish(cluster.start(out, 2))
    assert (leader.code, other.code) == (0, 0), leader.text + other.text
    assert "8 members" in leader.text and "8 members" not in other.text
    assert {x.parent.name for x in cluster.saved(out)} == {"0000000-0000004", "0000004-0000008"}
    cluster.assert_same(out, reference)
    again = cluster.finish(cluster.start(out, 2))
    assert [e.code for e in again] == [0, 0] and "is finished" in again[0].text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--agent.lr", "0.5"], "request.settings.lr is 0.0001 there and 0.5 here"),
        (["--seeds", "6"], "request.seeds is 8 there and 6 here"),
        (["--overwrite"], "overwrite is false there and true here"),
        (["--width", "4"], "width is 2 there and 4 here"),
    ],
)
def test_processes_with_different_requests_are_refused(
    words: list[str], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = cluster.finish(cluster.start(out, 2, last=words))
    assert [each.code for each in ended] == [2, 2], ended
    for each in ended:
        assert f"process 1 was started with another request than process 0: {says}" in each.text
    assert not out.exists() or not cluster.saved(out)


class Post:
    """The messages of processes that are threads."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key: str, text: str, allow_overwrite: bool = False) -> None:
        with self.changed:
            self.sent[key] = text
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout: int) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.sent, timeout=30), key
            return self.sent[key]


def together(work: Callable[[Processes], Any], count: int = 3) -> list[Any]:
    """What `work` returns or raises in each of several processes."""
    post = Post()

    def one(index: int) -> Any:
        try:
            return work(Processes(index, count, post))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_processes_compare_their_requests() -> None:
    assert together(lambda p: p.check_same({"lr": 1})) == [None] * 3
    found = together(lambda p: p.check_same({"lr": 1, "seeds": [1, p.index // 2]}))
    (line,) = set(found)
    assert line.startswith(
        "process 2 was started with another request than process 0: seeds is [1, 0] there and "
        "[1, 1] here; "
    )


def test_a_problem_of_one_process_is_raised_in_all() -> None:
    assert together(lambda p: p.raise_first("")) == [None] * 3
    assert together(lambda p: p.raise_first("no " * p.index)) == ["no "] * 3


@pytest.mark.slow
def test_four_processes_give_the_bits_of_one(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = cluster.finish(cluster.start(out, 4, 4), 200)
    assert [e.code for e in ended] == [0] * 4, ended
    cluster.assert_same(out, reference)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_it_goes_on(reference: Path, tmp_path: Path) -> None:
    assert kill_one(tmp_path / "run", victim=1) < 30
    go_on(tmp_path / "run", reference)


@pytest.mark.slow
def test_a_killed_coordinator_ends_the_run_and_it_goes_on(reference: Path, tmp_path: Path) -> None:
    assert kill_one(tmp_path / "run", victim=0) < 30
    go_on(tmp_path / "run", reference)


@pytest.mark.slow
def test_other_numbers_of_processes_go_on(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for processes, devices, count in [(2, 2, 4), (4, 4, 12)]:
        running = cluster.start(out, processes, devices, inject=[SLOW])
        cluster.until(lambda: len(cluster.saved(out)) >= count)  # noqa: B023
        running[0].send_signal(signal.SIGTERM)
        ended = cluster.finish(running, 200)
        assert [e.code for e in ended] == [143] * processes, ended
    go_on(out, reference, processes=1, devices=2)


@pytest.mark.slow
def test_killed_while_saving(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = cluster.finish(cluster.start(out, 2, inject=[SLOW, SLOW + DIE_WHILE_SAVING]))
    assert ended[1].code == -signal.SIGKILL
    go_on(out, reference)


@pytest.mark.slow
def test_a_damaged_shard_is_passed_over_by_all(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = cluster.start(out, 2, inject=[SLOW])
    cluster.until(lambda: len(cluster.saved(out)) >= 4)
    running[1].send_signal(signal.SIGINT)
    assert [e.code for e in cluster.finish(running)] == [130, 130]
    newest = max(cluster.saved(out), key=lambda x: (x.parent.name, int(x.name)))
    biggest = max((x for x in newest.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)
    go_on(out, reference)
    assert any(newest.parent.glob("damaged-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_say_how_to_go_on(number: int, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = cluster.start(out, inject=[SLOW], more=["--checkpoint-seconds", "1000"])
    # After the first launch: while compiling, the run would end without a checkpoint.
    cluster.until(lambda: any((out / "metrics").glob("*")))
    running[0].send_signal(number)
    (ended,) = cluster.finish(running)
    assert ended.code == 128 + number
    assert f"stopped by {signal.Signals(number).name} and saved; the same command" in ended.text
    assert len(cluster.saved(out)) == 1
    go_on(out, reference, processes=1)


@pytest.mark.slow
def test_a_run_without_progress_is_ended(tmp_path: Path) -> None:
    hang = "from jaxrl.experiments import train_loop\nimport time\n"
    hang += "train_loop.metrics_of = lambda report: time.sleep(1000)"
    running = cluster.start(tmp_path / "run", inject=[hang], more=["--watchdog", "2"])
    (ended,) = cluster.finish(running, 60)
    assert ended.code == 75
    assert "no progress for 2 s (--watchdog), ended; the same command continues" in ended.text


@pytest.mark.slow
def test_a_second_process_in_one_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = cluster.start(out, inject=[SLOW])
    cluster.until(lambda: len(cluster.saved(out)) >= 1)
    (second,) = cluster.finish(cluster.start(out))
    assert second.code == 2 and "another process is writing" in second.text
    first[0].send_signal(signal.SIGTERM)
    assert cluster.finish(first)[0].code == 143


@pytest.mark.slow
def test_members_that_diverge_are_named_and_touch_no_other(tmp_path: Path) -> None:
    """Eight members have a sound learning rate, the other eight a huge one."""
    out = tmp_path / "sweep"
    sweep = ["--sweep", "agent.lr=1e-4,1e30", "--agent.max-grad-norm", "1e30"]
    (ended,) = cluster.finish(cluster.start(out, more=sweep, command="sweep"))
    assert ended.code == 0, ended.text
    run = records.RunDir(out / "000")
    assert "8 failed: 8, 9, 10" in ended.text
    assert (run.summary() or {})["failed_members"] == list(range(8, 16))
    np.testing.assert_array_equal(run.members()["failed"], np.arange(16) >= 8)
    few = tmp_path / "few"
    (ended,) = cluster.finish(cluster.start(few, more=["--agent.max-grad-norm", "1e30"]))
    assert ended.code == 0, ended.text
    for a, b in zip(cluster.outcome(few)[0], cluster.outcome(run.path)[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on(reference: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        (ended,) = cluster.finish(cluster.start(disk / "run", inject=[SLOW], more=["--keep", "9"]))
        assert ended.code == 74 and "the disk is full" in ended.text, ended.text
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        go_on(disk / "run", reference, processes=1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- who trains which members --------------------------------------------------------------------


@pytest.mark.parametrize("devices", [[4], [2, 2], [1, 1, 1, 1], [3, 1]])
@pytest.mark.parametrize(("members", "width"), [(8, 2), (7, 2), (5, 4), (1, 1), (9, 1)])
def test_shares_are_whole_tiles_in_order(devices: list[int], members: int, width: int) -> None:
    ranges = population.spread(members, width, devices)
    assert len(ranges) == len(devices) and ranges[0][0] == 0 and ranges[-1][1] == members
    for (_, end), (begin, _) in zip(ranges, ranges[1:], strict=False):
        assert end == begin and (begin % width == 0 or begin == members)
    # Each device has as many tiles as the busiest would have, were all devices in one process.
    busiest = max(-(-(b - a) // (width * n)) for (a, b), n in zip(ranges, devices, strict=True))
    assert busiest == -(-members // (width * sum(devices)))


@pytest.mark.parametrize(
    ("members", "devices", "platform", "acting", "width"),
    [
        (8, 2, "cpu", True, 4),
        (5, 1, "cpu", True, 3),  # 2 tiles, of 6 places
        (8, 2, "cpu", False, 1),
        (300, 1, "gpu", True, 150),
        (300, 1, "gpu", False, 150),
        (1, 2, "cpu", True, 1),
    ],
)
def test_width_of_tiles(
    members: int, devices: int, platform: str, acting: bool, width: int
) -> None:
    assert population.tile_width(members, devices, platform, acting) == width


@pytest.mark.parametrize(
    ("ranges", "members", "expected"),
    [
        ([(0, 4), (4, 8)], (0, 8), [(0, 4), (4, 8)]),
        ([(0, 4), (4, 8)], (4, 6), [(4, 8)]),
        ([(0, 4), (2, 8), (4, 6)], (0, 8), [(0, 4), (2, 8)]),
        ([(0, 4), (5, 8)], (0, 8), []),
        ([], (0, 1), []),
    ],
)
def test_cover(ranges: Any, members: Any, expected: Any) -> None:
    assert shards.cover(ranges, members) == expected


def write_shard(path: Path, members: shards.Range, identity: Any = "own") -> None:
    """Index 1 of members whose state is their number."""
    with checkpoint.Checkpoints(path / shards.folder(members)) as ckpt:
        ckpt.save(1, np.arange(*members), {"identity": identity})


def read_shards(path: Path) -> shards.Found | None:
    target = lambda meta, members: np.arange(*members)
    return shards.newest(path, "own", (0, 4), target)


def test_a_damaged_shard_is_replaced_by_others_of_the_same_members(tmp_path: Path) -> None:
    for members in ((0, 4), (0, 2), (2, 4)):
        write_shard(tmp_path, members)
    found = read_shards(tmp_path)
    assert found is not None and [members for members, _ in found.parts] == [(0, 4)]
    (tmp_path / "0000000-0000004/1/meta/metadata").write_bytes(b"")
    found = read_shards(tmp_path)
    assert found is not None and [members for members, _ in found.parts] == [(0, 2), (2, 4)]
    np.testing.assert_array_equal(np.concatenate([x for _, x in found.parts]), range(4))
    (tmp_path / "0000002-0000004/1/meta/metadata").write_bytes(b"")
    assert read_shards(tmp_path) is None


def test_one_shard_of_another_run_is_enough(tmp_path: Path) -> None:
    write_shard(tmp_path, (0, 2))
    write_shard(tmp_path, (2, 4), identity="other")
    with pytest.raises(UserError, match='is "other" there and "own" here; put back'):
        read_shards(tmp_path)
    ranges = [(0, 2), (2, 4)]

    def restore(processes: Processes) -> Any:
        with shards.Shards(tmp_path, "own", ranges, processes=processes) as own:
            return own.restore(lambda meta, x: np.arange(*x), ranges[processes.index])

    one, two = together(restore, 2)  # only the second reads the other run's shard
    assert one == two and "checkpoints" in one


def test_flags_and_clusters() -> None:
    assert join() is ALONE
    with pytest.raises(UserError, match="belong together"):
        join("127.0.0.1:1", 2)
    with pytest.raises(UserError, match="between 0 and 1, got 2"):
        join("127.0.0.1:1", 2, 2)
    for found in (
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
    ):
        assert in_cluster(found)
    for alone in ({}, {"SLURM_STEP_NUM_TASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}):
        assert not in_cluster(alone)


def test_alone_everything_is_agreed() -> None:
    alone = ALONE
    assert (
        alone.broadcast_int(7),
        alone.broadcast("x"),
        alone.all_true(False),
        alone.stop_requested(),
    ) == (7, "x", False, 0)
    np.testing.assert_equal(alone.leads, True)
    assert alone.gather("x") == ["x"]
