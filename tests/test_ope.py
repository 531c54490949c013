"""Off-policy evaluation: unbiased over all episodes of a small process, fixed points, metrics."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import fit, numbers, rows

from jaxrl.distributions import TruncatedNormal
from jaxrl.errors import UserError
from jaxrl.fitting import by_pieces
from jaxrl.ope import behaviour, doubly_robust, during, estimate, fqe, importance, metrics, targets
from jaxrl.ope.episodes import Padded, padded
from jaxrl.policies import Trained
from jaxrl.types import Agent, Box, Discrete, EnvSpec, Policy, Transition

GAMMA, HORIZON = 0.9, 3
# Two states, two actions, probabilities in quarters; the rest of P is the end of the episode.
BEGIN = np.array([0.25, 0.75])
P = np.array([[[1, 2], [2, 2]], [[3, 0], [1, 1]]]) / 4  # [s, a, s']
REWARD = np.array([[1.0, -2.0], [0.5, 3.0]])  # [s, a]
BEHAVIOUR = np.array([[0.25, 0.75], [0.5, 0.5]])
TARGET = np.array([[0.9, 0.1], [0.2, 0.8]])


class Every(NamedTuple):
    """All episodes, each as often as its probability under the behaviour policy says, [E, T]."""

    s: np.ndarray
    a: np.ndarray
    live: np.ndarray

    def of(self, table: np.ndarray) -> Any:
        return jnp.asarray(np.where(self.live, table[self.s, self.a], 0), jnp.float32)


def every_episode() -> Every:
    """4096 episodes: the probabilities of an episode of three steps are multiples of 4^-6."""
    found = []
    for begin, steps in itertools.product(range(2), itertools.product(range(2), repeat=3)):
        for later in itertools.product(range(3), repeat=2):  # 2 is the end
            s, live, share = [begin], [True], BEGIN[begin]
            for t, a in enumerate(steps):
                if live[t]:
                    share *= BEHAVIOUR[s[t], a]
                else:  # any action after the end stands for none
                    share *= 0.5
                if t < 2:
                    ahead = later[t]
                    if live[t]:
                        row = P[s[t], a]
                        share *= row[ahead] if ahead < 2 else 1 - row.sum()
                    else:
                        share *= ahead == 2
                    live.append(live[t] and ahead < 2)
                    s.append(ahead % 2)
            count = share * 4**6
            assert count == int(count)
            found += [(s, steps, live)] * int(count)
    assert len(found) == 4**6
    return Every(*(np.array(x) for x in zip(*found, strict=True)))


def exact() -> tuple[float, np.ndarray, np.ndarray]:
    """J(π), and Q [T, s, a] and V [T, s] of the target with the time that is left."""
    q, v = np.zeros((HORIZON, 2, 2)), np.zeros((HORIZON + 1, 2))
    for t in reversed(range(HORIZON)):
        q[t] = REWARD + GAMMA * P @ v[t + 1]
        v[t] = np.sum(TARGET * q[t], -1)
    return float(BEGIN @ v[0]), q, v[:-1]


def test_estimators_over_all_episodes() -> None:
    """The mean over all episodes is J(π): of TIS, PDIS and DR with any Q̂, and of DM with Q."""
    every, (true, q, v) = every_episode(), exact()
    log = lambda policy: jnp.log(jnp.asarray(policy[every.s, every.a], jnp.float32))
    log_weight = importance.log_weights(log(TARGET), log(BEHAVIOUR), jnp.asarray(every.live))
    weight, reward = jnp.exp(log_weight), every.of(REWARD)

    by_time = lambda x, *at: jnp.asarray(
        np.where(every.live, x[(np.arange(HORIZON)[None], *at)], 0), jnp.float32
    )
    right = by_time(q, every.s, every.a), by_time(v, every.s)
    wrong_q = np.random.default_rng(0).normal(size=(2, 2))
    wrong_v = np.sum(TARGET * wrong_q, -1)[:, None].repeat(2, 1)
    robust = lambda q, v: doubly_robust.doubly_robust(weight, reward, q, v, GAMMA)
    unbiased = {
        "tis": importance.trajectory(weight, reward, GAMMA),
        "pdis": importance.per_decision(weight, reward, GAMMA),
        "wrong dr": robust(every.of(wrong_q), every.of(wrong_v)),
        "dr": robust(*right),
        "dm": doubly_robust.direct(right[1]),
    }
    for name, terms in unbiased.items():
        np.testing.assert_allclose(np.mean(terms, dtype=float), true, rtol=1e-5, err_msg=name)
    spread = {name: float(np.std(terms)) for name, terms in unbiased.items()}
    assert spread["dr"] < spread["pdis"] < spread["tis"]

    # Weights have mean 1 over all episodes, so normalising changes nothing; over half it does.
    normed = importance.self_normalised(log_weight)
    np.testing.assert_allclose(normed, weight, rtol=1e-4)
    half = importance.self_normalised(log_weight[::2])
    np.testing.assert_allclose(half, weight[::2] / jnp.mean(weight[::2], 0)[None], rtol=1e-4)
    constant = importance.trajectory(half, reward[::2] * 0 + 1.0, 1.0)
    np.testing.assert_allclose(jnp.mean(constant), HORIZON, rtol=1e-5)

    last = np.asarray(weight[:, -1], float)
    effective = last.sum() ** 2 / (last**2).sum()
    np.testing.assert_allclose(importance.effective_episodes(log_weight), effective, rtol=1e-4)
    found = estimate.terms(log_weight, reward, *right, GAMMA)
    assert set(found) == {*estimate.NAMES, "effective"}
    np.testing.assert_allclose(found["dr"][0], true, rtol=1e-5)
    np.testing.assert_allclose(found["pdis"][1], spread["pdis"] / np.sqrt(4**6 - 1), rtol=1e-4)


def test_impossible_actions_weigh_nothing() -> None:
    log_weight = jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf]])
    np.testing.assert_array_equal(importance.self_normalised(log_weight), [[2, 0], [0, 0]])
    assert importance.effective_episodes(log_weight) == 0
    assert importance.effective_episodes(log_weight[:, :1]) == 1


# --- tables --------------------------------------------------------------------------------------

TABLE = EnvSpec("table", (2,), Discrete(2), 3)
LINEAR = fqe.Config(batch_size=32, normalise_obs=False, hidden=())


def table_rows() -> Transition:
    """Each state and action four times, with successors in the proportions of P: 16 episodes."""
    found = []
    for s, a in itertools.product(range(2), range(2)):
        counts = (4 * P[s, a]).astype(int)
        found += [(s, a, ahead) for ahead in np.repeat(range(3), [*counts, 4 - counts.sum()])]
    obs, action, ahead = np.array(found).T
    one_hot: Any = np.eye(2, dtype=np.float32)
    cut: Any = ahead < 2
    reward: Any = REWARD[obs, action].astype(np.float32)
    start: Any = np.ones(len(obs), bool)
    act: Any = action.astype(np.int32)
    return Transition(one_hot[obs], act, reward, one_hot[ahead % 2], ~cut, cut, start)


def solution(policy: np.ndarray, gamma: float) -> np.ndarray:
    """Q [s, a] of a policy [s, a] by a linear solve: Q = r + γ P Π Q."""
    ahead = np.einsum("san,nb->sanb", P, policy).reshape(4, 4)
    return np.linalg.solve(np.eye(4) - gamma * ahead, REWARD.reshape(4)).reshape(2, 2)


def test_fqe_solves_the_linear_system() -> None:
    """Of an ε-greedy policy, and of a greedy one with another discount, as one program."""
    data = jax.tree.map(jnp.asarray, table_rows())
    greedy = jnp.array([1, 0])  # of each state
    mode = greedy[jnp.argmax(data.next_obs, -1)]
    target = targets.target(TABLE)
    learner = fqe.learner(LINEAR, TABLE, target)
    hp = numbers(fqe.Hypers(lr=0.02, tau=0.1))
    hp = jax.tree.map(lambda x: jnp.broadcast_to(x, (2,)), hp)
    hp = hp.replace(spread=jnp.array([0.4, 0.0]), gamma=jnp.array([0.9, 0.5]))
    learn = fit(learner, 3000)  # type: ignore[arg-type]
    states = jax.jit(jax.vmap(learn, (0, None)))(hp, data._replace(extras={"next_mode": mode}))
    critic, eye = fqe.critic(LINEAR, TABLE), jnp.eye(2)
    for i, policy in enumerate([[[0.2, 0.8], [0.8, 0.2]], [[0.0, 1.0], [1.0, 0.0]]]):
        state, spread = jax.tree.map(lambda x: x[i], states), hp.spread[i]  # noqa: B023
        expected = solution(np.array(policy), float(hp.gamma[i]))
        values = critic.values(state, state.params, eye, eye) * state.scale
        np.testing.assert_allclose(values, expected, rtol=2e-3)
        q, v = fqe.q_and_value(
            critic, target, state, spread, jax.random.key(0), (eye, jnp.array([0, 1]), greedy)
        )
        np.testing.assert_allclose(q, np.diag(expected), rtol=2e-3)
        np.testing.assert_allclose(v, np.sum(np.array(policy) * expected, 1), rtol=2e-3)


def test_targets_are_limited_to_the_range_of_values() -> None:
    """Hand-computed ranges; a Q-function that would exceed its limit converges to the limit."""
    for reward, gamma, expected in (
        ([-2.0, 1.0], 0.9, (-20.0, 10.0)),
        ([-2.0, -1.0], 0.5, (-4.0, 0.0)),
        ([0.0, 3.0], 0.0, (0.0, 3.0)),
    ):
        found = fqe.value_range(jnp.array(reward), gamma)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    data = jax.tree.map(jnp.asarray, table_rows())
    mode = jnp.zeros_like(data.action)
    learner = fqe.learner(LINEAR, TABLE, targets.target(TABLE))
    hp = numbers(fqe.Hypers(lr=0.02, tau=0.1, gamma=0.9, lowest=0.25, highest=0.25))
    state = jax.jit(fit(learner, 1500))(hp, data._replace(extras={"next_mode": mode}))  # type: ignore[arg-type]
    values = fqe.critic(LINEAR, TABLE).values(state, state.params, jnp.eye(2), jnp.eye(2))
    np.testing.assert_allclose(values * state.scale, 0.25, rtol=5e-3)


def test_a_fitted_policy_has_the_frequencies_of_the_data() -> None:
    t = table_rows()
    keep = np.array([*range(7), *range(8, 16)])  # 4 : 3 and 4 : 4
    data = jax.tree.map(lambda x: jnp.asarray(x[keep]), t)
    hp = numbers(fqe.Hypers(lr=0.1))
    learner, (_, log_prob) = behaviour.learner(LINEAR, TABLE), behaviour.policy(LINEAR, TABLE)
    state = jax.jit(fit(learner, 400))(hp, data)  # type: ignore[arg-type]
    found = np.exp(log_prob(state, data.obs, data.action))
    share = np.repeat([4 / 7, 3 / 7, 0.5], [4, 3, 8])
    np.testing.assert_allclose(found, share, rtol=1e-3)
    with pytest.raises(UserError, match="no log-probabilities of its actions"):
        behaviour.recorded(data)


def test_all_estimates_of_two_members() -> None:
    """The compiled whole: values of FQE, weights of ε-greedy policies, actions of each member."""
    t = table_rows()
    spec, target, updates = TABLE, targets.target(TABLE), 1500

    def act(state, hp, obs, start, memory, noise, explore):
        assert not explore
        return state[jnp.argmax(obs, -1)], memory, {}

    tables = jnp.array([[1, 0], [0, 0]], jnp.int32)  # greedy action of each member and state
    trained = Trained(tables, jnp.zeros(2))
    hp = numbers(fqe.Hypers(lr=0.03, tau=0.1)).replace(spread=jnp.array([0.0, 0.4]))
    episodes, log_behaviour = padded(t), np.full(16, np.log(0.5), np.float32)
    cfg, key = fqe.Config(batch_size=64, normalise_obs=False, hidden=()), jax.random.key(0)
    data = jax.tree.map(jnp.asarray, t)
    run = jax.jit(estimate.estimates, static_argnums=(0, 1, 2, 3, 4))
    found = run(
        cfg, spec, target, Policy(act=act), updates, trained, hp, data, log_behaviour, episodes, key
    )
    assert found.effective.shape == (2, 2)
    s, a = np.argmax(t.obs, -1), t.action
    for member, spread in itertools.product(range(2), range(2)):
        mode, eps = np.asarray(tables[member]), [0.0, 0.4][spread]
        policy = (1 - eps) * np.eye(2)[mode] + eps / 2
        q = solution(policy, 0.99)
        direct = np.mean(np.sum(policy * q, 1)[s])
        value = {name: float(x[member, spread]) for name, x in found.value.items()}
        np.testing.assert_allclose(value["fqe"], direct, rtol=0.1)  # of random batches
        weight = policy[s, a] / 0.5
        np.testing.assert_allclose(value["tis"], np.mean(weight * t.reward), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value["pdis"], value["tis"], rtol=1e-4, atol=1e-6)
        normed = np.mean(weight * t.reward) / np.mean(weight)
        np.testing.assert_allclose(value["sntis"], normed, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(estimate.behaviour_value(data, episodes, 0.99), t.reward.mean())


def test_value_at_each_evaluation() -> None:
    """Of a policy of Q-learning's kind that always takes action 1, by the linear solve."""

    def act(state, hp, obs, start, memory, noise, explore):
        return jnp.ones(len(obs), jnp.int32), memory, {}

    agent = Agent(init=lambda key, hp, inputs: (), act=act)
    hp = numbers(fqe.Hypers(lr=0.03, tau=0.1, gamma=0.9))
    cfg = fqe.Config(batch_size=64, normalise_obs=False, hidden=())
    value = jax.jit(during.greedy_value(cfg, TABLE, agent, 1500, hp))
    t = table_rows()
    data = jax.tree.map(jnp.asarray, t._replace(start=np.arange(16) < 8))  # type: ignore[arg-type]
    found = value(Trained((), ()), data, jax.random.key(0))
    wanted = solution(np.array([[0.0, 1.0], [0.0, 1.0]]), 0.9)[0, 1]  # the first rows have state 0
    np.testing.assert_allclose(found, wanted, rtol=0.1, atol=0.05)


# --- pieces --------------------------------------------------------------------------------------


def test_rows_as_episodes() -> None:
    """Episodes of two, one and two steps; the unfinished last one is left out."""
    t = rows(TABLE, 6)
    start = np.array([1, 0, 1, 1, 0, 1], bool)
    end = np.array([0, 1, 1, 0, 1, 0], bool)
    t = t._replace(start=start, terminated=end, truncated=end & False)
    found = padded(t)
    np.testing.assert_array_equal(found.rows, [[0, 1], [2, 2], [3, 4]])
    np.testing.assert_array_equal(found.live, [[1, 1], [1, 0], [1, 1]])
    column = Padded(*map(jnp.asarray, found)).column(jnp.arange(6.0) + 1)
    np.testing.assert_array_equal(column, [[1, 2], [3, 0], [4, 5]])
    assert padded(t._replace(start=start & False | (np.arange(6) == 0))).live.shape == (1, 6)
    doubled = by_pieces(lambda x: 2 * x, jnp.arange(5), 2)
    np.testing.assert_array_equal(doubled, 2 * np.arange(5))


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.4), (-1.0, 0.1), (1.0, 3.0), (0.9, 0.01)])
def test_truncated_normal(mean: float, std: float) -> None:
    """The density has integral 1, and equal shares of uniform numbers fall below its quantiles."""
    dist = TruncatedNormal(*jnp.array([[[mean]], [[np.log(std)]]]))
    grid = np.linspace(-1, 1, 40_001, dtype=np.float32)
    density = np.exp(np.asarray(dist.log_prob(jnp.asarray(grid)[:, None]), float))
    below = np.cumsum(density[1:] + density[:-1]) * (grid[1] - grid[0]) / 2
    np.testing.assert_allclose(below[-1], 1, rtol=2e-3)
    share = np.array([0.1, 0.5, 0.9], np.float32)
    quantile = np.asarray(dist.sample(jnp.asarray(share)[:, None]))[:, 0]
    np.testing.assert_allclose(np.interp(quantile, grid[1:], below), share, atol=3e-3)


def test_targets() -> None:
    """Candidates' weights, log-probabilities and what is played belong to one policy."""
    key, mode = jax.random.key(0), jnp.array([2, 0])
    discrete = targets.target(EnvSpec("three", (1,), Discrete(3), 3))
    actions, weight = discrete.candidates(mode, jnp.float32(0.3), key)
    np.testing.assert_allclose(weight, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-6)
    each = jax.vmap(lambda a: discrete.log_prob(mode, a, jnp.float32(0.3)), 1, 1)(actions)
    np.testing.assert_allclose(jnp.exp(each), weight, rtol=1e-6)
    assert discrete.log_prob(mode, jnp.array([2, 1]), jnp.float32(0)).tolist() == [0, -np.inf]

    spec = EnvSpec("arm", (1,), Box((-1.0, 0.0), (1.0, 4.0), (2,)), 3)
    box = targets.target(spec, samples=4)
    np.testing.assert_allclose(box.unit(jnp.array([[0.5, 4.0]])), [[0.5, 1.0]])
    actions, weight = box.candidates(jnp.array([[0.5, 1.0]]), jnp.float32(0), key)
    assert actions.shape == (1, 4, 2)
    np.testing.assert_allclose(actions, np.broadcast_to([[[0.5, 1.0]]], (1, 4, 2)), atol=1e-3)
    np.testing.assert_allclose(weight, np.full((1, 4), 0.25))

    def act(state, hp, obs, start, memory, noise, explore):
        return jnp.broadcast_to(state[None], (len(obs), 2)), memory, {}

    player = box.policy(Policy(act=act))
    state, n = (Trained(jnp.array([0.5, 4.0]), ()), jnp.float32(0.2)), 500
    played = player.act(
        state, (), jnp.zeros((n, 1)), jnp.ones(n, bool), (), player.noise(key, n), True
    )[0]
    assert played[:, 1].max() <= 4 and 0.1 < jnp.std(played[:, 0]) < 0.25
    dist = TruncatedNormal(*jnp.array([[[1.0]], [[np.log(0.2)]]]))
    inner = dist.sample(jnp.linspace(0.001, 0.999, 999)[:, None]).mean()
    np.testing.assert_allclose(played[:, 1].mean(), 2 + 2 * inner, atol=0.05)
    recurrent = Policy(act=act, memory=lambda n: jnp.zeros((n, 3)))
    with pytest.raises(UserError, match="policy without memory"):
        targets.check_memoryless(recurrent)
    with pytest.raises(UserError, match="bounded actions"):
        targets.target(EnvSpec("free", (1,), Box((-np.inf,), (np.inf,), (1,)), 3))


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    true, guess = [1.0, 4.0, 2.0, 3.0], [10.0, 9.0, 7.0, 8.0]
    assert metrics.mse(guess, true) == (81 + 25 + 25 + 25) / 4
    np.testing.assert_allclose(metrics.rank_correlation(guess, true), 1 - 6 * 12 / (4 * 15))
    np.testing.assert_array_equal(metrics.ranks([3.0, 1.0, 3.0, 2.0]), [2.5, 0, 2.5, 1])
    assert np.isnan(metrics.rank_correlation([1.0, 1.0], [1.0, 2.0]))
    found = metrics.top(guess, true)  # in the order 1, 4, 3, 2
    np.testing.assert_array_equal(found.best, [1, 4, 4, 4])
    np.testing.assert_array_equal(found.worst, [1, 1, 1, 1])
    np.testing.assert_allclose(found.mean, [1, 2.5, 8 / 3, 2.5])
    np.testing.assert_allclose(found.std, [0, 1.5, np.sqrt(14 / 9), np.sqrt(1.25)])
    np.testing.assert_array_equal(metrics.regret(guess, true), [3, 0, 0, 0])
    np.testing.assert_allclose(metrics.violations(guess, true, 2.5), [1, 0.5, 1 / 3, 0.5])
    assert metrics.order([np.nan, 1.0, 2.0]).tolist() == [2, 1, 0]
    # The behaviour policy, of value 2.5, comes last: 1, 4, 3, 2, 2.5.
    ratio = metrics.sharpe_ratio(guess, true, 2.5)
    np.testing.assert_allclose(ratio[1:4], 1.5 / found.std[1:])
    assert np.isnan(ratio[0])
    np.testing.assert_allclose(ratio[4], 1.5 / np.std([1, 4, 3, 2, 2.5]))


def test_equal_accuracy_hides_risk() -> None:
    """Two estimators of equal MSE, rank correlation and regret; one puts bad policies on top."""
    true = np.array([10.0, 9.0, 8.0, 2.0, 1.0])
    timid, bold = true.copy(), true.copy()
    timid[1] -= 8.5  # the second best falls to the last place
    bold[4] += 8.5  # the worst rises to the second place
    assert metrics.mse(timid, true) == metrics.mse(bold, true)
    assert metrics.rank_correlation(timid, true) == metrics.rank_correlation(bold, true)
    np.testing.assert_array_equal(metrics.regret(timid, true), metrics.regret(bold, true))
    careful, risky = (metrics.sharpe_ratio(x, true, 5.0) for x in (timid, bold))
    assert careful[1] == 5 and risky[1] == pytest.approx(5 / 4.5)
