"""PQN: its parts against numpy, optax and flax, and the answers it learns in probes."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from medley import medley
from test_returns import oracle

from jaxrl import nets, population
from jaxrl.agents import pqn
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.experiments.settings import resolve
from jaxrl.losses import q_loss
from jaxrl.minibatch import minibatches, permutation
from jaxrl.optim import clipped_radam, linear
from jaxrl.types import Array, Batch, Box, Discrete, EnvSpec, HyperParams, PyTree, Transition

STEPS, ENVS, OBS, ACTIONS = 6, 4, 3, 4
CFG = pqn.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=1,
    epochs=2,
    hidden=(5,),
)
NET = nets.from_linen(nets.MLP(CFG.hidden, ACTIONS, norm=True), (OBS,))


def spec(max_steps: int | None) -> EnvSpec:
    return EnvSpec("made", (OBS,), Discrete(ACTIONS), max_steps)


def hypers(**values: float) -> pqn.Hypers:
    return jax.tree.map(jnp.float32, pqn.Hypers(**values))


@jax.jit
def best(params: PyTree, obs: Array) -> Array:
    """max_a Q(obs, a); obs [T, N, obs]."""
    q = NET.apply(params, obs.reshape(-1, OBS))
    return jnp.max(q, -1).reshape(obs.shape[:-1])


def window(seed: int, value_of: Any, often: bool = False) -> Transition:
    """A window [T, N] with random ends of both kinds, at most one limit per environment.

    `value_of` is what acting recorded, a function of [..., obs]. With `often` there are two limits
    in each environment, T-1 steps apart.
    """
    rng = np.random.default_rng(seed)
    obs = np.zeros((STEPS + 1, ENVS, OBS))
    obs[0] = rng.normal(size=(ENVS, OBS))
    next_obs = rng.normal(size=(STEPS, ENVS, OBS))
    limit = np.where(rng.random(ENVS) < 0.7, rng.integers(0, STEPS, ENVS), STEPS)
    steps = np.arange(STEPS)[:, None]
    truncated = (steps % (STEPS - 1) + 0 * limit == 0) if often else steps == limit
    terminated = (rng.random((STEPS, ENVS)) < 0.25) & ~truncated
    done = terminated | truncated
    for t in range(STEPS):
        fresh = rng.normal(size=(ENVS, OBS))
        obs[t + 1] = np.where(done[t][:, None], fresh, next_obs[t])
    obs = obs[:-1].astype(np.float32)
    rows: dict[str, Any] = {
        "obs": obs,
        "action": rng.integers(0, ACTIONS, (STEPS, ENVS), np.int32),
        "reward": rng.normal(size=(STEPS, ENVS)).astype(np.float32),
        "next_obs": next_obs.astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "start": np.concatenate([np.ones((1, ENVS), bool), done[:-1]]),
    }
    return Transition(**rows, extras={"value": value_of(obs)})


# --- targets -------------------------------------------------------------------------------------


@functools.cache
def updater() -> Any:
    return jax.jit(pqn.make(CFG, spec(STEPS)).update)


@functools.cache
def start() -> tuple[pqn.State, Transition]:
    """A state whose norms are not at their initial values, and a window it could have acted in."""
    agent = pqn.make(CFG, spec(STEPS))
    state = jax.jit(agent.init)(jax.random.key(0), hypers(), {})
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    state = state._replace(params=jax.tree.unflatten(tree, leaves))
    return state, window(0, functools.partial(best, state.params))


@pytest.mark.parametrize("often", [False, True], ids=["one cut", "two cuts"])
@pytest.mark.parametrize("step", [0, 7])
def test_update_by_hand(often: bool, step: int) -> None:
    """Two epochs of one minibatch: oracle targets, ½ mean squares, ℓ2, clipping, RAdam, schedule.

    What lies behind a termination is NaN here, and does not show.
    """
    hp = hypers(
        lr=0.05, lr_end=0.1, gamma=0.9, lam=0.6, max_grad_norm=0.2, reward_scale=0.5, l2=0.3
    )
    state, t = start()
    if often:
        t = window(0, functools.partial(best, state.params), often=True)
        assert np.all(np.sum(t.truncated, 0) == 2)
    spoilt = t._replace(next_obs=jnp.where(t.terminated[..., None], jnp.nan, t.next_obs))
    new, metrics = updater()(state, hp, Batch(spoilt), jax.random.key(2), jnp.int32(step))

    targets = oracle(
        0.5 * t.reward, best(state.params, t.next_obs), t.terminated, t.truncated, 0.9, 0.6
    )
    params, losses, norms = by_hand(state.params, t, jnp.float32(targets), step)
    assert min(norms) > 0.2  # so that clipping counts
    for a, b, old in zip(*map(jax.tree.leaves, (new.params, params, state.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert jnp.max(jnp.abs(b - old)) > 1e-4
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


@jax.jit
def by_hand(params: PyTree, t: Transition, targets: Array, step: Array) -> PyTree:
    """Parameters after two epochs, and the losses and norms of the gradients on the way."""

    def loss(params: PyTree) -> Array:
        q = NET.apply(params, t.obs.reshape(-1, OBS))
        chosen = q[jnp.arange(STEPS * ENVS), t.action.reshape(-1)]
        error = jnp.sum((chosen - targets.reshape(-1)) ** 2) / (2 * STEPS * ENVS)
        return error + 0.15 * jnp.sum(params["Dense_0"]["kernel"] ** 2)

    schedule = optax.linear_schedule(0.05, 0.005, CFG.updates * CFG.epochs * CFG.minibatches)
    opt, losses, norms = None, [], []
    for epoch in range(CFG.epochs):
        rate: Any = schedule(step * CFG.epochs + epoch)
        chain = optax.chain(optax.clip_by_global_norm(0.2), optax.radam(rate))
        opt = chain.init(params) if opt is None else opt
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = chain.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        losses.append(value)
        norms.append(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(grads))))
    return params, losses, norms


def test_loss_gradient_in_closed_form() -> None:
    """Of a linear network: ∂L/∂w = mean over the batch of (Q - G) ∂Q/∂w."""
    rng = np.random.default_rng(0)
    w, obs, target = rng.normal(size=(3, 4)), rng.normal(size=(7, 3)), rng.normal(size=7)
    action = np.array([0, 1, 2, 3, 0, 0, 2])
    given = (jnp.int32(action), jnp.float32(target))
    loss = lambda w: q_loss(jnp.float32(obs) @ w, *given)
    (value, mean_q), grad = jax.value_and_grad(loss, has_aux=True)(jnp.float32(w))
    q = (obs @ w)[np.arange(7), action]
    expected = np.zeros((3, 4))
    for row in range(7):
        expected[:, action[row]] += (q[row] - target[row]) * obs[row] / 7
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, np.mean((q - target) ** 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(mean_q, np.mean(q), rtol=1e-5)


# --- schedules and exploration -------------------------------------------------------------------


def test_share_of_random_actions_follows_the_update_counter() -> None:
    """Window u is acted with optax's linear schedule at u; `update` u leaves the share of u + 1."""
    hp = hypers(eps_start=0.9, eps_end=0.1, eps_decay=0.4)
    schedule = optax.linear_schedule(0.9, 0.1, round(0.4 * CFG.updates))
    state = jax.jit(pqn.make(CFG, spec(STEPS)).init)(jax.random.key(0), hp, {})
    _, t = start()
    for u in range(CFG.updates):
        np.testing.assert_allclose(state.eps, schedule(u), rtol=1e-5)
        state, metrics = updater()(state, hp, Batch(t), jax.random.key(u), jnp.int32(u))
        np.testing.assert_allclose(metrics["eps"], schedule(u), rtol=1e-5)
    constant = hypers(eps_start=0.9, eps_end=0.1, eps_decay=0.0)
    state, _ = updater()(state, constant, Batch(t), jax.random.key(0), jnp.int32(0))
    np.testing.assert_allclose(state.eps, 0.1, rtol=1e-6)


def test_learning_rate_follows_the_gradient_steps() -> None:
    """As published: linear from lr to 0 over updates * epochs * minibatches gradient steps."""
    cfg = pqn.Config()
    assert (cfg.updates, cfg.gradient_steps) == (244, 244 * 4 * 16)  # 500,000 // 2048
    published = optax.linear_schedule(1e-4, 1e-20, cfg.gradient_steps)
    for count in (0, 1, 63, 64, 7808, cfg.gradient_steps - 1, cfg.gradient_steps):
        got = 1e-4 * linear(jnp.int32(count) / cfg.gradient_steps, 1.0, jnp.float32(0))
        np.testing.assert_allclose(got, published(count), rtol=1e-4, atol=1e-12)


def test_defaults_and_the_preset_of_cartpole_are_published() -> None:
    """Rewards as they are and MinAtar's ε by default; CartPole has settings of its own."""
    hp = pqn.Hypers()
    assert (hp.eps_start, hp.eps_end, hp.eps_decay, hp.reward_scale) == (1, 0.05, 0.1, 1)
    found = resolve("pqn", {"env": "CartPole-v1"})
    cfg, hp = found.cfg, found.hp
    assert (cfg.total_steps, cfg.num_envs, cfg.num_steps) == (500_000, 32, 64)
    assert (cfg.minibatches, cfg.epochs, cfg.hidden) == (16, 4, (256, 256))
    assert (hp.lr, hp.lr_end, hp.max_grad_norm, hp.reward_scale) == (1e-4, 0, 10, 0.1)
    assert (hp.gamma, hp.lam) == (0.99, 0.95)
    assert (hp.eps_start, hp.eps_end, hp.eps_decay) == (1, 0.2, 0.2)


@functools.cache
def acting() -> tuple[Any, pqn.State, Array, Array]:
    """Act, a state, observations [n, obs], and their greedy actions."""
    n = 40_000
    agent = pqn.make(CFG, spec(STEPS))
    state, _ = start()
    obs = jax.random.normal(jax.random.key(3), (n, OBS))
    greedy = jnp.argmax(NET.apply(state.params, obs), -1)

    # All arrays are arguments, or the compiler would compute with them itself.
    act = jax.jit(agent.act, static_argnames="explore")
    noise, no = agent.noise(jax.random.key(4), n), jnp.zeros(n, bool)

    def run(eps: float, explore: bool) -> PyTree:
        acting = state._replace(eps=jnp.float32(eps))
        return act(acting, hypers(), obs, no, (), noise=noise, explore=explore)

    return run, state, obs, greedy


@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0])
def test_exploring_takes_each_action_as_often_as_it_should(eps: float) -> None:
    """Greedy with 1 - ε + ε/A, any other with ε/A, up to four standard errors."""
    act, _, obs, greedy = acting()
    action, _, _ = act(eps, True)
    n, seen = len(obs), 0
    for first in range(ACTIONS):
        rows = np.asarray(action)[np.asarray(greedy) == first]
        if len(rows) < 1000:
            continue
        seen += 1
        for other in range(ACTIONS):
            p = eps / ACTIONS + (1 - eps) * (other == first)
            error = 4 * np.sqrt(p * (1 - p) / len(rows))
            assert abs(np.mean(rows == other) - p) <= error, (first, other)
    assert seen >= 2
    moved = np.asarray(action != greedy)
    # Neighbouring environments toss their own coins.
    together = np.mean(moved[1:] & moved[:-1])
    share = eps * (1 - 1 / ACTIONS)
    assert abs(together - share**2) <= 8 * np.sqrt(share**2 * (1 - share**2) / n)


def test_without_exploring_greedy_and_with_values() -> None:
    act, state, obs, greedy = acting()
    action, memory, _ = act(1.0, False)
    np.testing.assert_array_equal(action, greedy)
    assert memory == ()
    for explore in (False, True):
        value = act(1.0, explore)[2]["value"]
        np.testing.assert_allclose(value, best(state.params, obs), rtol=1e-5, atol=1e-6)


# --- optimiser and network -----------------------------------------------------------------------


def test_optimiser_equals_optax_on_the_tree() -> None:
    """With clipping and without, past the first steps, in which RAdam is plain momentum."""
    params = start()[0].params

    def steps(chain: optax.GradientTransformation, params: PyTree) -> PyTree:
        def one(carry: PyTree, i: Array) -> tuple[PyTree, PyTree]:
            params, opt = carry
            grads = jax.tree.map(lambda x: jnp.sin(3 * x + i.astype(jnp.float32)), params)
            updates, opt = chain.update(grads, opt, params)
            params = optax.apply_updates(params, updates)
            return (params, opt), params

        return jax.lax.scan(one, (params, chain.init(params)), jnp.arange(20))[1]

    @jax.jit
    def both(params: PyTree, clip: Array) -> tuple[PyTree, PyTree]:
        ours = clipped_radam(jnp.float32(0.01), clip)
        theirs = optax.chain(optax.clip_by_global_norm(clip), optax.radam(0.01))
        return steps(ours, params), steps(theirs, params)

    outcomes = [both(params, jnp.float32(clip)) for clip in (1e9, 0.5)]
    for ours, theirs in outcomes:
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.allclose(*(x["Dense_0"]["bias"] for x, _ in outcomes))


@functools.partial(jax.jit, static_argnums=0)
def gradients(module: nn.Module, params: PyTree, x: Array, target: Array) -> PyTree:
    """Gradients of Σ target * module(x) by the parameters and by x, and module(x)."""

    def loss(params: PyTree, x: Array) -> tuple[Array, Array]:
        y: Any = module.apply({"params": params}, x)
        return jnp.sum(y * target), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize("shape", [(6, 16), (2, 3, 5), (4, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_layer_norm_equals_flax(shape: tuple[int, ...], scale: float) -> None:
    """Values and all gradients, also where eps (1e-6) weighs as much as the variance."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = scale * (jax.random.normal(keys[0], shape) + 0.5)
    target = jax.random.normal(keys[1], shape)
    params = {
        "scale": jax.random.normal(keys[2], shape[-1:]),
        "bias": jax.random.normal(keys[3], shape[-1:]),
    }

    # flax's default takes the variance as E[x²] - E[x]², which loses digits of its own.
    outcome = lambda module: gradients(module, params, x, target)
    ours, theirs = outcome(nets.LayerNorm()), outcome(nn.LayerNorm(use_fast_variance=False))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, float(jnp.max(jnp.abs(b)))))
    np.testing.assert_allclose(ours[1], outcome(nn.LayerNorm())[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_mlp_norms_before_relu_and_leaves_the_output_alone(norm: bool) -> None:
    net = nets.from_linen(nets.MLP((5, 7), 3, norm=norm), (2, 2))
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    leaves = [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    params = jax.tree.unflatten(tree, leaves)
    obs = rng.normal(size=(6, 2, 2)).astype(np.float32)
    torso, head = params["Torso_0"], params["Dense_0"]

    h = obs.reshape(6, 4).astype(np.float64)
    for layer in range(2):
        h = h @ torso[f"Dense_{layer}"]["kernel"] + torso[f"Dense_{layer}"]["bias"]
        if norm:
            h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
            h = h * torso[f"LayerNorm_{layer}"]["scale"] + torso[f"LayerNorm_{layer}"]["bias"]
        h = np.maximum(h, 0)
    expected = h @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, obs), expected, rtol=1e-4, atol=1e-4)
    assert len(leaves) == (10 if norm else 6)  # so there is nothing else


def test_networks_start_as_published() -> None:
    """LeCun-normal weights, He-normal ones behind and in convolutions; zero biases."""

    def start(conv: tuple[int, ...], shape: tuple[int, ...]) -> dict[str, Any]:
        net = nets.from_linen(nets.MLP((256, 256), 64, conv, norm=True), shape)
        paths, _ = jax.tree_util.tree_flatten_with_path(jax.jit(net.init)(jax.random.key(0)))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in paths}

    for conv, shape in [((), (64,)), ((64,), (5, 5, 8))]:
        for name, x in start(conv, shape).items():
            if name.endswith("kernel"):
                gain = np.sqrt(2) if conv and name.startswith("Torso") else 1.0
                rows = np.prod(x.shape[:-1])
                assert np.std(x) * np.sqrt(rows) == pytest.approx(gain, rel=0.05), name
            else:
                assert jnp.all(x == float(name.endswith("scale"))), name


# --- what it refuses -----------------------------------------------------------------------------


def test_refuses_boxes() -> None:
    box = EnvSpec("arm", (3,), Box((-1.0,), (1.0,), (1,)))
    with pytest.raises(UserError, match="pqn needs discrete actions; arm has Box"):
        pqn.make(pqn.Config(), box)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"minibatches": 5}, "minibatches=5 does not divide num_envs . num_steps = 2048"),
        ({"total_steps": 2047}, "total_steps=2047 is less than one rollout"),
    ],
)
def test_refuses_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pqn.make(pqn.Config(**sizes), spec(500))


@pytest.mark.parametrize(
    "sizes",
    [{"minibatches": 0}, {"num_envs": 0}, {"num_steps": 0}, {"epochs": 0}, {"minibatches": -16}],
    ids=str,
)
def test_refuses_sizes_below_one(sizes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        pqn.make(pqn.Config(**sizes), spec(500))


# --- minibatches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000, 1 << 16, 1 << 17])
def test_permutation_is_one(n: int) -> None:
    order = jax.jit(permutation, static_argnums=1)(jax.random.key(n), n)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    assert n < 64 or np.mean(np.asarray(order) == np.arange(n)) < 0.1


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(np.sum((counts - expected) ** 2) / expected)


def test_permutations_are_uniform() -> None:
    """Each of the 4! orders, and each value in each place of 9, by χ² far in its tail."""
    keys = jax.random.split(jax.random.key(0), 48_000)
    many = jax.jit(jax.vmap(permutation, (0, None)), static_argnums=1)
    orders = np.asarray(many(keys, 4)) @ np.array([64, 16, 4, 1])
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 24
    assert chi_square(counts, 2000) < 58  # 23 degrees of freedom: above it 1 in 10,000
    places = np.asarray(many(keys[:18_000], 9))
    counts = np.array([np.bincount(places[:, i], minlength=9) for i in range(9)])
    assert chi_square(counts, 2000) < 114  # 64 degrees of freedom


def test_neighbours_do_not_keep_their_order() -> None:
    """Also where one sort would leave most elements with an equal: half of the pairs in order."""
    n = 1 << 18
    place = np.argsort(jax.jit(permutation, static_argnums=1)(jax.random.key(1), n))
    apart = np.diff(place)
    assert abs(np.mean(apart > 0) - 0.5) < 5 * 0.5 / np.sqrt(n) and np.sum(apart == 1) < 12


@pytest.mark.parametrize("log_n", [11, 17, 21])
def test_small_parts_of_much_data_are_drawn_from_all_of_it(log_n: int) -> None:
    """Rows come in the order they were collected, so 256 of them must not be neighbours."""
    n, size = 1 << log_n, 256
    order = np.asarray(jax.jit(permutation, static_argnums=1)(jax.random.key(0), n))
    means = np.mean(order.reshape(-1, size) / n, 1)
    # Of uniform draws, 1 / √(12 · 256), a little less where they are drawn without replacement.
    assert np.std(means) < 2 / np.sqrt(12 * size)


def test_minibatches_cover_each_row_once_and_keep_rows_together() -> None:
    data = {"a": jnp.arange(24), "b": jnp.arange(24.0)[:, None] * jnp.array([[3.0, 10.0]])}
    parts = minibatches(jax.random.key(0), data, 6)
    assert parts["a"].shape == (6, 4) and parts["b"].shape == (6, 4, 2)
    np.testing.assert_array_equal(np.sort(parts["a"].reshape(-1)), np.arange(24))
    np.testing.assert_array_equal(parts["b"][..., 1], 10 * parts["a"])
    other = minibatches(jax.random.key(1), data, 6)
    assert not jnp.array_equal(parts["a"], other["a"])


# --- probes --------------------------------------------------------------------------------------

KINDS = {
    "constant": probes.constant(),
    "obs": probes.obs(),
    "delay": probes.delay(),
    "action": probes.action(),
    "match": probes.match(),
    "limit": probes.limit(8),
}
GAMMA = 0.8
PROBE_CFG = pqn.Config(
    total_steps=400 * 64, num_envs=8, num_steps=8, minibatches=4, epochs=2, hidden=(16,)
)
SEEDS, LAMBDAS = 2, (0.0, 0.9)


@pytest.fixture(scope="module")
def learnt() -> Any:
    """Q values [seeds, kinds, λ, observations -1 0 1, actions]."""
    members = list(itertools.product(range(SEEDS), range(len(KINDS)), LAMBDAS))
    count = len(members)
    hp = HyperParams(
        jax.tree.map(
            lambda x: jnp.full(count, x, jnp.float32),
            pqn.Hypers(lr=0.02, gamma=GAMMA, eps_end=0.3, reward_scale=1.0),
        ),
        {"kind": jnp.int32([kind for _, kind, _ in members])},
    )
    lam = jnp.float32([lam for _, _, lam in members])
    hp = hp._replace(agent=hp.agent.replace(lam=lam))
    plan = population.layout(count, jax.devices()[:1], count)
    program = pqn.program(PROBE_CFG, medley(list(KINDS.values())), evals=1, episodes=4)
    train = jax.jit(population.train(program, plan))
    result = train(jax.random.key(0), jnp.arange(count), hp, {})
    net = nets.from_linen(nets.MLP(PROBE_CFG.hidden, 2, norm=True), (1,))
    shown = jnp.array([-1.0, 0.0, 1.0])[:, None]
    q = jax.jit(jax.vmap(net.apply, (0, None)))(result.states["agent"].params, shown)
    return np.asarray(q).reshape(SEEDS, len(KINDS), len(LAMBDAS), 3, 2)


def test_probes(learnt: np.ndarray) -> None:
    """Q values of all that an agent without memory can know; NaN for what it never sees."""
    no, far = np.nan, 1 / (1 - GAMMA)
    answers = {  # of observations -1, 0, 1: actions 0, 1
        "constant": [[no, no], [1, 1], [no, no]],
        "obs": [[-1, -1], [no, no], [1, 1]],
        "delay": [[no, no], [GAMMA, GAMMA], [1, 1]],
        "action": [[no, no], [-1, 1], [no, no]],
        "match": [[1, -1], [no, no], [-1, 1]],
        "limit": [[no, no], [far, far], [no, no]],
    }
    assert answers.keys() == KINDS.keys()
    for i, (kind, expected) in enumerate(answers.items()):
        expected = np.broadcast_to(expected, learnt[:, i].shape)
        error = np.nanmax(np.abs(learnt[:, i] - expected) / np.abs(expected))
        assert error < 0.05, (kind, error)
