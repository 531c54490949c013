"""Datasets of images: bytes in memory, one copy of each frame, and the batches of float data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import dynamics, normalise, sources, windows
from jaxrl.envs import datasets
from jaxrl.envs.datasets import episodes
from jaxrl.types import Box, EnvSpec, HyperParams, Source, Transition

SPEC = EnvSpec("made", (2, 3), Box((-1.0,), (1.0,), (1,)))


def images(ends: str, seed: int = 0) -> Transition:
    """Rows with obs [2, 3] uint8; T terminated, t truncated."""
    rng, rows = np.random.default_rng(seed), len(ends)
    terminated, truncated = (np.array([c == end for c in ends]) for end in "Tt")
    obs, last = rng.integers(0, 256, (2, rows, 2, 3)).astype(np.uint8)
    next_obs = np.concatenate([obs[1:], last[:1]])
    over = terminated | truncated
    next_obs[over] = last[over]
    columns: Any = (obs, rng.normal(size=(rows, 1)).astype(np.float32), np.arange(rows) * 1.0)
    start = episodes.starts(over)
    known = {"next_known": ~terminated}
    return Transition(*columns, next_obs, terminated, truncated, start, known)  # type: ignore[arg-type]


def as_floats(t: Transition) -> Transition:
    return t._replace(obs=t.obs.astype(np.float32), next_obs=t.next_obs.astype(np.float32))


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@settings(max_examples=40, deadline=None)
@given(st.text("...Tt", min_size=1, max_size=12))
def test_each_frame_is_stored_once(ends: str) -> None:
    t = images(ends)
    found: Any = datasets.compact(t)
    over = (t.terminated | t.truncated)[:-1].sum() + 1  # the last row has a successor of its own
    assert found.obs.shape == (len(ends) + over, 2, 3) and found.obs.dtype == np.uint8
    np.testing.assert_array_equal(found.obs[found.next_obs], t.next_obs)
    np.testing.assert_array_equal(found.obs[: len(ends)], t.obs)
    same(sources.expand(found), sources.expand(as_floats(t)))
    same(sources.expand(t), sources.expand(as_floats(t)))


def test_other_data_stay_as_they_are() -> None:
    t = as_floats(images("..T.."))
    assert datasets.compact(t) is t and sources.expand(t) is t
    whole = t._replace(obs=t.obs.astype(np.int32), next_obs=np.arange(5, dtype=np.int32))
    assert not sources.is_compact(whole) and sources.expand(whole) is whole


@pytest.mark.parametrize(
    "source",
    [sources.uniform(7), sources.whole(), sources.held_out(7), windows.windows(6, 3, 1)],
)
def test_batches_are_those_of_float_data(source: Source) -> None:
    t, hp = images("....T...t..."), HyperParams(())
    batches = []
    for data in (jax.device_put(datasets.compact(t)), jax.device_put(as_floats(t))):
        src = source.init(jax.random.key(0), (), hp, {"data": data})
        args = ((), hp, {"data": data}, jax.random.key(1), jnp.int32(0))
        batches.append(source.next(src, *args)[1])
    same(*batches)


def test_moments_are_those_of_float_data() -> None:
    """Differences of bytes must not wrap, and moments leave out frames that are no row's."""
    t = images("....T...t...")
    stored = jax.device_put(datasets.compact(t))
    floats = jax.device_put(as_floats(t))
    same(normalise.change_moments(stored), normalise.change_moments(floats))
    cfg = dynamics.Ensemble(members=2, elites=1, hidden=(4,))

    class Hypers:
        model_lr = jnp.float32(1e-3)

    learner = dynamics.ensemble(cfg, SPEC)
    states = [
        learner.init(jax.random.key(0), Hypers(), {"data": data}).inputs
        for data in (stored, floats)
    ]
    same(*states)
