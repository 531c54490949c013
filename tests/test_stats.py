"""Statistics against hand-computed values, properties that must hold, and simulated coverage."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxrl.runs import stats
from jaxrl.runs.stats import (
    ALPHAS,
    RISKS,
    bootstrap_ci,
    cvar,
    iqm,
    probability_of_improvement,
    risk,
    summarise,
    var,
)

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
scores = arrays(np.float64, st.integers(1, 40), elements=numbers)
levels = st.floats(0.001, 1.0)
few = settings(max_examples=60, deadline=None)


# --- interquartile mean --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([7], 7),
        ([1, 2, 6], 3),  # floor(3 / 4) = 0: nothing is cut
        ([100, 1, 2, -50], 1.5),
        ([1, 2, 3, 4, 1000], 3),
        ([0, 1, 2, 3, 4, 5, 6, 1e9], 3.5),
        ([[8, 1, 2], [3, 4, 90], [5, 6, 7]], 5),  # 9 values, two cut on each side: 3 .. 7
        ([1, 2, np.inf, 3], 2.5),
    ],
)
def test_iqm_by_hand(x, expected) -> None:
    assert iqm(x) == expected


def test_iqm_along_an_axis() -> None:
    x = np.array([[1.0, 2, 3, 40], [5, -60, 7, 8], [np.nan, 1, 1, 1]])
    np.testing.assert_array_equal(iqm(x, axis=1), [2.5, 6, np.nan])
    np.testing.assert_array_equal(iqm(x[:2], axis=0), [3, -29, 5, 24])
    assert np.isnan(iqm(x))
    with pytest.raises(ValueError, match="no values"):
        iqm([])


@few
@given(scores, st.floats(-100, 100), st.floats(0.01, 100), st.randoms())
def test_iqm_properties(x, shift, scale, random) -> None:
    value = iqm(x)
    slack = 1e-9 * (1 + abs(x).max())
    assert x.min() - slack <= value <= x.max() + slack
    assert iqm(random.sample(list(x), x.size)) == pytest.approx(value, abs=slack)
    assert iqm(scale * x + shift) == pytest.approx(
        scale * value + shift, rel=1e-9, abs=1e-7 * scale
    )
    assert iqm(-x) == pytest.approx(-value, abs=slack)


@few
@given(arrays(np.float64, st.integers(4, 40), elements=numbers))
def test_iqm_does_not_feel_one_outlier(x) -> None:
    wild = x.copy()
    wild[np.argmax(x)] = 1e30
    assert iqm(wild) == pytest.approx(iqm(x), rel=1e-9, abs=1e-3)


# --- bootstrap -----------------------------------------------------------------------------------


def test_bootstrap_is_deterministic_and_ordered() -> None:
    x = np.random.default_rng(1).normal(size=30)
    low, high = bootstrap_ci(x)
    assert (low, high) == bootstrap_ci(x) != bootstrap_ci(x, seed=1)
    assert low < iqm(x) < high
    inner = bootstrap_ci(x, level=0.5)
    assert low < inner[0] < inner[1] < high
    assert bootstrap_ci([3.0]) == (3, 3) and bootstrap_ci([2.0] * 9) == (2, 2)


def test_bootstrap_of_the_mean_has_the_known_width() -> None:
    """Resampled means have the standard deviation std / sqrt(P)."""
    x = np.random.default_rng(2).exponential(size=400)
    low, high = bootstrap_ci(x, np.mean, level=0.6827, reps=4000)
    assert (high - low) / 2 == pytest.approx(x.std() / 20, rel=0.06)


def test_bootstrap_keeps_strata() -> None:
    """Without spread inside the strata nothing is left to chance."""
    x = np.repeat([0.0, 10.0, 20.0], [5, 3, 8])
    labels = np.repeat(["a", "b", "c"], [5, 3, 8])
    order = np.random.default_rng(0).permutation(16)
    low, high = bootstrap_ci(x[order], np.mean, strata=labels[order])
    assert low == high == pytest.approx(x.mean())
    assert np.ptp(bootstrap_ci(x, np.mean)) > 3


def test_bootstrap_covers_a_gaussian() -> None:
    """Of 95 % intervals for 40 members about 94 % hold the truth (300 trials: sd 1.3 %)."""
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_ci(rng.normal(5.0, 2.0, size=40), reps=400, seed=trial)
        hits += low <= 5.0 <= high
    assert 0.89 <= hits / 300 <= 0.985


def test_bootstrap_of_thousands_is_fast_and_small() -> None:
    x = np.random.default_rng(0).normal(size=4096)
    before = resource.getrusage(resource.RUSAGE_SELF)
    low, high = bootstrap_ci(x)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert after.ru_maxrss - before.ru_maxrss < 500_000  # kB
    # The IQM of a Gaussian has an asymptotic standard deviation of 1.1 / sqrt(P).
    assert high - low == pytest.approx(2 * 1.96 * 1.094 / 64, rel=0.1)


def test_bootstrap_refuses_other_shapes() -> None:
    for x in ([], np.zeros((2, 3)), 1.0):
        with pytest.raises(ValueError, match="shape"):
            bootstrap_ci(x)
    with pytest.raises(ValueError, match="2 strata for 3 scores"):
        bootstrap_ci([1, 2, 3], strata=[0, 1])


# --- summaries -----------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    returns = np.array([[1, 3], [4, 4], [0, 12], [9, 11], [np.nan, 1], [np.inf, 1]])
    got = summarise(returns)
    low, high = got.pop("ci95")
    assert 2 <= low < 5 < high <= 10
    assert got == {
        "iqm": 5.0,  # of 2, 4, 6, 10
        "mean": 5.5,
        "std": pytest.approx(np.sqrt((3.5**2 + 1.5**2 + 0.5**2 + 4.5**2) / 3)),
        "min": 2.0,
        "max": 10.0,
        "episodes": 2,
        "members": 4,
        "failed": 2,
    }
    flat = summarise([2.0, 4, 6, 10])
    assert flat["iqm"] == 5.0 and flat["episodes"] == 1 and flat["ci95"] == [low, high]


def test_summary_of_failures_and_of_one() -> None:
    nothing = summarise(np.full((3, 2), np.nan))
    assert nothing["members"] == 0 and nothing["failed"] == 3 and np.isnan(nothing["iqm"])
    assert np.isnan(nothing["ci95"]).all()
    one = summarise([[1.0, 2.0]], strata=["a"])
    assert one["ci95"] == [1.5, 1.5] and np.isnan(one["std"])
    both = summarise([1, np.nan, 5], strata=["a", "b", "b"])
    assert both["ci95"] == [3, 3]
    with pytest.raises(ValueError, match="returns are"):
        summarise(np.zeros((1, 2, 3)))


def test_probability_of_improvement_by_hand() -> None:
    # Of six pairs, 1 ties with 1, 2 ties with 2 and beats 1, 3 beats both.
    assert probability_of_improvement([1, 2, 3], [2, 1]) == (0.5 + 1.5 + 2) / 6
    assert probability_of_improvement([5, 6], [1, 2]) == 1
    assert probability_of_improvement([5, np.nan], [7, 5]) == 0.25


@few
@given(scores, scores)
def test_probability_of_improvement_against_all_pairs(x, y) -> None:
    pairs = np.sign(x[:, None] - y[None, :])
    got = probability_of_improvement(x, y)
    assert got == pytest.approx(np.mean((pairs + 1) / 2))
    assert got + probability_of_improvement(y, x) == pytest.approx(1)


# --- risk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "value", "tail"),
    [
        (0.05, -10, -10),  # half an episode
        (0.1, -10, -10),
        (0.15, 0, (-10 + 0.5 * 0) / 1.5),
        (0.25, 1, (-10 + 0 + 0.5 * 1) / 2.5),
        (0.3, 1, -3),
        (1.0, 8, 2.6),
    ],
)
def test_risk_by_hand(alpha: float, value: float, tail: float) -> None:
    x = [3, 1, -10, 0, 8, 2, 7, 4, 5, 6]
    assert var(x, alpha) == value
    assert cvar(x, alpha) == pytest.approx(tail)


def test_risk_at_inexact_fractions() -> None:
    """0.07 × 100 is a little more than 7, which must not take in an eighth episode."""
    x = np.arange(100.0)
    assert 0.07 * 100 > 7
    assert var(x, 0.07) == 6 and cvar(x, 0.07) == pytest.approx(3)


@few
@given(scores, levels)
def test_risk_against_definitions(x, alpha) -> None:
    slack = 1e-6 * (1 + abs(x).max())
    low, tail = var(x, alpha), cvar(x, alpha)
    assert np.mean(x <= low) >= alpha - 1e-9 and np.mean(x < low) < alpha
    # Rockafellar and Uryasev: CVaR is the maximum over v of v - E[max(v - x, 0)] / alpha.
    best = max(v - np.mean(np.maximum(v - x, 0)) / alpha for v in x)
    assert tail == pytest.approx(best, abs=slack / alpha)
    assert x.min() - slack <= tail <= min(low, x.mean()) + slack
    assert tail <= cvar(x, min(1.0, alpha * 1.5)) + slack
    assert cvar(x, 1.0) == pytest.approx(x.mean(), abs=slack)


def test_risk_of_members_is_that_of_each() -> None:
    x = np.random.default_rng(0).normal(size=(3, 33))
    x[1, 5] = np.nan
    found = risk(x)
    assert tuple(found) == RISKS and all(np.isnan(v[1]) for v in found.values())
    for alpha in ALPHAS:
        for member in (0, 2):
            assert found[f"var_{alpha}"][member] == var(x[member], alpha)
            assert found[f"cvar_{alpha}"][member] == pytest.approx(cvar(x[member], alpha))


def test_risk_refuses() -> None:
    for alpha in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            cvar([1.0], alpha)
    with pytest.raises(ValueError, match="no finite"):
        var([np.nan], 0.5)
    assert cvar([np.nan, 4.0], 0.5) == 4.0


def test_optimality_gap_and_performance_profile_are_those_of_rliable() -> None:
    """By hand from the definitions: gap γ - mean min(x, γ); profile the share of runs above τ."""
    scores = [0.2, 0.5, 1.5, np.nan]
    np.testing.assert_allclose(stats.optimality_gap(scores), 1 - (0.2 + 0.5 + 1) / 3)
    np.testing.assert_allclose(stats.optimality_gap([300, 600], 500), 100)
    assert stats.optimality_gap([2, 3]) == 0
    taus = [0, 0.2, 0.3, 0.5, 1, 1.5, 2]  # strictly above: a run at τ does not count
    profile = stats.performance_profile(scores, taus)
    np.testing.assert_allclose(profile, np.array([3, 2, 2, 1, 1, 0, 0]) / 3)
    x = np.random.default_rng(0).normal(size=50)
    loop = [sum(score > tau for score in x) / 50 for tau in np.linspace(-2, 2, 9)]
    np.testing.assert_allclose(stats.performance_profile(x, np.linspace(-2, 2, 9)), loop)
