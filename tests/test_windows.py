"""Windows: which there are, against a loop over all of them, and what batches hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.errors import UserError
from jaxrl.types import Transition
from jaxrl.windows import HELD, find, windows

ROWS = 90
END = st.sampled_from(["terminated", "truncated"])
EPISODES = st.lists(st.tuples(st.integers(1, 12), END), min_size=60, max_size=60)

found = jax.jit(find, static_argnums=(1, 2, 3))


def dataset(episodes: list[tuple[int, str]]) -> Transition:
    """As many of the episodes as fit into `ROWS`, the last is cut there; obs numbers the rows."""
    start = np.zeros(ROWS, bool)
    ends = {kind: np.zeros(ROWS, bool) for kind in ("terminated", "truncated")}
    row = 0
    for length, kind in [*episodes, (ROWS, "truncated")]:
        if row < ROWS:
            start[row] = True
        row += length
        if row <= ROWS:
            ends[kind][row - 1] = True
    number: Any = np.arange(ROWS, dtype=np.float32)
    return Transition(
        number[:, None], number[:, None], number, number[:, None] + 1, *ends.values(), start
    )


@settings(max_examples=40, deadline=None)
@given(EPISODES, st.sampled_from([(1, 1), (4, 1), (4, 3), (8, 8)]))
def test_windows_are_those_of_a_loop(
    episodes: list[tuple[int, str]], sizes: tuple[int, int]
) -> None:
    length, stride = sizes
    data = dataset(episodes)
    learned, held = set(), set()
    episode, first = 0, 0
    for row in range(ROWS):
        if data.start[row]:
            episode, first = episode + 1, row
        last = row + length - 1
        if last >= ROWS or data.start[row + 1 : last + 1].any() or data.truncated[last]:
            continue
        if (row - first) % stride == 0 or data.terminated[last]:
            (held if episode % HELD == 0 else learned).add(row)
    got = found(jax.tree.map(jnp.asarray, data), length, stride)
    order, n, m = np.asarray(got.order), int(got.learned), int(got.held)
    assert (set(order[:n]), set(order[n : n + m])) == (learned, held)
    assert sorted(order) == list(range(ROWS))


def draw(data: Transition, seed: int = 0, **sizes: Any) -> Transition:
    source, inputs = windows(**sizes), {"data": jax.tree.map(jnp.asarray, data)}

    @jax.jit
    def one(inputs: Any, key: jax.Array) -> Transition:
        src = source.init(key, (), {}, inputs)
        return source.next(src, (), {}, inputs, key, jnp.int32(0))[1].transitions

    return jax.device_get(one(inputs, jax.random.key(seed)))


def test_batches_hold_windows() -> None:
    """Rows that follow each other in one episode; the last of a batch from every 20th episode."""
    data = dataset([(4, "terminated")] * 22)
    t = draw(data, batch_size=40, length=3, stride=1, held=8)
    rows = t.reward.astype(int)
    assert t.obs.shape == (40, 3, 1) and t.action.shape == (40, 3, 1)
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    assert not t.start[:, 1:].any() and not t.terminated[:, :-1].any()
    np.testing.assert_array_equal(t.terminated, data.terminated[rows])
    episode = rows[:, 0] // 4 + 1
    np.testing.assert_array_equal(episode % HELD == 0, np.arange(40) >= 32)
    np.testing.assert_array_equal(t.extras["learn"][:, 0], np.arange(40) < 32)
    np.testing.assert_array_equal(t.extras["look"], ~t.extras["learn"])
    assert len(set(rows[:32, 0])) > 15  # of 42
    assert set(rows[32:, 0]) <= {76, 77}


def test_windows_with_rare_rewards() -> None:
    """Training windows with a reward from the 99 % quantile on come first, and get their share."""
    data = dataset([(4, "terminated")] * 22)
    reward = np.zeros(ROWS, np.float32)
    reward[[10, 79]] = 1  # in the third episode, and in a held one
    data = data._replace(reward=reward, extras={})
    got = found(jax.tree.map(jnp.asarray, data), 3, 1, True)
    assert int(got.rare) == 2 and set(np.asarray(got.order[:2])) == {8, 9}
    plain = found(jax.tree.map(jnp.asarray, data), 3, 1)
    assert set(np.asarray(got.order[: got.learned])) == set(
        np.asarray(plain.order[: plain.learned])
    )
    assert int(plain.rare) == 0 and got.held == plain.held
    t = draw(data, batch_size=40, length=3, stride=1, held=8, rare=0.5)
    np.testing.assert_array_equal(t.reward.any(1)[:16], True)
    assert t.reward.any(1)[16:32].sum() < 8
    none = data._replace(reward=np.zeros(ROWS, np.float32))
    t = draw(none, batch_size=40, length=3, stride=1, held=8, rare=0.5)
    assert t.extras["learn"][:32].all() and len(set(t.obs[:16, 0, 0])) > 5


def test_no_window_is_for_nothing() -> None:
    """Without a held episode nothing is looked at; without any window nothing is learned."""
    t = draw(dataset([(4, "terminated")] * 15), batch_size=6, length=3, stride=1, held=2)
    assert t.extras["learn"][:4].all() and not t.extras["look"].any()
    t = draw(dataset([(2, "terminated")] * 45), batch_size=6, length=3, stride=1, held=2)
    assert not t.extras["learn"].any() and not t.extras["look"].any()


def test_sizes() -> None:
    with pytest.raises(UserError, match="windows=0"):
        windows(4, 3, 1, held=4)
    with pytest.raises(UserError, match="stride=0"):
        windows(4, 3, 0)
