"""Replay against loops in numpy: what is drawn, how often, and how steps are folded."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.errors import UserError
from jaxrl.exploration import random_policy
from jaxrl.sources import below, fold, mix, replay, split_batch, uniform
from jaxrl.types import Batch, Box, Discrete, HyperParams, Source, Transition

SLOTS, LENGTH, ENVS = 3, 4, 2
GAMMA = 0.9


# --- folding -------------------------------------------------------------------------------------


def filled(seed: int, written: int, ends: float) -> Transition:
    """A ring after `written` windows; slots never written hold NaN and flags that would mislead."""
    rng = np.random.default_rng(seed)
    shape = (SLOTS, LENGTH, ENVS)
    kind = rng.choice(3, shape, p=[1 - ends, ends / 2, ends / 2])
    fresh = np.arange(SLOTS)[:, None, None] >= written
    number = lambda: np.where(fresh, np.nan, rng.normal(size=shape)).astype(np.float32)
    return Transition(
        obs=number()[..., None],
        action=rng.integers(0, 5, shape, np.int32),
        reward=number(),
        next_obs=number()[..., None],
        terminated=(kind == 1) & ~fresh,
        truncated=(kind == 2) & ~fresh,
        start=rng.random(shape) < 0.2,
        extras={"value": number()},
    )


def folded_by_hand(ring: Transition, written: int, n_step: int) -> dict[int, dict[str, Any]]:
    """For every written row, by walking each environment's steps in the order they were made."""
    windows = range(max(written - SLOTS, 0), written)
    rows: dict[int, dict[str, Any]] = {}
    for env in range(ENVS):
        history = [(w % SLOTS, t, env) for w in windows for t in range(LENGTH)]
        for i, begin in enumerate(history):
            reward, discount = 0.0, 1.0
            for at in history[i : i + n_step]:
                reward += discount * float(ring.reward[at])
                discount *= GAMMA
                last = at
                if ring.terminated[at] or ring.truncated[at]:
                    break
            rows[(begin[0] * LENGTH + begin[1]) * ENVS + env] = {
                "obs": ring.obs[begin],
                "action": ring.action[begin],
                "reward": reward,
                "next_obs": ring.next_obs[last],
                "terminated": ring.terminated[last],
                "truncated": ring.truncated[last],
                "start": ring.start[begin],
                "value": ring.extras["value"][begin],
                "discount": discount,
            }
    return rows


@functools.cache
def folder(n_step: int) -> Any:
    return jax.jit(lambda ring, rows, oldest: fold(ring, rows, oldest, n_step, jnp.float32(GAMMA)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    written=st.integers(1, 3 * SLOTS),
    n_step=st.sampled_from([1, 2, 3, 7, SLOTS * LENGTH + 1]),
    ends=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_folding_equals_a_walk(seed: int, written: int, n_step: int, ends: float) -> None:
    ring = filled(seed, written, ends)
    expected = folded_by_hand(ring, written, n_step)
    rows = np.arange(SLOTS * LENGTH * ENVS, dtype=np.int32)
    got = folder(n_step)(ring, rows, jnp.int32(written % SLOTS))
    got = got._asdict() | got.extras
    for row, values in expected.items():
        for name, value in values.items():
            np.testing.assert_allclose(got[name][row], value, rtol=1e-5, atol=1e-6, err_msg=name)


# --- the ring ------------------------------------------------------------------------------------


def counting(sign: int) -> Source:
    """Window w holds the numbers sign * (1000 w + 10 t + env), and its state counts the windows."""

    def init(key, learner_state, hp, inputs):
        return jnp.int32(0)

    def next(src, learner_state, hp, inputs, key, step):
        t, env = jnp.meshgrid(jnp.arange(LENGTH), jnp.arange(ENVS), indexing="ij")
        number = (sign * (1000 * src + 10 * t + env)).astype(jnp.float32)
        no = jnp.zeros((LENGTH, ENVS), bool)
        window = Transition(number, number, number, number, no, no, no)
        return src + 1, Batch(window), {"windows": src}

    return Source(init=init, next=next, env_steps=LENGTH * ENVS)


def numbers(windows: range, sign: int = 1) -> set[int]:
    return {
        sign * (1000 * w + 10 * t + e) for w in windows for t in range(LENGTH) for e in range(ENVS)
    }


def test_draws_from_the_last_windows_only() -> None:
    """Before the ring is full and behind its end; warm-up windows come from the other source."""
    source = replay(counting(1), SLOTS * LENGTH * ENVS + 3, 400, warmup=2, first=counting(-1))
    key = jax.random.key(0)
    src = source.init(key, (), {}, {})
    assert src.ring.reward.shape == (SLOTS, LENGTH, ENVS)
    step = jax.jit(source.next)
    for s in range(7):
        src, batch, metrics = step(src, (), {}, {}, jax.random.fold_in(key, s), jnp.int32(s))
        assert metrics["windows"] == s + 2  # the state goes on from the warm-up
        window = range(max(s + 3 - SLOTS, 0), s + 3)
        made = numbers(range(2, s + 3)) | numbers(range(2), -1)
        expected = {x for x in made if abs(x) // 1000 in window}
        assert set(np.asarray(batch.transitions.reward).astype(int)) == expected


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(np.sum((counts - expected) ** 2) / expected)


@pytest.mark.parametrize("step", [0, 9], ids=["filling", "full"])
def test_draws_every_row_as_often(step: int) -> None:
    source = replay(counting(1), SLOTS * LENGTH * ENVS, 24_000)
    src = source.init(jax.random.key(0), (), {}, {})
    for s in range(step):
        src, *_ = _next(source)(src, jax.random.key(1), jnp.int32(s))
    _, batch, _ = _next(source)(src, jax.random.key(2), jnp.int32(step))
    _, counts = np.unique(batch.transitions.reward, return_counts=True)
    assert counts.size == (16 if step == 0 else 24)
    assert chi_square(counts) < 56  # 23 degrees of freedom: above it 1 in 8,000


@functools.cache
def _next(source: Source) -> Any:
    return jax.jit(lambda src, key, step: source.next(src, (), HyperParams(()), {}, key, step))


def refreshed(every: int) -> Source:
    """One row that counts its refreshes."""
    row = Transition(*(jnp.zeros(1) for _ in Transition._fields[:-1]))
    return Source(
        init=lambda *args: jnp.float32(0),
        next=lambda src, *args: (src, Batch(row._replace(reward=src[None])), {}),
        refresh=lambda src, *args: src + 1,
        every=every,
    )


@pytest.mark.parametrize("kinds", [(2, None), (None, 2), (2, 2)])
def test_both_parts_of_a_mixture_are_refreshed(kinds: tuple[int | None, ...]) -> None:
    still = dataclasses.replace(refreshed(1), refresh=None)
    source = mix(*(still if every is None else refreshed(every) for every in kinds), 0.5, 2)
    args = ((), HyperParams(()), {}, jax.random.key(0))
    assert source.every == 2 and source.refresh is not None
    src = source.refresh(source.init(args[-1], *args[:-1]), *args, jnp.int32(0))
    rewards = source.next(src, *args, jnp.int32(0))[1].transitions.reward
    np.testing.assert_array_equal(rewards, [float(every is not None) for every in kinds])


def test_sources_that_are_refreshed_and_do_not_fit() -> None:
    with pytest.raises(ValueError, match="different intervals"):
        mix(refreshed(2), refreshed(3), 0.5, 2)
    with pytest.raises(ValueError, match="without `refresh`"):
        replay(refreshed(2), 8, 2)


def test_folding_source_hands_out_the_discount() -> None:
    """γ^k of the rows, where the newest step of an environment folds with nothing."""
    hp = HyperParams(type("Hypers", (), {"gamma": jnp.float32(GAMMA)}))
    source = replay(counting(1), SLOTS * LENGTH * ENVS, 200, n_step=2)
    src = source.init(jax.random.key(0), (), hp, {})
    run = jax.jit(lambda src, key: source.next(src, (), hp, {}, key, jnp.int32(0)))
    _, batch, _ = run(src, jax.random.key(1))
    t = batch.transitions
    newest = (t.obs >= 1030) & (t.obs < 1040)
    assert newest.any() and not newest.all()
    np.testing.assert_allclose(t.extras["discount"], np.where(newest, GAMMA, GAMMA**2), rtol=1e-6)


def test_refuses_a_warm_up_beyond_its_capacity() -> None:
    source = replay(counting(1), SLOTS * LENGTH * ENVS, 8, warmup=SLOTS + 1)
    with pytest.raises(ValueError, match="4 windows does not fit into 3 slots"):
        source.init(jax.random.key(0), (), {}, {})


def test_parts_deal_rows_out_in_order() -> None:
    dealt = split_batch({"x": jnp.arange(12.0).reshape(6, 2)}, 3)["x"]
    np.testing.assert_array_equal(dealt, np.arange(12.0).reshape(3, 2, 2))


@pytest.mark.parametrize("end", [1, 7, 10**6])
def test_numbers_below_an_end(end: int) -> None:
    got = np.asarray(jax.jit(below, static_argnums=1)(jax.random.key(0), 40_000, jnp.int32(end)))
    assert got.dtype == np.int32 and got.min() >= 0 and got.max() < end
    bins = min(end, 20)
    assert chi_square(np.bincount(got * bins // end, minlength=bins)) < 50  # 19 degrees


# --- random actions ------------------------------------------------------------------------------


def test_random_actions_fill_the_space() -> None:
    def draw(space: Discrete | Box) -> np.ndarray:
        policy = random_policy(space)
        noise = policy.noise(jax.random.key(0), 10_000)
        return np.asarray(policy.act((), (), None, None, (), noise, True)[0])

    box = draw(Box((-1.0, 2.0), (1.0, 6.0), (2,)))
    assert box.dtype == np.float32 and box.shape == (10_000, 2)
    scaled = (box - [-1, 2]) / [2, 4]
    assert scaled.min() >= 0 and scaled.max() < 1
    for column in scaled.T:
        assert chi_square(np.bincount((column * 20).astype(int), minlength=20)) < 50
    discrete = draw(Discrete(5))
    assert discrete.dtype == np.int32
    assert chi_square(np.bincount(discrete, minlength=5)) < 27  # 4 degrees
    with pytest.raises(UserError, match="random actions need bounds"):
        random_policy(Box((-np.inf,), (np.inf,), (1,)))


def test_mix_keeps_the_extras_that_both_have() -> None:
    def rows(value: float, **extras: float) -> Transition:
        column = jnp.full(4, value)
        flags = jnp.zeros(4, bool)
        own = {name: jnp.full(4, x) for name, x in extras.items()}
        return Transition(column, column, column, column, flags, flags, flags, own)

    one, two = uniform(4, "one"), uniform(4, "two")
    data = {"one": rows(1.0, known=5.0, state=0.0), "two": rows(2.0, known=6.0)}
    source = mix(one, two, 0.25, 4)
    src = source.init(jax.random.key(0), (), {}, data)
    _, batch, _ = source.next(src, (), {}, data, jax.random.key(1), jnp.int32(0))
    np.testing.assert_array_equal(batch.transitions.reward, [1, 2, 2, 2])
    assert set(batch.transitions.extras) == {"known"}
    np.testing.assert_array_equal(batch.transitions.extras["known"], [5, 6, 6, 6])
