"""PGD: channels, guidance and sampling against closed forms; what the agent learns from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from logged import BOX, BUTTONS, numbers, rows

from jaxrl import diffusion, envs
from jaxrl.agents import iql, pgd, pgd_iql, pgd_ofql, pgd_td3bc, td3bc
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.experiments import cli, jax_setup, restore
from jaxrl.experiments.restore import load, prepare, read_state, settings_of
from jaxrl.heads import head_of
from jaxrl.normalise import Moments
from jaxrl.optim import warm_cosine
from jaxrl.program import check_shared, train
from jaxrl.runs.records import RunDir
from jaxrl.trajectories import Codec, Pool, codec, diffuser, raw, rewarded, standard
from jaxrl.types import Batch, HyperParams
from jaxrl.unet import Convolution, UNet, check

SMALL: dict[str, Any] = {
    "updates": 8,
    "batch_size": 4,
    "hidden": (4,),
    "real_share": 0.25,
    "generate_every": 4,
    "trajectories": 6,
    "sample_batch": 3,
    "horizon": 2,
    "stride": 1,
    "model_updates": 20,
    "model_batch": 4,
    "model_features": 8,
    "model_blocks": 2,
    "model_ema_every": 2,
    "sampler_steps": 3,
}
CODE = codec(BOX)
FIXTURE = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"


def some_moments(seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    mean, var = rng.normal(size=CODE.channels), rng.uniform(0.3, 2.0, CODE.channels)
    return Moments(jnp.float32(mean), jnp.float32(var), jnp.float32(1))


# --- network and channels ------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [16, 25])  # of hopper and walker2d
def test_the_published_network(channels: int) -> None:
    """177.6 million parameters."""
    net = UNet(1024, 3, channels)
    example = jnp.zeros((1, 32, channels)), jnp.zeros(1)
    out, params = jax.eval_shape(net.init_with_output, jax.random.key(0), *example)
    assert out.shape == (1, 32, channels)
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e5) in (1776, 1777)


@pytest.mark.parametrize("side", [2, 3])
def test_convolutions_are_those_of_flax(side: int) -> None:
    x = jax.random.normal(jax.random.key(0), (4, 8, 5))
    ours, theirs = Convolution(6, side), nn.Conv(6, (side,))
    params = ours.init(jax.random.key(1), x)["params"]["Dense_0"]
    kernel = {"kernel": params["kernel"].reshape(side, 5, 6), "bias": params["bias"]}
    got = ours.apply({"params": {"Dense_0": params}}, x)
    np.testing.assert_allclose(got, theirs.apply({"params": kernel}, x), atol=1e-5)


def test_networks_that_cannot_be() -> None:
    with pytest.raises(UserError, match="model_features=12 must be a power of two"):
        check(12, 2, 4)
    with pytest.raises(UserError, match="horizon=6 must be a multiple of 4"):
        check(8, 3, 6)


def test_channels_and_back() -> None:
    """Actions come back but for the last thousandth of the box; four steps give three rows."""
    t = rows(BOX, 8)
    inside: Any = np.array([[-1.0, 4.0], [0.9985, 0.002]], np.float32)
    t = t._replace(action=np.concatenate([inside, t.action[2:]]), terminated=np.zeros(8, bool))
    windows = jax.tree.map(lambda x: jnp.asarray(x).reshape(2, 4, *x.shape[1:]), t)
    got, used = codec(BOX).decode(CODE.encode(windows))
    np.testing.assert_allclose(got.obs, windows.obs, atol=1e-6)
    np.testing.assert_allclose(got.next_obs[:, :-1], windows.obs[:, 1:], atol=1e-6)
    np.testing.assert_allclose(got.reward, windows.reward, atol=1e-6)
    expected = np.array(windows.action)
    expected[0, 0] = [-0.999, 2 + 2 * 0.999]
    np.testing.assert_allclose(got.action, expected, atol=2e-4)
    np.testing.assert_array_equal(used, [[True] * 3 + [False]] * 2)
    np.testing.assert_array_equal(got.start, [[True] + [False] * 3] * 2)


def test_steps_after_a_termination_are_not_used() -> None:
    """And a last step is, where it terminates."""
    x = jnp.zeros((4, 3, CODE.channels))
    x = x.at[0, 1, -1].set(0.6).at[1, 2, -1].set(0.9).at[2, 1, -1].set(0.4).at[3, 0, -1].set(1.0)
    t, used = CODE.decode(x)
    np.testing.assert_array_equal(used, [[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(t.terminated, [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert not t.truncated.any()


def test_rewards_of_the_environment() -> None:
    """Of every step whose next observation the model generates; unknown ones stay."""
    t = rows(BOX, 8)
    made = jax.tree.map(lambda x: jnp.asarray(x).reshape(2, 4, *x.shape[1:]), t)
    rule = lambda obs, action, after: (obs[:, 0] + 10 * after[:, 1], after[:, 1] > 0)
    got = rewarded(made, rule)
    expected = np.asarray(made.obs[..., 0] + 10 * made.next_obs[..., 1])
    np.testing.assert_allclose(got.reward[:, :3], expected[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(got.reward[:, 3], made.reward[:, 3])
    np.testing.assert_array_equal(got.terminated, made.terminated)


def test_rewards_that_nobody_knows() -> None:
    env = tiny.glide()
    for kind in ("guided", "autoregressive"):
        cfg = pgd_iql.Config(**SMALL, synthetic=kind, rewards="given")
        with pytest.raises(
            UserError, match="line has no Env.outcome: pass --agent.rewards learned"
        ):
            pgd_iql.program(cfg, env)
    pgd_iql.program(pgd_iql.Config(**SMALL, synthetic="none", rewards="given"), env)
    place = envs.make("maze:umaze")
    cfg = pgd_iql.Config(**SMALL, synthetic="autoregressive", rewards="given")
    assert pgd.stepwise(cfg, pgd.given_rewards(cfg, place)).reward is not None
    assert pgd.stepwise(cfg).reward is None


# --- the model -----------------------------------------------------------------------------------


def test_one_step_of_the_model() -> None:
    """Channels are standardised, held windows teach nothing, the slow average moves every second
    step, and the rate is that of the schedule."""
    cfg = pgd.Settings(
        **{k: v for k, v in SMALL.items() if k not in ("updates", "batch_size", "hidden")}
    )
    learner, hp = diffuser(cfg, BOX), numbers(pgd.Rates(model_lr=0.1, model_ema=0.75))
    data = rows(BOX, 12)
    state = jax.jit(learner.init)(jax.random.key(0), hp, {"data": data})
    x = np.asarray(standard(state.steps, CODE.encode(jax.tree.map(lambda x: x[None], data))))
    np.testing.assert_allclose(x.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1)), 1, atol=1e-4)
    np.testing.assert_allclose(raw(state.steps, x)[0], CODE.encode(data), atol=1e-5)

    learn = jnp.arange(6)[:, None] < jnp.array([[4, 4]])
    window = jax.tree.map(lambda x: jnp.asarray(x).reshape(6, 2, *x.shape[1:]), data)
    window = window._replace(extras={"learn": learn, "look": ~learn})
    other = window._replace(reward=window.reward.at[4:].add(1.0))
    update = jax.jit(learner.update)
    step = lambda state, t, i: update(state, hp, Batch(t), jax.random.key(1), jnp.int32(i))
    one, metrics = step(state, window, 0)
    again, changed = step(state, other, 0)
    np.testing.assert_array_equal(one.params, again.params)
    assert metrics["model_loss_held"].value != changed["model_loss_held"].value
    np.testing.assert_array_equal(one.slow, state.slow)
    # Adam's first step is the rate, but for gradients that vanish.
    np.testing.assert_allclose(jnp.max(jnp.abs(one.params - state.params)), 0.1 * 0.1, rtol=1e-3)
    two, _ = step(one, window, 1)
    np.testing.assert_allclose(two.slow, 0.75 * one.slow + 0.25 * two.params, rtol=1e-5, atol=1e-6)


def test_rates() -> None:
    progress = jnp.array([0.0, 0.05, 0.1, 0.55, 1.0])
    np.testing.assert_allclose(warm_cosine(progress), [0.1, 0.55, 1, 0.5, 0], atol=1e-6)


# --- guidance ------------------------------------------------------------------------------------


def test_schedule() -> None:
    """2 (1 - k/4 + 0.3 sin(π (k+1) / 4)) for k = 0 .. 3."""
    hp = pgd.Rates(guidance=2.0, guidance_wave=0.3)
    got = [float(pgd.schedule(hp, jnp.int32(k), 4)) for k in range(4)]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(got, [2 + 0.6 * half, 1.5 + 0.6, 1 + 0.6 * half, 0.5], atol=1e-6)


def test_the_gradient_of_a_normal_policy() -> None:
    """∇_u of log N(a; m(s), 1), a = tanh(raw u) scaled: -(a - m) a' by hand; states get none."""
    steps, x = some_moments(), jax.random.normal(jax.random.key(0), (3, 4, CODE.channels))
    weight = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    log_prob = lambda obs, action: -0.5 * jnp.sum((action - obs @ weight) ** 2, -1)
    got = np.asarray(pgd.policy_gradient(CODE, steps, log_prob, x))
    real = np.asarray(raw(steps, x), np.float64)
    obs, before = real[..., :3], real[..., 3:5]
    scale, centre = np.array([1.0, 2.0]), np.array([0.0, 2.0])
    action = centre + scale * np.tanh(before)
    slope = scale * (1 - np.tanh(before) ** 2) * np.sqrt(np.asarray(steps.var)[3:5])
    np.testing.assert_allclose(
        got[..., 3:5], -(action - obs @ weight) * slope, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(got[..., [0, 1, 2, 5, 6]], 0)
    unit = np.asarray(pgd.unit_length(jnp.asarray(got)))
    np.testing.assert_allclose(np.sqrt((unit**2).sum((1, 2))), 1, rtol=1e-5)
    np.testing.assert_array_equal(pgd.unit_length(jnp.zeros((1, 2, 3))), 0)


class Unbounded(Codec):
    """Actions are what stands in the channels, so that a function can be linear in them."""

    def action(self, x: jax.Array) -> jax.Array:
        return x.reshape(-1, self.space.size)


@pytest.mark.parametrize("denoised", [False, True])
def test_guidance_tilts_a_normal_distribution(denoised: bool) -> None:
    """The exact denoiser of N(m, s²), and a log-probability linear in actions, of slope c.

    What is added at level σ is carried to 0 by the flow, by which it shrinks by s / √(s² + σ²):
    the mean moves by Σ_k λ_k c s / √(s² + σ_k²), and the deviation stays.
    """
    steps, m, s, c = some_moments(), 0.7, 0.5, jnp.array([0.4, -0.3])
    cfg = pgd.Settings(sampler_steps=64, guide_denoised=denoised)
    hp = pgd.Rates(guidance=0.1, guidance_wave=0.3)
    denoise = lambda x, sigma: (s**2 * x + sigma[0] ** 2 * m) / (s**2 + sigma[0] ** 2)
    linear = lambda obs, action: action @ c

    @jax.jit
    def sample(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        guide = pgd.guidance(cfg, Unbounded(*CODE), steps, linear, denoise, hp)
        sigmas = diffusion.edm_sigmas(64)
        return diffusion.heun(denoise, start, sigmas), diffusion.heun(
            denoise, start, sigmas, guide=guide
        )

    start = 80 * jax.random.normal(jax.random.key(0), (50, 2, CODE.channels))
    plain, tilted = sample(start)
    sigma = diffusion.edm_sigmas(64)[:-2].astype(np.float64)
    k = np.arange(63)
    strength = 0.1 * (1 - k / 64 + 0.3 * np.sin(np.pi * (k + 1) / 64))
    shrunk = np.sum(strength * s / np.sqrt(s**2 + sigma**2))
    expected = np.zeros(CODE.channels)
    expected[3:5] = shrunk * np.asarray(c) * np.sqrt(np.asarray(steps.var)[3:5])
    np.testing.assert_allclose((tilted - plain).mean((0, 1)), expected, rtol=0.02, atol=1e-4)
    np.testing.assert_allclose(tilted.std((0, 1)), plain.std((0, 1)), rtol=0.02)


def test_log_probabilities() -> None:
    """IQL's own normal over unit actions; around what TD3+BC does, one of deviation 1."""
    t = jax.tree.map(jnp.asarray, rows(BOX, 6))
    unit = np.asarray(CODE.space.unit(t.action))
    cfg, hp = pgd_iql.Config(**SMALL), numbers(pgd_iql.Hypers())
    state = iql.make(cfg, BOX).init(jax.random.key(0), hp, {})
    dist = head_of(cfg.hidden, BOX).policy(state.actor, t.obs)
    std = np.exp(np.asarray(dist.log_std))
    density = -0.5 * ((unit - dist.mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    got = pgd_iql.log_prob(cfg, BOX)(state, hp, t.obs, t.action)
    np.testing.assert_allclose(got, density.sum(-1), rtol=1e-5)

    cfg, hp = pgd_td3bc.Config(**SMALL), numbers(pgd_td3bc.Hypers())
    agent = td3bc.make(cfg, BOX)
    state = agent.init(jax.random.key(0), hp, {"data": t})
    log_prob = pgd_td3bc.log_prob(cfg, BOX)
    chosen = agent.act(state, hp, t.obs, t.start, (), (), False)[0]
    away = np.asarray(unit - CODE.space.unit(chosen))
    expected = -0.5 * (away**2).sum(-1) - np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob(state, hp, t.obs, t.action), expected, rtol=1e-5)
    slope = jax.grad(lambda action: jnp.sum(log_prob(state, hp, t.obs, action)))(t.action)
    np.testing.assert_allclose(slope, -away / np.asarray(CODE.space.scale), rtol=1e-4, atol=1e-6)


def test_log_probabilities_of_buttons() -> None:
    t = rows(BUTTONS, 6)
    cfg, hp = iql.Config(hidden=(4,)), numbers(iql.Hypers())
    state = iql.make(cfg, BUTTONS).init(jax.random.key(0), hp, {})
    each = [
        iql.log_prob(cfg, BUTTONS)(state, hp, t.obs, jnp.full(6, action)) for action in range(3)
    ]
    np.testing.assert_allclose(jnp.exp(jnp.stack(each)).sum(0), 1, rtol=1e-5)
    with pytest.raises(UserError, match="pgd needs actions in a box"):
        codec(BUTTONS)


# --- what the agent learns from ------------------------------------------------------------------


def test_samples_follow_the_policy() -> None:
    """Of one model and one key, two policies get different trajectories, each likelier under its
    own; but the first set, which nothing guides, is the same for both."""
    cfg = pgd_iql.Config(**SMALL | {"trajectories": 64, "sample_batch": 64, "sampler_steps": 8})
    hp = HyperParams(numbers(pgd_iql.Hypers(guidance=0.3)))
    source = pgd.generated(cfg, BOX, pgd_iql.log_prob(cfg, BOX))
    data = {"data": rows(BOX, 12)}
    model = jax.jit(diffuser(cfg, BOX).init)(jax.random.key(0), hp.agent, data)
    init = jax.jit(iql.make(cfg, BOX).init)
    policies = [init(jax.random.key(seed), hp.agent, {}) for seed in (0, 1)]

    @jax.jit
    def pool(policy: Any, step: jax.Array) -> Pool:
        key, inputs = jax.random.key(5), {"diffusion": model}
        src = source.init(key, policy, hp, inputs)
        assert source.refresh is not None
        return source.refresh(src, policy, hp, inputs, key, step)

    first = [pool(policy, jnp.int32(0)) for policy in policies]
    later = [pool(policy, jnp.int32(4)) for policy in policies]
    np.testing.assert_array_equal(first[0].rows.action, first[1].rows.action)
    assert (later[0].rows.action != later[1].rows.action).mean() > 0.5
    log_prob = pgd_iql.log_prob(cfg, BOX)
    for who, policy in enumerate(policies):
        seen = later[who].seen["synthetic_log_prob"]
        t, n = later[who].rows, int(later[who].filled)
        likely = log_prob(policy, hp.agent, t.obs[:n], t.action[:n])
        np.testing.assert_allclose(seen, jnp.mean(likely), rtol=1e-4)
        other = later[1 - who].rows
        n = int(later[1 - who].filled)
        assert seen > jnp.mean(log_prob(policy, hp.agent, other.obs[:n], other.action[:n]))
        assert seen > first[who].seen["synthetic_log_prob"]


def test_batches_hold_what_is_in_use() -> None:
    cfg = pgd_iql.Config(**SMALL | {"batch_size": 200})
    source = pgd.generated(cfg, BOX, pgd_iql.log_prob(cfg, BOX))
    src = source.init(jax.random.key(0), (), {}, {})
    assert src.rows.obs.shape == (12, 3) and source.every == 4
    src = src._replace(filled=jnp.int32(5), rows=src.rows._replace(reward=jnp.arange(12.0)))
    _, batch, _ = source.next(src, (), {}, {}, jax.random.key(1), jnp.int32(0))
    assert set(np.asarray(batch.transitions.reward)) == set(range(5))


@pytest.mark.parametrize(
    "module", [pgd_iql, *(pytest.param(m, marks=pytest.mark.slow) for m in (pgd_td3bc, pgd_ofql))]
)
def test_kinds_of_experience(module: Any) -> None:
    """Every agent learns from each, unchanged: whole runs trace, and the stages are these."""
    env = tiny.glide()
    inputs = {"data": jax.tree.map(jnp.asarray, rows(env.spec, 12))}
    hp = HyperParams(numbers(module.Hypers()), env.params)
    expected = {"guided": "diffusion", "unguided": "diffusion", "autoregressive": "dynamics"}
    for kind in (*expected, "none"):
        cfg = module.Config(**SMALL, ensemble_hidden=(4,), ensemble_epochs=2, synthetic=kind)
        program = module.program(cfg, env, evals=2, episodes=3)
        names = [stage.name for stage in program.stages]
        assert names == ([expected[kind]] if kind in expected else []) + ["agent"]
        assert all(stage.shared for stage in program.stages[:-1])
        result = jax.eval_shape(train(program), jax.random.key(0), hp, None, inputs)
        assert ("synthetic_log_prob" in result.metrics["agent"]) == (names[0] == "diffusion")


def test_nothing_is_silently_unguided() -> None:
    inputs = {"data": rows(BOX, 12)}
    many = lambda *values: dataclasses.replace(pgd_iql.Hypers(), guidance=jnp.array(values))
    assert pgd_iql.Hypers().guidance > 0
    cfg = pgd_iql.Config(**SMALL)
    pgd.check_request(cfg, many(0.5, 1.0), inputs)
    with pytest.raises(UserError, match="guidance=0 turns guidance off: pass .*unguided"):
        pgd.check_request(cfg, many(0.5, 0.0), inputs)
    pgd.check_request(dataclasses.replace(cfg, synthetic="unguided"), many(0.0), inputs)
    rates = many(0.5, 0.5).replace(model_lr=np.float32([1e-3, 2e-3]))
    check = lambda cfg: check_shared(pgd_iql.program(cfg, tiny.glide(), evals=1), rates)
    with pytest.raises(
        UserError, match="model_lr differs between members, .* pass .*no-share-model"
    ):
        check(cfg)
    check(dataclasses.replace(cfg, share_model=False))
    with pytest.raises(UserError, match="no episode has a window of horizon=4"):
        pgd.check_request(dataclasses.replace(cfg, horizon=4), many(1.0), inputs)
    for change, says in {"sample_batch": "does not divide", "real_share": "between"}.items():
        with pytest.raises(UserError, match=says):
            pgd.check(dataclasses.replace(cfg, **{change: 4}))


# --- runs ----------------------------------------------------------------------------------------


def jaxrl(*words: str) -> None:
    assert cli.main(words) == 0


def finished(path: str) -> tuple[Any, dict[str, Any]]:
    """What a run has learned: its first member's agent, and finished stages."""
    run = RunDir(Path(path).resolve())
    ready = prepare(settings_of(run))
    state = read_state(ready, run, (0, 1))
    return state.member.learner, state.results


def leaves(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_a_model_serves_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--from takes the model as it is: with the same settings the agent learns the same, bit for
    bit; and from both runs come datasets of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    small = SMALL | {"model_blocks": 1, "sampler_steps": 2}
    sizes = [f"--agent.{k.replace('_', '-')}={v}" for k, v in small.items() if k != "hidden"]
    common = ["--env", "dmsd", "--data", str(FIXTURE), "--preset", "none", "--eval-episodes", "1"]
    common += ["--evals", "1", "--devices", "1", "--agent.hidden", "4", *sizes]
    jaxrl("train", "pgd_iql", *common, "--out", "first")
    jaxrl("train", "pgd_iql", *common, "--out", "second", "--from", "first")
    one, two = finished("first"), finished("second")
    assert leaves(one) == leaves(two)

    jaxrl("data", "make", "dmsd", "--from-diffusion", "second", "--steps", "7", "--out", "new.npz")
    data = datasets.load("new.npz")
    t, spec = data.transitions, prepare(settings_of(RunDir(Path("second").resolve()))).env.spec
    datasets.check(data, spec)
    assert len(t.reward) == 7 and t.start[0] and data.meta["reference"]
    again = np.flatnonzero(~t.start)  # rows that go on
    np.testing.assert_array_equal(t.obs[again], t.next_obs[again - 1])
    capsys.readouterr()

    for words, says in (
        ([*common, "--agent.model-features", "16"], "of another size"),
        ([*common, "--agent.synthetic", "none"], "leave out --from"),
        ([*common, "--data", "new.npz"], "trained on other data"),
    ):
        words = ["train", "pgd_iql", *words, "--out", "third", "--from", "first"]
        assert cli.main(words) == 2
        assert says in capsys.readouterr().err
    assert not Path("third").exists()
    assert load("second").policy.act

    monkeypatch.setattr(restore, "read_state", lambda *args: read_state(*args)._replace(stage=0))
    assert cli.main(["eval", "second"]) == 2
    assert "second has not trained its policy yet, only 'diffusion'" in capsys.readouterr().err
