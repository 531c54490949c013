"""Coefficients against published losses, closed forms and exact flows, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import objectives as ob

B, T, A, GROUP = 6, 4, 5, 3
TAU, BETA, LOW, HIGH, DUAL = 0.3, 0.2, 0.2, 0.28, 1.5


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


class Data:
    """Responses of an old policy, far enough from the new one for every clip to matter."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
        self.logits = rng.normal(size=(B, T, A))
        self.old = log_softmax(self.logits + 0.4 * rng.normal(size=(B, T, A)))
        self.middle = log_softmax(self.logits + 0.2 * rng.normal(size=(B, T, A)))
        self.teacher = log_softmax(rng.normal(size=(B, T, A)))
        self.action = rng.integers(A, size=(B, T))
        length = np.array([4, 2, 3, 4, 1, 4])
        self.mask = np.arange(T) < length[:, None]
        self.reward = np.array([1.0, 0.0, 0.3, 0.0, 0.0, 1.0])
        groups = self.reward.reshape(-1, GROUP)
        self.advantage = (groups - groups.mean(-1, keepdims=True)).reshape(-1, 1)
        self.correct = self.reward[:, None] > 0.2
        sampled = lambda x: np.take_along_axis(x, self.action[..., None], -1)[..., 0]
        self.now, self.behaviour = sampled(log_softmax(self.logits)), sampled(self.old)
        self.proximal, self.guide = sampled(self.middle), sampled(self.teacher)

    def of(self, logits: Any) -> Any:
        """log π [B, T] of the sampled tokens."""
        return jnp.sum(jax.nn.log_softmax(logits) * np.eye(A)[self.action], -1)


D = Data()
B_LOG, K_LOG, T_LOG, ADV, MASK = D.behaviour, D.proximal, D.guide, D.advantage, D.mask
RATIO = np.exp(D.now - B_LOG)  # at the logits where gradients are compared
sg = jax.lax.stop_gradient

# --- published losses, per token [B, T] ----------------------------------------------------------


def clipped_loss(ratio: Any, low: Any, high: Any, dual: float = np.inf, weight: Any = 1.0) -> Any:
    """PPO's loss with bounds, and the dual clip as in verl."""
    plain = jnp.maximum(-ADV * ratio, -ADV * jnp.clip(ratio, low, high))
    bound = jnp.minimum(-ADV * dual, plain) if np.isfinite(dual) else plain
    return weight * jnp.where(ADV < 0, bound, plain)


def ppo_loss(log: Any) -> Any:
    return clipped_loss(jnp.exp(log - B_LOG), 1 - LOW, 1 + HIGH, DUAL)


def gspo_loss(log: Any) -> Any:
    mean = jnp.sum(MASK * (log - B_LOG), -1, keepdims=True) / MASK.sum(-1, keepdims=True)
    return clipped_loss(jnp.exp(sg(mean) + log - sg(log)), 1 - LOW, 1 + HIGH)


def cispo_loss(log: Any) -> Any:
    return -sg(jnp.clip(jnp.exp(log - B_LOG), 0.0, 1 + HIGH)) * ADV * log


def rec_loss(log: Any, weighted: bool = False) -> Any:
    inside = np.where(ADV >= 0, RATIO <= 1 + HIGH, RATIO >= 1 - LOW)
    return -ADV * inside * (jnp.exp(log - B_LOG) if weighted else log)


def topr_loss(log: Any) -> Any:
    """The integral of clip(ρ, 0, 1) / ρ dρ: ρ below 1, 1 + log ρ above. Per response / token."""
    total = jnp.sum(MASK * (log - B_LOG), -1, keepdims=True)
    taper = jnp.where(total < 0, jnp.exp(jnp.minimum(total, 0.0)), 1 + total)
    per_response = -ADV * jnp.where(ADV >= 0, total, taper)
    return jnp.pad(per_response, ((0, 0), (0, T - 1)))  # a sum over tokens adds it once


def opmd_loss(log: Any) -> Any:
    total = jnp.sum(MASK * (log - B_LOG), -1, keepdims=True)
    return jnp.pad((ADV - TAU * total) ** 2 / (2 * TAU), ((0, 0), (0, T - 1)))


def opmd_token_loss(log: Any) -> Any:
    return -ADV * log + TAU * (log - B_LOG) ** 2


def asymre_loss(log: Any) -> Any:
    baseline = np.repeat(D.reward.reshape(-1, GROUP).mean(-1), GROUP) - BETA
    return -(D.reward - baseline)[:, None] * log


def red_weight_loss(log: Any) -> Any:
    return -(ADV * np.exp(ADV / TAU)) * log


def sequence_is_loss(log: Any) -> Any:
    total = jnp.sum(MASK * (log - B_LOG), -1, keepdims=True)
    return jnp.pad(-ADV * jnp.exp(total), ((0, 0), (0, T - 1)))


def minpro_loss(log: Any) -> Any:
    least = np.array([[min([*row[:t], np.inf]) if t else 1.0 for t in range(T)] for row in RATIO])
    return clipped_loss(jnp.exp(log - B_LOG), 1 - LOW, 1 + HIGH, weight=least)


def remix_loss(log: Any) -> Any:
    ratio, centre = jnp.exp(log - B_LOG), np.exp(K_LOG - B_LOG)
    return clipped_loss(ratio, centre - LOW, centre + LOW)


def bapo_search(target: float) -> tuple[float, float]:
    """The authors' loop over bounds, with a share as target."""
    low, high = 0.6, 1.2

    def share() -> float:
        used = np.where(ADV >= 0, np.minimum(RATIO, high), np.maximum(RATIO, low)) * ADV * MASK
        return used.clip(0).sum() / np.abs(used).sum()

    while share() < target and low < 0.9 - 1e-9:
        low += 0.05
    while share() < target and high < 3.0 - 1e-9:
        high += 0.05
    return low, high


def bapo_loss(log: Any) -> Any:
    return clipped_loss(jnp.exp(log - B_LOG), *bapo_search(BAPO_TARGET), DUAL)


def opd_loss(log: Any) -> Any:
    return -jnp.exp(log - B_LOG) * (T_LOG - B_LOG)


def lightning_loss(log: Any) -> Any:
    return -jnp.exp(log - K_LOG) * (T_LOG - K_LOG)


def chord_loss(log: Any) -> Any:
    """∫ p (1 - p) d log p = p - p² / 2."""
    p = jnp.exp(log)
    return -(p - p * p / 2)


def scope_loss(log: Any) -> Any:
    mean = lambda x: (x * MASK).sum(-1) / MASK.sum(-1)
    weight = np.zeros(B)
    for start, good in itertools.product(range(0, B, GROUP), (True, False)):
        rows = [i for i in range(start, start + GROUP) if D.correct[i, 0] == good]
        score = np.exp((-mean(D.now) if good else mean(T_LOG))[rows] / TAU)
        weight[rows] = score / score.sum() if rows else 0
    ratio = jnp.exp(log - B_LOG)
    return weight[:, None] * jnp.where(D.correct, -ratio, ratio * (D.now - T_LOG))


BAPO_TARGET = 0.605
PUBLISHED: dict[str, tuple[Callable, Callable, Callable]] = {
    # name: (coefficients, published loss, aggregate)
    "ppo": (lambda *x: ob.ppo(*x, LOW, HIGH, DUAL), ppo_loss, ob.token_mean),
    "gspo": (lambda *x: ob.gspo(*x, LOW, HIGH), gspo_loss, ob.sequence_mean),
    "cispo": (lambda *x: ob.cispo(*x, 1.0, HIGH), cispo_loss, ob.token_mean),
    "rec": (lambda *x: ob.rec(*x, LOW, HIGH), rec_loss, ob.token_mean),
    "rec_is": (lambda *x: ob.rec_is(*x, LOW, HIGH), lambda x: rec_loss(x, True), ob.token_mean),
    "topr": (ob.topr, topr_loss, ob.sequence_sum),
    "opmd": (lambda *x: ob.opmd(*x, TAU), opmd_loss, ob.sequence_sum),
    "opmd_token": (lambda *x: ob.opmd_token(*x, TAU), opmd_token_loss, ob.token_mean),
    "asymre": (lambda *x: ob.asymre(*x, BETA), asymre_loss, ob.sequence_mean),
    "red_weight": (lambda *x: ob.red_weight(*x, TAU), red_weight_loss, ob.token_mean),
    "sequence_is": (ob.sequence_is, sequence_is_loss, ob.sequence_sum),
    "minpro": (lambda *x: ob.minpro(*x, LOW, HIGH), minpro_loss, ob.token_mean),
    "remix": (lambda *x: ob.remix(*x, K_LOG, LOW), remix_loss, ob.token_mean),
    "bapo": (lambda *x: ob.bapo(*x, BAPO_TARGET, dual=DUAL), bapo_loss, ob.token_mean),
    "opd": (lambda n, b, _, m: ob.opd(n, b, T_LOG, m), opd_loss, ob.token_mean),
    "lightning_opd": (
        lambda n, b, _, m: ob.lightning_opd(n, K_LOG, T_LOG, m),
        lightning_loss,
        ob.token_mean,
    ),
    "chord": (lambda n, b, _, m: ob.chord(n, m), chord_loss, ob.token_mean),
    "scope_opd": (
        lambda n, b, _, m: ob.scope_opd(n, b, T_LOG, m, D.correct, GROUP, TAU),
        scope_loss,
        ob.token_mean,
    ),
}


@pytest.fixture(scope="module")
def gradients(float64: None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of all objectives in one program: (coefficient form, published loss), [B, T, A]."""

    def both(logits: Any) -> Any:
        def one(name: str) -> tuple[Any, Any]:
            coefficients, loss, aggregate = PUBLISHED[name]

            def form(logits: Any) -> Any:
                log = D.of(logits)
                return ob.surrogate(log, coefficients(log, B_LOG, ADV, MASK), MASK, aggregate)

            def published(logits: Any) -> Any:
                return aggregate(loss(D.of(logits)), MASK)

            return jax.grad(form)(logits), jax.grad(published)(logits)

        return {name: one(name) for name in PUBLISHED}

    with jax.numpy_rank_promotion("allow"):
        return jax.device_get(jax.jit(both)(jnp.asarray(D.logits)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_gradient_is_that_of_the_published_loss(name: str, gradients: Any) -> None:
    form, published = gradients[name]
    assert form.dtype == np.float64 and np.abs(published).max() > 1e-3
    np.testing.assert_allclose(form, published, rtol=0, atol=1e-12)


def test_every_clip_matters_in_these_data() -> None:
    """Otherwise the comparison above could not fail."""
    for out in (RATIO > 1 + HIGH, RATIO < 1 - LOW):
        for sign in (ADV > 0, ADV < 0):
            assert (out & sign & MASK).any()
    assert ((RATIO > DUAL) & (ADV < 0) & MASK).any()
    low, high = bapo_search(BAPO_TARGET)
    assert low > 0.89 and 1.3 < high < 2.95  # both bounds move; the search ends inside


def test_all_agree_at_zero_staleness() -> None:
    """With μ = π the ratio objectives have REINFORCE's coefficients, and others known ones."""
    same = (K_LOG, K_LOG, ADV, MASK)
    plain: dict[str, Callable] = {
        "reinforce": ob.reinforce,
        "ppo": ob.ppo,
        "gspo": ob.gspo,
        "cispo": ob.cispo,
        "rec": ob.rec,
        "rec_is": ob.rec_is,
        "topr": ob.topr,
        "opmd": ob.opmd,
        "opmd_token": ob.opmd_token,
        "sequence_is": ob.sequence_is,
        "minpro": ob.minpro,
        "bapo": ob.bapo,
        "remix": lambda *x: ob.remix(*x, K_LOG),
        "asymre": lambda *x: ob.asymre(*x, 0.0),
        "red_weight": lambda *x: ob.red_weight(*x, np.inf),
    }
    others: dict[str, Callable] = {
        "shifted": lambda *x: ob.asymre(*x, 0.5),
        "opd": lambda log, mu, _, mask: ob.opd(log, mu, T_LOG, mask),
        "lightning_opd": lambda log, mu, _, mask: ob.lightning_opd(log, mu, T_LOG, mask),
    }
    run = jax.jit(lambda *same: {name: f(*same) for name, f in (plain | others).items()})
    every = jax.device_get(run(*same))
    expected = np.broadcast_to(ADV, (B, T))
    for name in plain:
        np.testing.assert_allclose(every[name], expected, rtol=1e-15, atol=0, err_msg=name)
    np.testing.assert_allclose(every["shifted"], expected + 0.5, rtol=1e-15)
    np.testing.assert_allclose(every["opd"], T_LOG - K_LOG, rtol=1e-15)
    np.testing.assert_array_equal(every["opd"], every["lightning_opd"])


# --- the bandit of the REC paper -----------------------------------------------------------------

MU, REWARD = np.array([0.3, 0.6, 0.1]), np.array([0.0, 0.8, 1.0])


def flow(functions: dict[str, Callable], reward: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """π after `steps` exact expected steps of size 0.1 from π = μ; rows are arms."""
    behaviour, mask = np.log(MU)[:, None], np.ones((3, 1), bool)
    expectation = lambda x, mask: jnp.sum(MU * x[:, 0])

    def run(coefficients: Callable) -> Any:
        def loss(theta: Any) -> Any:
            log = jax.nn.log_softmax(theta)[:, None]
            c = coefficients(log, behaviour, reward[:, None], mask)
            return ob.surrogate(log, c, mask, expectation)

        step = lambda i, theta: theta - 0.1 * jax.grad(loss)(theta)
        return jax.nn.softmax(jax.lax.fori_loop(0, steps, step, jnp.log(MU)))

    found = jax.jit(lambda: {name: run(f) for name, f in functions.items()})()
    return jax.device_get(found)


def test_fixed_points_of_the_bandit() -> None:
    """Earned by the exact flow, from the coefficient functions; REC paper's μ and rewards."""
    expected = {
        "reinforce": (ob.reinforce, 0.800),
        "sequence_is": (ob.sequence_is, 0.999),
        "ppo": (ob.ppo, 0.696),
        "rec": (ob.rec, 0.696),
        "rec wide": (lambda *x: ob.rec(*x, 0.6, 2.0), 0.845),
        "topr": (ob.topr, 0.847),
        "opmd": (lambda *x: ob.opmd(*x, 0.1), 0.844),
        "asymre 0.1": (lambda *x: ob.asymre(*x, 0.1), 0.800),
        "asymre 0.5": (lambda *x: ob.asymre(*x, 0.5), 0.832),
        "cispo": (ob.cispo, 0.848),
    }
    policies = flow({k: f for k, (f, _) in expected.items()}, REWARD - MU @ REWARD, 8000)
    earned = {name: REWARD @ pi for name, pi in policies.items()}
    for name, (_, value) in expected.items():
        assert earned[name] == pytest.approx(value, abs=0.0025), name
    assert np.argmax(policies["reinforce"]) == 1 and np.argmax(policies["sequence_is"]) == 2


def test_opmd_with_the_exact_partition_function_has_its_closed_form() -> None:
    """π* ∝ μ exp(r / τ); with the mean reward as baseline it is another policy."""
    for tau, steps in ((0.1, 20_000), (1.0, 2_000)):
        best = MU * np.exp(REWARD / tau)
        best /= best.sum()
        soft = REWARD - np.asarray(ob.log_partition(np.log(MU), REWARD, tau))
        opmd = {"opmd": lambda *x, tau=tau: ob.opmd(*x, tau)}
        found = flow(opmd, soft, steps)["opmd"]
        np.testing.assert_allclose(found, best, rtol=0, atol=1e-11)
        other = flow(opmd, REWARD - MU @ REWARD, steps)["opmd"]
        assert np.abs(other - best).max() > 0.004
    estimate = ob.soft_advantage(REWARD[None], 0.5)[0]
    np.testing.assert_allclose(estimate, REWARD - 0.5 * np.log(np.mean(np.exp(REWARD / 0.5))))


# --- SPO's tracker -------------------------------------------------------------------------------


def test_the_tracker_is_an_adaptive_moving_average() -> None:
    rng = np.random.default_rng(0)
    tracker = ob.spo_begin(jnp.float64(5.0), 8)
    np.testing.assert_allclose([tracker.alpha, tracker.beta], [8 * 5.5 / 9, 8 * 3.5 / 9])
    value, count = float(tracker.value), float(tracker.weight)
    for _ in range(20):
        reward, rho = float(rng.integers(2)), float(ob.spo_forgetting(rng.uniform(0, 0.05)))
        assert 0.875 <= rho <= 0.96
        value += (reward - value) / (rho * count + 1)
        count = rho * count + 1
        tracker = ob.spo_track(tracker, reward, rho)
        np.testing.assert_allclose([tracker.value, tracker.weight], [value, count], rtol=1e-14)
    assert ob.spo_forgetting(0.06 * np.log2(1 / 0.9)) == pytest.approx(0.9, abs=1e-15)
    assert ob.spo_priority(0.5) == 0.55 and ob.spo_priority(1.0) == 0.05


# --- advantages, traces, divergences -------------------------------------------------------------


def test_group_advantages() -> None:
    reward = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    spread = reward[0].std(ddof=1)
    np.testing.assert_allclose(ob.group_mean(reward)[0], reward[0] - 0.5)
    np.testing.assert_allclose(ob.group_normalised(reward)[0], (reward[0] - 0.5) / (spread + 1e-6))
    np.testing.assert_array_equal(ob.group_normalised(reward)[1], 0)
    np.testing.assert_array_equal(ob.sign(reward)[0], [1, -1, -1, 1])
    whole = ob.batch_normalised(reward)
    np.testing.assert_allclose([np.mean(whole), np.std(whole)], [0, 1], atol=1e-7)


def test_red_drop_drops_the_surplus_of_bad_responses() -> None:
    reward = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0], [1.0, 0.5, 0.0, 0.0]])
    noise = np.array([[0.9, 0.3, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    expected = np.array(
        [[0.5, -0.5, 0, 0], [0.25, 0.25, -0.75, 0.25], [0.625, 0.125, -0.375, -0.375]]
    )
    np.testing.assert_allclose(ob.red_drop(reward, noise), expected)


def test_divergences() -> None:
    p, q = np.exp(D.teacher[0]), np.exp(D.old[0])
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)
    np.testing.assert_allclose(ob.kl(np.log(p), np.log(q)), kl(p, q), rtol=1e-13)
    for beta in (0.1, 0.5, 0.9):
        m = (1 - beta) * q + beta * p
        expected = beta * kl(p, m) + (1 - beta) * kl(q, m)
        np.testing.assert_allclose(ob.jsd(np.log(q), np.log(p), beta), expected, rtol=1e-12)
    np.testing.assert_allclose(ob.jsd(np.log(q), np.log(p), 0.0), kl(p, q), rtol=1e-13)
    np.testing.assert_allclose(ob.jsd(np.log(q), np.log(p), 1.0), kl(q, p), rtol=1e-13)
    estimate = ob.k3(np.log(q), np.log(p))  # its expectation under q is KL(q ‖ p)
    np.testing.assert_allclose((q * np.asarray(estimate)).sum(-1), kl(q, p), rtol=1e-12)


def test_pi_distill_moves_the_right_distributions() -> None:
    """α β KL(T ‖ sg S) moves the teacher, (1 - α) β KL(sg T ‖ S) the student."""
    softmax = lambda x: jax.nn.log_softmax(x)
    terms = lambda s, t: ob.pi_distill(softmax(s), softmax(t), 0.3, 2.0)
    total = lambda s, t: sum(jnp.sum(x) for x in terms(s, t))
    s, t = jnp.asarray(D.logits[0]), jnp.asarray(D.teacher[0])
    to_student, to_teacher = jax.jit(jax.grad(total, (0, 1)))(s, t)
    p, q = np.exp(np.asarray(softmax(t))), np.exp(np.asarray(softmax(s)))
    np.testing.assert_allclose(to_student, 1.4 * (q - p), atol=1e-12)
    gap = np.log(p / q)
    np.testing.assert_allclose(
        to_teacher, 0.6 * p * (gap - (p * gap).sum(-1, keepdims=True)), atol=1e-12
    )


def test_otr_is_a_policy_gradient_on_one_token() -> None:
    """The expected coefficient of token a is π(a) R(a)."""
    target = np.array([2, 0])
    every = np.array(list(itertools.product(range(3), repeat=2)))  # K = 2 draws of 3 tokens
    policy = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    for row, y in enumerate(target):
        c = np.asarray(ob.otr(every, np.full(len(every), y), -0.1))
        chance = policy[row][every].prod(-1)
        mean = [(chance[:, None] * c * (every == a)).sum() for a in range(3)]
        reward = np.where(np.arange(3) == y, 1.0, -0.1)
        np.testing.assert_allclose(mean, policy[row] * reward, atol=1e-15)


def test_prefixes_and_corrections() -> None:
    mask = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(
        ob.suffix_mask(mask, np.array([1, 0])), [[False, True, True], [True, True, False]]
    )
    right = np.array([[True, False, True], [True, True, False]])
    first = ob.first_error(right, mask)
    np.testing.assert_array_equal(first, [1, 3])
    own, fixed = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[7, 8, 9], [7, 8, 9]])
    np.testing.assert_array_equal(ob.splice(own, fixed, first), [[1, 8, 9], [4, 5, 6]])


def test_chord_weight_rises_and_decays() -> None:
    steps = np.array([0, 5, 10, 15, 20, 30])
    mu = [float(ob.chord_weight(s, 0.9, 0.1, 10, 10)) for s in steps]
    np.testing.assert_allclose(mu, [0, 0.45, 0.9, 0.5, 0.1, 0.1], atol=1e-15)
    assert float(ob.chord_weight(0, 0.3, 0.3, 0, 0)) == 0.3


def test_aggregates() -> None:
    values, mask = np.array([[1.0, 2.0], [5.0, 9.0]]), np.array([[True, True], [True, False]])
    assert ob.token_mean(values, mask) == pytest.approx(8 / 3)
    assert ob.sequence_mean(values, mask) == pytest.approx((1.5 + 5) / 2)
    assert ob.sequence_sum(values, mask) == pytest.approx(4)
    noisy = ob.perturb(jnp.ones(2), jnp.log(0.5), jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(noisy, [1.5, 0.0])
