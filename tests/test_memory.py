"""Free memory by /proc/meminfo and cgroups of both versions."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

from jaxrl.errors import UserError
from jaxrl.runs import memory

GIB = 2**30


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    files = {
        "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB // 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **files,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
CASES = {
    "no cgroups": ("", {}, 8),
    "v2 without limit": ("0::/a\n", {f"{V2}/a/memory.max": "max\n"}, 8),
    "v2": (
        "0::/a/b\n",
        {
            f"{V2}/a/b/memory.max": f"{4 * GIB}\n",
            f"{V2}/a/b/memory.current": f"{3 * GIB}\n",
            f"{V2}/a/b/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
        2,
    ),
    "v2, limit of the parent": (
        "0::/a/b\n",
        {
            f"{V2}/a/memory.max": f"{3 * GIB}\n",
            f"{V2}/a/memory.current": "0\n",
            f"{V2}/a/b/memory.max": f"{4 * GIB}\n",
            f"{V2}/a/b/memory.current": "0\n",
        },
        3,
    ),
    "v2 in a container, used up": (
        "0::/not/visible\n",
        {f"{V2}/memory.max": f"{GIB}\n", f"{V2}/memory.current": f"{2 * GIB}\n"},
        0,
    ),
    "v1": (
        "5:cpu:/c\n4:memory,hugetlb:/a\n0::/\n",
        {
            f"{V1}/a/memory.limit_in_bytes": f"{6 * GIB}\n",
            f"{V1}/a/memory.usage_in_bytes": f"{2 * GIB}\n",
            f"{V1}/a/memory.stat": f"total_inactive_file {GIB}\n",
            f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{V1}/memory.usage_in_bytes": f"{20 * GIB}\n",
        },
        5,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_free_bytes(tmp_path: Path, name: str) -> None:
    cgroup, files, gigabytes = CASES[name]
    assert memory.free_bytes(system(tmp_path, cgroup, files)) == gigabytes * GIB


def test_unknown_without_files_of_the_kernel(tmp_path: Path) -> None:
    assert memory.free_bytes(tmp_path) is None


def test_check_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: GIB)
    memory.check_fits(GIB, "the thing", "take less")
    with pytest.raises(UserError, match="the thing needs 2 GiB, but 1 GiB are free: take less"):
        memory.check_fits(2 * GIB, "the thing", "take less")
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    memory.check_fits(2 * GIB, "the thing", "take less")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    """128 MB in blocks below one that is still in use, which the C library would keep."""
    blocks = [np.ones(8192) for _ in range(2000)]
    del blocks[:-1]
    before = resident()
    memory.release_freed()
    assert before - resident() > 100_000_000


def resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
