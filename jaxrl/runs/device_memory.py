"""Memory estimates of a population, checked before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxrl.errors import UserError
from jaxrl.population import Layout
from jaxrl.runs import memory
from jaxrl.runs.memory import gigabytes
from jaxrl.types import PyTree


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all leaves, arrays or their shapes as from `jax.eval_shape`."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def needed(member_bytes: int, members: int, layout: Layout) -> int:
    """Bytes needed in the memory of one device, or of the machine if devices are CPUs.

    A device holds its members and a copy of the tile being updated. CPU devices share one memory,
    which also holds the two copies of all members that are made for a checkpoint.
    """
    places = layout.padded(members) // layout.devices
    if layout.platform != "cpu":
        return (places + layout.width) * member_bytes
    return layout.mesh.size * (3 * places + layout.width) * member_bytes


def check_temporary(what: str, size: int, layout: Layout) -> None:
    """Checks that the temporary memory of a compiled program is free, before its first launch.

    Args:
      what: name of the program, or what it allocates.
      size: bytes on each device.

    Raises:
      UserError: too few bytes are free.
    """
    device = layout.mesh.devices.flat[0]
    free, together = available(device), layout.mesh.size if device.platform == "cpu" else 1
    if free is not None and size * together > free:
        raise UserError(
            f"{what} needs {gigabytes(size * together)} of temporary memory, but {gigabytes(free)} "
            "are free: take a smaller --width, smaller batches, or fewer environments or episodes"
        )


def available(device: Any) -> int | None:
    """Free bytes of a device, or of the machine if the device is a CPU; None if unknown."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    return memory.free_bytes()


def check(member_bytes: int, members: int, layout: Layout, free: int | None) -> None:
    """Checks that a population fits into memory.

    Args:
      member_bytes: bytes of one member's state.
      free: `available` of one device; None skips the check.

    Raises:
      UserError: the population does not fit.
    """
    need = needed(member_bytes, members, layout)
    if free is not None and need > free:
        raise UserError(
            f"{members} members of {gigabytes(member_bytes)} need {gigabytes(need)}, but "
            f"{gigabytes(free)} are free: take fewer seeds, a smaller --width, or a smaller replay "
            "buffer (--agent.capacity)"
        )
