"""CDSA: scores of known densities, corrections by their formulas, bases left alone, and runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
from logged import BOX, numbers, rows

import jaxrl
from jaxrl import diffusion, envs, nets, scores
from jaxrl.agents import bc, cdsa, td3bc
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.experiments import cli, jax_setup, requests, restore, sweep_plan
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.studies import circle
from jaxrl.exploration import random_policy
from jaxrl.normalise import change_moments
from jaxrl.policies import Switch, Trained, one_of
from jaxrl.program import Program, Stage, check_shared, train
from jaxrl.runs import records, stats
from jaxrl.sources import HELD, held_out
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Batch, Box, EnvSpec, HyperParams, Policy, PyTree, Transition


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


# --- scores --------------------------------------------------------------------------------------

PUSH = EnvSpec("push", (2,), Box((-1.0, -1.0), (1.0, 1.0), (2,)), 10)
SPREAD = np.array([[0.05, 0.1]], np.float32)  # of actions around their mean
MEAN, STD = np.array([[0.5, -0.3]], np.float32), np.array([[0.7, 1.2]], np.float32)


def behaviour(obs: Array) -> Array:
    """The mean action [B, 2] of the data at obs [B, 2]."""
    return 0.4 * jnp.sin(obs) @ jnp.array([[1.0, 0.5], [-0.5, 1.0]])


def pushes(count: int = 20_000) -> Transition:
    """Actions normal around `behaviour`, and next observations N(MEAN, STD²) whatever they are."""
    obs = normal(0, count, 2)
    action = behaviour(obs) + SPREAD * normal(1, count, 2)
    later = jnp.asarray(MEAN + STD * normal(6, count, 2))
    yes, zeros = jnp.ones(count, bool), jnp.zeros(count)
    return Transition(obs, action, zeros, later, ~yes, yes, yes)


def fitted(cfg: cdsa.Config, name: str, context: Array) -> Any:
    """ε of actions or states, learned from `pushes`."""
    stage = Stage(
        name="model",
        learner=cdsa.modeller(cfg, PUSH),
        source=held_out(cfg.batch_size),
        updates=cfg.updates,
    )
    hp = HyperParams(numbers(cdsa.Hypers(lr=3e-3, tau=0.01)))
    jax.config.update("jax_disable_most_optimizations", False)  # thousands of updates
    run = jax.jit(train(Program((stage,))))
    state = run(jax.random.key(0), hp, pushes()).states["model"]
    jax.config.update("jax_disable_most_optimizations", True)
    net = cdsa.networks(cfg, PUSH, box_scale("cdsa", PUSH))
    call = scores.bind(net, scores.trained(net, state).nets)
    return diffusion.scaled_epsilon(call[name], context)


@pytest.mark.slow
def test_score_of_normal_data() -> None:
    """-(x - m) / (v + σ²), to 5 % of its size within two deviations."""
    sizes: dict[str, Any] = {"updates": 8000, "batch_size": 512, "hidden": (32, 32)}
    cfg = cdsa.Config(correction="current", normalise_obs=False, **sizes)
    predict = fitted(cfg, "state", diffusion.no_context())
    offset = 2 * STD * jax.random.uniform(jax.random.key(3), (500, 2), minval=-1)
    for level in (0.3, 0.5, 0.9):
        got = diffusion.score(predict, jnp.asarray(MEAN + offset), jnp.full(500, level))
        want = -offset / (STD**2 + level**2)
        error = jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2))
        assert error < 0.05, (level, error)


@pytest.mark.slow
def test_the_ladder_brings_actions_back() -> None:
    """Actions moved away by 0.5: by 80 % and more. And α = 1 once gives the posterior mean."""
    cfg = cdsa.Config(updates=3000, correction="action", hidden=(48, 48), normalise_obs=False)
    obs, away = normal(2, 500, 2), normal(4, 500, 2)
    predict, clean = fitted(cfg, "action", obs), behaviour(obs)
    away = 0.5 * away / jnp.linalg.norm(away, axis=-1, keepdims=True)
    back = jax.jit(lambda x: diffusion.anneal(predict, x, cfg.ladder, cfg.ladder_steps, 0.5))
    left = jnp.mean(jnp.linalg.norm(back(clean + away) - clean, axis=-1))
    assert left < 0.2 * 0.5, left
    once = jax.jit(lambda x: diffusion.anneal(predict, x, (0.3,), 1, 1.0))(clean + away)
    want = clean + away * SPREAD**2 / (SPREAD**2 + 0.3**2)
    assert jnp.mean(jnp.linalg.norm(once - want, axis=-1)) < 0.05 * 0.5


# --- learning ------------------------------------------------------------------------------------

SMALL = cdsa.Config(updates=8, batch_size=8, hidden=(5,), embedding=4)
SLOW = cdsa.Hypers(tau=0.5)


@functools.cache
def small() -> tuple[Any, Any]:
    """Compiled `init` and `update` of the networks of `SMALL`."""
    learner = cdsa.modeller(SMALL, BOX)
    return jax.jit(learner.init), jax.jit(learner.update)


def learnt(data: Transition, batch: Transition) -> tuple[scores.ScoreState, PyTree]:
    """The state after two updates on one batch, and the last metrics."""
    (init, update), hp = small(), numbers(SLOW)
    state, metrics = init(jax.random.key(0), hp, {"data": data}), {}
    for step in range(2):
        state, metrics = update(state, hp, Batch(batch), jax.random.key(1), jnp.int32(step))
    return state, metrics


NET = cdsa.networks(SMALL, BOX, box_scale("cdsa", BOX))


def part(params: Array, name: str) -> Array:
    """The parameters of one network of `SMALL`."""
    return nets.joint(NET).split(params)[name]


def marked(t: Transition, known: np.ndarray, held: np.ndarray) -> Transition:
    return t._replace(extras={"next_known": jnp.asarray(known), "held": jnp.asarray(held)})


def same(a: PyTree, b: PyTree) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def where(mask: np.ndarray, a: Any, b: Any) -> Any:
    return np.where(mask[:, None], a, b).astype(np.float32)


def test_unknown_successors_are_not_learned_from() -> None:
    """Neither the networks nor the statistics see them; their actions count."""
    t, known = rows(BOX), np.arange(8) % 3 > 0
    one = marked(t, known, ~known)
    lost = one._replace(next_obs=where(known, t.next_obs, 100.0))
    begin = learnt(one, one)[0]
    assert same(begin, learnt(lost, lost)[0])
    change = (t.next_obs - t.obs)[known]
    got = change_moments(one)
    np.testing.assert_allclose(got.mean, change.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.var, (change.std(0) + 1e-3) ** 2, rtol=1e-4)
    other = one._replace(action=where(known, t.action, 0.5))
    moved = learnt(one, other)[0].params
    assert not same(part(begin.params, "action"), part(moved, "action"))
    assert same(part(begin.params, "forward"), part(moved, "forward"))


def test_held_rows_judge_the_inverse_dynamics() -> None:
    """They do not train them; of what was trained the best is kept, not the last."""
    t, held = rows(BOX), np.arange(8) < 3
    one = marked(t, np.ones(8, bool), held)
    two = one._replace(action=where(held, 1 - t.action, t.action))
    (a, seen), (b, others) = learnt(one, one), learnt(one, two)
    assert same(part(a.params, "inverse"), part(b.params, "inverse"))
    assert not same(part(a.params, "forward"), part(b.params, "forward"))
    assert seen["inverse_loss"] == others["inverse_loss"]
    assert seen["held_error"] != others["held_error"]
    update = small()[1]
    rest = (numbers(SLOW), Batch(one), jax.random.key(1), jnp.int32(0))
    worse = update(a._replace(lowest=jnp.float32(0)), *rest)[0]
    assert same(worse.best, a.best) and not same(part(worse.slow, "inverse"), a.best)
    better = update(a, *rest)[0]
    assert same(better.best, part(better.slow, "inverse")) and better.lowest == better.held < a.held


def test_one_row_in_twenty_is_held() -> None:
    t = rows(BOX, 100)._replace(reward=np.arange(100, dtype=np.float32))
    source, data = held_out(500), {"data": jax.tree.map(jnp.asarray, t)}
    drawn = source.next((), (), {}, data, jax.random.key(0), jnp.int32(0))[1].transitions
    np.testing.assert_array_equal(drawn.extras["held"], drawn.reward % HELD == 0)
    assert 0 < drawn.extras["held"].mean() < 0.1


# --- policies ------------------------------------------------------------------------------------


def base_of(module: Any) -> tuple[Policy, Trained]:
    """An untrained policy of `BOX`, and the states of two members."""
    agent = module.make(module.Config(hidden=(6,)), BOX)
    keys, hp = jax.random.split(jax.random.key(7)), numbers(module.Hypers())
    each = jax.tree.map(lambda x: jnp.stack([x, x]), hp)
    state = jax.jit(jax.vmap(agent.init, (0, 0, None)))(keys, each, {"data": rows(BOX)})
    return agent, Trained(state, each)


SEEN = np.random.default_rng(0).normal(size=(33, logged.OBS)).astype(np.float32)


def acting(policy: Policy, state: PyTree, hp: PyTree, obs: Any = SEEN) -> Array:
    """Its actions at `obs`, of first steps."""
    n = len(obs)
    given = (jnp.asarray(obs), jnp.ones(n, bool), policy.memory(n))
    return policy.act(state, hp, *given, policy.noise(jax.random.key(0), n), False)[0]


@pytest.mark.slow
def test_a_gate_corrects_far_actions_only() -> None:
    """Those whose score is longer than the quantile of the data's; others keep their bits."""
    plain = dataclasses.replace(SMALL, correction="next")
    gated = dataclasses.replace(plain, gate=0.6)
    base, trained = base_of(bc)
    own = jax.tree.map(lambda x: x[1], trained)
    inputs: dict[str, Any] = {"data": jax.tree.map(jnp.asarray, rows(BOX, 40)), "base": own}
    begin = jax.jit(cdsa.modeller(gated, BOX).init)
    inputs["model"] = begin(jax.random.key(1), numbers(SLOW), inputs)
    agent, hp = cdsa.make(gated, BOX, base), numbers(cdsa.Hypers())
    state = agent.init(jax.random.key(0), hp, inputs)

    space, net = box_scale("cdsa", BOX), cdsa.networks(gated, BOX, box_scale("cdsa", BOX))
    length = functools.partial(cdsa.score_length, gated, net, state.model)
    data = length(inputs["data"].obs, space.unit(inputs["data"].action))
    np.testing.assert_allclose(state.limit, np.quantile(data, 0.6), rtol=1e-5)

    raw = jax.jit(functools.partial(acting, base))(*own)
    far = np.asarray(length(jnp.asarray(SEEN), space.unit(raw)) > state.limit)
    assert 3 < far.sum() < 30
    got = np.asarray(jax.jit(functools.partial(acting, agent))(state, hp))
    # "next" needs no score of actions without a gate, so its networks are a part of the gated ones.
    every = cdsa.corrected_policy(base, plain, BOX)
    every = np.asarray(jax.jit(functools.partial(acting, every))(state, hp))
    np.testing.assert_array_equal(got[~far], np.asarray(raw)[~far])
    np.testing.assert_allclose(got[far], every[far], rtol=1e-5, atol=1e-6)
    assert np.all(np.any(every != np.asarray(raw), -1))


def test_the_length_of_scores() -> None:
    """σ ‖ε(a | s)‖ at the lowest level, ε of a / √(1 + σ²)."""
    cfg = dataclasses.replace(SMALL, correction="action", gate=0.5, ladder=(0.4, 0.2))
    t = rows(BOX)
    net = cdsa.networks(cfg, BOX, box_scale("cdsa", BOX))
    begin = jax.jit(cdsa.modeller(cfg, BOX).init)(jax.random.key(1), numbers(SLOW), {"data": t})
    model, action = scores.trained(net, begin), jnp.asarray(t.action) / 4
    seen = (t.obs - t.obs.mean(0)) / (t.obs.std(0) + 1e-3)
    level = jnp.log(jnp.full(1, 0.2))
    noise = net["action"].apply(model.nets["action"], action / 1.04**0.5, jnp.asarray(seen), level)
    got = cdsa.score_length(cfg, net, model, jnp.asarray(t.obs), action)
    np.testing.assert_allclose(got, 0.2 * np.linalg.norm(noise, axis=-1), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["both", "current"])
def test_strengths_of_zero_leave_the_bits(correction: Any) -> None:
    """Of each member of two different runs, alone and vmapped; others do not."""
    cfg = dataclasses.replace(SMALL, correction=correction)
    policies, trained = zip(*[base_of(module) for module in (bc, td3bc)], strict=True)
    agent = cdsa.make(cfg, BOX, one_of(policies))
    inputs: dict[str, Any] = {"data": jax.tree.map(jnp.asarray, rows(BOX))}
    begin = jax.jit(cdsa.modeller(cfg, BOX).init)
    inputs["model"] = begin(jax.random.key(1), numbers(SLOW), inputs)
    members = [(run, member) for run in range(2) for member in range(2)]
    own = [
        Trained(Switch(jnp.int32(run), jax.tree.map(lambda x, m=m: x[m], trained)), ())
        for run, m in members
    ]
    off = {
        "current": [{"w": 0.0}],
        "both": [{"alpha": 0.0, "w": 0.0}, {"alpha": 0.0, "beta": 0.0}],
    }[correction]

    def act(hp: Any, base: Trained) -> Array:
        return acting(agent, agent.init(jax.random.key(0), hp, inputs | {"base": base}), hp)

    alone, many = jax.jit(act), jax.jit(jax.vmap(act))
    bases = [jax.jit(functools.partial(acting, policy)) for policy in policies]
    for strengths in (*off, {}):
        hp = numbers(cdsa.Hypers(**strengths))
        stacked = many(*jax.tree.map(lambda *x: jnp.stack(x), *[(hp, base) for base in own]))
        for i, (run, _) in enumerate(members):
            want = np.asarray(bases[run](*own[i].state.each[run])).tobytes()
            for got in (alone(hp, own[i]), stacked[i]):
                assert (np.asarray(got).tobytes() == want) == bool(strengths)


def test_formulas() -> None:
    """(ii) and (iii) in raw units, from the networks, in numpy; in "both" (i) follows (ii)."""
    t = rows(BOX)
    state = scores.trained(NET, small()[0](jax.random.key(1), numbers(SLOW), {"data": t}))
    hp = numbers(cdsa.Hypers(alpha=0.7, w=0.4, beta=0.6, sigma=0.5))
    policy, trained = base_of(bc)
    own = jax.tree.map(lambda x: x[1], trained)

    def corrected(correction: Any) -> np.ndarray:
        acted = cdsa.corrected_policy(
            policy, dataclasses.replace(SMALL, correction=correction), BOX
        )
        return unit(jax.jit(functools.partial(acting, acted))(cdsa.CorrectedState(own, state), hp))

    obs, base = SEEN, unit(acting(policy, *own))
    centre, sd = t.obs.mean(0), t.obs.std(0) + 1e-3
    change = t.next_obs - t.obs
    mean, scale = change.mean(0), change.std(0) + 1e-3

    def call(name: str, *x: Any) -> np.ndarray:
        single = [jnp.asarray(each, jnp.float32) for each in x]
        return np.asarray(NET[name].apply(state.nets[name], *single))

    norm = lambda s: (s - centre) / sd
    join = lambda *x: np.concatenate(x, -1)
    inverse = lambda delta: np.tanh(call("inverse", join(norm(obs), (delta - mean) / scale)))
    # σ² times the score is -σ ε; ε sees x / √(1 + σ²).
    level = [np.log(0.5)]
    climb = lambda s: -0.5 * sd * call("state", norm(s) / 1.25**0.5, np.zeros((1, 0)), level)
    ahead = obs + mean + scale * call("forward", join(norm(obs), base))
    second = 0.4 * base + 0.6 * inverse(ahead + 0.4 * climb(ahead) - obs)
    third = np.clip(base + 0.4 * (inverse(climb(obs)) - inverse(0 * obs)), -1, 1)
    np.testing.assert_allclose(corrected("next"), second, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(corrected("current"), third, rtol=1e-3, atol=1e-4)
    predict = diffusion.scaled_epsilon(
        scores.bind(NET, state.nets)["action"], jnp.float32(norm(obs))
    )
    for begin, name in ((base, "action"), (second, "both")):
        want = diffusion.anneal(predict, jnp.float32(begin), SMALL.ladder, SMALL.ladder_steps, 0.7)
        np.testing.assert_allclose(corrected(name), want, rtol=1e-3, atol=1e-4)


def unit(action: Array) -> np.ndarray:
    """Actions of `BOX` in [-1, 1]."""
    return (np.asarray(action) - [[0.0, 2.0]]) / [[1.0, 2.0]]


@pytest.mark.slow
@pytest.mark.optimised
def test_circle() -> None:
    """A policy that spirals outwards stays on the circle of the data."""
    keys = jax.random.split(jax.random.key(0), 3)
    model = circle.learn(circle.CONFIG, jax.jit(circle.data)(keys[0]), keys[1])
    rows_of = {row.name: row for row in circle.ROWS}

    def play(name: str) -> dict[str, float]:
        return circle.measure(circle.corrected(circle.CONFIG, rows_of[name], model, keys[2]))

    assert play("none")["error"] > 1
    for name in ("(ii) σ .1", "(ii) σ .3", "(ii) σ .1, then (i)"):
        found = play(name)
        assert found["error"] < 0.05 and found["laps"] > 1.7, (name, found)


# --- runs ----------------------------------------------------------------------------------------

AIM = envs.make("probe:aim").spec
SHOWN = np.array([[-1.0], [0.3], [1.0]], np.float32)
COMMON = ["--env", "probe:aim", "--agent.updates", "2", "--agent.hidden", "4", "--evals", "1"]
COMMON += ["--agent.batch-size", "4", "--eval-episodes", "4"]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_setup, "start", lambda: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two base runs on one dataset, of different networks, of three and of two members."""
    path = tmp_path_factory.mktemp("cdsa")
    t, ends = logged.rows(AIM, 12), np.ones(12, bool)
    t = t._replace(terminated=ends, truncated=~ends, start=ends)
    meta = {"env": "probe:aim"}
    datasets.save(path / "aim.npz", datasets.Dataset(t, meta))
    datasets.save(path / "other.npz", datasets.Dataset(t._replace(reward=t.reward + 1), meta))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_setup, "start", lambda: None)
        for name, hidden, seeds in (("narrow", "3", "3"), ("wide", "5", "2")):
            words = ["train", "bc", *COMMON, "--data", f"{path}/aim.npz", "--seeds", seeds]
            assert cli.main([*words, "--hidden", hidden, "--out", f"{path}/{name}"]) == 0
    return path


def run_cdsa(folder: Path, *words: str) -> int:
    return cli.main(["train", "cdsa", *COMMON, "--data", f"{folder}/aim.npz", *words])


@pytest.mark.slow
def test_one_model_for_two_runs(folder: Path, capsys: Any) -> None:
    """Members are those that both have, with and without correction; these act as their bases."""
    out = folder / "cdsa"
    words = ["--base", f"{folder}/narrow", "--base", f"{folder}/wide", "--width", "3"]
    words += ["--checkpoint-seconds", "0", "--keep", "9"]
    assert run_cdsa(folder, *words, "--out", str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads((out / "summary.json").read_text())
    found = summary["bases"]
    assert summary["members"] == 2 * 2 * 2
    kinds = [("narrow", False), ("narrow", True), ("wide", False), ("wide", True)]
    assert [(row["run"], row["corrected"]) for row in found] == kinds
    begin = next(i for i, line in enumerate(lines) if line.startswith("base "))
    told = [line.split()[:2] for line in lines[begin + 1 : begin + 5]]
    assert [(run, what != "none") for run, what in told] == kinds
    returns = records.RunDir(out).members()["final_return"].reshape(4, 2)
    for i, row in enumerate(found):
        np.testing.assert_allclose(row["return"]["mean"], returns[i].mean(), rtol=1e-5)
        assert set(row) >= set(stats.RISKS)
        assert ("change" in row) == row["corrected"]
        if row["corrected"]:
            change = np.mean(returns[i] - returns[i - 1])
            np.testing.assert_allclose(row["change"]["return"]["mean"], change, rtol=1e-4)
    act = lambda policy, *args: jax.jit(functools.partial(acting, policy, obs=SHOWN))(*args)
    for i in (0, 3):
        corrected, base = jaxrl.load(out, 2 * i), jaxrl.load(folder / found[i]["run"], 0)
        got, want = np.asarray(act(*corrected)), np.asarray(act(*base))
        assert (got.tobytes() != want.tobytes()) == found[i]["corrected"]
    check_bases(folder, out)
    check_resumed(folder, out, words)


def check_bases(folder: Path, out: Path) -> None:
    """The state of each member holds that of its base, of which no array is read any more."""
    held, bases = trained(out, 8), [trained(folder / name, 2) for name in ("narrow", "wide")]
    switch = held.state.base.state
    np.testing.assert_array_equal(switch.which, [0, 0, 0, 0, 1, 1, 1, 1])
    for member, which in enumerate(switch.which):
        row = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
        assert same(row(switch.each[which], member), row(bases[which], member % 2))
    (state,) = folder.glob("narrow/checkpoints/*/*/state")
    away = state.rename(state.with_name("away"))
    try:
        with pytest.raises(UserError, match="has no undamaged checkpoint"):
            jaxrl.load(folder / "narrow")
        assert same(trained(out, 8), held)
    finally:
        away.rename(state)


def check_resumed(folder: Path, out: Path, words: list[str]) -> None:
    """From the end of the first stage: the last one gets the bases anew."""
    cut = shutil.copytree(out, folder / "cut")
    (cut / "summary.json").unlink()
    *_, _, newest = sorted(cut.glob("checkpoints/*/*"), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    assert run_cdsa(folder, *words, "--out", str(cut)) == 0
    one, two = (records.RunDir(run).members()["final_return"] for run in (out, cut))
    np.testing.assert_array_equal(one, two)
    assert same(trained(out, 8), trained(cut, 8))


def trained(run: Path, count: int) -> Trained:
    """What the first members of a run act with."""
    return restore.read_policies(records.RunDir(run), (0, count))[1]


def swept(folder: Path, *words: str) -> Plan:
    """The plan of a sweep over the base runs `narrow` and `wide`."""
    bases = ["--base", f"{folder}/narrow", "--base", f"{folder}/wide"]
    asked = requests.read("sweep", ["cdsa", *COMMON, "--data", f"{folder}/aim.npz", *bases, *words])
    (program,) = sweep_plan.programs(asked)
    return program.plan


def test_a_sweep_takes_bases_by_index(folder: Path) -> None:
    """Each member gets the state of its point's base run and of its own seed."""
    plan = swept(folder, "--sweep", "base=1,0", "--sweep", "agent.alpha=0,0.5")
    points = [(1, 0.0), (1, 0.5), (0, 0.0), (0, 0.5)]
    assert plan.settings.points == tuple({"base": b, "agent.alpha": a} for b, a in points)
    switch = plan.own["base"].state
    np.testing.assert_array_equal(switch.which, [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(plan.hp.agent.alpha, [0, 0, 0.5, 0.5] * 2)
    for member, (which, seed) in enumerate(zip(switch.which, plan.seeds, strict=True)):
        own = jax.tree.map(lambda x, i=member: x[i], switch.each[which])
        base = jaxrl.load(folder / ("narrow", "wide")[which], int(seed))
        assert same(own, (base.state, base.hp))
    for word, line in (
        ("agent.run=0,1", "agent.run is now base: pass --sweep base=0,1"),
        ("base=0", "every --base must be used: pass --sweep base=0,1"),
        ("base=0,1,2", "every --base must be used: pass --sweep base=0,1"),
        ("base=0,x", "base: 'x' is not an index"),
        ("base=1,1", "base has the value 1 twice"),
    ):
        with pytest.raises(UserError, match=re.escape(line)):
            swept(folder, "--sweep", word)


def test_bases_by_seed(folder: Path) -> None:
    """A base run with seeds 7 and 8, of which a run takes the second, or both by default."""
    out = folder / "late"
    late = ["train", "bc", *COMMON, "--data", f"{folder}/aim.npz", "--seeds", "2", "--seed", "7"]
    assert cli.main([*late, "--hidden", "3", "--out", str(out)]) == 0

    def plan(*words: str) -> Plan:
        words = ("--data", f"{folder}/aim.npz", "--base", str(out), *words)
        (program,) = sweep_plan.programs(requests.read("sweep", ["cdsa", *COMMON, *words]))
        return program.plan

    for words, members in ((("--seed", "8"), [1]), (("--seed", "7"), [0, 1])):
        found = plan(*words, "--sweep", "agent.alpha=0.5")
        np.testing.assert_array_equal(found.seeds, [7 + member for member in members])
        for i, member in enumerate(members):
            own = jax.tree.map(lambda x, i=i: x[i], found.own["base"].state.each[0])
            base = jaxrl.load(out, member)
            assert same(own, (base.state, base.hp))
    for words in (("--seed", "0"), ("--seed", "8", "--seeds", "2")):
        with pytest.raises(
            UserError, match="late has the seeds --seed 7 --seeds 2, which do not contain"
        ):
            plan(*words, "--sweep", "agent.alpha=0.5")


def test_a_file_names_bases_and_sweeps_them(tmp_path: Path) -> None:
    """Neither replaces the other, on the command line either."""
    file = tmp_path / "asked.yaml"
    file.write_text("agent: cdsa\nbase: [a, b]\nsweep: {base: [0, 1]}\n")
    request = requests.read("sweep", [str(file)])
    assert (request.options["base"], request.sweep) == (["a", "b"], {"base": ["0", "1"]})
    request = requests.read("sweep", [str(file), "--base", "c"])
    assert (request.options["base"], request.sweep) == (("c",), {"base": ["0", "1"]})
    request = requests.read("sweep", [str(file), "--sweep", "base=1"])
    assert (request.options["base"], request.sweep) == (["a", "b"], {"base": ["1"]})


def test_shared_networks_are_learned_in_one_way() -> None:
    swept = lambda name: cdsa.Hypers().replace(**{name: np.float32([1e-3, 2e-3])})
    program = cdsa.program(cdsa.Config(), envs.make("probe:aim"), base=random_policy(AIM.action))
    check_shared(program, swept("alpha"))
    for name in ("lr", "tau"):
        with pytest.raises(
            UserError, match=f"{name} differs .* but they share their model: start one run"
        ):
            check_shared(program, swept(name))


def test_refused_in_one_line(folder: Path, capsys: Any) -> None:
    narrow, none, empty = folder / "narrow", folder / "nothing", folder / "empty"
    empty.mkdir(exist_ok=True)
    (empty / "config.json").write_text((narrow / "config.json").read_text())
    capsys.readouterr()
    base = ["--base", str(narrow)]
    cases = [
        ([], "cdsa builds on trained runs: pass --base runs/NAME"),
        (["--base", str(none)], f"{none} is not the folder of a run"),
        (["--base", str(empty)], f"{empty} has no checkpoint yet"),
        ([*base, "--seeds", "4"], f"{narrow} has the seeds --seed 0 --seeds 3"),
        ([*base, "--data", f"{folder}/other.npz"], f"{narrow} was not trained on"),
        ([*base, *base], "--base names a run twice"),
        ([*base, "--agent.ladder", "2.0"], "agent.ladder=(2.0,) must lie between"),
    ]
    for words, line in cases:
        code, err = run_cdsa(folder, *words), capsys.readouterr().err
        assert code == 2 and err.startswith(f"jaxrl: {line}") and err.count("\n") == 1, (err, line)
    words = ["train", "bc", *COMMON, "--data", f"{folder}/aim.npz", *base]
    assert cli.main(words) == 2
    assert capsys.readouterr().err == "jaxrl: bc does not build on other runs: remove --base\n"
