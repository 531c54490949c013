"""Free memory of the machine: the least of what the kernel reports and what cgroups still allow."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

from jaxrl.errors import UserError


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still allocate; None if the system does not report them.

    The least of MemAvailable and, for the process's memory cgroup (v1 or v2) and all its ancestors,
    limit - usage + page cache that the kernel can drop.

    Args:
      root: folder with proc/ and sys/, for tests.
    """
    found = list(_cgroup_bytes(root))
    available = _table(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        found.append(available * 1024)
    return min(found, default=None)


def check_fits(need: int, what: str, advice: str) -> None:
    """Checks that `need` bytes are free; `what` needs them, `advice` says what to do otherwise.

    Raises:
      UserError: fewer bytes are free.
    """
    free = free_bytes()
    if free is not None and need > free:
        raise UserError(f"{what} needs {gigabytes(need)}, but {gigabytes(free)} are free: {advice}")


def release_freed() -> None:
    """Returns freed memory to the system where the C library is glibc, which keeps it.

    XLA's compiler leaves some 300 MiB, and the heap of a long run grows by fragments. Takes 10 to
    100 ms.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def gigabytes(size: float) -> str:
    """`size` bytes in GiB, as text."""
    return f"{size / 2**30:.3g} GiB"


def _cgroup_bytes(root: Path) -> Iterator[int]:
    """Bytes left in each memory cgroup with a limit, from the process's own to the root."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            places = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            places = ("sys/fs/cgroup/memory",)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        limit, usage, droppable = names
        for place in places:
            mount = root / place
            own = mount / path.lstrip("/")  # absent in containers that see their cgroup as the root
            for folder in (own, *own.parents):
                if not folder.is_relative_to(mount):
                    break
                most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
                if most.isdigit() and used.isdigit():  # not "max"
                    cache = _table(folder / "memory.stat").get(droppable, 0)
                    yield max(int(most) - int(used) + cache, 0)


def _table(file: Path) -> dict[str, int]:
    """Lines "name number ..." of a file of the kernel."""
    rows = [line.split() for line in _read(file).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
