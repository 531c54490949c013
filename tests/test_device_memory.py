"""Memory: what a population needs, and what it is told where that is too much."""

from __future__ import annotations

import jax
import pytest

from jaxrl import population
from jaxrl.errors import UserError
from jaxrl.runs import device_memory


def test_members_the_tile_at_work_and_a_checkpoint() -> None:
    """Ten members on four CPU devices in tiles of two have four places on each."""
    plan = population.layout(10, jax.devices()[:4], 2)
    assert device_memory.needed(100, 10, plan) == 4 * (3 * 4 + 2) * 100


def test_says_what_does_not_fit() -> None:
    plan = population.layout(8, jax.devices()[:2], 2)
    size = 2**28
    need = device_memory.needed(size, 8, plan)
    device_memory.check(size, 8, plan, need)
    device_memory.check(size, 8, plan, None)
    with pytest.raises(UserError, match="8 members of 0.25 GiB need 7 GiB, but 6.75 GiB are free"):
        device_memory.check(size, 8, plan, need - size)


def test_this_machine_has_memory() -> None:
    free = device_memory.available(jax.devices()[0])
    assert free is None or 2**20 < free < 2**50
