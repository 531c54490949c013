"""AWAC: advantage-weighted actor-critic, offline or with online fine-tuning.

AWAC: Accelerating Online Reinforcement Learning with Offline Datasets. Ashvin Nair, Abhishek Gupta,
Murtaza Dalal, Sergey Levine. arXiv:2006.09359.

The target of twin critics is r + γ min_i Q'_i(s', a') with a' from the policy. The policy clones
the actions of the batch with weights exp(A / λ), A = min_i Q_i(s, a) - min_i Q_i(s, a_π) with a_π
from the policy (eq. 8 and alg. 1): the solution of policy improvement under a KL constraint to the
behaviour, without a model of the behaviour. An update goes critics, policy, targets.

In a box the policy is a normal distribution over actions scaled to [-1, 1], with mean tanh(...) and
one state-independent log-std per dimension; samples are clipped. For discrete actions it is
categorical.

Fine-tuning mixes batches from the dataset and from a replay buffer of the agent's transitions.

Deviations from the paper:
- Weights are limited by `max_weight`, as in CORL's code, and not normalised over the batch.
- Fine-tuning draws from dataset and replay buffer separately; there one buffer holds both.
- Networks are initialised as in IQL's code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.extraction import advantage_weights, weighted_cloning_loss
from jaxrl.heads import head_of
from jaxrl.losses import critic_loss, scaled_rewards, td_target
from jaxrl.optim import Trainable, minimise, polyak
from jaxrl.policies import acting
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_fine_tuning, check_offline, fine_tuning, offline_program
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 25_000
    """gradient steps on the dataset"""
    batch_size: int = 1_024
    """transitions per gradient step"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
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
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    lam: Any = bounded(1.0, above=0)
    """temperature λ of the advantage weights exp(A / λ)"""
    max_weight: Any = bounded(100.0, above=0, finite=False)
    """upper limit of the advantage weights"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    critic: PyTree  # twin critics, leaves [2, ...]
    target: PyTree  # target critics
    opt: tuple[optax.OptState, optax.OptState]  # Adam of actor and critics


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
    """
    check_offline(cfg)
    check_fine_tuning(cfg)
    head = head_of(cfg.hidden, spec)

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        actor = head.actor.init(key_actor)
        critic = nets.init_stack(head.critic.init, key_critic)
        opt = (optax.adam(hp.lr).init(actor), optax.adam(hp.lr).init(critic))
        return State(actor, critic, critic, opt)

    def least(critic: PyTree, obs: Array, action: Array) -> Array:
        return jnp.min(head.twins(critic, obs, action), 0)

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        key_now, key_ahead = jax.random.split(key)
        sample = lambda key, obs: head.act(
            head.policy(state.actor, obs), head.noise(key, cfg.batch_size), True
        )

        y = td_target(t, hp.gamma, least(state.target, t.next_obs, sample(key_ahead, t.next_obs)))

        def of_critic(critic: PyTree) -> tuple[Array, Array]:
            q = head.twins(critic, t.obs, t.action)
            return critic_loss(q, y), q

        at = Trainable(state.critic, state.opt[1])
        (critic, opt_critic), loss_q, q = minimise(of_critic, at, hp.lr)

        value = least(critic, t.obs, sample(key_now, t.obs))
        advantage = least(critic, t.obs, t.action) - value
        weight = advantage_weights(advantage, 1 / hp.lam, hp.max_weight)

        def of_actor(actor: PyTree) -> tuple[Array, Array]:
            dist = head.policy(actor, t.obs)
            loss = weighted_cloning_loss(head.log_prob(dist, t.action), weight)
            return loss, head.distance(dist, t.action)

        at = Trainable(state.actor, state.opt[0])
        (actor, opt_actor), loss_pi, far = minimise(of_actor, at, hp.lr)

        metrics = {
            "critic_loss": loss_q,
            "actor_loss": loss_pi,
            "q": jnp.mean(q),
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "advantage": jnp.mean(advantage),
            "weight": jnp.mean(weight),
            "action_distance": far,
        }
        target = polyak(state.target, critic, hp.tau)
        return State(actor, critic, target, (opt_actor, opt_critic)), metrics

    return Agent(init=init, update=update, act=acting(head), noise=head.noise, hypers=Hypers())


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online."""
    agent = make(cfg, env.spec)
    online = fine_tuning(cfg, env, agent, evals, episodes)
    return offline_program(cfg, env, agent, evals, episodes, after=online)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
