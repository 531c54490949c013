"""One definition, two drivers: the same bits however a program is run.

The table: each row of `toys.ROWS` as one pure function, from the host in chunks, and resumed from a
snapshot of each stage, on 1, 2 and 8 devices.
"""

from __future__ import annotations

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


def pure(row: str, devices: int) -> fit.Result:
    train = jax.jit(population.train(toys.ROWS[row](), plan(devices)))
    ids = jnp.arange(MEMBERS)
    return train(jax.random.key(3), ids, toys.hypers(MEMBERS), toys.inputs())


def first_snapshots(reports: list[Report]) -> list[RunState]:
    """The first snapshot of each stage, which is inside it."""
    firsts = {r.stage: r.snapshot for r in reversed(reports)}
    return [taken for taken in firsts.values() if taken is not None]


def check_chunked_equals_pure(reports: list[Report], whole: fit.Result) -> None:
    last = reports[-1].snapshot
    assert last is not None
    assert bits(whole.states) == bits(last.results | {reports[-1].stage: last.member.learner})
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


# One test per row rather than one per property: they share the compiled programs.


@pytest.mark.parametrize("row", toys.ROWS)
def test_row(row: str) -> None:
    """Pure on one device, in chunks on two, resumed in each stage on eight."""
    reports = run(row, 2)
    check_chunked_equals_pure(reports, pure(row, 1))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    for taken in first_snapshots(reports):
        target = abstract_state(toys.ROWS[row](), toys.hypers(MEMBERS), toys.inputs(), taken.stage)
        assert shapes(taken[:2]) == shapes(target[:2])
        resumed = run(row, 8, resume=taken)
        assert 0 < len(resumed) < len(reports)
        assert bits(resumed[-1].snapshot) == bits(reports[-1].snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("row", toys.ROWS)
def test_row_in_every_cell(row: str) -> None:
    """{pure, chunked, resumed in each stage} x {1, 2, 8 devices}."""
    first = pure(row, 1)
    for devices in (1, 2, 8):
        assert bits(first) == bits(pure(row, devices)), devices
        reports = run(row, devices)
        check_chunked_equals_pure(reports, first)
        for taken in first_snapshots(reports):
            resumed = run(row, devices, resume=taken)
            assert bits(resumed[-1].snapshot) == bits(reports[-1].snapshot), devices


@pytest.mark.parametrize("row", ["rollout", "uniform data"])
def test_a_member_is_the_same_alone(row: str) -> None:
    """fit.train of one member against the population, up to rounding: the width differs."""
    hp, member = toys.hypers(MEMBERS), 5
    states = run(row, 1)[-1].snapshot.member.learner  # type: ignore[union-attr]
    key = population.member_keys(jax.random.key(3), jnp.arange(MEMBERS))[member]
    own = jax.tree.map(lambda x: x[member], hp)
    program = toys.ROWS[row]()
    alone = jax.jit(fit.train(program))(key, own, toys.inputs()).states[program.stages[-1].name]
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(a, b[member], rtol=2e-5, atol=2e-6)
