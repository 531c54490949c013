"""Verdicts and the peak, on curves with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrl.diagnosis import diagnose, fall, overfits_held, peak, underfits

RISING = np.array([0.0, 5.0, 8.0, 9.0, 9.5, 10.0])
HUMP = np.array([0.0, 6.0, 10.0, 10.0, 8.0, 4.0])


def test_peak() -> None:
    assert peak(RISING) == 5 and peak(HUMP) == 2
    assert peak(-RISING) == 5  # never risen: the last
    slope = np.array([1.0, 1.5, 0.0, -4.0])
    assert peak(slope) == 3 and peak(slope + [0.0, 0.1, 0.0, 0.0]) == 1  # a tenth of the range
    assert peak(np.array([1.0, np.nan, 3.0, np.inf, 2.0])) == 2
    assert peak(np.array([7.0])) == 0


def test_fall() -> None:
    assert fall(RISING) == 0 and fall(-RISING) == 0
    assert fall(HUMP) == 0.6
    assert fall(np.full(4, 3.0)) == 0
    np.testing.assert_allclose(fall(7 * HUMP - 100), 0.6)


def test_held_out_errors() -> None:
    train = np.array([4.0, 3.0, 2.0, 1.0])
    assert overfits_held(train, np.array([5.0, 4.0, 4.3, 4.5]))
    assert not overfits_held(train, np.array([5.0, 4.0, 4.3, 4.39]))  # less than a tenth
    assert not overfits_held(np.array([4.0, 3.0, 3.0, 3.1]), np.array([5.0, 4.0, 4.3, 4.5]))


def test_high_errors_that_stay() -> None:
    spread, stays = np.full(6, 10.0), np.array([20.0, 12.0, 6.2, 6.0, 5.9, 5.8])
    assert underfits(stays, spread)
    assert not underfits(stays, 2 * spread)  # low
    assert not underfits(np.array([60.0, 50.0, 40.0, 30.0, 20.0, 10.0]), spread)  # still falling
    assert not underfits(stays[:2], spread[:2])  # too few evaluations


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({"q": RISING}, "neither"),
        ({"q": HUMP}, "overfitting"),
        ({"q": RISING, "td_error": np.full(6, 6.0), "q_std": np.full(6, 10.0)}, "underfitting"),
        ({"q": RISING, "td_error": np.full(6, 4.0), "q_std": np.full(6, 10.0)}, "neither"),
        ({"q": np.where(RISING > 9, np.nan, RISING)}, "unknown"),
    ],
)
def test_verdicts(more: dict[str, np.ndarray], verdict: str) -> None:
    assert diagnose(more).verdict == verdict


def test_numbers() -> None:
    """Held-out metrics are due at some evaluations only."""
    held = np.array([np.nan, 8.0, np.nan, 4.0, np.nan, 6.0])
    error = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 2.0])
    found = diagnose(
        {"q": RISING, "td_error": error, "q_std": np.full(6, 8.0), "held_td_error": held}
    )
    assert found == ("overfitting", 5, 0.0, 0.25, 3.0)
    assert np.isnan(diagnose({"q": HUMP}).gap)
