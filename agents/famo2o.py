"""FamO2O: IQL with a family of policies and a balance of improvement and constraint per state.

Train Once, Get a Family: State-Adaptive Balances for Offline-to-Online Reinforcement Learning.
Shenzhi Wang, Qisen Yang, Jiawei Gao, Matthieu Gaetan Lin, Hao Chen, Liwei Wu, Ning Jia, Shiji Song,
Gao Huang. NeurIPS 2023, arXiv:2310.17966.

The universal model π(a|s, β) is trained as IQL's policy, by advantage-weighted regression with
weights exp(β A). The balance coefficient β is drawn uniformly from [beta_low, beta_high] for each
row, weighs the advantage, and is an input of the policy, as sines and cosines. One network is thus
a family of policies, from near cloning (small β) to near the best of the data (large β).

The balance model chooses β(s): a tanh-squashed normal distribution over the range, trained as the
actor of SAC on E[α log p(β|s) - min_i Q_i(s, a)] with a ~ π(·|s, β), through β, with a learned
temperature. Both models act together, β being the mode. Critics are those of `jaxrl.agents.iql`.

In fine-tuning, the universal model is trained at the β(s) of the balance model.

Deviations from the authors' code, and choices where it was not available:
- Those of `jaxrl.agents.iql`. Only IQL's variant is here, not CQL's.
- Fine-tuning uses the mode of β(s). Log-densities are of β scaled to [-1, 1], for which the target
  entropy -1/2 is meant.
- The gradient of the balance model's loss does not train the universal model.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import nets
from jaxrl.agents import iql
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.heads import Head, Layers, box_head
from jaxrl.normalise import standardised
from jaxrl.optim import Trainable, adam_step, minimise
from jaxrl.policies import StochasticHead, mean_entropy, squashed_head, sum_log_probs
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import fine_tuning, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Box, Env, EnvSpec, PyTree

EMBEDDING = 6  # sines and cosines of β in front of the universal model
TARGET_ENTROPY = -0.5  # nats, of the balance model


@dataclasses.dataclass(frozen=True)
class Config(iql.Config):
    """Static configuration: a new value compiles a new program."""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam, of all networks"""
    lr_end: Any = bounded(0.0, least=0)
    """final learning rate of the universal model's cosine schedule, as a fraction of lr; 1 keeps it
    constant"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    expectile: Any = bounded(0.7, above=0, below=1)
    """expectile τ of the value loss: 0.5 is the mean over dataset actions, towards 1 the maximum"""
    beta_low: Any = bounded(1.0, least=0)
    """smallest balance coefficient β"""
    beta_high: Any = bounded(6.0, least=0)
    """largest balance coefficient β; the same as beta_low gives IQL at that β"""
    temperature: Any = bounded(1.0, above=0)
    """initial weight α of the balance model's entropy"""
    max_weight: Any = bounded(100.0, above=0, finite=False)
    """upper limit of the advantage weights"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


class State(NamedTuple):
    inner: iql.State  # universal model, value network and critics
    balance: PyTree  # parameters of the balance model
    log_temperature: Array  # [] log α
    opt: tuple[optax.OptState, optax.OptState]  # Adam of balance and log_temperature


def universal_head(hidden: tuple[int, ...], spec: EnvSpec, dropout: float = 0.0) -> Head:
    """IQL's head for observations with β, [B, S + EMBEDDING]; critics see the first S elements."""
    box_scale("famo2o", spec)
    size = spec.obs_size
    seen = dataclasses.replace(spec, obs_shape=(size,))
    critic = box_head(hidden, seen)
    wide = dataclasses.replace(spec, obs_shape=(size + EMBEDDING,))
    actor = box_head(hidden, wide, dropout)
    return dataclasses.replace(
        actor,
        critic=critic.critic,
        critic_in=lambda obs, action: critic.critic_in(obs[:, :size], action),
    )


def balance_head(hidden: tuple[int, ...], spec: EnvSpec) -> StochasticHead:
    """The balance model: a squashed normal distribution over one number in [-1, 1]."""
    return squashed_head(hidden, dataclasses.replace(spec, action=Box((-1.0,), (1.0,), (1,))))


def coefficient(unit: Array, hp: Hypers) -> Array:
    """β [B] of numbers [B] in [-1, 1]: -1 is beta_low, 1 is beta_high."""
    return hp.beta_low + 0.5 * (unit + 1) * (hp.beta_high - hp.beta_low)


def with_beta(obs: Array, beta: Array) -> Array:
    """Observations [B, *obs] and β [B] as input of the universal model, [B, S + EMBEDDING]."""
    return jnp.concatenate([obs.reshape(len(obs), -1), nets.sinusoids(beta, EMBEDDING)], -1)


def make(cfg: Config, spec: EnvSpec, *, online: bool = False) -> Agent:
    """The agent for environments of `spec`.

    Args:
      online: train the universal model at the balance model's β, with a constant learning rate.

    Raises:
      UserError: the action space is not a bounded box of one axis, `extraction` is not awr, or
        sizes do not fit together.
    """
    iql.check(cfg)
    if cfg.extraction != "awr":
        raise UserError(f"extraction={cfg.extraction} has no balance per state: use awr")
    head = universal_head(cfg.hidden, spec, cfg.dropout)
    balance = balance_head(cfg.hidden, spec)
    size = spec.obs_size
    net = nets.packed(nets.from_linen(Layers(cfg.hidden, 1), (size,)))
    value_net = nets.Net(net.init, lambda params, seen: net.apply(params, seen[:, :size]))
    inner = iql.make_variant(cfg, head, value_net, decay=not online)

    def chosen(params: PyTree, hp: Hypers, obs: Array) -> Array:
        """β(s) [B], the mode of the balance model."""
        return coefficient(jnp.tanh(balance.policy(params, obs).mode[:, 0]), hp)

    def init(key, hp, inputs):
        key_inner, key_balance = jax.random.split(key)
        params = balance.actor(key_balance)
        log_temperature = jnp.log(jnp.asarray(hp.temperature, jnp.float32))
        adam = optax.adam(hp.lr)
        opt = (adam.init(params), adam.init(log_temperature))
        base = inner.init(key_inner, base_hypers(hp, jnp.float32(1)), inputs)
        return State(base, params, log_temperature, opt)

    def update(state, hp, batch, key, step):
        t = batch.transitions
        key_beta, key_inner, key_u, key_action = jax.random.split(key, 4)
        rows = len(t.reward)
        if online:
            beta = chosen(state.balance, hp, t.obs)
        else:
            beta = coefficient(jax.random.uniform(key_beta, (rows,), minval=-1.0), hp)
        # The value network and the critics do not see β, so that of successors does not matter.
        seen = t._replace(obs=with_beta(t.obs, beta), next_obs=with_beta(t.next_obs, beta))
        base, metrics = inner.update(
            state.inner,
            base_hypers(hp, beta),
            batch._replace(transitions=seen),
            key_inner,
            step,
        )

        temperature, noise = jnp.exp(state.log_temperature), balance.noise(key_u, rows)
        action_noise = head.noise(key_action, rows)

        def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
            drawn = balance.samples(balance.policy(params, t.obs), noise)
            beta = coefficient(jnp.tanh(drawn.action[:, 0]), hp)
            seen = with_beta(t.obs, beta)
            action = head.act(head.policy(base.actor, seen), action_noise, True)
            q = jnp.min(head.twins(base.critic, seen, action), 0)
            log_prob = sum_log_probs(drawn.log_prob)[:, 0]
            return jnp.mean(temperature * log_prob - q), (beta, mean_entropy(drawn))

        at = Trainable(state.balance, state.opt[0])
        (params, opt_balance), loss_b, (beta, entropy) = minimise(loss, at, hp.lr)
        grads = temperature * (entropy - TARGET_ENTROPY)  # with respect to log α
        log_temperature, opt_temperature = adam_step(
            state.log_temperature, grads, state.opt[1], hp.lr
        )
        metrics |= {
            "balance_loss": loss_b,
            "beta": jnp.mean(beta),
            "beta_std": jnp.std(beta),
            "entropy": entropy,
            "temperature": temperature,
        }
        return State(base, params, log_temperature, (opt_balance, opt_temperature)), metrics

    def act(state, hp, obs, start, memory, noise, explore):
        seen = with_beta(obs, chosen(state.balance, hp, obs))
        return head.act(head.policy(state.inner.actor, seen), noise, explore), memory, {}

    agent = Agent(init=init, update=update, act=act, noise=head.noise, hypers=Hypers())
    return standardised(agent, cfg, spec)


def base_hypers(hp: Hypers, beta: Array) -> iql.Hypers:
    """The hyperparameters of IQL's update at β [B] or []."""
    return iql.Hypers(
        lr=hp.lr,
        lr_end=hp.lr_end,
        gamma=hp.gamma,
        tau=hp.tau,
        expectile=hp.expectile,
        beta=beta,
        max_weight=hp.max_weight,
        reward_scale=hp.reward_scale,
        reward_shift=hp.reward_shift,
    )


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online."""
    agent = make(cfg, env.spec)
    online = fine_tuning(cfg, env, make(cfg, env.spec, online=True), evals, episodes)
    return offline_program(cfg, env, agent, evals, episodes, after=online)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
