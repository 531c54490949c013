"""Environments: the contract of `TimeStep`, dynamics against gymnasium, known values, names."""

import itertools
import subprocess
import sys

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.contract import STEP
from jaxrl.envs import EnvError, UnknownEnv, check_name, names, probes, registry
from jaxrl.envs import gymnax as adapter
from jaxrl.envs.wrappers import strong, time_limit, with_params
from jaxrl.experiments.plan import hyper_table
from jaxrl.rollout import pool_size
from jaxrl.types import Box, Discrete, Env, EnvSpec, HyperParams

MADE = [name for name in names.GYMNAX if name != "MNISTBandit-bsuite"]
ALL = [*MADE, *names.PROBES]
ALONE = [name for name, note in names.PROBES.items() if "team" not in note]
LIMIT, ENVS, STEPS = 7, 3, 16
SLOW = {  # to compile
    *(f"{game}-MinAtar" for game in ("Asterix", "Freeway", "Seaquest", "SpaceInvaders")),
    *(
        f"{task}-misc"
        for task in ("BernoulliBandit", "GaussianBandit", "Pong", "Reacher", "Swimmer")
    ),
    "Acrobot-v1",
}


@pytest.fixture(scope="module")
def make():
    """`envs.make`, once per set of arguments."""
    made = {}

    def get(name, **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = envs.make(name, **options)
        return made[key]

    return get


def some_action(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n)
    low, high = (jnp.asarray(b, jnp.float32).reshape(space.shape) for b in (space.low, space.high))
    return jax.random.uniform(key, space.shape, jnp.float32, low, high)


def play(env, beside=lambda key, state, action: ()):
    """Random episodes of ENVS environments for STEPS steps; axes [N, T]. Ends go back to the start.

    Also returns what `beside` makes of each step's arguments.
    """

    def one(key):
        first, _ = env.reset(key, env.params)

        def step(carry, key):
            state, t = carry
            key_act, key_step = jax.random.split(key)
            action = some_action(env.spec.action, key_act)
            other = beside(key_step, state, action)
            # gymnax's own step splits its key like this
            inner = jax.random.split(key_step)[0]
            after, ts = env.step(inner, state, action, env.params)
            done = ts.terminated | ts.truncated
            state = jax.tree.map(lambda a, b: jnp.where(done, a, b), first, after)
            return (state, jnp.where(done, 0, t + 1)), (ts, t + 1, after, other)

        return jax.lax.scan(step, (first, 0), jax.random.split(key, STEPS))[1]

    # Compiling is nearly all of the time here, so it is told not to try hard.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    fn = jax.jit(jax.vmap(one), compiler_options=quick)
    return fn(jax.random.split(jax.random.key(0), ENVS))


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_shapes_dtypes_and_carry(make, name):
    env = make(name)
    registry.check_env(env)
    assert registry.describe(env.spec) == dict(names.names())[name]
    assert env.spec.name == name and hash(env.spec) == hash(env.spec)
    for leaf in jax.tree.leaves(env.params):
        assert isinstance(leaf, jax.Array) and not leaf.weak_type
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool)
    state, obs = jax.eval_shape(env.reset, jax.random.key(0), env.params)
    assert all(x.dtype in (jnp.float32, jnp.int32, jnp.bool) for x in jax.tree.leaves(state))
    assert not pool_size(env, (state, obs), 1, 1000)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MADE]
)
def test_steps_like_gymnax_and_ends_in_time(make, name):
    env = make(name, max_steps=LIMIT)
    theirs, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=type(params.max_steps_in_episode)(LIMIT))

    def beside(key, state, action):
        with jax.numpy_rank_promotion("allow"):
            _, state, reward, terminated, truncated, info = theirs.step(key, state, action, params)
        return state, info["final_observation"], reward, terminated, truncated

    ts, length, after, other = jax.device_get(play(env, beside))
    state, final, reward, terminated, truncated = other
    if name == "FrozenLake-misc":
        final = np.eye(16)[final]
    np.testing.assert_allclose(ts.next_obs, final, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ts.reward, reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ts.terminated, terminated)
    np.testing.assert_array_equal(ts.truncated, truncated & ~terminated)
    assert ts.next_obs.shape == (ENVS, STEPS, *env.spec.obs_shape)
    assert ts.next_obs.dtype == ts.reward.dtype == np.float32
    assert np.isfinite(ts.next_obs).all() and np.isfinite(ts.reward).all()
    assert not (ts.terminated & ts.truncated).any()
    done = ts.terminated | ts.truncated
    assert length.max() <= LIMIT and done[length == LIMIT].all() and done.any()
    jax.tree.map(  # where gymnax did not reset, states agree
        lambda a, b: np.testing.assert_allclose(a[~done], b[~done], rtol=1e-6, atol=1e-6),
        after,
        state,
    )


@pytest.mark.parametrize("name", ALONE)
def test_probes_end_in_time(make, name):
    env = make(name)
    ts, length, _, _ = jax.device_get(play(env))
    done = ts.terminated | ts.truncated
    assert (done == (length == env.spec.max_steps)).all() and done.any()
    assert not (ts.terminated & ts.truncated).any()
    assert ts.truncated.any() == (name == "probe:limit")


def test_termination_wins_over_truncation(make):
    ts, length, _, _ = jax.device_get(play(make("DeepSea-bsuite")))
    assert ts.terminated[length == 8].all() and not ts.truncated.any()


def test_params_are_traced(make):
    env = make("Pendulum-v1")
    state, _ = env.reset(jax.random.key(1), env.params)
    state = state.replace(theta=jnp.float32(1), theta_dot=jnp.float32(0))
    params = env.params | {"g": jnp.array([0.0, 5.0, 10.0])}
    axes = {name: 0 if name == "g" else None for name in params}
    step = jax.vmap(lambda p: env.step(jax.random.key(0), state, jnp.zeros(1), p), in_axes=(axes,))
    speed = jax.jit(step)(params)[1].next_obs[:, 2]
    np.testing.assert_allclose(speed, np.sin(1) * np.array([0.0, 5, 10]) * 1.5 * 0.05, rtol=1e-5)
    assert "max_steps_in_episode" not in env.params


def test_continuous_actions_are_clipped(make):
    env = make("Swimmer-misc")
    state, _ = env.reset(jax.random.key(0), env.params)
    step = jax.jit(jax.vmap(lambda a: env.step(jax.random.key(0), state, a, env.params)[1]))
    ts = step(jnp.array([[1.0, -1.0], [9.0, -7.0]]))
    np.testing.assert_array_equal(ts.next_obs[0], ts.next_obs[1])


# --- the same dynamics as gymnasium --------------------------------------------------------------

COPIED = {  # name -> the state that gymnasium keeps, and the range to draw each number from
    "CartPole-v1": {"x": (-2.4, 2.4), "x_dot": (-2, 2), "theta": (-0.2, 0.2), "theta_dot": (-2, 2)},
    "Acrobot-v1": {
        "joint_angle1": (-3, 3),
        "joint_angle2": (-3, 3),
        "velocity_1": (-4, 4),
        "velocity_2": (-8, 8),
    },
    "MountainCar-v0": {"position": (-1.2, 0.5), "velocity": (-0.07, 0.07)},
    "MountainCarContinuous-v0": {"position": (-1.2, 0.45), "velocity": (-0.07, 0.07)},
    "Pendulum-v1": {"theta": (-4, 4), "theta_dot": (-8, 8)},
}


@pytest.mark.parametrize("name", COPIED)
def test_lock_step_with_gymnasium(make, name):
    """From 64 random states, 8 steps each; gymnasium gets a copy of our state before every step."""
    env, num, fields = make(name), 64, COPIED[name]
    theirs = gymnasium.make(name).unwrapped
    theirs.reset(seed=0)
    assert env.spec.max_steps == gymnasium.spec(name).max_episode_steps
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    sample = jax.jit(jax.vmap(lambda key: some_action(env.spec.action, key)))
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    rng = np.random.default_rng(0)
    drawn = {f: jnp.asarray(rng.uniform(*r, num), jnp.float32) for f, r in fields.items()}
    state = reset(jax.random.split(jax.random.key(0), num), env.params)[0].replace(**drawn)
    alive, ends = np.ones(num, bool), 0
    for t in range(8):
        keys = jax.random.split(jax.random.key(t), num)
        action = sample(keys)
        before = np.stack([np.asarray(getattr(state, f), np.float64) for f in fields], axis=1)
        state, ts = step(keys, state, action, env.params)
        obs, reward, terminated, chosen = jax.device_get((*ts[:3], action))
        for i in np.flatnonzero(alive):
            theirs.state = before[i]
            act = int(chosen[i]) if isinstance(env.spec.action, Discrete) else chosen[i]
            expected = theirs.step(act)
            if name == "MountainCarContinuous-v0" and expected[0][0] <= np.float32(-1.2):
                alive[i] = False  # gymnax does not stop at the left wall
                continue
            np.testing.assert_allclose(obs[i], expected[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(reward[i], expected[1], rtol=1e-4, atol=1e-4)
            assert bool(terminated[i]) == expected[2]
            theirs.steps_beyond_terminated = None  # CartPole counts steps past the end
        ends += terminated[alive].sum()
        alive &= ~terminated
    assert (ends == 0) == (name == "Pendulum-v1")


# --- probes --------------------------------------------------------------------------------------


def optimal_values(name: str, gamma: float) -> dict[float, float]:
    """{observation: optimal value} of the probe `name` with its default options.

    For `cue` first observations only: later ones carry no information by themselves.
    """
    return {
        "probe:constant": {0.0: 1.0},
        "probe:obs": {-1.0: -1.0, 1.0: 1.0},
        "probe:delay": {0.0: gamma, 1.0: 1.0},
        "probe:action": {0.0: 1.0},
        "probe:match": {-1.0: 1.0, 1.0: 1.0},
        "probe:aim": {-1.0: 1.0, 1.0: 1.0},
        "probe:limit": {0.0: 1 / (1 - gamma)},
        "probe:cue": {-1.0: gamma**3, 1.0: gamma**3},
    }[name]


def best_return(env, key, gamma, bootstrap=0.0):
    """(first observation, best and mean discounted return) over all action sequences, played out.

    A truncated episode adds `bootstrap`, the value of its last observation.
    """
    if isinstance(env.spec.action, Box):
        actions = [jnp.full(1, a, jnp.float32) for a in (-0.5, 0.0, 0.5)]
    else:
        actions = [jnp.int32(0), jnp.int32(1)]
    returns = []
    for sequence in itertools.product(actions, repeat=env.spec.max_steps):
        state, first = env.reset(key, env.params)
        total, discount = 0.0, 1.0
        for action in sequence:
            state, ts = env.step(key, state, action, env.params)
            total, discount = total + discount * float(ts.reward), discount * gamma
        assert bool(ts.terminated) or bool(ts.truncated)
        returns.append(total + discount * bootstrap * bool(ts.truncated))
    return float(first[0]), max(returns), float(np.mean(returns))


@pytest.mark.parametrize("name", ALONE)
def test_probe_values(make, name):
    gamma = 0.5
    values = optimal_values(name, gamma)
    bootstrap = values[0.0] if name == "probe:limit" else 0.0
    seen = set()
    for seed in range(6):
        first, best, mean = best_return(make(name), jax.random.key(seed), gamma, bootstrap)
        assert best == pytest.approx(values[first])
        if name in ("probe:action", "probe:match", "probe:cue"):
            assert mean == pytest.approx(0.0)  # of the uniform policy
        seen.add(first)
    if name == "probe:limit":  # what is lost where a time limit does not bootstrap
        cut = best_return(make(name), jax.random.key(0), gamma)[1]
        assert cut == pytest.approx((1 - gamma**5) / (1 - gamma))
    assert seen == set(values) - ({1.0} if name == "probe:delay" else set())


def test_probe_observations():
    env = probes.delay()
    state, first = env.reset(jax.random.key(0), env.params)
    state, middle = env.step(jax.random.key(0), state, jnp.int32(0), env.params)
    state, last = env.step(jax.random.key(0), state, jnp.int32(0), env.params)
    assert [float(x[0]) for x in (first, middle.next_obs, last.next_obs)] == [0.0, 1.0, 1.0]
    assert [float(x.reward) for x in (middle, last)] == [0.0, 1.0]

    env = probes.cue(length=5)
    shown = []
    state, obs = env.reset(jax.random.key(3), env.params)
    for _ in range(5):
        shown.append(float(obs[0]))
        answer = jnp.int32(shown[0] > 0)
        state, ts = env.step(jax.random.key(0), state, answer, env.params)
        obs = ts.next_obs
    assert abs(shown[0]) == 1 and shown[1:] == [0.0] * 4
    assert float(ts.reward) == 1 and bool(ts.terminated)


def test_gifts_cost_the_giver(make):
    """Rewards of both agents for all joint actions; the team earns most if both give."""
    env = make("probe:gift")
    state, seen = env.reset(jax.random.key(0), env.params)
    assert seen.tolist() == [[-1], [1]]
    for a, b in itertools.product((0, 1), repeat=2):
        _, ts = env.step(jax.random.key(0), state, jnp.array([a, b]), env.params)
        assert ts.reward.tolist() == [2 * b - a, 2 * a - b] and ts.terminated
        assert ts.score == (a + b) / 2


@pytest.mark.parametrize("name", ["constant", "obs", "delay", "limit"])
def test_probes_with_continuous_actions(name):
    env = envs.make(f"probe:{name}", continuous=True)
    assert env.spec.action == probes.CONTINUOUS
    registry.check_env(env)


# --- options and wrappers ------------------------------------------------------------------------


def test_options(make):
    env = make("CartPole-v1", max_steps=20, gravity=1.5)
    assert env.spec.max_steps == 20
    assert env.params["gravity"] == np.float32(1.5) and env.params["gravity"].dtype == jnp.float32
    assert make("Pendulum-v1", max_torque=3).spec.action == Box((-3.0,), (3.0,), (1,))
    assert make("DeepSea-bsuite", size=5).spec == EnvSpec("DeepSea-bsuite", (5, 5), Discrete(2), 5)
    assert make("probe:limit", max_steps=9).spec.max_steps == 9
    assert make("probe:cue", length=6).spec.max_steps == 6
    torque = make("Acrobot-v1", available_torque=(-2, 0, 2)).params["available_torque"]
    np.testing.assert_array_equal(torque, np.array([-2, 0, 2], np.float32))
    assert make("CartPole-v1", max_steps=None).spec.max_steps == 500
    assert make("probe:limit", max_steps=None).spec.max_steps == 5


@pytest.mark.parametrize("name", ["dmsd", "maze:umaze"])
def test_outcomes_are_those_of_steps(name):
    """Along whole episodes; what hides or changes observations or rewards tells none."""
    env = envs.make(name)
    play = jax.jit(env.step)
    told = jax.jit(env.outcome)
    rng = np.random.default_rng(0)
    state, obs = env.reset(jax.random.key(0), env.params)
    for i in range(env.spec.max_steps):
        # In the maze, along its three corridors and into the goal.
        way = rng.uniform(-1, 1, 2) + (np.array([[0, 2], [2, 0], [0, -2]])[min(i // 30, 2)])
        action = jnp.float32(np.clip(way, -1, 1))
        state, ts = play(jax.random.key(i), state, action, env.params)
        reward, terminated = told(obs, action, ts.next_obs, env.params)
        np.testing.assert_allclose(reward, ts.reward, atol=1e-5)
        assert terminated == ts.terminated
        obs = ts.next_obs
        if terminated:
            break
    assert terminated == (name == "maze:umaze")
    for changed in ({"hide": [0]}, {"normalise_obs": True}, {"normalise_reward": 0.9}):
        assert envs.make(name, **changed).outcome is None
    assert envs.make(name, sticky=0.5).outcome is None
    assert envs.make(name, max_steps=3).outcome is not None


def test_time_limit():
    env = time_limit(probes.cue(length=4), 3)
    assert env.spec.max_steps == 3
    registry.check_env(env)
    ts, length, _, _ = jax.device_get(play(env))
    assert (ts.truncated == (length == 3)).all() and not ts.terminated.any()
    # the environment's own end, and its own limit, still hold
    env = time_limit(probes.cue(length=3), 3)
    ts, length, _, _ = jax.device_get(play(env))
    assert (ts.terminated == (length == 3)).all() and not ts.truncated.any()
    assert time_limit(probes.limit(max_steps=4), 100).spec.max_steps == 4


def test_parameters_of_all_kinds_have_a_row_per_member():
    given = {"level": jax.random.key(3), "mass": 2, "size": np.float64(1.5), "on": np.bool_(True)}
    table = hyper_table(HyperParams((), strong(given)), 3).env
    assert jnp.array_equal(table["level"], jnp.broadcast_to(given["level"], 3))
    for name, dtype in (("mass", jnp.int32), ("size", jnp.float32), ("on", jnp.bool)):
        assert table[name].dtype == dtype and not table[name].weak_type
        np.testing.assert_array_equal(table[name], [given[name]] * 3)


def test_with_params():
    base = probes.constant()
    env = Env(base.spec, {"a": jnp.float32(1), "n": jnp.int32(2)}, base.reset, base.step)
    changed = with_params(env, a=3, n=5).params
    assert changed["a"] == np.float32(3) and changed["a"].dtype == jnp.float32
    assert changed["n"] == 5 and changed["n"].dtype == jnp.int32
    assert env.params["a"] == np.float32(1)


# --- names and messages --------------------------------------------------------------------------


def test_names_are_those_of_gymnax_brax_the_probes_and_our_own():
    assert list(names.GYMNAX) == gymnax.registration._BUILTIN_ENV_IDS
    assert list(names.PROBES) == list(probes.PROBES)
    assert len(dict(names.names())) == len(names.names())
    suites = [tasks for suite, tasks in names.TASKS.items() if names.installed(suite)]
    tables = (names.GYMNAX, names.BRAX, names.PROBES, names.OWN, *suites)
    assert len(names.names()) == sum(map(len, tables))
    for name, _ in names.names():
        check_name(name)


def test_names_need_no_jax():
    code = """if True:
        import sys
        import jaxrl.envs
        from jaxrl.envs.names import check_name, names
        check_name("CartPole-v1"), names()
        assert not {"jax", "numpy", "gymnax"} & set(sys.modules), "too much imported"
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CartPole-v2", "did you mean 'CartPole-v1'?"),
        ("cartpole", "did you mean 'CartPole-v1'?"),
        ("breakout", "did you mean 'Breakout-MinAtar'?"),
        ("pong", "did you mean 'Pong-misc'?"),
        ("probe:limt", "did you mean 'probe:limit'?"),
        ("limit", "did you mean 'probe:limit'?"),
        ("qqqq", "`jaxrl list envs`"),
        ("no_such_module:env", "no module 'no_such_module'"),
        ("no_such.py", "no file 'no_such.py'"),
        ("no_such.py:env", "no file 'no_such.py'"),
        ("a b:env", "module:attribute"),
        ("module:", "module:attribute"),
        ("", "unknown environment ''"),
    ],
)
def test_unknown_names(name, hint):
    for function in (check_name, envs.make):
        with pytest.raises(UnknownEnv, match=".") as caught:
            function(name)
        assert hint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("CartPole-v1", {"lenght": 1}, "no option 'lenght', did you mean 'length'?"),
        ("CartPole-v1", {"zzz": 1}, "it has absorbing, force_mag, gravity"),
        ("CartPole-v1", {"name": "x"}, "CartPole-v1 has no option 'name'"),
        ("probe:delay", {"name": "x"}, "probe:delay has no option 'name'"),
        ("reach", {"name": "x"}, "reach has no option 'name'"),
        ("DeepSea-bsuite", {"siz": 1}, "did you mean 'size'?"),
        ("CartPole-v1", {"max_steps": 0}, "max_steps of CartPole-v1 must be a positive whole"),
        ("CartPole-v1", {"max_steps": 2.5}, "got 2.5"),
        ("CartPole-v1", {"max_steps": True}, "got True"),
        ("CartPole-v1", {"length": "long"}, "length of CartPole-v1 must be a number, got 'long'"),
        ("CartPole-v1", {"length": float("nan")}, "must be a number, got nan"),
        ("CartPole-v1", {"length": [1, 2]}, "must have shape ()"),
        ("CartPole-v1", {"length": [[1], 2]}, "must be a number"),
        ("Asterix-MinAtar", {"ramp_interval": 2.5}, "must be a whole number, got 2.5"),
        ("Asterix-MinAtar", {"ramping": 3}, "must be true or false, got 3"),
        ("MetaMaze-misc", {"maze_size": 4}, "gymnax cannot make MetaMaze-misc(maze_size=4)"),
        ("probe:cue", {"length": 0}, "length of probe:cue must be a positive whole number"),
        ("probe:cue", {"lenth": 2}, "did you mean 'length'?"),
        ("probe:constant", {"continuous": "no"}, "must be true or false, got 'no'"),
        ("probe:constant", {"max_steps": -1}, "must be a positive whole number"),
    ],
)
def test_wrong_options(name, options, hint):
    with pytest.raises(EnvError) as caught:
        envs.make(name, **options)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_environments_that_cannot_be_made(monkeypatch):
    def offline():
        raise OSError("no network")

    registered = gymnax.registration._registry
    monkeypatch.setitem(registered, "MNISTBandit-bsuite", offline)
    with pytest.raises(EnvError, match="MNISTBandit-bsuite downloads .* no network"):
        envs.make("MNISTBandit-bsuite")
    with pytest.raises(UnknownEnv, match="did you mean 'CartPole-v1'"):
        adapter.make("CartPole-v7")

    from gymnax.environments import spaces

    theirs, params = gymnax.make("CartPole-v1")
    monkeypatch.setattr(type(theirs), "observation_space", lambda self, params: spaces.Dict({}))
    with pytest.raises(EnvError, match="are a Dict, not a Box or Discrete"):
        adapter.adapt(theirs, params, name="dicts")


MODULE = """
import jax.numpy as jnp
from jaxrl.envs import probes
from jaxrl.types import Env, EnvSpec, TimeStep, Discrete
import dataclasses

ENV = dataclasses.replace(probes.delay(), params={"mass": 1.0})
NUMBER = 3

def make(length=2):
    return probes.delay(length)

SEEN = []

def loose(length=2, **more):
    SEEN.append(more)
    return probes.delay(length)

def limited(max_steps, **more):
    return probes.delay(max_steps)

def needs(length):
    return probes.delay(length)

def nothing():
    return None

def broken(what):
    base = probes.constant()
    def step(key, state, action, params):
        state, ts = base.step(key, state, action, params)
        if what == "reward":
            return state, ts._replace(reward=1)
        if what == "obs":
            return state, ts._replace(next_obs=jnp.zeros(2))
        if what == "carry":
            return state._replace(t=state.t + 0.5), ts
        if what == "weak":
            return state._replace(sign=1.0), ts
        if what == "state":
            return (state, 0), ts
        if what == "gym":
            return ts.next_obs, state, ts.reward, ts.terminated, {}
        if what == "swapped":
            return ts, state
        if what == "done":
            return state, TimeStep(ts.next_obs, ts.reward, done=ts.terminated)
        if what == "if":
            return (state, ts) if ts.reward > 0 else (state, ts._replace(reward=-ts.reward))
        if what == "float":
            return state, ts._replace(reward=float(ts.reward))
        if what == "one flag":
            done = state.t > 3
            return state, ts._replace(terminated=done, truncated=done)
        if what == "one flag twice":
            return state, ts._replace(terminated=state.t > 3, truncated=state.t > 3)
        if what == "endless":
            no = jnp.zeros((), bool)
            return state, ts._replace(terminated=no, truncated=no)
        return state, tuple(ts)
    return dataclasses.replace(base, step=step)

def unset(what):
    base = probes.constant()
    def reset(key, params):
        state, obs = base.reset(key, params)
        if what == "swapped":
            return obs, state
        return obs
    if what == "arguments":
        return dataclasses.replace(base, reset=lambda key: base.reset(key, {}))
    return dataclasses.replace(base, reset=reset)
"""


def line(text):
    """own_envs.py:N, the line of MODULE with `text`."""
    return f"own_envs.py:{MODULE[: MODULE.index(text)].count(chr(10)) + 1}"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A directory with a user's modules, made the current one."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_envs.py").write_text(MODULE)
    (folder / "own_bad.py").write_text("import a_missing_module\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield
    for module in ("own_envs", "own_bad"):
        sys.modules.pop(module, None)


def test_own_environments(own):
    check_name("own_envs:ENV")
    env = envs.make("own_envs:ENV", max_steps=1, mass=2)
    assert env.spec.max_steps == 1 and env.params["mass"] == np.float32(2)
    assert isinstance(env.params["mass"], jax.Array) and not env.params["mass"].weak_type
    for name in ("own_envs", "own_envs:make", "own_envs.py", "own_envs.py:make"):
        check_name(name)
        assert envs.make(name).spec.max_steps == 2
    assert envs.make("own_envs:make", length=5, max_steps=4).spec.max_steps == 4


def test_own_environments_with_any_keyword(own):
    """Options of jaxrl are applied by jaxrl unless the function lists them as its own."""
    env = envs.make("own_envs:loose", length=5, max_steps=4, normalize_obs=True, colour="red")
    assert env.spec.max_steps == 4 and env.persist is not None
    assert sys.modules["own_envs"].SEEN.pop() == {"colour": "red"}
    assert envs.make("own_envs:limited", max_steps=3).spec.max_steps == 3
    assert envs.make("own_envs:limited", max_steps=3, sticky=0.5).outcome is None


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("own_envs:mke", {}, "own_envs has no attribute 'mke', did you mean 'make'?"),
        ("own_envs.py:mke", {}, "own_envs.py has no attribute 'mke', did you mean 'make'?"),
        ("own_envs:NUMBER", {}, "is of type int, not an Env"),
        ("own_envs:nothing", {}, "returned an object of type NoneType, not an Env"),
        ("own_envs:needs", {}, "missing a required argument: 'length'"),
        ("own_envs:make", {"lengt": 2}, "did you mean 'length'?"),
        ("own_envs:loose", {"max_step": 4}, "no option 'max_step', did you mean 'max_steps'?"),
        ("own_envs:loose", {"lenght": 4}, "no option 'lenght', did you mean 'length'?"),
        ("own_envs:ENV", {"mas": 2}, "did you mean 'mass'?"),
        ("own_envs:ENV", {"mass": "x"}, "must be a number"),
        ("own_bad:env", {}, "importing own_bad failed: ModuleNotFoundError"),
        ("own_envs.sub:env", {}, "importing own_envs.sub failed"),
        ("own_envs:broken", {"what": "reward"}, "reward must be float32 of shape (), got int32"),
        ("own_envs:broken", {"what": "obs"}, "next_obs must be float32 of shape (1,), got float32"),
        ("own_envs:broken", {"what": "carry"}, "state.t after a step must be int32"),
        ("own_envs:broken", {"what": "weak"}, "state.sign has a weak type"),
        ("own_envs:broken", {"what": "state"}, "a state of another structure"),
        ("own_envs:broken", {"what": "tuple"}, f"step must return {STEP}, got (ProbeState, tuple)"),
        ("own_envs:broken", {"what": "gym"}, f"step must return {STEP}, got a tuple of 5"),
        ("own_envs:broken", {"what": "swapped"}, f"step must return {STEP}, got (TimeStep, "),
        ("own_envs:broken", {"what": "done"}, f"{line('done=ts')}: TypeError: .* {STEP}"),
        ("own_envs:broken", {"what": "if"}, f"traced array at {line('if ts.reward > 0')}: replace"),
        ("own_envs:broken", {"what": "float"}, f"traced array at {line('float(ts.')}: replace"),
        ("own_envs:broken", {"what": "one flag"}, "terminated and truncated are the same flag"),
        ("own_envs:broken", {"what": "one flag twice"}, "terminated and truncated are the same"),
        ("own_envs:unset", {"what": "swapped"}, "reset must return (state, obs), in this order"),
        ("own_envs:unset", {"what": "obs"}, "reset must return (state, obs), got an array"),
        ("own_envs:unset", {"what": "arguments"}, "the form is reset(key, params) -> (state, obs)"),
    ],
)
def test_mistakes_in_own_environments(own, name, options, hint):
    with pytest.raises(EnvError) as caught:
        envs.make(name, **options)
    text = str(caught.value)
    assert all(part in text for part in hint.split(" .* ")) and "\n" not in text


def test_episodes_without_an_end_are_allowed(own):
    envs.make("own_envs:broken", what="endless")


def test_plotting_packages_are_imported_when_gymnax_draws() -> None:
    code = """
import sys
from jaxrl import envs
envs.make("CartPole-v1")
assert not {"seaborn", "pandas", "matplotlib"} & set(sys.modules)
from gymnax.environments.misc import pong
assert pong.plt.subplots.__module__ == "matplotlib.pyplot"
import matplotlib.pyplot
assert matplotlib.pyplot.subplots is pong.plt.subplots
"""
    subprocess.run([sys.executable, "-c", code], check=True)
