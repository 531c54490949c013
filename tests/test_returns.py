"""λ-returns: against averages of n-step returns, known answers, and rlax's published tables.

The tables are from rlax (Apache-2.0, github.com/google-deepmind/rlax), `multistep_test.py` at
21edfcf and `value_learning_test.py` at 0ecdabd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.returns import gae, lambda_returns

TOLERANCE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def oracle(
    reward: Any, next_value: Any, terminated: Any, truncated: Any, gamma: float, lam: float
) -> np.ndarray:
    """λ-returns [T, N] by their definition, an exponentially weighted average of n-step returns.

    With K steps left until the episode ends, is cut, or the data stop,
    G = (1 - λ) Σ_{n<K} λ^{n-1} G^(n) + λ^{K-1} G^(K), where G^(n) bootstraps from the successor of
    its last step unless that step terminated.
    """
    reward, next_value = np.asarray(reward, np.float64), np.asarray(next_value, np.float64)
    steps, envs = reward.shape
    result = np.zeros_like(reward)
    for env in range(envs):
        for t in range(steps):
            n_step, rewards = [], 0.0
            for n in range(1, steps - t + 1):
                last = t + n - 1
                rewards += gamma ** (n - 1) * reward[last, env]
                if terminated[last, env]:
                    n_step.append(rewards)
                    break
                n_step.append(rewards + gamma**n * next_value[last, env])
                if truncated[last, env]:
                    break
            weights = [(1 - lam) * lam**i for i in range(len(n_step) - 1)]
            weights.append(lam ** (len(n_step) - 1))
            result[t, env] = np.dot(weights, n_step)
    return result


def ends(how: Any) -> tuple[np.ndarray, np.ndarray]:
    """(terminated, truncated) of codes: "." goes on, "x" terminates, "|" is cut. [T] or [T, N]."""
    codes = np.array(how)
    return codes == "x", codes == "|"


@st.composite
def windows(draw: Any) -> tuple[Any, ...]:
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    reward, value = rng.normal(size=(2, *shape)).astype(np.float32) * draw(st.sampled_from([1, 5]))
    share = draw(st.sampled_from([(0.8, 0.1, 0.1), (0.4, 0.3, 0.3), (0.5, 0.5, 0), (0.5, 0, 0.5)]))
    terminated, truncated = ends(rng.choice([".", "x", "|"], size=shape, p=share))
    unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32))
    return reward, value, terminated, truncated, draw(unit), draw(unit)


# --- identities ----------------------------------------------------------------------------------


# No deadline, since a new shape is compiled first.
@settings(max_examples=150, deadline=None, derandomize=True)
@given(windows())
def test_against_n_step_returns(window: tuple[Any, ...]) -> None:
    *data, gamma, lam = window
    got = jitted(*data, jnp.float32(gamma), jnp.float32(lam))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, oracle(*window), **TOLERANCE)


jitted = jax.jit(lambda_returns)


@pytest.fixture(scope="module")
def long_window() -> tuple[Any, ...]:
    """[64, 3] with many ends of both kinds."""
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 64, 3)).astype(np.float32)
    return reward, value, *ends(rng.choice([".", "x", "|"], size=(64, 3), p=(0.8, 0.1, 0.1)))


def test_lambda_zero_is_td_zero(long_window: tuple[Any, ...]) -> None:
    reward, value, terminated, truncated = long_window
    got = jitted(reward, value, terminated, truncated, 0.9, 0.0)
    np.testing.assert_allclose(got, reward + 0.9 * np.where(terminated, 0, value), **TOLERANCE)


def test_lambda_one_is_monte_carlo_with_bootstrap(long_window: tuple[Any, ...]) -> None:
    reward, value, terminated, truncated = long_window
    total = value[-1].astype(np.float64)
    expected = []
    for t in reversed(range(64)):
        total = np.where(truncated[t], value[t], total)
        total = reward[t] + 0.9 * np.where(terminated[t], 0, total)
        expected.append(total)
    got = jitted(reward, value, terminated, truncated, 0.9, 1.0)
    np.testing.assert_allclose(got, expected[::-1], **TOLERANCE)


def test_gamma_zero_is_the_reward(long_window: tuple[Any, ...]) -> None:
    reward, *rest = long_window
    np.testing.assert_array_equal(jitted(reward, *rest, 0.0, 0.7), reward)


def test_a_constant_value_is_its_own_return() -> None:
    """With r = (1 - γ) v everywhere and no termination, every return is v: time limits too."""
    terminated, truncated = ends(list("..|...||..."))
    reward, value = np.full(11, 0.1 * 3, np.float32), np.full(11, 3, np.float32)
    got = jitted(reward, value, terminated, truncated, 0.9, 0.8)
    np.testing.assert_allclose(got, value, rtol=1e-6)


def test_values_behind_a_termination_do_not_matter(long_window: tuple[Any, ...]) -> None:
    reward, value, terminated, truncated = long_window
    spoilt = np.where(terminated, np.nan, value)
    expected = jitted(reward, value, terminated, truncated, 0.9, 0.7)
    got = jitted(reward, spoilt, terminated, truncated, 0.9, 0.7)
    np.testing.assert_array_equal(got, expected)


def test_nothing_crosses_an_end(long_window: tuple[Any, ...]) -> None:
    """What comes after an end, of either kind, leaves the returns before it alone."""
    reward, value, terminated, truncated = long_window
    t = np.flatnonzero((terminated | truncated)[:, 0])[2]
    other = reward + np.where(np.arange(64)[:, None] > t, np.float32(7), np.float32(0))
    before = jitted(reward, value, terminated, truncated, 0.9, 0.7)
    after = jitted(other, value, terminated, truncated, 0.9, 0.7)
    np.testing.assert_array_equal(before[: t + 1, 0], after[: t + 1, 0])
    assert (before[t + 1 :, 0] != after[t + 1 :, 0]).all()


def test_environments_and_further_axes_are_apart(long_window: tuple[Any, ...]) -> None:
    whole = jitted(*long_window, 0.9, 0.7)
    for env in range(3):
        alone = jitted(*(x[:, env] for x in long_window), 0.9, 0.7)
        np.testing.assert_allclose(alone, whole[:, env], rtol=1e-6)
    deep = jitted(*(x.reshape(64, 3, 1) for x in long_window), 0.9, 0.7)
    np.testing.assert_allclose(deep[..., 0], whole, rtol=1e-6)


# --- constants -----------------------------------------------------------------------------------


# γ = λ = ½. By hand, from the back, with G_t = r + ½ (½ v_t + ½ G_{t+1}) inside an episode, r + ½ v
# where it is cut or the data stop, r where it terminates.
BY_HAND = {
    # 2 + ½·8 = 6;  1 + ½ (½·4 + ½·6) = 3.5;  0 + ½ (½·2 + ½·3.5) = 1.375
    "...": ([0, 1, 2], [2, 4, 8], [1.375, 3.5, 6]),
    # 6;  1;  0 + ½ (½·2 + ½·1) = 0.75
    ".x.": ([0, 1, 2], [2, 4, 8], [0.75, 1, 6]),
    # 6;  1 + ½·4 = 3;  0 + ½ (½·2 + ½·3) = 1.25
    ".|.": ([0, 1, 2], [2, 4, 8], [1.25, 3, 6]),
    # 2;  1 + ½ (½·4 + ½·2) = 2.5;  0 + ½·2 = 1
    "|.x": ([0, 1, 2], [2, 4, 8], [1, 2.5, 2]),
    # 6;  1 + ½·4 = 3;  0
    "x||": ([0, 1, 2], [2, 4, 8], [0, 3, 6]),
}


@pytest.mark.parametrize("how", BY_HAND)
def test_by_hand(how: str) -> None:
    reward, value, expected = (np.float32(x) for x in BY_HAND[how])
    got = jitted(reward, value, *ends(list(how)), 0.5, 0.5)
    np.testing.assert_array_equal(got, expected)


def test_rlax_lambda_returns() -> None:
    """`LambdaReturnsTest`: a discount of its own for each step."""
    reward = [[1.0, 0.0, -1.0, 0.0, 1.0], [0.5, 0.8, -0.7, 0.0, 2.1]]
    discount = [[0.5, 0.9, 1.0, 0.5, 0.8], [0.9, 0.5, 0.3, 0.8, 0.7]]
    value = [[3.0, 1.0, 5.0, -5.0, 3.0], [-1.7, 1.2, 2.3, 2.2, 2.7]]
    expected = [
        [1.6460547, 0.72281253, 0.7375001, 0.6500001, 3.4],
        [0.7866317, 0.9913063, 0.1101501, 2.834, 3.99],
    ]
    for row in zip(reward, discount, value, expected, strict=True):
        got = with_discounts(*row[:3], 0.75)
        np.testing.assert_allclose(got, row[3], rtol=1e-5)


def test_rlax_q_lambda() -> None:
    """`QLambdaTest`: our target is their error plus the value of the action taken."""
    q = [[[1.1, 2.1], [-1.1, 1.1], [3.1, -3.1]], [[2.1, 3.1], [-1.1, 0.1], [-2.1, -1.1]]]
    action = [[0, 1, 0], [1, 0, 0]]
    discount = [[0.0, 0.89, 0.85], [0.88, 1.0, 0.83]]
    reward = [[-1.3, -1.3, 2.3], [1.3, 5.3, -3.3]]
    next_q = [[[1.2, 2.2], [-1.2, 0.2], [2.2, -1.2]], [[4.2, 2.2], [1.2, 1.2], [-1.2, -2.2]]]
    expected = [[-2.4, 0.427975, 1.07], [0.69348, 3.478, -2.196]]
    taken = np.take_along_axis(np.array(q), np.array(action)[..., None], -1)[..., 0]
    for env in range(2):
        got = with_discounts(reward[env], discount[env], np.max(next_q[env], -1), 0.75)
        np.testing.assert_allclose(got - taken[env], expected[env], rtol=1e-5)


@pytest.mark.parametrize("lam", [1.0, 0.7, 0.4])
def test_rlax_generalised_advantages(lam: float) -> None:
    """`TruncatedGeneralizedAdvantageEstimationTest`: advantage = λ-return - value."""
    reward = [[0.0, 0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0, 1.0]]
    value = np.array([[1.0, 4.0, -3.0, -2.0, -1.0, -1.0], [-3.0, -2.0, -1.0, 0.0, 5.0, -1.0]])
    gamma, how = [0.99, 0.9], [".....", "...x."]
    expected = {
        1.0: [[-1.45118, -4.4557, 2.5396, 0.5249, -0.49], [3.0, 2.0, 1.0, 0.0, -4.9]],
        0.7: [[-0.676979, -5.248167, 2.4846, 0.6704, -0.49], [2.2899, 1.73, 1.0, 0.0, -4.9]],
        0.4: [[0.56731, -6.042, 2.3431, 0.815, -0.49], [1.725, 1.46, 1.0, 0.0, -4.9]],
    }
    for env in range(2):
        next_value = np.float32(value[env, 1:])
        got = jitted(
            np.array(reward[env], np.float32), next_value, *ends(list(how[env])), gamma[env], lam
        )
        np.testing.assert_allclose(got - value[env, :-1], expected[lam][env], atol=1e-3)


def with_discounts(reward: Any, discount: Any, value: Any, lam: float) -> np.ndarray:
    """λ-returns [T] with the discount d_t at step t, by way of ours with γ = 1.

    With c_t = d_0 ··· d_{t-1}, c_t G_t = c_t r_t + [(1 - λ) c_{t+1} v_t + λ c_{t+1} G_{t+1}]. A
    discount of 0 is a termination, behind which any c will do.
    """
    terminated = np.array(discount) == 0
    scale = np.cumprod([1.0, *np.where(terminated, 1, discount)])
    reward, value = np.float32(scale[:-1] * reward), np.float32(scale[1:] * value)
    got = jitted(reward, value, terminated, np.zeros_like(terminated), 1.0, lam)
    return np.asarray(got, np.float64) / scale[:-1]


# --- advantages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_against_its_recursion(gamma: float, lam: float) -> None:
    """A = δ + γ λ A', δ = r + γ V' - V, where V' ends with terminations and A' with any end."""
    rng = np.random.default_rng(0)
    steps, envs = 9, 40
    reward, value = rng.normal(size=(steps, envs)), rng.normal(size=(steps + 1, envs))
    terminated, truncated = ends(rng.choice([".", "x", "|"], size=(steps, envs), p=[0.6, 0.2, 0.2]))
    # Inside an episode the successor is the next state, at a time limit some other one.
    next_value = np.where(terminated | truncated, rng.normal(size=(steps, envs)), value[1:])
    expected, later = np.zeros((steps, envs)), np.zeros(envs)
    for t in reversed(range(steps)):
        for env in range(envs):
            ahead = 0.0 if terminated[t, env] else next_value[t, env]
            delta = reward[t, env] + gamma * ahead - value[t, env]
            done = terminated[t, env] or truncated[t, env]
            later[env] = delta + (0.0 if done else gamma * lam * later[env])
            expected[t, env] = later[env]
    floats = [jnp.float32(x) for x in (reward, value[:-1], next_value)]
    got = gae(*floats, jnp.asarray(terminated), jnp.asarray(truncated), gamma, lam)
    np.testing.assert_allclose(got, expected, **TOLERANCE)


# --- known mistakes ------------------------------------------------------------------------------


def late_start(reward, next_value, terminated, truncated, gamma, lam):
    """Four of the PQN authors' scripts: step T-2 uses the successor value of step T-1."""
    shifted = np.array(next_value)
    shifted[-2:-1] = next_value[-1]
    return oracle(reward, shifted, terminated, truncated, gamma, lam)


def two_ahead(reward, next_value, terminated, truncated, gamma, lam):
    """rejax's PQN: the value of s_{t+2} at every step."""
    shifted = np.concatenate([next_value[1:], next_value[-1:]])
    return oracle(reward, shifted, terminated, truncated, gamma, lam)


def limit_terminates(reward, next_value, terminated, truncated, gamma, lam):
    """Time limits taken for terminations."""
    none = np.zeros_like(truncated)
    return oracle(reward, next_value, terminated | truncated, none, gamma, lam)


def limit_ignored(reward, next_value, terminated, truncated, gamma, lam):
    """The trace runs through a time limit into the next episode."""
    return oracle(reward, next_value, terminated, np.zeros_like(truncated), gamma, lam)


def no_bootstrap(reward, next_value, terminated, truncated, gamma, lam):
    """The end of the window taken for a termination."""
    last = np.arange(len(reward))[:, None] == len(reward) - 1
    return oracle(reward, next_value, terminated | (last & ~truncated), truncated, gamma, lam)


@pytest.mark.parametrize(
    "wrong", [late_start, two_ahead, limit_terminates, limit_ignored, no_bootstrap]
)
def test_the_tests_see_known_mistakes(wrong: Callable[..., np.ndarray]) -> None:
    """Each mistake differs from the oracle in what hypothesis draws and from the table by hand."""
    differs = 0

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(windows())
    def count(window: tuple[Any, ...]) -> None:
        nonlocal differs
        differs += not np.allclose(wrong(*window), oracle(*window), **TOLERANCE)

    count()
    assert differs >= 3
    rows = []
    for how, (reward, value, expected) in BY_HAND.items():
        column = lambda x: np.array(x)[:, None]
        args: Any = (column(reward), column(value), *map(column, ends(list(how))), 0.5, 0.5)
        np.testing.assert_allclose(oracle(*args)[:, 0], expected)
        rows.append(np.allclose(wrong(*args)[:, 0], expected))
    assert not all(rows)
