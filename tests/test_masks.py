"""Action masks: legal actions in acting, targets and losses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import contract, envs, policies
from jaxrl.agents import dqn, mdpo, mdpo_offpolicy, ppo, pqn, pqn_rnn, sac
from jaxrl.distributions import Categorical
from jaxrl.envs import EnvError
from jaxrl.envs.normalise import normalise
from jaxrl.envs.wrappers import hide, sticky_actions, time_limit, without_masks
from jaxrl.errors import UserError
from jaxrl.exploration import epsilon_greedy, epsilon_noise, random_policy
from jaxrl.masks import ILLEGAL_LOGIT, Masked, legal_only, random_legal, unmask
from jaxrl.program import train
from jaxrl.rollout import rollout
from jaxrl.types import Batch, Discrete, Env, EnvSpec, HyperParams, TimeStep, Transition

# Legal actions of the two steps of an episode. The illegal ones would pay 10.
LEGAL = np.array([[True, True, False], [False, True, True]])
PAY = np.array([[0.0, -1.0, 10.0], [10.0, 0.0, 1.0]], np.float32)


def forbidden() -> Env:
    """Two steps with observations 0 and 1. The best of all actions is illegal in both, the best
    legal ones are 0, then 2: values γ and 1. Measures the number of illegal actions."""

    def observe(t):
        t = jnp.minimum(t, 1)
        return Masked(t.astype(jnp.float32)[None], jnp.asarray(LEGAL)[t])

    def reset(key, params):
        return (jnp.int32(0), jnp.float32(0)), observe(jnp.int32(0))

    def step(key, state, action, params):
        t, illegal = state
        illegal = illegal + ~jnp.asarray(LEGAL)[t, action]
        end, no = t + 1 >= 2, jnp.zeros((), bool)
        reward = jnp.asarray(PAY)[t, action]
        return (t + 1, illegal), TimeStep(
            observe(t + 1), reward, end, no, measured={"illegal": illegal}
        )

    spec = EnvSpec("forbidden", (1,), Discrete(3), 2, masked=True, measures=("illegal",))
    return Env(spec, {}, reset, step)


SMALL = {"num_envs": 4, "num_steps": 8, "hidden": (16,)}
AGENTS = {
    "pqn": (
        pqn,
        pqn.Config(total_steps=4_000, minibatches=2, **SMALL),
        {"lr": 1e-2, "lam": 0.0, "reward_scale": 0.1, "eps_end": 0.2, "eps_decay": 0.2},
    ),
    "pqn_rnn": (
        pqn_rnn,
        pqn_rnn.Config(4_000, 4, 8, 1, 4, hidden=(16,), memory=8),
        {"lr": 1e-2, "lam": 0.0, "reward_scale": 0.1, "eps_end": 0.2, "eps_decay": 0.2},
    ),
    "dqn": (
        dqn,
        dqn.Config(total_steps=4_000, warmup=64, batch_size=64, gradient_steps=4, **SMALL),
        {"lr": 1e-2},
    ),
    "sac": (
        sac,
        sac.Config(total_steps=4_000, warmup=64, batch_size=64, gradient_steps=4, **SMALL),
        {"lr": 1e-2},
    ),
    "ppo": (
        ppo,
        ppo.Config(4_000, 4, 8, 1, 4, actor=(16,), critic=(16,)),
        {"lr": 1e-2, "entropy_weight": 0.01},
    ),
    "mdpo": (
        mdpo,
        mdpo.Config(4_000, 4, 8, 1, 4, actor=(16,), critic=(16,)),
        {"lr": 1e-2, "value_lr": 1e-2},
    ),
}


# MDPO acts by PPO's policy, SAC by the head that is tested below, recurrent PQN as PQN.
SLOW = ("mdpo", "sac", "pqn_rnn")
slow = lambda name: pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name


@pytest.mark.parametrize("name", [slow(name) for name in AGENTS])
def test_the_best_action_is_illegal_and_never_taken(name):
    """Neither in the warm-up, nor in training, nor in evaluations; legal actions become optimal."""
    module, cfg, hypers = AGENTS[name]
    hp = module.Hypers(**hypers)
    run = train(module.program(cfg, forbidden(), evals=2, episodes=4))
    result = jax.jit(run)(jax.random.key(0), hp)
    assert np.all(np.asarray(result.metrics["agent"]["episode_illegal"].value) == 0)
    assert np.all(np.asarray(result.evals["agent"].measured["illegal"]) == 0)
    assert np.all(np.asarray(result.returns)[-1] == 1)
    if name in ("pqn", "dqn"):
        agent, gamma = module.make(cfg, forbidden().spec), float(hp.gamma)
        seen = Masked(jnp.array([[0.0], [1.0]]), jnp.asarray(LEGAL))
        action, _, extras = agent.act(
            result.state, hp, seen, jnp.ones(2, bool), (), agent.noise(jax.random.key(0), 2), False
        )
        np.testing.assert_array_equal(action, [0, 2])
        if name == "pqn":
            scale = float(hp.reward_scale)
            np.testing.assert_allclose(extras["value"], [scale * gamma, scale], atol=5e-3)


def linear(q):
    """PQN without hidden layers, whose Q-values of observations 0 and 1 are `q` [2, A]."""
    spec = dataclasses.replace(forbidden().spec, action=Discrete(3))
    cfg = pqn.Config(num_envs=2, num_steps=3, minibatches=1, epochs=1, hidden=(), norm="none")
    agent = pqn.make(cfg, spec)
    state = agent.init(jax.random.key(0), pqn.Hypers(), {})
    flat = jax.tree.leaves(state.params)
    assert sorted(x.shape for x in flat) == [(1, 3), (3,)]
    params = jax.tree.map(
        lambda x: jnp.asarray(q[0] if x.ndim == 1 else (q[1] - q[0])[None]), state.params
    )
    return agent, state._replace(params=params)


def test_pqn_targets_are_those_of_a_loop():
    """The loss at given Q-values: λ-returns that bootstrap from legal actions of successors."""
    q = np.array([[0.5, 0.2, 9.0], [8.0, 0.3, 0.7]], np.float32)
    agent, state = linear(q)
    hp = pqn.Hypers(lr=0.0, gamma=0.9, lam=0.5, reward_scale=1.0)
    at = np.array([[0, 1], [1, 0], [0, 1]])  # observations [T, N]
    after = np.array([[1, 0], [0, 1], [1, 0]])
    truncated = np.array([[False, True], [False, False], [True, False]])
    terminated = np.array([[False, False], [True, False], [False, False]])
    action = np.array([[0, 1], [2, 1], [1, 2]])
    reward = np.arange(6, dtype=np.float32).reshape(3, 2) / 10
    best = np.where(LEGAL, q, -np.inf).max(-1)
    see = lambda x: Masked(jnp.asarray(x, jnp.float32)[..., None], jnp.asarray(LEGAL)[x])
    window = Transition(
        see(at),
        jnp.asarray(action),
        jnp.asarray(reward),
        see(after),
        jnp.asarray(terminated),
        jnp.asarray(truncated),
        jnp.zeros((3, 2), bool),
        {"value": jnp.asarray(best[at])},
    )
    args = (jax.random.key(0), jnp.int32(0))
    _, metrics = jax.jit(agent.update)(state, hp, Batch(window), *args)

    errors = []
    for n in range(2):
        later = best[after[-1, n]]
        for t in (2, 1, 0):
            value = best[after[t, n]]
            ahead = value if truncated[t, n] else 0.5 * value + 0.5 * later
            later = reward[t, n] + 0.9 * (0 if terminated[t, n] else ahead)
            errors.append(0.5 * (q[at[t, n], action[t, n]] - later) ** 2)
    np.testing.assert_allclose(metrics["loss"], np.mean(errors), rtol=1e-5)


def test_random_actions_are_uniform_over_legal_ones():
    masks = np.array(list(itertools.product([False, True], repeat=4)))
    grid = np.tile((np.arange(24) + 0.5) / 24, (len(masks), 1))
    each = np.repeat(masks[:, None], 24, 1)
    found = np.asarray(random_legal(jnp.asarray(grid, jnp.float32), jnp.asarray(each)))
    for legal, row in zip(masks, found, strict=True):
        options = np.flatnonzero(legal) if legal.any() else np.arange(4)
        assert [int((row == i).sum()) for i in options] == [24 // len(options)] * len(options)
    top = random_legal(
        jnp.array([np.nextafter(np.float32(1), np.float32(0))]), jnp.ones((1, 3)) > 0
    )
    assert int(top[0]) == 2


def test_epsilon_greedy_and_the_policy_of_warm_ups():
    legal = jnp.asarray(LEGAL[:1].repeat(64, 0))
    q = legal_only(jnp.tile(jnp.array([[1.0, 2.0, 3.0]]), (64, 1)), legal)
    noise = epsilon_noise(3, masked=True)(jax.random.key(1), 64)
    greedy = epsilon_greedy(q, jnp.float32(0), noise, True, legal)
    explored = np.asarray(epsilon_greedy(q, jnp.float32(1), noise, True, legal))
    assert np.all(np.asarray(greedy) == 1) and set(explored) == {0, 1}
    policy = random_policy(Discrete(3), masked=True)
    seen = Masked(jnp.zeros((64, 1)), legal)
    args = (seen, jnp.ones(64, bool), (), policy.noise(jax.random.key(2), 64), True)
    assert set(np.asarray(policy.act((), (), *args)[0])) == {0, 1}


def test_masked_categorical_is_that_of_the_legal_actions():
    logits = jnp.array([0.3, -1.0, 2.0, 0.1])
    other = jnp.array([1.0, 0.5, -2.0, 0.0])
    legal = jnp.array([True, False, True, True])
    rows = np.flatnonzero(np.asarray(legal))
    wide = [Categorical(legal_only(x, legal, ILLEGAL_LOGIT)) for x in (logits, other)]
    small = [Categorical(x[rows]) for x in (logits, other)]
    np.testing.assert_allclose(wide[0].entropy(), small[0].entropy(), rtol=1e-6)
    np.testing.assert_allclose(wide[0].kl(wide[1]), small[0].kl(small[1]), rtol=1e-5)
    np.testing.assert_allclose(wide[0].log_probs[rows], small[0].log_probs, rtol=1e-6)
    entropy = lambda x: Categorical(legal_only(x, legal, ILLEGAL_LOGIT)).entropy()
    grad = np.asarray(jax.grad(entropy)(logits))
    assert np.isfinite(grad).all() and grad[1] == 0
    assert unmask(logits)[1] is None and legal_only(logits, None) is logits


def test_agents_without_masks_are_refused():
    env = forbidden()
    with pytest.raises(UserError, match="masks=false"):
        mdpo_offpolicy.program(mdpo_offpolicy.Config(num_envs=2, num_steps=2, hidden=(4,)), env)
    plain = without_masks(env)
    contract.check_env(plain)
    assert not plain.spec.masked and without_masks(plain) is plain
    mdpo_offpolicy.program(mdpo_offpolicy.Config(num_envs=2, num_steps=2, hidden=(4,)), plain)


def test_wrappers_keep_masks():
    env = forbidden()
    wrapped = normalise(time_limit(env, 1), True, 0.9)
    contract.check_env(wrapped)
    source = rollout(wrapped, random_policy(Discrete(3), masked=True), 3, 4)
    hp = HyperParams((), {})
    src = source.init(jax.random.key(0), (), hp, {})
    _, batch, metrics = source.next(src, (), hp, {}, jax.random.key(1), jnp.int32(0))
    t = batch.transitions
    np.testing.assert_array_equal(t.obs.legal, np.broadcast_to(LEGAL[0], (4, 3, 3)))
    np.testing.assert_array_equal(t.next_obs.legal, np.broadcast_to(LEGAL[1], (4, 3, 3)))
    assert np.all(np.asarray(t.truncated)) and float(metrics["episode_illegal"].value) == 0
    with pytest.raises(EnvError, match="may be illegal"):
        sticky_actions(env, 0.5)
    wide = dataclasses.replace(env, spec=dataclasses.replace(env.spec, obs_shape=(2,)))
    double = lambda seen: seen._replace(obs=jnp.concatenate([seen.obs, seen.obs]))
    reset = lambda key, params: (lambda s, o: (s, double(o)))(*env.reset(key, params))
    wide = dataclasses.replace(wide, reset=reset)
    assert hide(wide, [0]).reset(jax.random.key(0), {})[1].obs.shape == (1,)


def test_contract():
    env = forbidden()
    contract.check_env(env)
    plain = dataclasses.replace(env, spec=dataclasses.replace(env.spec, masked=False))
    bare = dataclasses.replace(without_masks(env), spec=env.spec)
    silent = dataclasses.replace(env, spec=dataclasses.replace(env.spec, measures=()))
    for wrong, hint in ((plain, "obs"), (bare, "Masked"), (silent, "must measure")):
        with pytest.raises(UserError, match=hint):
            contract.check_env(wrong)


def test_option():
    with pytest.raises(EnvError, match="true or false"):
        envs.make("CartPole-v1", masks=3)
    assert envs.make("CartPole-v1", masks=False).spec == envs.make("CartPole-v1").spec


def test_sac_is_a_softmax_over_legal_actions():
    """Its policy, entropy and target entropy equal those of the legal actions alone."""
    cfg = sac.Config(warmup=8, hidden=(4,))
    head = sac.head_of(cfg, forbidden().spec)
    actor = head.actor(jax.random.key(0))
    obs = jnp.array([[0.0], [1.0]])
    seen = Masked(obs, jnp.asarray(LEGAL))
    logits = np.asarray(head.policy(actor, obs).logits)
    odds = np.where(LEGAL, np.exp(logits), 0)
    p = odds / odds.sum(-1, keepdims=True)
    now = head.samples(head.policy(actor, seen), jnp.zeros((2, 3)))
    np.testing.assert_allclose(now.weight, p, rtol=1e-5)
    entropy = [-sum(x * np.log(x) for x in row if x > 0) for row in p]
    np.testing.assert_allclose(policies.mean_entropy(now), np.mean(entropy), rtol=1e-5)
    count = np.array(LEGAL).sum(-1)
    np.testing.assert_allclose(
        policies.target_entropy(head, seen), 0.98 * np.mean(np.log(count)), rtol=1e-5
    )
    assert policies.target_entropy(head, obs) == head.target_entropy
