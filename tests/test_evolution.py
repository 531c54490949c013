"""Population-based training, successive halving and the bandit, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import population
from jaxrl.experiments.search.bandit import ucb
from jaxrl.experiments.search.halving import rungs, survivors
from jaxrl.experiments.search.pbt import exchange_members, perturb, truncation
from jaxrl.experiments.search.slots import members_of
from jaxrl.program import MemberState

RNG = np.random.default_rng


def test_truncation_replaces_the_worst_by_the_best() -> None:
    scores = np.array([3.0, np.nan, 8.0, 5.0, 7.0, 1.0, 6.0, 4.0])
    for seed in range(20):
        parents = truncation(RNG(seed), scores, 0.25)
        assert set(np.flatnonzero(parents != np.arange(8))) == {1, 5}
        assert set(parents[[1, 5]]) <= {2, 4}
    several = [truncation(RNG(seed), scores, 0.25)[1] for seed in range(20)]
    assert set(several) == {2, 4}


@pytest.mark.parametrize(
    ("scores", "share"),
    [([1.0, 2.0, 3.0], 0.25), ([np.nan] * 4, 0.5), ([np.nan, np.nan, np.nan, 1.0], 0.0)],
)
def test_nobody_moves_without_enough_trials_or_scores(scores: list[float], share: float) -> None:
    parents = truncation(RNG(0), np.array(scores), share)
    np.testing.assert_array_equal(parents, np.arange(len(scores)))


def test_a_lone_sound_trial_is_the_parent_of_all_that_are_replaced() -> None:
    scores = np.array([np.nan, np.nan, np.nan, 1.0])
    parents = truncation(RNG(0), scores, 0.5)
    np.testing.assert_array_equal(parents, [3, 3, 2, 3])


def test_settings_move_by_the_step_or_are_drawn_anew() -> None:
    units, parents = np.array([[0.5, 0.97], [0.2, 0.2], [0.9, 0.1]]), np.array([0, 0, 2])
    moved = perturb(RNG(1), units, parents, step=0.1, resample=0.0)
    np.testing.assert_array_equal(moved[[0, 2]], units[[0, 2]])
    assert min(abs(moved[1, 0] - 0.4), abs(moved[1, 0] - 0.6)) < 1e-12
    assert min(abs(moved[1, 1] - 0.87), abs(moved[1, 1] - 1.0)) < 1e-12  # not beyond the range
    drawn = [perturb(RNG(i), units, parents, resample=1.0)[1] for i in range(200)]
    assert abs(np.mean(drawn) - 0.5) < 0.05 and 0 <= np.min(drawn) and np.max(drawn) <= 1


def test_an_exchange_moves_weights_and_settings_and_nothing_else() -> None:
    rows = lambda start: jnp.arange(start, start + 6, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(0), 6)
    state = MemberState(
        {"w": rows(0)}, {"env": rows(10)}, {"lr": rows(20)}, keys, {"loss": rows(3)}
    )
    # Three trials of two seeds: the first takes over from the last.
    parents = members_of(np.array([2, 1, 2]), 2)
    np.testing.assert_array_equal(parents, [4, 5, 2, 3, 4, 5])
    new = exchange_members(state, jnp.asarray(parents), {"lr": rows(30)})
    np.testing.assert_array_equal(new.learner["w"], [4, 5, 2, 3, 4, 5])
    np.testing.assert_array_equal(new.hp["lr"], [30, 31, 22, 23, 24, 25])
    np.testing.assert_array_equal(new.source["env"], rows(10))
    np.testing.assert_array_equal(new.metrics["loss"], rows(3))
    assert (jax.random.key_data(new.key) == jax.random.key_data(keys)).all()


def test_rungs() -> None:
    chunks = [(i * 10, 10) for i in range(16)]
    assert rungs(chunks, 16, 4) == [(10, 16), (40, 4), (160, 1)]
    assert rungs(chunks, 64, 4) == [(10, 64), (40, 16), (160, 4)]  # 2 is no end of one
    assert rungs(chunks, 7, 2) == [(40, 7), (80, 3), (160, 1)]
    assert rungs(chunks, 1, 4) == [(160, 1)]
    assert rungs([(0, 5)], 64, 4) == [(5, 64)]
    assert rungs([(0, 3), (3, 4), (7, 3)], 9, 3) == [(3, 9), (10, 3)]


def test_survivors() -> None:
    scores = np.array([2.0, np.nan, 5.0, 2.0, 9.0])
    np.testing.assert_array_equal(survivors(scores, 2), [2, 4])
    np.testing.assert_array_equal(survivors(scores, 3), [0, 2, 4])
    np.testing.assert_array_equal(survivors(scores, 5), [0, 1, 2, 3, 4])


@pytest.mark.parametrize(("devices", "width"), [(1, 2), (4, 2), (2, 4), (3, 1)])
def test_members_that_go_on_sit_in_front(devices: int, width: int) -> None:
    plan = population.layout(11, jax.devices()[:devices], width)
    total = plan.padded(11)
    everyone = plan.placement(11)
    np.testing.assert_array_equal(everyone.order, np.arange(total))
    np.testing.assert_array_equal(everyone.tiles, total // (devices * width))
    for chosen in ([], [10], [0, 3, 4, 9], [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]):
        placed = plan.placement(11, np.array(chosen, int))
        np.testing.assert_array_equal(np.sort(placed.order), np.arange(total))
        np.testing.assert_array_equal(placed.order[placed.rows], np.arange(11))
        assert placed.tiles.sum() == max(-(-len(chosen) // width), 1)
        assert np.ptp(placed.tiles) <= 1
        device, row = np.divmod(placed.rows[placed.members], total // devices)
        assert (row < placed.tiles[device] * width).all()


def test_the_bandit_by_hand() -> None:
    # Returns 10 and 20 count as 0 and 1. After one pull of each arm, means are 0 and 1/2; then the
    # bonuses are equal until arm 1 has been pulled so often that that of arm 0 is higher by 1/2.
    returns = np.array([[10.0] * 9, [15.0] * 9])
    found = ucb(returns, 10, 20, 8)
    expected, counts = [0, 1], np.array([1, 1])
    for t in range(2, 8):
        arm = int(np.argmax(np.array([0, 0.5]) + np.sqrt(2 * np.log(t) / counts)))
        expected.append(arm)
        counts[arm] += 1
    np.testing.assert_array_equal(found.pulled, expected)
    assert 0 in found.pulled[2:]
    np.testing.assert_array_equal(found.chosen, [0, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(found.estimates, [10, 15])


def test_the_bandit_finds_the_best_of_noisy_arms() -> None:
    means = np.linspace(0, 1, 5)
    returns = means[:, None] + 0.3 * RNG(0).standard_normal((5, 300))
    found = ucb(returns, 0, 1, 300)
    counts = np.bincount(found.pulled, minlength=5)
    assert found.chosen[-1] == 4 and np.argmax(counts) == 4 and counts.min() >= 1
