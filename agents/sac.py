"""SAC: soft actor-critic, with twin critics and a fixed or learned temperature.

Soft Actor-Critic Algorithms and Applications. Tuomas Haarnoja, Aurick Zhou, Kristian Hartikainen,
George Tucker, Sehoon Ha, Jie Tan, Vikash Kumar, Henry Zhu, Abhishek Gupta, Pieter Abbeel, Sergey
Levine. arXiv:1812.05905.
Soft Actor-Critic for Discrete Action Settings. Petros Christodoulou. arXiv:1910.07207.

The actor minimises E[α log π(a|s) - min_i Q_i(s, a)], the critics follow
r + γ (min_i Q'_i(s', a') - α log π(a'|s')) with slowly moving copies Q'. In a box the policy is a
normal distribution squashed by tanh, and one sample stands for the expectation over actions; over
discrete actions it is the exact sum.

Densities are those of actions in [-1, 1], whatever the bounds of the box. An update is a window of
N environments by T steps followed by `gradient_steps` gradient steps, one per step by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from jaxrl import nets
from jaxrl.agents.dqn import check_sizes, chosen, move, source, td_target
from jaxrl.agents.pqn import single_stage
from jaxrl.distributions import Categorical, Normal, tanh_correction
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.program import Program
from jaxrl.sources import parts
from jaxrl.types import Agent, Array, Batch, Box, Discrete, Env, EnvSpec, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    total_steps: int = 1_000_000
    """environment steps of a run, all environments together, after the warm-up"""
    num_envs: int = 1
    """parallel environments N"""
    num_steps: int = 1
    """steps T per environment between updates"""
    gradient_steps: int = 1
    """gradient steps of an update"""
    batch_size: int = 256
    """transitions of a gradient step"""
    capacity: int = 1_000_000
    """transitions in the replay buffer"""
    warmup: int = 10_000
    """environment steps with random actions before the first update"""
    n_step: int = 1
    """rewards summed before the bootstrap"""
    learn_temperature: bool = True
    """adapt the temperature to the target entropy; else it stays as it is"""
    target_entropy: float | None = None
    """nats; by default -A for a box of A dimensions, 0.98 log A for A discrete actions"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics"""

    @property
    def window(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        return self.total_steps // self.window


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of all Adam optimisers"""
    gamma: Any = 0.99
    """discount"""
    tau: Any = 0.005
    """share of the way that the target critics move in a gradient step"""
    temperature: Any = 0.2
    """weight α of the entropy, at the start where it is learned"""


class State(NamedTuple):
    actor: Array  # [size] parameters, as one vector
    critic: Array  # [2, size] of the twins
    target: Array  # [2, size]
    log_temperature: Array  # [], 0 where it is not learned
    opt: tuple[optax.OptState, ...]  # of actor, critic and log_temperature


# --- the two kinds of action space ---------------------------------------------------------------


class Considered(NamedTuple):
    """K actions per state by which a policy is judged: one sample in a box, or all A of them."""

    action: PyTree  # how a `Head` is told of them: samples before tanh [B, A]; () where it is all
    log_prob: Array  # [B, K, F] by factor of the policy: the dimensions of a box
    weight: Array  # [B, K], sums to 1


Mlp = Callable[[tuple[int, ...], int], nn.Module]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What depends on the kind of action space. `dist` is the actor's output, policy(actor, obs).

    actor(key), critic(key) -> their first parameters, as one vector
    policy(actor, obs [B, *obs]) -> dist
    noise(key, n) -> noise of n actions
    act(dist, noise, explore) -> actions [n, ...] for the environment
    consider(dist, noise) -> Considered
    log_prob(dist, action) -> [B, K, F] of considered actions, under any policy
    values(critic, obs, action) -> [B, K] Q of considered actions
    value(critic, obs, action) -> [B] Q of actions as the environment took them
    """

    actor: Callable[[Array], Array]
    critic: Callable[[Array], Array]
    policy: Callable[[Array, Array], Any]
    noise: Callable[[Array, int], Array]
    act: Callable[[Any, Array, bool], Array]
    consider: Callable[[Any, Array], Considered]
    log_prob: Callable[[Any, PyTree], Array]
    values: Callable[[Array, Array, PyTree], Array]
    value: Callable[[Array, Array, Array], Array]
    target_entropy: float


def head_of(cfg: Config, spec: EnvSpec) -> Head:
    """The head for the action space of `spec`.

    Raises:
      UserError: the space is a box without bounds or of more than one axis, or sizes do not fit.
    """
    check_sizes(cfg)
    at_least(1, smallest_layer=min((*cfg.hidden, 1)))
    head = (box_head if isinstance(spec.action, Box) else discrete_head)(cfg.hidden, spec)
    if cfg.target_entropy is None:
        return head
    return dataclasses.replace(head, target_entropy=cfg.target_entropy)


def box_head(
    hidden: tuple[int, ...],
    spec: EnvSpec,
    least_log_std: float = -20.0,
    actor: Mlp = nets.MLP,
    critic: Mlp = nets.MLP,
) -> Head:
    """A normal distribution of log-std up to 2, squashed by tanh and scaled to the box.

    `actor` and `critic` make networks from widths of hidden layers and a number of outputs.
    """
    space = spec.action
    assert isinstance(space, Box)
    low, high = np.array([space.low], np.float32), np.array([space.high], np.float32)  # [1, A]
    if len(space.shape) != 1 or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"actions must be a bounded box of one axis; {spec.name} has {space}")
    scale, centre, size = (high - low) / 2, (high + low) / 2, low.shape[-1]
    actor_net = nets.flat(nets.from_linen(actor(hidden, 2 * size), spec.obs_shape))
    inputs = (int(np.prod(spec.obs_shape)) + size,)
    critic_net = nets.flat(nets.from_linen(critic(hidden, 1), inputs))

    def policy(params: Array, obs: Array) -> Normal:
        mean, log_std = jnp.split(actor_net.apply(params, obs), 2, -1)
        return Normal(mean, jnp.clip(log_std, least_log_std, 2.0))

    def act(dist: Normal, noise: Array, explore: bool) -> Array:
        return jnp.tanh(dist.sample(noise) if explore else dist.mode) * scale + centre

    def consider(dist: Normal, noise: Array) -> Considered:
        action = dist.sample(noise)
        return Considered(action, log_prob(dist, action), jnp.ones((action.shape[0], 1)))

    def log_prob(dist: Normal, action: Array) -> Array:
        each = Normal(dist.mean[..., None], dist.log_std[..., None])  # dimensions by themselves
        action = action[..., None]
        return (each.log_prob(action) - tanh_correction(action))[:, None]

    def q(params: Array, obs: Array, action: Array) -> Array:
        x = jnp.concatenate([obs.reshape(obs.shape[0], -1), action], -1)
        return critic_net.apply(params, x)

    return Head(
        actor=actor_net.init,
        critic=critic_net.init,
        policy=policy,
        noise=lambda key, n: Normal.noise(key, (n, size)),
        act=act,
        consider=consider,
        log_prob=log_prob,
        values=lambda params, obs, action: q(params, obs, jnp.tanh(action)),
        value=lambda params, obs, action: q(params, obs, (action - centre) / scale)[:, 0],
        target_entropy=-float(size),
    )


def discrete_head(hidden: tuple[int, ...], spec: EnvSpec) -> Head:
    """A categorical distribution; critics value all actions at once, expectations are exact."""
    space = spec.action
    assert isinstance(space, Discrete)
    net = nets.flat(nets.from_linen(nets.MLP(hidden, space.n), spec.obs_shape))

    def log_prob(dist: Categorical, action: PyTree) -> Array:
        return dist.log_probs[..., None]

    def consider(dist: Categorical, noise: Array) -> Considered:
        return Considered((), log_prob(dist, ()), jnp.exp(dist.log_probs))

    return Head(
        actor=net.init,
        critic=net.init,
        policy=lambda actor, obs: Categorical(net.apply(actor, obs)),
        noise=lambda key, n: Categorical.noise(key, (n, space.n)),
        act=lambda dist, noise, explore: dist.sample(noise) if explore else dist.mode,
        consider=consider,
        log_prob=log_prob,
        values=lambda params, obs, action: net.apply(params, obs),
        value=lambda params, obs, action: chosen(net.apply(params, obs), action),
        target_entropy=0.98 * float(np.log(space.n)),
    )


# --- learning ------------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the agent cannot act in that space, or the sizes do not fit.
    """
    head = head_of(cfg, spec)

    def init(key: Array, hp: Hypers, inputs: PyTree) -> State:
        return begin(cfg, head, key, hp)

    def act(
        state: State,
        hp: Hypers,
        obs: Array,
        start: Array,
        memory: PyTree,
        noise: Array,
        explore: bool,
    ) -> tuple[Array, PyTree, dict[str, Array]]:
        return head.act(head.policy(state.actor, obs), noise, explore), memory, {}

    def update(
        state: State, hp: Hypers, batch: Batch, key: Array, step: Array
    ) -> tuple[State, dict[str, Array]]:
        def objective(now: Considered, obs: Array, q: Array, temperature: Array) -> Array:
            return actor_loss(now, q, temperature)

        return learn(cfg, head, state, hp, batch, key, objective, joint)

    return Agent(init=init, update=update, act=act, noise=head.noise)


def begin(cfg: Config, head: Head, key: Array, hp: Any) -> State:
    """The state before the first update."""
    key_actor, key_critic = jax.random.split(key)
    actor = head.actor(key_actor)
    # A loop, not a vmap: XLA would compute critics and targets apart, with other last bits.
    critic = jax.lax.map(head.critic, jax.random.split(key_critic))
    learned = jnp.log(jnp.asarray(hp.temperature, jnp.float32))
    log_temperature = learned if cfg.learn_temperature else jnp.zeros(())
    opt = tuple(optax.adam(hp.lr).init(x) for x in (actor, critic, log_temperature))
    return State(actor, critic, critic, log_temperature, opt)


def learn(
    cfg: Config,
    head: Head,
    state: State,
    hp: Any,
    batch: Batch,
    key: Array,
    objective: Callable[[Considered, Array, Array, Array], Array],
    log_pi: Callable[[Array], Array],
) -> tuple[State, dict[str, Array]]:
    """Gradient steps of critics, actor and temperature on the rows of `batch`, in this order.

    Args:
      objective: the actor's loss [] of (considered actions, obs, min_i Q_i of them [B, K], α).
      log_pi: [B, K] from log-probabilities by factor [B, K, F]: what the critics' targets take for
        log π.
    """
    twins = lambda fn: jax.vmap(fn, (0, None, None))
    optimiser = optax.adam(hp.lr)

    def descend(params: Array, grads: Array, opt: PyTree) -> tuple[PyTree, PyTree]:
        change, opt = optimiser.update(grads, opt)
        return optax.apply_updates(params, change), opt

    def gradient_step(state: State, xs: tuple[Transition, Array]) -> tuple[State, Any]:
        t, noise = xs
        opt_actor, opt_critic, opt_temperature = state.opt
        temperature = jnp.exp(state.log_temperature) if cfg.learn_temperature else hp.temperature

        ahead = head.consider(head.policy(state.actor, t.next_obs), noise[0])
        q = jnp.min(twins(head.values)(state.target, t.next_obs, ahead.action), 0)
        value = expected(ahead, q - temperature * log_pi(ahead.log_prob))
        y = td_target(t, hp.gamma, value)

        def critic_loss(critic: Array) -> tuple[Array, Array]:
            q = twins(head.value)(critic, t.obs, t.action)  # [2, B]
            return 0.5 * jnp.sum(jnp.mean((q - y[None]) ** 2, -1)), jnp.mean(q)

        (loss_q, q), grads = jax.value_and_grad(critic_loss, has_aux=True)(state.critic)
        critic, opt_critic = descend(state.critic, grads, opt_critic)

        def of_actor(actor: Array) -> tuple[Array, Considered]:
            now = head.consider(head.policy(actor, t.obs), noise[1])
            q = jnp.min(twins(head.values)(critic, t.obs, now.action), 0)
            return objective(now, t.obs, q, temperature), now

        (loss_pi, now), grads = jax.value_and_grad(of_actor, has_aux=True)(state.actor)
        actor, opt_actor = descend(state.actor, grads, opt_actor)

        entropy = -jnp.mean(expected(now, joint(now.log_prob)))
        log_temperature = state.log_temperature
        if cfg.learn_temperature:  # d/dlog α of α (entropy - target)
            grads = temperature * (entropy - head.target_entropy)
            log_temperature, opt_temperature = descend(log_temperature, grads, opt_temperature)

        target = move(state.target, critic, hp.tau)
        opt = (opt_actor, opt_critic, opt_temperature)
        metrics = {
            "critic_loss": loss_q,
            "actor_loss": loss_pi,
            "q": q,
            "entropy": entropy,
            "temperature": jnp.asarray(temperature, jnp.float32),
        }
        return State(actor, critic, target, log_temperature, opt), metrics

    keys = jax.random.split(key, (cfg.gradient_steps, 2))
    noise = jax.vmap(jax.vmap(lambda key: head.noise(key, cfg.batch_size)))(keys)
    rows = parts(batch.transitions, cfg.gradient_steps)
    state, metrics = jax.lax.scan(gradient_step, state, (rows, noise))
    return state, jax.tree.map(jnp.mean, metrics)


def joint(log_prob: Array) -> Array:
    """log π [B, K] of its factors [B, K, F]."""
    return jnp.sum(log_prob, -1)


def expected(considered: Considered, values: Array) -> Array:
    """E over actions [B] of values [B, K]."""
    return jnp.sum(considered.weight * values, -1)


def actor_loss(now: Considered, q: Array, temperature: Array) -> Array:
    """mean over states of E[α log π - Q]. q [B, K]."""
    return jnp.mean(expected(now, temperature * joint(now.log_prob) - q))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes of the policy's mode."""
    agent = make(cfg, env.spec)
    return single_stage(cfg, agent, source(cfg, env, agent), evaluator(env, agent, episodes), evals)
