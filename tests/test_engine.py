"""One definition, two drivers: the same bits however a program is run.

The table: each row of `toys.ROWS` as one pure function, from the host in chunks, and resumed from a
snapshot of each stage, on 1, 2 and 8 devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from jaxrl import fit, population
from jaxrl.drive import Report, RunState, abstract_state, drive

MEMBERS, WIDTH = 16, 2


def bits(tree: Any) -> list[bytes]:
    def raw(x: Any) -> bytes:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x).tobytes()

    return [raw(x) for x in jax.tree.leaves(tree) if not isinstance(x, int)]


def plan(devices: int) -> population.Layout:
    return population.layout(MEMBERS, jax.devices()[:devices], WIDTH)


def run(row: str, devices: int, resume: RunState | None = None) -> list[Report]:
    reports = drive(
        toys.ROWS[row](),
        plan(devices),
        jax.random.key(3),
        toys.hypers(MEMBERS),
        toys.inputs(),
        resume=resume,
        snapshot=lambda stage, step, last: True,
    )
    return list(reports)


@functools.cache
def pure(row: str, devices: int) -> fit.Result:
    train = jax.jit(population.train(toys.ROWS[row](), plan(devices)))
    ids = jnp.arange(MEMBERS)
    return train(jax.random.key(3), ids, toys.hypers(MEMBERS), toys.inputs())


@functools.cache
def chunked(row: str, devices: int) -> list[Report]:
    return run(row, devices)


def final_states(reports: list[Report]) -> dict[str, Any]:
    last = reports[-1].snapshot
    assert last is not None
    return last.results | {reports[-1].stage: last.member.learner}


# Tests of one row share compiled programs, so they stay in one process.
each_row = pytest.mark.parametrize(
    "row", [pytest.param(row, marks=pytest.mark.xdist_group(row)) for row in toys.ROWS]
)


@each_row
def test_chunked_equals_pure(row: str) -> None:
    """On other device counts at that: two against one."""
    whole, reports = pure(row, 1), chunked(row, 2)
    assert bits(whole.states) == bits(final_states(reports))
    for stage in whole.metrics:
        own = [r for r in reports if r.stage == stage]
        for name, mean in whole.metrics[stage].items():
            expected = np.asarray(mean.total / mean.weight)
            got = np.stack([r.metrics[name] for r in own])
            if expected.ndim == 1:  # one for all members
                expected = np.broadcast_to(expected[:, None], got.shape)
            np.testing.assert_allclose(got, expected, rtol=1e-6)
        if own[0].evals is not None:
            stacked = jax.tree.map(lambda *x: np.stack(x), *[r.evals for r in own])
            assert bits(whole.evals[stage]) == bits(stacked)


@each_row
def test_devices_do_not_matter(row: str) -> None:
    assert bits(pure(row, 1)) == bits(pure(row, 8))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 8])
@each_row
def test_whole_table(row: str, devices: int) -> None:
    """Every cell: pure, chunked and resumed in each stage on the same number of devices."""
    whole, reports = pure(row, devices), chunked(row, devices)
    assert bits(pure(row, 1)) == bits(whole)
    assert bits(whole.states) == bits(final_states(reports))
    for taken in first_snapshots(reports):
        assert bits(run(row, devices, resume=taken)[-1].snapshot) == bits(reports[-1].snapshot)


def first_snapshots(reports: list[Report]) -> list[RunState]:
    """The first snapshot of each stage, which is inside it."""
    firsts = {r.stage: r.snapshot for r in reversed(reports)}
    return [taken for taken in firsts.values() if taken is not None]


@each_row
def test_resumed_in_each_stage(row: str) -> None:
    """On another number of devices at that: eight after two."""
    reports = chunked(row, 2)
    for taken in first_snapshots(reports):
        resumed = run(row, 8, resume=taken)
        assert 0 < len(resumed) < len(reports)
        assert bits(resumed[-1].snapshot) == bits(reports[-1].snapshot)


@each_row
def test_snapshots_have_the_shape_they_are_restored_into(row: str) -> None:
    program = toys.ROWS[row]()
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    for taken in first_snapshots(chunked(row, 2)):
        target = abstract_state(program, toys.hypers(MEMBERS), toys.inputs(), taken.stage)
        assert shapes(taken[:2]) == shapes(target[:2])


def test_a_member_is_the_same_alone() -> None:
    """fit.train of one member against the population, up to rounding: the width differs."""
    hp = toys.hypers(MEMBERS)
    for row in ("rollout", "offline then online"):
        whole = pure(row, 1).states
        key = population.member_keys(jax.random.key(3), jnp.arange(MEMBERS))[5]
        own = jax.tree.map(lambda x: x[5], hp)
        alone = jax.jit(fit.train(toys.ROWS[row]()))(key, own, toys.inputs()).states
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b[5], rtol=2e-5, atol=2e-6)
