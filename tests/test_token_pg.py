"""token_pg: groups of responses, staleness, the table of objectives, and what they learn."""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl import envs
from jaxrl.agents import token_pg
from jaxrl.envs import tokens
from jaxrl.errors import UserError
from jaxrl.experiments.studies import enumerated, staleness, token_claims, token_signal
from jaxrl.groups import Steering, delayed, groups
from jaxrl.objectives import SpoTracker
from jaxrl.objectives.table import OBJECTIVES, Tokens, chosen
from jaxrl.program import train
from jaxrl.responses import Last, Tracked, track
from jaxrl.sequence import sequence_model
from jaxrl.types import Batch, Discrete, EnvSpec, HyperParams, Policy, Source, Transition

M, G, K = 3, 6, 4


def blind() -> Policy:
    """Uniform actions; extras record what it observed."""

    def act(state, hp, obs, start, memory, noise, explore):
        action = jnp.argmax(noise, -1)
        return action, memory, {"seen": obs}

    return Policy(act=act, noise=lambda key, n: jax.random.gumbel(key, (n, M)))


def draw(source: Source, hp: Any = None) -> Any:
    """(transitions of a window with numpy leaves, metrics)."""

    def first() -> Any:
        key, state, params = jax.random.key(0), jnp.float32(0), HyperParams(hp)
        src = source.init(key, state, params, {})
        return source.next(src, state, params, {}, key, jnp.int32(0))[1:]

    batch, metrics = jax.device_get(jax.jit(first)())
    return batch.transitions, metrics


# --- the source ----------------------------------------------------------------------------------


def test_groups_with_traces_corrections_prefixes_and_hints() -> None:
    """One window of everything: reverse, three tokens, all checked."""
    env = envs.make("tokens:reverse", alphabet=M)
    steering = Steering(traces=1, corrected=2, prefix_share=lambda hp: hp)
    source = groups(env, blind(), G, K, steering=steering, expert=True, hints=True)
    t, metrics = draw(source, jnp.float32(0.6))
    by_group = lambda x: np.moveaxis(x.reshape(3, G, K + 1, *x.shape[2:]), 0, 2)
    obs, action, reward = by_group(t.obs), by_group(t.action), by_group(t.reward)
    expert = by_group(t.extras["expert"])
    forced, valid = by_group(t.extras["forced"]), by_group(t.extras["valid"])
    prompt = obs[..., : 3 * M].reshape(G, K + 1, 3, 3, M).argmax(-1)
    assert (prompt == prompt[:, :1, :1]).all()  # one prompt per group
    assert len({tuple(p) for p in prompt[:, 0, 0]}) > 1
    answer = prompt[:, 0, 0, ::-1]
    right = action == answer[:, None]
    np.testing.assert_array_equal(expert.argmax(-1), np.broadcast_to(answer[:, None], action.shape))
    np.testing.assert_array_equal(t.extras["seen"][..., -M:], t.extras["expert"])
    assert valid.all() and (right[forced]).all()
    np.testing.assert_array_equal(reward.sum(-1), right.all(-1))
    # Traces are the expert's; corrected responses always succeed; others are forced in prefixes.
    assert forced[:, K].all()
    corrected, plain = forced[:, K - 2 : K], forced[:, : K - 2]
    assert right[:, K - 2 : K].all() and corrected.any() and not corrected.all()
    length = plain.sum(-1)
    assert (length == length[:, :1]).all()  # the same prefix in a group
    assert set(length[:, 0].tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(plain, np.arange(3) < length[..., None])
    # A correction begins at the first wrong token and lasts to the end.
    changed = np.diff(corrected[length[:, 0] == 0].astype(int), axis=-1)
    assert (changed >= 0).all()
    alone = ~forced.any(-1)
    assert metrics["episode_return"].value == pytest.approx(right.all(-1)[alone].mean())


def test_episodes_that_end_early_and_a_pool() -> None:
    """The walk ends beyond |x| = 1; what follows an end is not valid. Prompts are of the pool."""
    env = tiny.walk()
    weights = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    source = groups(env, blind(), 3, 2, pool=5, priority=lambda state: weights)
    t, metrics = draw(source)
    done = t.terminated | t.truncated
    before = np.cumsum(done, 0) - done > 0
    np.testing.assert_array_equal(t.extras["valid"], ~before)
    assert before.any() and done.any(0).all()
    returns = np.where(~before, t.reward, 0).sum(0)
    assert metrics["episode_return"].value == pytest.approx(returns.mean(), rel=1e-6)
    assert metrics["episode_length"].value == pytest.approx((~before).sum(0).mean(), rel=1e-6)
    index = t.extras["group"][0].reshape(3, 2)
    assert (index[:, 0] == index[:, 1]).all() and len(set(index[:, 0].tolist())) == 3
    assert 2 not in index
    first = t.obs[0].reshape(3, 2, -1)
    np.testing.assert_array_equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize(("delay", "older"), [(2, 0), (1, 2)])
def test_delayed_windows_are_of_older_policies(delay: int, older: int) -> None:
    """An inner source that records who made the window: the learner's state is the step."""

    def next(src, learner_state, hp, inputs, key, step):
        made = jnp.full((1, 6), learner_state)
        zero = jnp.zeros((1, 6))
        row = Transition(zero, zero, zero, zero, zero, zero, zero, {"made": made})
        return src, Batch(row), {}

    inner = Source(init=lambda key, learner_state, hp, inputs: (), next=next, env_steps=6)
    source = delayed(inner, 3, delay, older=older, share=lambda hp: hp)
    hp, key = HyperParams(jnp.float32(0.5)), jax.random.key(0)
    src = jax.jit(source.init)(key, jnp.float32(0), hp, {})
    step_fn = jax.jit(source.next)
    ages = []
    for step in range(12):
        args = (jnp.float32(step), hp, {}, jax.random.key(step), jnp.int32(step))
        src, batch, _ = step_fn(src, *args)
        made = np.asarray(batch.transitions.extras["made"]).reshape(3, 2)
        assert (made[:, 0] == made[:, 1]).all()  # groups stay together
        if step >= delay + older:
            ages += (step - made[:, 0]).tolist()
        else:
            assert (made >= 0).all() and (made <= max(step - delay, 0)).all()
    assert set(ages) == set(range(delay, delay + older + 1))
    assert delayed(inner, 3, 0) is inner and source.env_steps == 6


# --- the table -----------------------------------------------------------------------------------

OF_DATA = {"replay_share", "prefix_share", "teacher_noise", "sigma"}  # read before the loss


def test_losses_read_the_hyperparameters_that_they_list() -> None:
    """And no others: the gradient by the logits, one hyperparameter changed at a time."""
    rng = np.random.default_rng(0)
    size, length, actions = 8 * K, 3, 4
    log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    arrays = rng.normal(size=(4, size, length, actions))
    near = arrays[0] + 0.3 * arrays  # ratios around 1, so that each clip matters
    table = log_softmax(np.concatenate([near[:3], arrays[3:]])).astype(np.float32)
    action = rng.integers(actions, size=(size, length))
    of = lambda x: np.take_along_axis(x, action[..., None], -1)[..., 0]
    reward = rng.permutation(np.arange(size) % 2).astype(np.float32)
    base = token_pg.Hypers(dual_clip=1.5, balance=0.9)
    names = [field.name for field in dataclasses.fields(base)]
    points = [base] + [
        base.replace(**{name: np.float32(0.2 * getattr(base, name) + 0.02)}) for name in names
    ]
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *points)
    own = np.arange(size)[:, None] % K < K - 1

    def gradients(hp: Any) -> Any:
        found = {}
        for name, objective in OBJECTIVES.items():
            r, noise = reward.reshape(-1, K), rng.uniform(size=(8, K)).astype(np.float32)
            advantage = objective.advantage(jnp.asarray(r), hp, jnp.asarray(noise)).reshape(-1, 1)

            def loss(logits: Any, objective: Any = objective, advantage: Any = advantage) -> Any:
                own_guide = objective.guide == "itself"
                guide = jax.nn.log_softmax(2 * logits) if own_guide else jnp.asarray(table[3])
                tokens = Tokens(
                    log_probs=jax.nn.log_softmax(logits),
                    action=jnp.asarray(action),
                    behaviour=jnp.asarray(of(table[1])),
                    advantage=advantage,
                    reward=reward[:, None],
                    mask=jnp.ones((size, length), bool),
                    group=K,
                    own=jnp.asarray(own),
                    forced=jnp.asarray(np.broadcast_to(np.arange(length) < 1, (size, length))),
                    proximal=jnp.asarray(of(table[2])),
                    guide=guide,
                    progress=0.4,
                    noise=jnp.asarray(rng.gumbel(size=(size, length, 2, actions)), jnp.float32),
                )
                return objective.loss(tokens, hp)

            found[name] = jax.grad(loss)(jnp.asarray(arrays[0], jnp.float32))
        return found

    found = jax.device_get(jax.jit(lambda: jax.vmap(gradients)(stacked))())
    for name, objective in OBJECTIVES.items():
        assert np.isfinite(found[name]).all() and np.abs(found[name][0]).max() > 1e-6, name
        differs = {n for i, n in enumerate(names) if (found[name][i + 1] != found[name][0]).any()}
        assert differs == set(objective.uses) - OF_DATA, name
    named = {name for objective in OBJECTIVES.values() for name in objective.uses}
    assert named | set(token_pg.GENERAL) == set(names)


# --- the agent -----------------------------------------------------------------------------------


def test_acting_and_reading_give_the_same_probabilities() -> None:
    """Step by step with memory, and whole responses at once; and the tracker, by plain numpy."""
    spec = envs.make("tokens:carry-add", alphabet=M).spec
    rng = np.random.default_rng(0)
    model = sequence_model(4, 4, spec)
    obs = rng.normal(size=(5, 3, *spec.obs_shape)).astype(np.float32)
    old = rng.normal(-1.0, 0.03, size=(5, 3)).astype(np.float32)
    action = rng.integers(M, size=(5, 3))
    mask = np.array([[True] * 3, [False] * 3, [True, True, False], [True] * 3, [True] * 3])
    before = SpoTracker(jnp.arange(1.0, 6), jnp.arange(2.0, 7))
    index, reward = np.array([2, 0, 1]), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])

    @jax.jit
    def run() -> Any:
        params = model.init(jax.random.key(0))
        carry, steps = jnp.zeros((5, 4)), []
        for t in range(3):
            carry, found = model.step(params, carry, obs[:, t], jnp.full(5, t == 0), None)
            steps.append(found)
        whole = model.log_probs(params, obs)
        at = chosen(whole, jnp.asarray(action))
        last = Last(jnp.asarray(obs), jnp.asarray(action), at + old + 1, jnp.asarray(mask))
        new: Last = jax.tree.map(lambda x: jnp.zeros_like(x[:3]), last)
        tracked = track(model, params, Tracked(before, last), jnp.asarray(index), new, reward)
        return jnp.stack(steps, 1), whole, tracked

    steps, whole, (value, after) = jax.device_get(run())
    np.testing.assert_allclose(steps, whole, rtol=1e-5, atol=1e-6)
    alpha, beta = np.arange(1.0, 6), np.arange(2.0, 7)
    np.testing.assert_allclose(value, (alpha / (alpha + beta))[index], rtol=1e-6)
    away = np.abs(old + 1)
    distance = (away * mask).sum(-1) / np.maximum(mask.sum(-1), 1)
    rate = np.clip(2 ** (-distance / 0.06), 0.875, 0.96)[index]
    assert rate[2] == 0.96 and (rate[:2] < 0.96).all()  # prompt 1 had no response yet
    mean = reward.mean(-1)
    alpha[index], beta[index] = rate * alpha[index] + mean, rate * beta[index] + 1 - mean
    np.testing.assert_allclose(after.tracker, (alpha, beta), rtol=1e-5)
    assert not after.last.obs[index].any() and (after.last.obs[3:] == obs[3:]).all()


def test_metrics_of_groups_of_equal_rewards() -> None:
    """The responses to the first prompt are all right, of those to the second one is."""
    cfg = token_pg.Config(objective="grpo", prompts=2, group=2, embedding=4, memory=4)
    env = envs.make("tokens:reverse", alphabet=2, digits=2)
    agent, source = token_pg.make(cfg, env.spec), token_pg.source(cfg, env)

    @jax.jit
    def update() -> Any:
        key, hp, step = jax.random.key(0), HyperParams(token_pg.Hypers(), env.params), jnp.int32(0)
        state = agent.init(key, hp.agent, {})
        src = source.init(key, state, hp, {})
        batch = source.next(src, state, hp, {}, key, step)[1]
        reward = jnp.zeros((2, 4)).at[1].set(jnp.array([1.0, 1.0, 0.0, 1.0]))
        found = batch._replace(transitions=batch.transitions._replace(reward=reward))
        return agent.update(state, hp.agent, found, key, step)[1]

    metrics = jax.device_get(update())
    assert metrics["informative"] == 0.5
    assert 0 <= metrics["drift"] <= metrics["drift_max"] < 1e-5  # the policy that responded


def test_responses_of_rounded_parameters() -> None:
    """With one bit of mantissa the probabilities of responses are those of rounded parameters;
    greedy acting takes all bits."""
    cfg = token_pg.Config(rollout_mantissa=1, embedding=4, memory=4)
    spec = envs.make("tokens:modsum").spec
    model, policy = sequence_model(4, 4, spec), token_pg.acting(cfg, spec, "itself")
    obs, start = jnp.eye(*spec.obs_shape)[:2], jnp.ones(2, bool)

    @jax.jit
    def run() -> Any:
        params = model.init(jax.random.key(0))
        params = jax.tree.map(lambda x: x + 0.1, params)
        state = types.SimpleNamespace(params=params)
        args = (None, obs, start, policy.memory(2), jnp.zeros((2, 5)))
        acted = [policy.act(state, *args, explore)[2]["log_probs"] for explore in (True, False)]
        return params, acted

    params, (explored, greedy) = jax.device_get(run())

    def nearest(x: np.ndarray) -> np.ndarray:
        """Multiples of 1/2 between powers of two."""
        power = 2.0 ** np.floor(np.log2(np.abs(x)))
        return np.float32(np.round(x / power * 2) / 2 * power)

    read = jax.jit(lambda params: model.step(params, jnp.zeros((2, 4)), obs, start, None)[1])
    np.testing.assert_allclose(explored, read(jax.tree.map(nearest, params)), atol=1e-6)
    np.testing.assert_allclose(greedy, read(params), atol=1e-6)
    assert np.abs(explored - greedy).max() > 0.01


def test_enumerated_expectations() -> None:
    """Of a teacher, whose success is known, and of a network, whose responses are drawn."""
    rule = tokens.task("carry-add", M)
    task = enumerated.listed(rule)
    shape = (*task.action.shape, M)
    noise, other = 0.3, 0.6
    guide, right = tokens.teacher(task.expert, noise), 1 - noise + noise / M
    guide = jnp.broadcast_to(guide, shape)
    success = np.asarray(enumerated.success(guide, task))
    np.testing.assert_allclose(success, right**3, rtol=1e-5)
    assert float(enumerated.pass_at(4, success)) == pytest.approx(1 - (1 - right**3) ** 4, rel=1e-5)
    assert float(enumerated.divergence(guide, task, noise)) == pytest.approx(0, abs=1e-6)
    p, q = (np.array([1 - x + x / M, x / M, x / M]) for x in (noise, other))
    expected = 3 * np.sum(p * np.log(p / q))  # three tokens
    assert float(enumerated.divergence(guide, task, other)) == pytest.approx(expected, rel=1e-5)

    env = envs.make("tokens:carry-add", alphabet=M)
    cfg = token_pg.Config(prompts=512, embedding=8, memory=8)
    source = token_pg.source(cfg, env)

    @jax.jit
    def run() -> Any:
        model = sequence_model(8, 8, env.spec)
        params = jax.tree.map(lambda x: 2 * x, model.init(jax.random.key(1)))
        log_probs = enumerated.every_log_prob(model, params, task)
        state, hp = types.SimpleNamespace(params=params), HyperParams(token_pg.Hypers())
        key = jax.random.key(0)
        drawn = source.next((), state, hp, {}, key, jnp.int32(0))[1].transitions.reward
        total = jnp.sum(enumerated.probability(log_probs, task), -1)
        return total, jnp.mean(enumerated.success(log_probs, task)), jnp.sum(drawn, 0)

    total, expected, drawn = jax.device_get(run())
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    error = drawn.reshape(512, -1).mean(1).std() / np.sqrt(512)  # prompts are independent
    assert abs(drawn.mean() - expected) < 4 * error


def test_signal_and_cosine_of_gradients() -> None:
    """Of two orthogonal gradients of length 1, and of noise of known size around a mean."""
    found = token_signal.about(jnp.eye(2), jnp.array([1.0, 0.0]))
    assert found == {"cosine": pytest.approx(0.5), "signal": pytest.approx(0, abs=1e-6)}
    mean = jnp.full(16, 0.5)  # |E g|^2 = 4
    drawn = jnp.asarray(0.5 + np.random.default_rng(0).normal(size=(4000, 16)))
    found = token_signal.about(drawn, mean)
    assert found["signal"] == pytest.approx(4 / 20, abs=0.01)


@pytest.mark.slow
def test_learns_and_sweeps_as_one_program() -> None:
    """TOPR at staleness 4: two learning rates and two seeds, vmapped; 0 learns nothing."""
    cfg = token_pg.Config(objective="topr", updates=150, staleness=4, embedding=16, memory=16)
    env = envs.make("tokens:reverse", alphabet=2, digits=2)
    run = train(token_pg.program(cfg, env, evals=1, episodes=64))
    keys = jax.random.split(jax.random.key(0), 2)
    hypers = token_pg.Hypers().replace(lr=jnp.array([0.0, 0.02]))
    axes = jax.tree.map(lambda x: None, hypers).replace(lr=0)
    result = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, axes)))(keys, hypers)
    accuracy = np.asarray(result.returns).mean(-1)[..., -1]
    assert (accuracy[0] < 0.7).all() and (accuracy[1] > 0.95).all()


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"objective": "tropr"}, "unknown objective 'tropr', did you mean 'topr'"),
        ({"group": 1}, "objective=ppo compares responses to a prompt: group must be 2 or more"),
        ({"objective": "spo"}, "objective=spo needs a pool of at least prompts=16 prompts"),
        ({"minibatches": 3}, "minibatches=3 does not divide prompts=16"),
        ({"rollout_mantissa": 24}, "rollout_mantissa=24 must be from 0 to 23"),
        ({"staleness": -1}, "staleness=-1 must be at least 0"),
    ],
)
def test_refusals(cfg: dict[str, Any], message: str) -> None:
    spec = tiny.walk().spec
    with pytest.raises(UserError, match=message):
        token_pg.make(token_pg.Config(**cfg), spec)


def test_refusals_of_environments_and_hyperparameters() -> None:
    cfg = token_pg.Config(objective="chord")
    with pytest.raises(UserError, match="line has no expert, which this objective needs"):
        token_pg.program(cfg, tiny.walk())
    with pytest.raises(UserError, match="token_pg needs discrete actions"):
        token_pg.make(cfg, tiny.glide().spec)
    endless = dataclasses.replace(tiny.walk(), spec=EnvSpec("endless", (2,), Discrete(3)))
    with pytest.raises(UserError, match="endless needs a time limit"):
        token_pg.program(token_pg.Config(), endless)
    statistics = envs.make("tokens:modsum", normalise_obs=True)
    with pytest.raises(UserError, match="tokens:modsum keeps running statistics"):
        token_pg.program(token_pg.Config(), statistics)
    many = token_pg.Hypers().replace(tau=np.float32([0.1, 0.2]))
    with pytest.raises(UserError, match="objective=chord does not read tau, but lr"):
        token_pg.check_request(cfg, many, {})
    token_pg.check_request(token_pg.Config(objective="opmd"), many, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns(name: str) -> None:
    """Reversing two of three digits, from warm starts where the teacher needs one."""
    warm = OBJECTIVES[name].guide in ("reference", "itself") or name == "lightning_opd"
    cfg = token_pg.Config(
        objective=name, updates=300, pool=16, sft_updates=100 * warm, embedding=16, memory=16
    )
    env = envs.make("tokens:reverse", alphabet=3, digits=2)
    run = train(token_pg.program(cfg, env, evals=1, episodes=128))
    keys, hp = jax.random.split(jax.random.key(0), 4), token_pg.Hypers(lr=0.01)
    result = jax.jit(jax.vmap(run, (0, None)))(keys, hp)
    accuracy = np.asarray(result.returns).mean(-1)[:, -1]
    if name == "sft_hinted":  # trains the policy with privileged context only
        return
    assert accuracy.mean() > 0.5, accuracy  # chance is 1/9


def test_claims_report_other_seeds_than_those_that_choose_the_rate(monkeypatch) -> None:
    lr, seed = np.repeat(token_claims.RATES, 4), np.tile(np.arange(4), 3)
    end = np.where(lr == 3e-3, np.where(seed < 2, 0.1, 0.9), 0.5)  # best for seeds 2 and 3 alone
    rows = {"return": np.concatenate([np.zeros((5, 12)), end[None]])}
    rows |= dict.fromkeys(token_claims.METRICS, np.stack([end, seed]))
    monkeypatch.setattr(token_claims, "read_metrics", lambda run, stage: run)
    monkeypatch.setattr(token_claims, "by_chunk", lambda metrics, members: rows)
    members = {"id": np.arange(12), "agent.lr": lr, "seed": seed}
    run = types.SimpleNamespace(members=lambda: members)
    found = token_claims.outcome(run, seeds=2)
    last = dict.fromkeys(token_claims.METRICS, 0.5)  # of seeds 0 and 1
    assert found == {"lr": 3e-3, "early": [0.0, 0.0], "end": [0.1, 0.1]} | last


@pytest.mark.slow
def test_the_study_of_staleness(tmp_path, monkeypatch) -> None:
    """Trains with two seeds, and again finds the sweep finished."""
    words = "staleness --envs modsum --objectives topr --seeds 2 --updates 6 --out"
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path)])
    staleness.main()
    before = (tmp_path / "staleness.json").read_text()
    staleness.main()
    rows = json.loads(before)["rows"]
    assert (tmp_path / "staleness.json").read_text() == before
    assert (tmp_path / "staleness.png").stat().st_size > 1000
    settings = [(row["staleness"], row["lr"]) for row in rows]
    assert settings == list(itertools.product(staleness.STALENESS, staleness.RATES))
    assert all(len(row["accuracy"]) == 2 and row["drift"] >= 0 for row in rows)
