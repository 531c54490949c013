"""SAC: densities, targets and losses by hand, and the answers it learns in probes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from medley import medley

from jaxrl import population
from jaxrl.agents import sac
from jaxrl.distributions import Categorical, Normal
from jaxrl.envs import probes
from jaxrl.errors import UserError
from jaxrl.policies import ActionSamples, StochasticHead
from jaxrl.types import Array, Batch, Box, Discrete, Env, EnvSpec, HyperParams, PyTree, Transition

OBS, BATCH = 3, 8
BOX = EnvSpec("arm", (OBS,), Box((-1.0, 0.0), (1.0, 4.0), (2,)), 10)
DISCRETE = EnvSpec("buttons", (OBS,), Discrete(4), 10)
SPECS = {"box": BOX, "discrete": DISCRETE}
SIZES: dict[str, Any] = {"batch_size": BATCH, "hidden": (5,), "warmup": 8}

every_space = pytest.mark.parametrize("kind", SPECS)


def rows(spec: EnvSpec, seed: int = 0) -> Transition:
    """Folded rows [B] with actions of the space, and NaN behind terminations."""
    rng = np.random.default_rng(seed)
    number = lambda *shape: rng.normal(size=shape).astype(np.float32)
    if isinstance(spec.action, Box):
        action = rng.uniform(spec.action.low, spec.action.high, (BATCH, 2)).astype(np.float32)
    else:
        action = rng.integers(0, spec.action.n, BATCH, np.int32)
    end = np.arange(BATCH) % 3
    t = (number(BATCH, OBS), action, number(BATCH), number(BATCH, OBS), end == 1, end == 2, end < 0)
    discount = {"discount": jnp.asarray(rng.uniform(0.5, 1, BATCH).astype(np.float32))}
    return Transition(*map(jnp.asarray, t), extras=discount)


def hypers(**values: float) -> sac.Hypers:
    return jax.tree.map(jnp.float32, sac.Hypers(**values))


@functools.cache
def made(kind: str, **sizes: Any) -> tuple[StochasticHead, Any, sac.State]:
    """Head, jitted update, and a state whose target critics are not the critics."""
    cfg = sac.Config(**SIZES | sizes)
    agent = sac.make(cfg, SPECS[kind])
    state = jax.jit(agent.init)(jax.random.key(0), hypers(), {})
    np.testing.assert_array_equal(state.critic, state.target)
    assert not np.allclose(state.critic[0], state.critic[1])
    noise = jax.random.normal(jax.random.key(1), state.target.shape)
    state = state._replace(target=state.target + 0.3 * noise)
    return sac.head_of(cfg, SPECS[kind]), jax.jit(agent.update), state


# --- the policies --------------------------------------------------------------------------------


def test_density_of_squashed_actions() -> None:
    """p(a) = N(u; μ, σ) du/da at a = tanh u, in float64, also where tanh saturates."""
    head, _, _ = made("box")
    u = np.array([[-9.0, 0.3], [0.0, 2.0], [4.0, -6.0], [12.0, 1e-3]])
    mean, log_std = np.array([[0.5, -1.0]]), np.array([[0.2, -0.7]])
    dist = Normal(*(jnp.float32(np.broadcast_to(x, u.shape)) for x in (mean, log_std)))
    got = head.log_prob(dist, jnp.float32(u))
    z = (u - mean) / np.exp(log_std)
    normal = -0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)
    slope = -2 * (np.logaddexp(u, -u) - np.log(2))  # log of 1 / cosh²
    assert got.shape == (4, 1, 2)
    np.testing.assert_allclose(got[:, 0], normal - slope, rtol=1e-5, atol=1e-4)


def test_squashed_density_integrates_to_one() -> None:
    """Over actions in (-1, 1), by the midpoint rule."""
    head, _, _ = made("box")
    a = (np.arange(200_000) + 0.5) / 100_000 - 1
    u = jnp.float32(np.stack([np.arctanh(a)] * 2, -1))
    dist = Normal(jnp.zeros(u.shape) + jnp.array([[0.4, -1.0]]), jnp.zeros(u.shape) - 0.5)
    density = np.exp(np.float64(head.log_prob(dist, u)[:, 0]))
    np.testing.assert_allclose(density.mean(0) * 2, 1, rtol=1e-4)


def test_actions_lie_in_the_box_and_critics_see_them_scaled() -> None:
    """A sampled action and the one the environment takes have the same value."""
    head, _, state = made("box")
    obs = jax.random.normal(jax.random.key(2), (BATCH, OBS))
    dist, noise = head.policy(state.actor, obs), head.noise(jax.random.key(3), BATCH)
    action, samples = np.asarray(head.act(dist, noise, True)), head.samples(dist, noise)
    low, high = np.array(BOX.action.low), np.array(BOX.action.high)  # type: ignore[union-attr]
    assert np.all(action >= low - 1e-6) and np.all(action <= high + 1e-6)
    np.testing.assert_allclose(
        head.value(state.critic[0], obs, action),
        head.values(state.critic[0], obs, samples.action)[:, 0],
        rtol=1e-4,
        atol=1e-5,
    )
    centre, scale = (high + low) / 2, (high - low) / 2
    mode, mean = head.act(dist, noise, False), np.asarray(dist.mean)
    np.testing.assert_allclose(mode, np.tanh(mean) * scale + centre, rtol=1e-5, atol=1e-6)


def test_log_std_is_clipped() -> None:
    head, _, state = made("box")
    far = head.policy(1e4 * state.actor, jnp.ones((1, OBS)))
    assert set(np.asarray(far.log_std).ravel()) <= {-20.0, 2.0}


# --- losses and targets --------------------------------------------------------------------------


@every_space
def test_update_by_hand(kind: str) -> None:
    """Losses, entropy and the targets' move, by loops over rows and actions."""
    alpha, tau = 0.3, 0.25
    head, update, state = made(kind, learn_temperature=False)
    t = rows(SPECS[kind])
    hp = hypers(lr=0.01, tau=tau, temperature=alpha)
    key = jax.random.key(5)
    new, metrics = update(state, hp, Batch(t), key, jnp.int32(0))
    keys = jax.random.split(key, (1, 2))[0]
    noise = [head.noise(k, BATCH) for k in keys]

    def judged(obs: Array, critics: Array, noise: Array) -> tuple[np.ndarray, ...]:
        """Probabilities, log π and min Q [B, K] of the samples actions."""
        now = head.samples(head.policy(state.actor, obs), noise)
        both = [np.asarray(head.values(c, obs, now.action)) for c in critics]
        return np.asarray(now.weight), np.asarray(now.log_prob).sum(-1), np.minimum(*both)

    weight, log_pi, q = judged(t.next_obs, state.target, noise[0])
    soft = np.sum(weight * (q - alpha * log_pi), -1)
    loss = 0.0
    for i in range(BATCH):
        y = float(t.reward[i])
        if not t.terminated[i]:
            y += float(t.extras["discount"][i]) * soft[i]
        for critic in state.critic:
            taken = head.value(critic, t.obs[i : i + 1], t.action[i : i + 1])[0]
            loss += 0.5 * (float(taken) - y) ** 2 / BATCH
    np.testing.assert_allclose(metrics["critic_loss"], loss, rtol=1e-4)

    # The actor climbs the critics of after their step.
    weight, log_pi, q = judged(t.obs, new.critic, noise[1])
    loss = np.mean(np.sum(weight * (alpha * log_pi - q), -1))
    np.testing.assert_allclose(metrics["actor_loss"], loss, rtol=1e-4, atol=1e-5)
    entropy = -np.mean(np.sum(weight * log_pi, -1))
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)
    moved = state.target + tau * (new.critic - state.target)
    np.testing.assert_allclose(new.target, moved, rtol=1e-5, atol=1e-6)
    assert new.log_temperature == 0 and np.max(np.abs(new.actor - state.actor)) > 0.005


@pytest.mark.parametrize("target", [-9.0, 9.0])
def test_temperature_moves_the_entropy_towards_its_target(target: float) -> None:
    """One Adam step is lr against the sign of entropy - target."""
    _, update, state = made("box", target_entropy=target)
    new, metrics = update(state, hypers(lr=0.01), Batch(rows(BOX)), jax.random.key(5), jnp.int32(0))
    np.testing.assert_allclose(metrics["temperature"], 0.2, rtol=1e-5)
    change = new.log_temperature - state.log_temperature
    np.testing.assert_allclose(change, 0.01 * np.sign(target - metrics["entropy"]), rtol=1e-3)


def test_target_entropies() -> None:
    assert made("box")[0].target_entropy == -2
    np.testing.assert_allclose(made("discrete")[0].target_entropy, 0.98 * np.log(4))


def test_minimum_over_discrete_actions_is_a_softmax() -> None:
    """Of the very loss, by its logits: softmax(Q/α), where the gradient is zero."""
    q = jnp.array([[1.0, -0.5, 0.3, 0.0]])

    def loss(logits: Array) -> Array:
        dist = Categorical(logits)
        now = ActionSamples((), dist.log_probs[..., None], jnp.exp(dist.log_probs))
        return sac.actor_loss(now, q, jnp.float32(0.4))

    both = jax.jit(jax.value_and_grad(loss))
    least, slope = both(q / 0.4)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(least, -0.4 * jax.nn.logsumexp(q / 0.4), rtol=1e-5)
    assert both(q / 0.4 + jnp.array([[0.3, 0, 0, 0]]))[0] > least


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [Box((-np.inf,), (1.0,), (1,)), Box((-1.0,) * 4, (1.0,) * 4, (2, 2))],
    ids=["unbounded", "two axes"],
)
def test_refuses_boxes_it_cannot_act_in(space: Box) -> None:
    with pytest.raises(UserError, match="a squashed normal policy .*; arm has Box"):
        sac.make(sac.Config(), EnvSpec("arm", (OBS,), space))


def test_refuses_a_warm_up_beyond_the_buffer() -> None:
    with pytest.raises(UserError, match="too few for warmup=10000"):
        sac.make(sac.Config(capacity=9_999), BOX)


# --- probes --------------------------------------------------------------------------------------

GAMMA, SEEDS = 0.8, 2
PROBE: dict[str, Any] = {
    "num_envs": 4,
    "num_steps": 2,
    "gradient_steps": 2,
    "batch_size": 32,
    "capacity": 800,
    "warmup": 64,
    "learn_temperature": False,
    "hidden": (16,),
}


def learn(module: Any, cfg: Any, kinds: list[Env], hp: Any) -> PyTree:
    """Final states of SEEDS members in each of the environments, by one program.

    Hyperparameters are numbers, or one for each environment.
    """
    count = SEEDS * len(kinds)
    table = HyperParams(
        jax.tree.map(lambda x: jnp.asarray(np.resize(np.float32(x), count)), hp),
        {"kind": jnp.arange(count) % len(kinds)},
    )
    plan = population.layout(count, jax.devices()[:1], count)
    train = jax.jit(population.train(module.program(cfg, medley(kinds), evals=1, episodes=4), plan))
    return train(jax.random.key(0), jnp.arange(count), table, {}).states["agent"]


SHOWN = jnp.array([-1.0, 0.0, 1.0])[:, None]


@pytest.mark.slow
def test_probes_in_a_box() -> None:
    """Values of the mode, with an entropy bonus too small to see, and the best action of `aim`.

    One-step values do not contain the bonus, and `aim` needs one, lest the actor run into the flat
    ends of tanh before its critic knows better.
    """
    kinds = [
        probes.constant(continuous=True),
        probes.obs(continuous=True),
        probes.delay(continuous=True),
        probes.limit(8, continuous=True),
        probes.aim(),
    ]
    no, far = np.nan, 1 / (1 - GAMMA)
    answers = [[no, 1, no], [-1, no, 1], [no, GAMMA, 1], [no, far, no], [1, no, 1]]
    cfg = sac.Config(**PROBE, total_steps=8_000)
    temperature = np.array([1e-3, 1e-3, 1e-3, 1e-3, 0.05])
    hp = sac.Hypers(lr=0.005, gamma=GAMMA, tau=0.1, temperature=temperature)
    states = learn(sac, cfg, kinds, hp)
    head = sac.head_of(cfg, kinds[0].spec)

    @jax.jit
    @jax.vmap
    def play(state: sac.State) -> tuple[Array, Array]:
        action = head.act(head.policy(state.actor, SHOWN), jnp.zeros((3, 1)), False)
        return action[:, 0], head.value(state.critic[0], SHOWN, action)

    for i, (action, value) in enumerate(zip(*play(states), strict=True)):
        name = kinds[i % len(kinds)].spec.name
        expected = np.array(answers[i % len(kinds)])
        assert np.nanmax(np.abs(value - expected) / np.abs(expected)) < 0.07, name
        if name == "probe:aim":
            np.testing.assert_allclose(np.asarray(action)[[0, 2]], [-0.5, 0.5], atol=0.1)


@pytest.mark.slow
def test_probes_of_discrete_actions() -> None:
    """Q is exact after one step; the policy is softmax(Q/α)."""
    alpha = 0.5
    cfg = sac.Config(**PROBE, total_steps=8_000)
    kinds = [probes.action(), probes.match()]
    states = learn(sac, cfg, kinds, sac.Hypers(lr=0.01, tau=0.1, temperature=alpha))
    check_softmax(sac.head_of(cfg, kinds[0].spec), states.actor, alpha)


def check_softmax(head: StochasticHead, actors: Array, alpha: float) -> None:
    """Actors [P, size] of the probes `action` and `match` in turns."""
    p = np.exp(jax.jit(jax.vmap(lambda a: head.policy(a, SHOWN).log_probs))(actors))
    right = 1 / (1 + np.exp(-2 / alpha))  # of values 1 and -1
    np.testing.assert_allclose(p[0::2, 1, 1], right, atol=0.02)
    np.testing.assert_allclose(p[1::2, 0, 0], right, atol=0.02)
    np.testing.assert_allclose(p[1::2, 2, 1], right, atol=0.02)
