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
import optax
from flax import struct

from jaxrl import losses, nets
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.extraction import advantage_weights, best_of, ddpg_bc_loss, weighted_cloning_loss
from jaxrl.heads import Head, Layers, head_of
from jaxrl.normalise import standardised, standardised_log_prob
from jaxrl.optim import Trainable, cosine, minimise, polyak
from jaxrl.policies import acting
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_fine_tuning, check_offline, fine_tuning, offline_program
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
    head = head_of(cfg.hidden, spec, cfg.dropout)
    value_net = nets.packed(nets.from_linen(Layers(cfg.hidden, 1), spec.obs_shape))
    return standardised(make_variant(cfg, head, value_net, decay=decay), cfg, spec)


def make_variant(cfg: Config, head: Head, value_net: nets.Net, *, decay: bool = True) -> Agent:
    """`make` for a head and a value network, whose observations are as given; hp.beta [] or [B]."""
    value_of = lambda params, obs: value_net.apply(params, obs)[:, 0]

    def init(key, hp, inputs):
        key_actor, key_value, key_critic = jax.random.split(key, 3)
        actor, value = head.actor.init(key_actor), value_net.init(key_value)
        critic = nets.init_stack(head.critic.init, key_critic)
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
                loss = weighted_cloning_loss(log_prob, weight)
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
    head = head_of(cfg.hidden, spec)
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
