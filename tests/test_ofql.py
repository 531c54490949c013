"""OFQL: its policy's loss, samples and diagnostics by hand, and a bandit of two modes.

Critics, slow copies and the choice among candidates are those of DQL: see test_dql.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged import BOX, numbers, random_params, rows
from test_dql import LEVERS, bandit

from jaxrl import envs, flow
from jaxrl.agents import ofql
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.experiments import cli, jax_setup
from jaxrl.spaces import box_scale
from jaxrl.types import Batch

SIZES: dict[str, Any] = {"hidden": (5,), "embedding": 4, "normalise_obs": False, "candidates": 3}
SPACE = box_scale("ofql", BOX)


def parts(**settings: Any) -> tuple[Any, Any, Any]:
    """The policy, its parameters, and its field u(z, r, t, obs)."""
    cfg = ofql.Config(**SIZES, **settings)
    policy = ofql.generator(cfg, BOX, SPACE)
    params = random_params(policy.init, jax.random.key(0))
    return policy, params, ofql.velocity(ofql.timed_net(cfg, BOX, SPACE, 2), params)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flow_ratio": 0.25, "uniform_times": True},
        {"flow_ratio": 0.0},
        {"flow_ratio": 1.0, "sum_dims": True},
    ],
    ids=str,
)
def test_cloning_by_hand(settings: dict[str, Any]) -> None:
    """The mean-flow loss, du/dt by central differences; the first rows are flow matching."""
    policy, params, u = parts(**settings)
    field = jax.jit(u)
    t, key, hp = rows(BOX), jax.random.key(3), ofql.Hypers(corner=0.2)
    action = SPACE.unit(t.action)
    key_noise, key_times = jax.random.split(key)
    e = jax.random.normal(key_noise, (8, 2))
    same = round(8 * settings.get("flow_ratio", 0.5))
    uniform = settings.get("uniform_times", False)
    start, end = flow.pair_times(key_times, 8, same, uniform=uniform, corner=0.2)
    z, v = flow.interpolate(action, e, end), e - action
    h = 3e-3
    shifted = lambda by: field(z + by * v, start, end + by, t.obs)
    change = (shifted(h) - shifted(-h)) / (2 * h)
    error = field(z, start, end, t.obs) - (v - (end - start)[:, None] * change)
    want = np.mean(np.square(error)) * (2 if settings.get("sum_dims") else 1)
    got = jax.jit(policy.cloning)(params, hp, action, t.obs, key)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_samples() -> None:
    """One call of the network in learning, `eval_steps` in acting, inside the box."""
    t = rows(BOX)
    noise = jax.random.normal(jax.random.key(2), (8, 3, 1, 2))
    one, params, u = parts()
    two, _, _ = parts(eval_steps=2)
    zero = jnp.zeros(1)
    e = noise[:, :, 0]
    want = jnp.clip(e - u(e, zero, zero + 1, t.obs), -1, 1)
    np.testing.assert_allclose(one.sample(params, noise, t.obs), want, atol=1e-5)
    np.testing.assert_allclose(one.act(params, noise, t.obs), want, atol=1e-5)
    half = e - 0.5 * u(e, zero + 0.5, zero + 1, t.obs)
    want = jnp.clip(half - 0.5 * u(half, zero, zero + 0.5, t.obs), -1, 1)
    np.testing.assert_allclose(two.act(params, noise, t.obs), want, atol=1e-5)
    assert (np.abs(want) == 1).any() and (np.abs(want) < 1).any()


def test_diagnostics_by_hand() -> None:
    """Of u = c z: one step leaves (1 - c) e, twenty leave (1 - c / 20)^20 e."""
    keys = jax.random.split(jax.random.key(0))
    action, e = (jax.random.normal(key, (6, 2)) for key in keys)
    c, obs = 0.4, jnp.zeros((6, 1))
    got = flow.one_step_fit(lambda z, r, t, obs: c * z, action, e, obs)
    gap = np.linalg.norm(e, axis=-1) * abs((1 - c / 20) ** 20 - (1 - c))
    np.testing.assert_allclose(got["step_gap"], gap.mean(), rtol=1e-4)
    loss = np.mean(np.square(c * e - (1 - c) * (e - action)))
    np.testing.assert_allclose(got["corner_loss"], loss, rtol=1e-4)


@pytest.mark.slow
def test_diagnostics_are_a_branch() -> None:
    """At every third update only, also under vmap; the update itself is that of the learner."""
    cfg = ofql.Config(**SIZES, diagnose_every=3)
    agent, t, hp = ofql.make(cfg, BOX), rows(BOX), numbers(ofql.Hypers())
    state = jax.jit(agent.init)(jax.random.key(0), hp, {"data": t})
    update = jax.jit(agent.update)
    for step in range(4):
        new, metrics = update(state, hp, Batch(t), jax.random.key(step), jnp.int32(step))
        for name in ("step_gap", "corner_loss"):
            assert metrics[name].weight == (step % 3 == 0)
            assert (metrics[name].total > 0) == (step % 3 == 0)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    vmapped = jax.vmap(agent.update, (0, None, None, None, None))
    told = jax.make_jaxpr(vmapped)(many, hp, Batch(t), jax.random.key(0), jnp.int32(0))
    assert any(eqn.primitive.name == "cond" for eqn in told.eqns)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"flow_ratio": 1.5}, "flow_ratio=1.5 must be between 0 and 1"),
        ({"eval_steps": 0}, "eval_steps=0 must be at least 1"),
        ({"candidates": 0}, "candidates=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ofql.make(ofql.Config(**sizes), BOX)


@pytest.mark.slow
def test_eval_steps_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`jaxrl eval RUN --eval-steps 1,2`: a row each, one as in training; other agents have none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    yes = np.ones(12, bool)
    data = rows(envs.make("probe:aim").spec, 12)
    data = data._replace(terminated=yes, truncated=~yes, start=yes)
    datasets.save(tmp_path / "aim.npz", datasets.Dataset(data, {"env": "probe:aim"}))
    common = "--env probe:aim --data aim.npz --agent.updates 2 --agent.hidden 4 --evals 1"
    for agent in ("ofql", "bc"):
        assert cli.main(["train", agent, *common.split(), "--out", agent]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "ofql", "--eval-steps", "1,2", "--episodes", "7"]) == 0
    head, *told = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["eval_steps", "mean", "IQM"]
    assert cli.main(["eval", "ofql", "--episodes", "7"]) == 0
    alone = capsys.readouterr().out.splitlines()[-1].split()[1]
    assert [line.split()[0] for line in told] == ["1", "2"]
    assert told[0].split()[2] == alone != told[1].split()[2]
    for words, message in (
        (["bc", "--eval-steps", "2"], "bc has no setting eval_steps"),
        (["ofql", "--eval-steps", "1,0"], "--eval-steps must be at least 1, not 0"),
    ):
        assert cli.main(["eval", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_bandit_of_two_modes() -> None:
    """Cloning spreads over both, Q leaves the better one."""
    cfg = ofql.Config(**LEVERS, updates=600)
    cloned, climbed = np.asarray(
        bandit(600, ofql, cfg, lr=5e-3, actor_lr=5e-3, policy_tau=1.0, eta=0.1)
    )
    assert 0.3 < np.mean(cloned > 0) < 0.7
    assert np.mean(climbed > 0) > 0.95 and np.mean(climbed) > 0.6
