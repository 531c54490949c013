"""IQL: implicit Q-learning, offline or with online fine-tuning.

Offline Reinforcement Learning with Implicit Q-Learning. Ilya Kostrikov, Ashvin Nair, Sergey Levine.
ICLR 2022, arXiv:2110.06169.

V is the expectile τ of Q over the dataset's actions, Q has the target r + γ V(s'), and the policy
clones the dataset's actions with weights exp(β (Q - V)). No Q-value of an action outside the
dataset is used. As in the authors' code an update goes V, policy, Q, targets. Policy and Q use the
new V; the losses of V and policy use the target critics.

In a box the policy is a normal distribution over actions scaled to [-1, 1], with mean tanh(...) and
one state-independent log-std per dimension. For discrete actions the policy is categorical.

V and Q do not depend on the policy, which `extraction` chooses among three losses of
`jaxrl.extraction` on the same critics.

Fine-tuning mixes batches from the dataset and from a replay buffer of the agent's transitions, half
and half by default, with a constant learning rate.

Deviations from the authors' code:
- `normalise_obs` standardises observations, as in CORL; it is off by default, as in the authors'.
- Fine-tuning draws from dataset and replay buffer separately; there one buffer holds both.
- best_of_n takes the minimum of the target critics; Digi-Q's authors take the maximum, and clip
  advantages to [0, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from jaxrl import losses, nets
from jaxrl.algorithm import Algorithm
from jaxrl.corrections import dropped
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import UserError, at_least
from jaxrl.extraction import advantage_weights, best_of, cloning_loss, ddpg_bc_loss
from jaxrl.normalise import standardised, standardised_log_prob
from jaxrl.optim import Trainable, cosine, minimise, polyak
from jaxrl.policies import acting
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_fine_tuning, check_offline, fine_tuning, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Discrete, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps on the dataset"""
    batch_size: int = 256
    """transitions per gradient step"""
    normalise_obs: bool = False
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
    extraction: Literal["awr", "best_of_n", "ddpg_bc"] = "awr"
    """policy loss: advantage-weighted regression; cloning the best of the dataset's action and of
    actions of the policy; or the gradient of Q with cloning, in boxes, where beta weighs Q"""
    candidates: int = 16
    """actions of the policy per row, for best_of_n"""
    threshold: float = 0.0
    """advantage from which the best action is cloned, for best_of_n"""
    divergence: Literal["kl", "chi2"] = "kl"
    """f-divergence from the dataset's policy, for awr: weights exp(β A), or max(0, 1 + β A)"""
    dropout: float = bounded(0.0, least=0, below=1)
    """fraction of the policy's hidden units that are dropped in training"""
    finetune_steps: int = 0
    """environment steps of online fine-tuning after offline training; 0 turns it off"""
    num_envs: int = 1
    """parallel environments N of fine-tuning"""
    finetune_gradient_steps: int = 1
    """gradient steps per N environment steps of fine-tuning"""
    capacity: int = 1_000_000
    """transitions in the replay buffer of fine-tuning"""
    data_share: float = 0.5
    """fraction of each fine-tuning batch drawn from the dataset"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    lr_end: Any = bounded(0.0, least=0)
    """final learning rate of the policy's cosine schedule, as a fraction of lr; 1 keeps it
    constant"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    expectile: Any = bounded(0.7, above=0, below=1)
    """expectile τ of the value loss: 0.5 is the mean over dataset actions, towards 1 the maximum"""
    beta: Any = bounded(3.0, least=0)
    """inverse temperature β of the advantage weights exp(β A)"""
    max_weight: Any = bounded(100.0, above=0, finite=False)
    """upper limit of the advantage weights"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    value: PyTree  # value network
    critic: PyTree  # twin critics, leaves [2, ...]
    target: PyTree  # target critics
    opt: tuple[optax.OptState, ...]  # Adam of actor, value network and critics


class Layers(nn.Module):
    """[Dense -> ReLU (-> dropout, with a key)] per width, Dense to `out`; orthogonal, gain √2."""

    hidden: tuple[int, ...]
    out: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> Array:
        init = nets.orthogonal(np.sqrt(2))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, kernel_init=init)(x))
            if self.dropout and key is not None:
                x = dropped(x, jax.random.fold_in(key, i), self.dropout)
        return nn.Dense(self.out, kernel_init=init)(x)


class Gaussian(nn.Module):
    """Observations [B, *obs] to mean [B, A] in (-1, 1) and log-std [A] in [-5, 2]."""

    hidden: tuple[int, ...]
    size: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None) -> tuple[Array, Array]:
        mean = jnp.tanh(Layers(self.hidden, self.size, self.dropout)(x, key))
        log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
        return mean, jnp.clip(log_std, -5.0, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The parts that depend on the action space. Actions are in the environment's units.

    policy(actor, obs [B, *obs], key of dropout or nothing) -> dist
    log_prob(dist, action) -> [B]
    distance(dist, action) -> [] between the policy's mode and the dataset's actions
    critic_in(obs, action) -> input of both critics, [B, ...]
    q_of(outputs [B, ...] of a critic, action) -> [B]
    noise(key, n) -> noise of n actions
    act(dist, noise, explore) -> [n, ...]
    """

    actor: nets.Net
    critic: nets.Net
    policy: Callable[..., Any]
    log_prob: Callable[[Any, Array], Array]
    distance: Callable[[Any, Array], Array]
    critic_in: Callable[[Array, Array], Array]
    q_of: Callable[[Array, Array], Array]
    noise: Callable[[Array, int], Array]
    act: Callable[[Any, Array, bool], Array]

    def twins(self, critic: PyTree, obs: Array, action: Array) -> Array:
        """Q_i(s, a) [2, B] of parameters with leaves [2, ...]."""
        x = self.critic_in(obs, action)
        # Two input copies give batched products; with a single one XLA transposes activations.
        out = jax.vmap(self.critic.apply)(critic, jnp.broadcast_to(x[None], (2, *x.shape)))
        return jax.vmap(self.q_of, (0, None))(out, action)


def box_head(hidden: tuple[int, ...], spec: EnvSpec, dropout: float = 0.0) -> Head:
    """A normal distribution over unit actions; samples are clipped to the box."""
    space = box_scale("iql", spec)
    actor = nets.packed(nets.from_linen(Gaussian(hidden, space.size, dropout), spec.obs_shape))
    inputs = (int(np.prod(spec.obs_shape)) + space.size,)

    def policy(params: PyTree, obs: Array, *key: Array) -> Normal:
        mean, log_std = actor.apply(params, obs, *key)
        return Normal(mean, log_std[None])

    def critic_in(obs: Array, action: Array) -> Array:
        return jnp.concatenate([obs.reshape(obs.shape[0], -1), space.unit(action)], -1)

    def act(dist: Normal, noise: Array, explore: bool) -> Array:
        action = dist.sample(noise) if explore else dist.mode
        return space.scaled(jnp.clip(action, -1.0, 1.0))

    return Head(
        actor=actor,
        critic=nets.packed(nets.from_linen(Layers(hidden, 1), inputs)),
        policy=policy,
        log_prob=lambda dist, action: dist.log_prob(space.unit(action)),
        distance=lambda dist, action: losses.action_distance(dist.mode, space.unit(action)),
        critic_in=critic_in,
        q_of=lambda out, action: out[:, 0],
        noise=lambda key, n: Normal.noise(key, (n, space.size)),
        act=act,
    )


def discrete_head(hidden: tuple[int, ...], spec: EnvSpec, dropout: float = 0.0) -> Head:
    """A categorical distribution; critics have one output per action."""
    space = spec.action
    assert isinstance(space, Discrete)
    net = nets.packed(nets.from_linen(Layers(hidden, space.n, dropout), spec.obs_shape))
    return Head(
        actor=net,
        critic=net,
        policy=lambda params, obs, *key: Categorical(net.apply(params, obs, *key)),
        log_prob=lambda dist, action: dist.log_prob(action),
        distance=lambda dist, action: jnp.mean(dist.mode != action, dtype=jnp.float32),
        critic_in=lambda obs, action: obs,
        q_of=losses.q_of_action,
        noise=lambda key, n: Categorical.noise(key, (n, space.n)),
        act=lambda dist, noise, explore: dist.sample(noise) if explore else dist.mode,
    )


def make(cfg: Config, spec: EnvSpec, *, decay: bool = True) -> Agent:
    """The agent for environments of `spec`.

    Args:
      decay: whether the policy's learning rate follows the cosine schedule over cfg.updates.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
    """
    check(cfg)
    if cfg.extraction == "ddpg_bc" and isinstance(spec.action, Discrete):
        raise UserError("extraction=ddpg_bc needs actions in a box: use awr or best_of_n")
    head_of = discrete_head if isinstance(spec.action, Discrete) else box_head
    head = head_of(cfg.hidden, spec, cfg.dropout)
    value_net = nets.packed(nets.from_linen(Layers(cfg.hidden, 1), spec.obs_shape))
    return standardised(make_variant(cfg, head, value_net, decay=decay), cfg, spec)


def make_variant(cfg: Config, head: Head, value_net: nets.Net, *, decay: bool = True) -> Agent:
    """`make` for a head and a value network, whose observations are as given; hp.beta [] or [B]."""
    value_of = lambda params, obs: value_net.apply(params, obs)[:, 0]

    def init(key, hp, inputs):
        key_actor, key_value, key_critic = jax.random.split(key, 3)
        actor, value = head.actor.init(key_actor), value_net.init(key_value)
        # A loop, not a vmap: XLA would compute critics and targets separately, rounded differently.
        critic = jax.lax.map(head.critic.init, jax.random.split(key_critic))
        opt = tuple(optax.adam(hp.lr).init(x) for x in (actor, value, critic))
        return State(actor, value, critic, critic, opt)

    def update(state, hp, batch, key, step):
        t = losses.scaled_rewards(batch.transitions, hp)
        opt_actor, opt_value, opt_critic = state.opt
        q_target = jnp.min(head.twins(state.target, t.obs, t.action), 0)

        def of_value(value: PyTree) -> tuple[Array, None]:
            return losses.expectile_loss(q_target - value_of(value, t.obs), hp.expectile), None

        at = Trainable(state.value, opt_value)
        (value, opt_value), loss_v, _ = minimise(of_value, at, hp.lr)
        # The new V at s and s' in one pass.
        v, ahead = jnp.split(value_of(value, jnp.concatenate([t.obs, t.next_obs])), 2)

        cloned, weight = t.action, None
        if cfg.extraction == "awr":
            weight = advantage_weights(q_target - v, hp.beta, hp.max_weight, cfg.divergence)
        key, *drop = jax.random.split(key) if cfg.dropout else (key,)
        if cfg.extraction == "best_of_n":
            dist = head.policy(state.actor, t.obs)
            draw = lambda key: head.act(dist, head.noise(key, len(t.reward)), True)
            own = jax.vmap(draw)(jax.random.split(key, cfg.candidates))
            every = jnp.concatenate([t.action[None], own])
            value_at = lambda action: jnp.min(head.twins(state.target, t.obs, action), 0)
            cloned, weight = best_of(jax.vmap(value_at)(every) - v[None], every, cfg.threshold)

        def of_actor(actor: PyTree) -> tuple[Array, Array]:
            dist = head.policy(actor, t.obs, *drop)
            log_prob = head.log_prob(dist, cloned)
            if weight is None:  # ddpg_bc
                chosen = head.act(dist, jnp.zeros(()), False)  # the mode, which reads no noise
                q = jnp.min(head.twins(state.target, t.obs, chosen), 0)
                loss = ddpg_bc_loss(q, log_prob, hp.beta)
            else:
                loss = cloning_loss(log_prob, weight)
            return loss, head.distance(dist, t.action)

        rate = hp.lr * cosine(step / cfg.updates, hp.lr_end) if decay else hp.lr
        at = Trainable(state.actor, opt_actor)
        (actor, opt_actor), loss_pi, far = minimise(of_actor, at, rate)

        y = losses.td_target(t, hp.gamma, ahead)

        def of_critic(critic: PyTree) -> tuple[Array, Array]:
            q = head.twins(critic, t.obs, t.action)
            return losses.critic_loss(q, y), q

        at = Trainable(state.critic, opt_critic)
        (critic, opt_critic), loss_q, q = minimise(of_critic, at, hp.lr)

        target = polyak(state.target, critic, hp.tau)
        metrics = {
            "value_loss": loss_v,
            "actor_loss": loss_pi,
            "critic_loss": loss_q,
            "v": jnp.mean(v),
            "q": jnp.mean(q),
            "q_std": jnp.std(q),
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "action_distance": far,
        }
        if weight is not None:
            metrics["weight"] = jnp.mean(weight)
        return State(actor, value, critic, target, (opt_actor, opt_value, opt_critic)), metrics

    return Agent(init=init, update=update, act=acting(head), noise=head.noise, hypers=Hypers())


def log_prob(cfg: Config, spec: EnvSpec) -> Callable[[State, Hypers, Array, Array], Array]:
    """Function (state, hp, obs [B, *obs], action [B, ...]) -> log π(a|s) [B]; densities in a box
    are of actions scaled to [-1, 1]."""
    head = (discrete_head if isinstance(spec.action, Discrete) else box_head)(cfg.hidden, spec)
    plain = lambda state, hp, obs, action: head.log_prob(head.policy(state.actor, obs), action)
    return standardised_log_prob(plain, cfg)


def check(cfg: Config) -> None:
    """Raises UserError if sizes are too small or do not fit together."""
    check_offline(cfg)
    at_least(1, candidates=cfg.candidates)
    check_fine_tuning(cfg)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online."""
    agent, tuned = make(cfg, env.spec), make(cfg, env.spec, decay=False)
    online = fine_tuning(cfg, env, tuned, evals, episodes)
    return offline_program(cfg, env, agent, evals, episodes, after=online)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True, log_prob=log_prob)
