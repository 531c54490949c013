"""PPO: an update written out, what it records when acting, and what it learns in probes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from medley import medley
from scipy import stats
from test_pqn import ENVS, OBS, STEPS, window
from test_returns import oracle

from jaxrl import population
from jaxrl.agents import ppo
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.minibatch import scan_epochs
from jaxrl.types import Array, Batch, Box, Discrete, EnvSpec, HyperParams, PyTree, Transition

CFG = ppo.Config(
    total_steps=10 * STEPS * ENVS,
    num_envs=ENVS,
    num_steps=STEPS,
    minibatches=1,
    epochs=2,
    actor=(5,),
    critic=(4,),
    clip_value=True,
)
SPACES: dict[str, Discrete | Box] = {
    "discrete": Discrete(4),
    "continuous": Box((-0.5, -1.0), (0.5, 2.0), (2,)),
}


def spec(space: str, max_steps: int | None = STEPS) -> EnvSpec:
    return EnvSpec("made", (OBS,), SPACES[space], max_steps)


def hypers(**values: float) -> ppo.Hypers:
    return jax.tree.map(jnp.float32, ppo.Hypers(**values))


# --- an update by hand ---------------------------------------------------------------------------


def forward(params: PyTree, obs: Any) -> Any:
    """A network of one hidden layer, written out."""
    hidden, out = params["Dense_0"], params["Dense_1"]
    features = jnp.tanh(obs @ hidden["kernel"] + hidden["bias"][None])
    return features @ out["kernel"] + out["bias"][None]


def terms(space: str, params: PyTree, obs: Array, sample: Array) -> tuple[Array, Array, Array]:
    """Log-probability of the sample, entropy, and value of one observation, written out."""
    out = forward(params["actor"]["Network_0"], obs[None])[0]
    value = forward(params["critic"], obs[None])[0, 0]
    if space == "discrete":
        p = jnp.exp(out) / jnp.sum(jnp.exp(out))
        return jnp.log(p[sample]), -jnp.sum(p * jnp.log(p)), value
    std = jnp.exp(params["actor"]["log_std"])
    density = jnp.exp(-(((sample - out) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
    return jnp.log(jnp.prod(density)), jnp.sum(jnp.log(std * np.sqrt(2 * np.pi * np.e))), value


@functools.cache
def start(space: str) -> tuple[ppo.State, Transition]:
    """A state away from its initial values, and a window that a slightly other policy acted in."""
    agent = ppo.make(CFG, spec(space))
    state = jax.jit(agent.init)(jax.random.key(0), hypers(), {})
    shake = lambda size, tree, seed: jax.tree.map(
        lambda x, k: x + size * jax.random.normal(k, x.shape),
        tree,
        jax.tree.unflatten(
            jax.tree.structure(tree),
            list(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(tree)))),
        ),
    )
    params = shake(0.3, state.params, 1)
    acting = {"actor": shake(0.1, params["actor"], 2), "critic": params["critic"]}
    value = lambda obs: forward(params["critic"], obs.reshape(-1, OBS)).reshape(obs.shape[:-1])
    t = window(0, jax.jit(value))
    noise = jax.vmap(lambda key: agent.noise(key, ENVS))(jax.random.split(jax.random.key(3), STEPS))
    one = lambda obs, noise: agent.act(
        ppo.State(acting, ()), hypers(), obs, jnp.zeros(ENVS, bool), (), noise, True
    )
    _, _, extras = jax.jit(jax.vmap(one))(t.obs, noise)
    return state._replace(params=params), t._replace(extras=extras | {"value": t.extras["value"]})


def random_window(space: str) -> Transition:
    """A window whose samples, log-probabilities and values are random numbers."""
    rng: Any = np.random.default_rng(1)
    t, shape = window(0, lambda obs: rng.normal(size=obs.shape[:-1])), (STEPS, ENVS)
    if space == "discrete":
        sample, log_prob = rng.integers(0, 4, shape, np.int32), np.full(shape, -np.log(4))
    else:
        sample = rng.normal(size=(*shape, 2))
        log_prob = stats.norm.logpdf(sample).sum(-1)
    log_prob = log_prob + 0.1 * rng.normal(size=shape)
    extras = {"sample": sample, "log_prob": log_prob, "value": t.extras["value"]}
    single = lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else x.dtype)
    return jax.tree.map(single, t._replace(extras=extras))


@pytest.mark.parametrize("space", SPACES)
def test_update_by_hand(space: str) -> None:
    """Two epochs of the whole window: GAE, every term of the loss, clipping, Adam, its schedule.

    What lies behind a termination is NaN here, and does not show.
    """
    hp = hypers(
        lr=0.02, lr_end=0.1, gamma=0.9, lam=0.6, clip=0.1, value_clip=0.05, value_weight=0.7,
        entropy_weight=0.3, max_grad_norm=0.2,
    )  # fmt: skip
    state, t = start(space)
    spoilt = t._replace(next_obs=jnp.where(t.terminated[..., None], jnp.nan, t.next_obs))
    update = jax.jit(ppo.make(CFG, spec(space)).update)
    new, metrics = update(state, hp, Batch(spoilt), jax.random.key(2), jnp.int32(7))

    value = t.extras["value"]
    after = forward(state.params["critic"], t.next_obs.reshape(-1, OBS)).reshape(value.shape)
    targets = oracle(t.reward, after, t.terminated, t.truncated, 0.9, 0.6)
    params, expected, norms = by_hand(space, state.params, t, jnp.float32(targets))
    assert min(norms) > 0.2  # so that clipping counts
    for a, b, old in zip(*map(jax.tree.leaves, (new.params, params, state.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert jnp.max(jnp.abs(b - old)) > 1e-3
    for name, numbers in expected.items():
        np.testing.assert_allclose(metrics[name], np.mean(numbers), rtol=1e-4, err_msg=name)
    assert 0.1 < metrics["clipped"] < 0.9


@functools.partial(jax.jit, static_argnums=0)
def by_hand(space: str, params: PyTree, t: Transition, targets: Array) -> Any:
    """Parameters after two steps; the terms of the loss and the gradient's norms on the way."""
    rows = lambda x: x.reshape(-1, *x.shape[2:])
    value_then = rows(t.extras["value"])
    advantage = rows(targets) - value_then
    advantage = (advantage - jnp.mean(advantage)) / jnp.std(advantage)

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        each = jax.vmap(functools.partial(terms, space, params))
        log_prob, entropy, value = each(rows(t.obs), rows(t.extras["sample"]))
        ratio = jnp.exp(log_prob) / jnp.exp(rows(t.extras["log_prob"]))
        # Where A > 0 the ratio is bounded from above, elsewhere from below.
        bounded = jnp.where(advantage > 0, jnp.minimum(ratio, 1.1), jnp.maximum(ratio, 0.9))
        gain = jnp.mean(bounded * advantage)
        near = jnp.where(jnp.abs(value - value_then) < 0.05, value, value_then
                         + 0.05 * jnp.sign(value - value_then))  # fmt: skip
        free, held = (value - rows(targets)) ** 2, (near - rows(targets)) ** 2
        error = jnp.mean(jnp.where(free > held, free, held)) / 2
        found = {
            "policy_loss": -gain,
            "value_loss": error,
            "entropy": jnp.mean(entropy),
            "kl": jnp.mean(ratio - 1 - jnp.log(ratio)),
            "clipped": jnp.mean((ratio > 1.1) | (ratio < 0.9)),
        }
        return 0.7 * error - gain - 0.3 * jnp.mean(entropy), found

    # Update 7 of 10, in which the rate is constant.
    rate = optax.linear_schedule(0.02, 0.002, 10)(7)
    chain: Any = optax.chain(optax.clip_by_global_norm(0.2), optax.adam(rate, eps=1e-5))
    opt, found, norms = chain.init(params), [], []
    for _ in range(2):
        grads, terms_now = jax.grad(loss, has_aux=True)(params)
        updates, opt = chain.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        found.append(terms_now)
        norms.append(optax.tree.norm(grads))
    return params, jax.tree.map(lambda *x: jnp.stack(x), *found), norms


def test_every_epoch_goes_through_all_rows_in_another_order() -> None:
    data = {"row": jnp.arange(12), "tenfold": 10 * jnp.arange(12)}
    add = lambda total, part: (total + jnp.sum(part["row"]), part)
    total, seen = scan_epochs(add, jnp.int32(0), jax.random.key(0), data, 3, 4)
    assert total == 3 * sum(range(12)) and seen["row"].shape == (3, 4, 3)
    np.testing.assert_array_equal(seen["tenfold"], 10 * seen["row"])
    orders = np.asarray(seen["row"]).reshape(3, 12)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(12), (3, 1)))
    assert len({tuple(order) for order in orders}) == 3
    _, whole = scan_epochs(add, jnp.int32(0), jax.random.key(0), data, 2, 1)
    np.testing.assert_array_equal(whole["row"][:, 0], np.tile(np.arange(12), (2, 1)))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_clipping_stops_the_gradient_on_the_winning_side_only(advantage: float) -> None:
    ratios = jnp.array([0.5, 0.75, 0.85, 1.0, 1.15, 1.25, 2.0])
    slope = jax.vmap(jax.grad(ppo.clipped_gain), (0, None, None))(ratios, advantage, 0.2)
    won = ratios > 1.2 if advantage > 0 else ratios < 0.8
    np.testing.assert_array_equal(slope, np.where(won, 0, advantage))


def test_values_are_held_by_the_worse_of_two_errors() -> None:
    """Moving on beyond ± value_clip gains nothing; moving back is never stopped."""
    rows = lambda target: ppo.Experience(*[jnp.zeros(1)] * 5, target=jnp.array([target]))
    slope = lambda value, target: jax.grad(
        lambda v: ppo.value_loss(CFG, hypers(value_clip=0.2), v, rows(target))
    )(jnp.array([value]))[0]
    assert slope(0.1, 1.0) == pytest.approx(-0.9)
    assert slope(0.3, 1.0) == 0  # on the way to the target, but too far from 0, where it acted
    assert slope(0.3, -1.0) == pytest.approx(1.3)
    assert slope(1.4, 1.0) == pytest.approx(0.0)  # the held error, 0.8, is the larger one


@pytest.mark.parametrize("where", ["minibatch", "batch", "raw"])
def test_where_advantages_are_standardised(where: Any) -> None:
    """Of rows as they come to the loss; targets stay as they are."""
    state, t = start("discrete")
    cfg = ppo.Config(**(vars(CFG) | {"advantages": where}))
    model = ppo.networks(cfg, spec("discrete"))
    run = jax.jit(lambda state, t: ppo.experience(cfg, model, state.params, hypers(), t))
    rows = run(state, t)
    plain = np.asarray(rows.target - rows.value)
    if where == "batch":
        assert np.mean(rows.advantage) == pytest.approx(0, abs=1e-6)
        assert np.std(rows.advantage) == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(np.corrcoef(plain, rows.advantage)[0, 1], 1, rtol=1e-5)
    else:
        np.testing.assert_allclose(rows.advantage, plain, rtol=1e-4, atol=1e-6)


# --- acting and networks -------------------------------------------------------------------------


def test_the_environment_sees_clipped_actions_and_learning_the_samples() -> None:
    agent, (state, _) = ppo.make(CFG, spec("continuous")), start("continuous")
    box, n = SPACES["continuous"], 400
    assert isinstance(box, Box)
    obs, no = jax.random.normal(jax.random.key(0), (n, OBS)), jnp.zeros(n, bool)
    noise = agent.noise(jax.random.key(1), n)
    act = jax.jit(agent.act, static_argnames="explore")
    action, _, extras = act(state, hypers(), obs, no, (), noise=noise, explore=True)
    sample = np.asarray(extras["sample"])
    low, high = np.array(box.low), np.array(box.high)
    in_box = lambda x: np.clip((low + high) / 2 + (high - low) / 2 * np.asarray(x), low, high)
    np.testing.assert_allclose(action, in_box(sample), rtol=1e-5, atol=1e-6)
    outside = np.abs(sample) > 1
    assert 0.1 < np.mean(outside) < 0.9

    mean = np.asarray(forward(state.params["actor"]["Network_0"], obs))
    std = np.exp(state.params["actor"]["log_std"])
    expected = stats.norm(mean, std).logpdf(sample).sum(-1)
    np.testing.assert_allclose(extras["log_prob"], expected, rtol=1e-4, atol=1e-5)
    z = (sample - mean) / std
    assert np.all(np.abs(np.mean(z, 0)) < 4 / np.sqrt(n))
    assert np.all(np.abs(np.std(z, 0) - 1) < 4 / np.sqrt(2 * n))
    calm, _, nothing = act(state, hypers(), obs, no, (), noise=noise, explore=False)
    np.testing.assert_allclose(calm, in_box(mean), rtol=1e-5, atol=1e-6)
    assert nothing == {}


def test_networks_start_orthogonal_with_small_actions() -> None:
    cfg = ppo.Config(conv=(6,), actor=(16, 8), critic=(16,), activation="relu")
    model = ppo.networks(cfg, EnvSpec("image", (5, 5, 2), Box((-1.0,) * 3, (1.0,) * 3, (3,))))
    params = jax.jit(model.init)(jax.random.key(0))
    assert np.all(params["actor"]["log_std"] == 0)
    networks = {"actor": params["actor"]["Network_0"], "critic": params["critic"]}
    heads = {"actor": ("Dense_2", 0.01), "critic": ("Dense_1", 1.0)}
    for name, network in networks.items():
        for layer, leaves in network.items():
            kernel = np.asarray(leaves["kernel"]).reshape(-1, leaves["kernel"].shape[-1])
            gain = heads[name][1] if layer == heads[name][0] else np.sqrt(2)
            gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
            np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5 * gain)
            assert np.all(leaves["bias"] == 0)
    plain = ppo.networks(ppo.Config(orthogonal=False, actor=(256,)), spec("discrete"))
    head = jax.jit(plain.init)(jax.random.key(0))["actor"]["Network_0"]["Dense_1"]["kernel"]
    assert np.std(head) * np.sqrt(256) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minibatches": 5}, "minibatches=5 does not divide num_envs . num_steps = 24"),
        ({"total_steps": 23}, "total_steps=23 is less than one rollout"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"resets": 4}, "resets=4 does not divide num_steps=6"),
        ({"minibatches": 24}, "minibatches of at most 12, not 24; or use advantages=batch"),
        ({"conv": (4,)}, "conv=.4,. with kernels=.3,. needs larger images"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ppo.make(ppo.Config(**(vars(CFG) | change)), spec("discrete"))


def test_refuses_to_standardise_a_rollout_of_one_row() -> None:
    one = {"total_steps": 24, "num_envs": 1, "num_steps": 1, "minibatches": 1}
    cfg = ppo.Config(**(vars(CFG) | one | {"advantages": "batch"}))
    with pytest.raises(UserError, match="needs two rows per rollout, got 1; use raw"):
        ppo.make(cfg, spec("discrete"))


def test_refuses_boxes_of_several_axes() -> None:
    with pytest.raises(UserError, match=r"must have one axis; arm has \(1, 2\)"):
        ppo.make(CFG, EnvSpec("arm", (3,), Box((-1.0, -1.0), (1.0, 1.0), (1, 2))))


# --- probes --------------------------------------------------------------------------------------

GAMMA, SEEDS = 0.8, 2
SHOWN = jnp.array([-1.0, 0.0, 1.0])[:, None]
NO = np.nan  # what an agent never sees
PROBES = {  # the environment, and the values of observations -1, 0, 1
    "constant": (probes.constant(), [NO, 1, NO]),
    "obs": (probes.obs(), [-1, NO, 1]),
    "delay": (probes.delay(), [NO, GAMMA, 1]),
    "action": (probes.action(), [NO, 1, NO]),
    "match": (probes.match(), [1, NO, 1]),
    "limit": (probes.limit(8), [NO, 1 / (1 - GAMMA), NO]),
}
SIZES: dict[str, Any] = {
    "total_steps": 400 * 64,
    "num_envs": 8,
    "num_steps": 8,
    "minibatches": 4,
    "epochs": 2,
    "actor": (16,),
    "critic": (16,),
}


def learn_probes(module: Any, cfg: Any, hp: Any, kinds: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """Distributions [kinds, seeds, SHOWN] and values [kinds, seeds, SHOWN] of a trained agent."""
    env = medley([env for env, _ in kinds.values()])
    count = SEEDS * len(kinds)
    hp = HyperParams(
        jax.tree.map(lambda x: jnp.full(count, x, jnp.float32), hp),
        {"kind": jnp.arange(count, dtype=jnp.int32) // SEEDS},
    )
    plan = population.layout(count, jax.devices()[:1], count)
    program = module.program(cfg, env, evals=1, episodes=4)
    result = jax.jit(population.train(program, plan))(jax.random.key(0), jnp.arange(count), hp, {})
    model = ppo.networks(cfg, env.spec)

    def look(params: PyTree) -> tuple[Any, Array]:
        return model.actor.apply(params["actor"], SHOWN), model.value(params["critic"], SHOWN)

    seen = jax.jit(jax.vmap(look))(result.states["agent"].params)
    return jax.tree.map(lambda x: np.asarray(x).reshape(len(kinds), SEEDS, *x.shape[1:]), seen)


def check_values(kinds: dict[str, Any], values: np.ndarray) -> None:
    for (kind, (_, expected)), got in zip(kinds.items(), values, strict=True):
        error = np.nanmax(np.abs(got - np.array(expected)))
        assert error < 0.05 * np.nanmax(np.abs(expected)), (kind, error)


def test_probes() -> None:
    """Values, and the probability of the better action where there is one."""
    hp = ppo.Hypers(lr=0.01, gamma=GAMMA, lam=0.9)
    policy, values = learn_probes(ppo, ppo.Config(**SIZES), hp, PROBES)
    check_values(PROBES, values)
    kinds, p = list(PROBES), np.exp(np.asarray(policy.log_probs))
    assert np.all(p[kinds.index("action"), :, 1, 1] > 0.97)
    assert np.all(p[kinds.index("match"), :, [0, 2], [0, 1]] > 0.97)


AIM = {"aim": (probes.aim(), [1, NO, 1])}


@pytest.mark.slow
def test_aims() -> None:
    """Means at half the observation; the entropy falls, and with it what noise costs the value."""
    cfg = ppo.Config(**SIZES | {"num_envs": 16, "total_steps": 400 * 128})
    policy, values = learn_probes(ppo, cfg, ppo.Hypers(lr=0.01, gamma=GAMMA), AIM)
    np.testing.assert_allclose(policy.mean[0, :, [0, 2], 0].T, [[-0.5, 0.5]] * SEEDS, atol=0.1)
    assert np.all(np.exp(policy.log_std) < 0.3), policy.log_std
    check_values(AIM, values)
