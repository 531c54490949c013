"""brax behind the contract of `TimeStep`; sticky actions and hidden observations."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.envs import EnvError, UnknownEnv, check_name, names, probes, registry
from jaxrl.envs import brax as adapter
from jaxrl.envs.wrappers import sticky_actions, strong, time_limit
from jaxrl.rollout import pool_size, rollout
from jaxrl.types import Box, Env, EnvSpec, HyperParams, Policy, TimeStep

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
OTHERS = [f"{name}:{backend}" for name in names.BRAX for backend in names.BACKENDS[1:]]
CHEAP = ("brax:inverted_pendulum:generalized",)


def acting(actions):
    """The policy that does `actions` [N, ...] at every step."""
    return Policy(act=lambda state, hp, obs, start, memory, noise, explore: (actions, memory, {}))


def playing(env, actions):
    """(state, TimeStep) after each of the actions [N, T, ...], one environment each; no resets."""

    def one(key, actions):
        def step(state, xs):
            state, ts = env.step(xs[0], state, xs[1], env.params)
            return state, (state, ts)

        state, _ = env.reset(key, env.params)
        return jax.lax.scan(step, state, (jax.random.split(key, len(actions)), actions))[1]

    keys = jax.random.split(jax.random.key(3), len(actions))
    return jax.jit(jax.vmap(one), compiler_options=QUICK)(keys, actions)


# --- brax ----------------------------------------------------------------------------------------


QUICK_TO_COMPILE = ("brax:reacher", "brax:inverted_pendulum")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK_TO_COMPILE else pytest.param(n, marks=pytest.mark.slow) for n in names.BRAX],
)
def test_contract(name):
    env = envs.make(name)
    registry.check_env(env)
    assert registry.describe(env.spec) == names.BRAX[name]
    assert env.spec.name == name and env.params == {} and hash(env.spec) == hash(env.spec)
    state, obs = jax.eval_shape(env.reset, jax.random.key(0), env.params)
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(state))
    assert not pool_size(env, (state, obs), 1, 1000)


@pytest.mark.parametrize(
    "name", [n if n in CHEAP else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS]
)
def test_other_backends(name):
    env = envs.make(name)
    registry.check_env(env)
    assert env.spec.name == name
    assert registry.describe(env.spec) == names.BRAX[name.rpartition(":")[0]]


def test_episodes_are_html_pages():
    """States have the time limit's count around those of the adapter."""
    env = envs.make("brax:inverted_pendulum")
    state = jax.jit(env.reset)(jax.random.key(0), env.params)[0]
    page = env.render(jax.tree.map(lambda x: np.stack([x] * 3), state), env.params)
    assert isinstance(page, str) and page.startswith("<!DOCTYPE html>") and "brax-viewer" in page


@pytest.mark.slow
def test_steps_like_brax():
    """A rollout of inverted_pendulum beside brax's own reset and step.

    Pushed with all its force the pole falls at step 7; left alone it stands.
    """
    theirs = adapter._import()

    limit, steps = 8, 16
    env = envs.make("brax:inverted_pendulum", max_steps=limit)
    with adapter._allowances():
        raw = theirs.get_environment("inverted_pendulum", backend="spring")
    actions = jnp.array([[1.0], [7.0], [0.0]])  # 7 is clipped to 1
    source = rollout(env, acting(actions), len(actions), steps, resets=2)

    def program(key):
        src = source.init(key, (), HyperParams(()), ())
        (physics, _), _ = src.env
        _, batch, metrics = source.next(src, (), HyperParams(()), (), key, jnp.int32(0))

        def one(physics, action):
            def step(state, _):
                state = strong(raw.step(state, action))
                return state, state

            state = strong(raw.reset(key)).replace(pipeline_state=physics)
            return jax.lax.scan(step, state, None, limit)[1]

        with adapter._allowances():
            expected = jax.vmap(one)(physics, jnp.clip(actions, -1, 1))
            both = strong(raw.reset(key)), env.reset(key, {})
        return batch.transitions, expected, metrics, both

    out = jax.jit(program, compiler_options=QUICK)(jax.random.key(0))
    seen, expected, metrics, (state, ((inner, t), obs)) = jax.device_get(out)
    jax.tree.map(np.testing.assert_array_equal, inner, (state.pipeline_state, state.info))
    np.testing.assert_array_equal(obs, state.obs)
    assert t == 0
    for i, n in enumerate([7, 7, limit]):  # the first episodes
        np.testing.assert_allclose(seen.next_obs[:n, i], expected.obs[i, :n], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.reward[:n, i], expected.reward[i, :n], rtol=1e-5)
        np.testing.assert_array_equal(seen.terminated[:n, i], expected.done[i, :n] == 1)
        np.testing.assert_array_equal(seen.obs[1:n, i], seen.next_obs[: n - 1, i])
    ends = [np.flatnonzero(x).tolist() for x in (*seen.terminated.T, *seen.truncated.T)]
    assert ends == [[6, 13], [6, 13], [], [], [], [7, 15]]
    assert np.abs(seen.next_obs[seen.terminated][:, 1]).min() > 0.2  # the true successors
    first = seen.obs[seen.start]
    assert len(np.unique(first, axis=0)) == len(first) == 8 and np.abs(first).max() <= 0.01
    assert metrics["episode_length"].total == 7 * 4 + 8 * 2
    assert seen.reward.dtype == np.float32 and seen.terminated.dtype == bool


class Toy:
    """Like a brax environment: sloppy dtypes, metrics written in place, NaN after the end."""

    action_size = 2

    def __init__(self, show=lambda x: x):
        self.show = show

    def reset(self, key):
        x, info = jax.random.uniform(key, (2,), maxval=0.4), {"count": 0, "rng": key}
        State: Any = adapter._import().State
        return State({"x": x}, self.show(x), 0.0, 0.0, {"speed": jnp.zeros(())}, info)

    def step(self, state, action):
        x = state.pipeline_state["x"]
        x = jnp.where(x.sum() > 3, jnp.nan, x + action + jnp.zeros((1, 2)))[0]
        state.metrics.update(speed=action.sum())
        info = state.info | {"count": state.info["count"] + 1}
        done = 1.0 - (x.sum() <= 3)
        return state.replace(
            pipeline_state={"x": x}, obs=self.show(x), reward=1, done=done, info=info
        )


def test_own_brax_environment():
    env = adapter.adapt(Toy(), name="toy", max_steps=5)
    registry.check_env(env)
    assert env.spec == EnvSpec("toy", (2,), Box((-1.0,) * 2, (1.0,) * 2, (2,)), 5)
    actions = jnp.array([[9.0, 1.0], [0.0, 0.0]])
    source = rollout(env, acting(actions), 2, 10)
    src = source.init(jax.random.key(0), (), HyperParams(()), ())
    src, batch, _ = jax.jit(source.next)(src, (), HyperParams(()), (), jax.random.key(1), 0)
    seen = batch.transitions
    assert np.isfinite(seen.next_obs).all() and (seen.reward == 1).all()
    assert seen.terminated[:, 0].sum() >= 3 and not seen.terminated[:, 1].any()
    assert np.flatnonzero(seen.truncated[:, 1]).tolist() == [4, 9]
    # Past the end there is NaN, as the third step shows.
    state, steps = env.reset(jax.random.key(0), {})[0], []
    for _ in range(3):
        state, ts = env.step(jax.random.key(0), state, jnp.ones(2), {})
        steps.append((bool(ts.terminated), bool(np.isnan(ts.next_obs).any())))
    assert steps[1:] == [(True, False), (True, True)]
    assert state[0][1]["count"] == 3
    with pytest.raises(EnvError, match="observations of toy are a dict, not an array"):
        adapter.adapt(Toy(lambda x: {"x": x}), name="toy")


@pytest.mark.slow
def test_options():
    env = envs.make("brax:inverted_pendulum:spring", max_steps=50, n_frames=1)
    assert env.spec.name == "brax:inverted_pendulum" and env.spec.max_steps == 50
    env = envs.make("brax:hopper", exclude_current_positions_from_observation=False, hide=[0, 5])
    assert env.spec.obs_shape == (10,) and env.spec.max_steps == 1000
    env = envs.make("brax:inverted_pendulum", backend="positional", sticky=0.25)
    assert env.spec.name == "brax:inverted_pendulum:positional"
    registry.check_env(env)


def test_names():
    theirs = adapter._import()

    assert {f"brax:{name}" for name in theirs._envs} - {"brax:fast", "brax:swimmer"} == {
        *names.BRAX
    }
    assert names.BRAX.items() <= dict(names.names()).items()
    for name in [*names.BRAX, *OTHERS]:
        check_name(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("brax:hoper", "did you mean 'brax:hopper'?"),
        ("brax:Ant", "did you mean 'brax:ant'?"),
        ("brax:hoper:mjx", "did you mean 'brax:hopper:mjx'?"),
        ("brax:hopper:sprin", "did you mean 'brax:hopper:spring'?"),
        ("brax:hopper:mjx:mjx", "did you mean 'brax:hopper:mjx'?"),
        ("brax:hopper:", "one of spring, positional, generalized, mjx may follow"),
        ("brax:zzzzzzzz", "unknown environment 'brax:zzzzzzzz'; `jaxrl list envs`"),
        ("brax:", "`jaxrl list envs`"),
        ("brax:fast", "unknown environment 'brax:fast'"),
        ("brax:swimmer", "swimmer does not work"),
        ("brax:swimmer:generalized", "swimmer does not work"),
        ("hopper", "did you mean 'brax:hopper'?"),
        ("HalfCheetah-v5", "did you mean 'brax:halfcheetah'?"),
        ("reacher", "did you mean 'Reacher-misc'?"),
    ],
)
def test_unknown_names(name, hint):
    for function in (check_name, envs.make):
        with pytest.raises(UnknownEnv) as caught:
            function(name)
        assert hint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("brax:hopper", {"backend": "warp"}, "unknown environment 'brax:hopper:warp'"),
        ("brax:hopper:mjx", {"backend": "spring"}, "unknown environment 'brax:hopper:mjx:spring'"),
        ("brax:hopper", {"ctrl_cost": 1}, "no option 'ctrl_cost', did you mean 'ctrl_cost_weight'"),
        ("brax:hopper", {"name": "x"}, "brax:hopper has no option 'name'"),
        (
            "brax:reacher",
            {"zzz": 1},
            "it has absorbing, backend, hide, hide_from, masks, max_steps, n_frames, normalise_obs",
        ),
        ("brax:reacher", {"max_steps": 0}, "max_steps of brax:reacher must be a positive whole"),
        (
            "brax:hopper",
            {"ctrl_cost_weight": "big"},
            "brax cannot make brax:hopper with (ctrl_cost",
        ),
        ("brax:ant", {"use_contact_forces": True}, "use_contact_forces not implemented"),
    ],
)
def test_wrong_options(name, options, hint):
    with pytest.raises(EnvError) as caught:
        envs.make(name, **options)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_brax_is_quiet(tmp_path):
    """Nothing printed, no warning, no MUJOCO_LOG.TXT, though brax's parts do all of these."""
    code = "from jaxrl.envs import make; make('brax:halfcheetah'), make('brax:hopper:mjx')"
    command = [sys.executable, "-W", "error", "-c", code]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_brax_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(
        EnvError, match=r'brax is not installed: pip install -e "\.\[brax\]"'
    ) as caught:
        envs.make("brax:hopper")
    assert "\n" not in str(caught.value)


# --- sticky actions ------------------------------------------------------------------------------


def echo():
    """Observes the action that reached it, actions [2]."""
    box = Box((0.0,) * 2, (1.0,) * 2, (2,))

    def reset(key, params):
        return jnp.zeros((), jnp.int32), jnp.zeros(2)

    def step(key, state, action, params):
        no = jnp.zeros((), bool)
        return state + 1, TimeStep(action, jnp.zeros(()), no, no)

    return Env(EnvSpec("echo", (2,), box), {}, reset, step)


@pytest.mark.parametrize("given", [(), (0.1,), (1,)])
def test_sticky_actions(given):
    env, probability = sticky_actions(echo(), *given), (*given, 0.25)[0]
    registry.check_env(env)
    chosen = jax.random.uniform(jax.random.key(0), (64, 100, 2))
    done = np.asarray(playing(env, chosen)[1].next_obs)
    repeated = (done[:, 1:] == done[:, :-1]).all(-1)
    np.testing.assert_array_equal(done[:, 0], chosen[:, 0])
    np.testing.assert_array_equal(done[:, 1:][~repeated], chosen[:, 1:][~repeated])
    assert repeated.mean() == pytest.approx(probability, abs=0.015)
    assert len(np.unique(repeated, axis=0)) == (1 if probability == 1 else 64)


def test_sticky_starts_anew_in_every_episode():
    """With probability 1 each episode repeats its own first action."""
    env = sticky_actions(time_limit(echo(), 3), 1.0)

    def act(state, hp, obs, start, memory, noise, explore):
        return jax.random.uniform(noise, (2, 2)), memory, {}

    source = rollout(env, Policy(act=act), 2, 9)
    src = source.init(jax.random.key(0), (), HyperParams(()), ())
    _, batch, _ = source.next(src, (), HyperParams(()), (), jax.random.key(1), jnp.int32(0))
    seen = batch.transitions
    firsts = np.asarray(seen.action)[[0, 3, 6]]
    np.testing.assert_array_equal(seen.next_obs, np.repeat(firsts, 3, axis=0))
    assert seen.start[:, 0].tolist() == [True, False, False] * 3


def test_sticky_cartpole():
    bare = envs.make("CartPole-v1")
    assert sticky_actions(bare, 0.0) is bare
    plain = jax.eval_shape(envs.make("CartPole-v1", sticky=0).reset, jax.random.key(0), bare.params)
    assert plain == jax.eval_shape(bare.reset, jax.random.key(0), bare.params)
    chosen = jnp.array([[1, 0, 0, 1, 0]])
    sticky = playing(envs.make("CartPole-v1", sticky=1), chosen)[1]
    kept = playing(bare, jnp.ones_like(chosen))[1]
    jax.tree.map(np.testing.assert_array_equal, sticky, kept)


# --- hidden observations -------------------------------------------------------------------------


def test_hide():
    bare, env = envs.make("CartPole-v1"), envs.make("CartPole-v1", hide=[3, 1])
    registry.check_env(env)
    assert env.spec.obs_shape == (2,) and bare.spec.obs_shape == (4,)
    key, chosen = jax.random.key(0), jnp.tile(jnp.array([1, 0, 0]), (2, 1))
    np.testing.assert_array_equal(
        env.reset(key, env.params)[1], bare.reset(key, bare.params)[1][::2]
    )
    (state, ts), (all_state, all_ts) = (playing(each, chosen) for each in (env, bare))
    np.testing.assert_array_equal(ts.next_obs, all_ts.next_obs[..., ::2])
    jax.tree.map(np.testing.assert_array_equal, (state, ts[1:]), (all_state, all_ts[1:]))
    image = envs.make("Breakout-MinAtar", hide=[3])
    registry.check_env(image)
    assert image.spec.obs_shape == (10, 10, 3)


def test_options_of_every_environment():
    options = {"hide": [1, 3], "sticky": 0.25, "max_steps": 9}
    env = envs.make("CartPole-v1", **options)
    registry.check_env(env)
    assert env.spec.obs_shape == (2,) and env.spec.max_steps == 9
    assert len(jax.eval_shape(env.reset, jax.random.key(0), env.params)[0]) == 3
    env = envs.make("jaxrl.envs.probes:cue", length=3, sticky=0.5, hide=[])
    assert env.spec.obs_shape == (1,) and env.spec.max_steps == 3
    nothing = {"hide": None, "sticky": None, "max_steps": None}
    assert envs.make("probe:cue", **nothing).spec == probes.cue().spec


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"hide": [4]}, "hide of CartPole-v1 must list indices in 0 .. 3, got [4]"),
        ({"hide": [-1]}, "got [-1]"),
        ({"hide": [1.5]}, "got [1.5]"),
        ({"hide": [True]}, "got [True]"),
        ({"hide": "1,3"}, "got '1,3'"),
        ({"hide": 1}, "got 1"),
        ({"hide": [0, 1, 2, 3]}, "hide=[0, 1, 2, 3] removes all elements of the observations"),
        ({"sticky": 1.5}, "sticky of CartPole-v1 must be in [0, 1], got 1.5"),
        ({"sticky": -0.1}, "got -0.1"),
        ({"sticky": float("nan")}, "got nan"),
        ({"sticky": True}, "got True"),
        ({"sticky": "much"}, "got 'much'"),
        ({"stick": 0.1}, "no option 'stick', did you mean 'sticky'?"),
    ],
)
def test_wrong_wrapper_options(options, hint):
    with pytest.raises(EnvError) as caught:
        envs.make("CartPole-v1", **options)
    assert hint in str(caught.value) and "\n" not in str(caught.value)
