"""SAC: soft actor-critic with twin critics and a fixed or learned temperature.

Soft Actor-Critic Algorithms and Applications. Tuomas Haarnoja, Aurick Zhou, Kristian Hartikainen,
George Tucker, Sehoon Ha, Jie Tan, Vikash Kumar, Henry Zhu, Abhishek Gupta, Pieter Abbeel, Sergey
Levine. arXiv:1812.05905.
Soft Actor-Critic for Discrete Action Settings. Petros Christodoulou. arXiv:1910.07207.

The actor minimises E[α log π(a|s) - min_i Q_i(s, a)]. The critics' target is
r + γ (min_i Q'_i(s', a') - α log π(a'|s')) with Polyak-averaged target critics Q'. In a box the
policy is a tanh-squashed normal distribution, and one sample estimates the expectation over
actions. For discrete actions the expectation is the exact sum; in environments with action masks it
is over legal actions.

With N `critics` of which M random ones give the target's minimum (`target_critics`), and their mean
in the actor's loss (`mean_critic`), the agent is RED-Q (Chen et al., ICLR 2021, arXiv:2101.05982);
`policy_every` critic steps are followed by one of policy and temperature.

An update is a rollout of T steps in N environments followed by `gradient_steps` gradient steps, one
per environment step by default. Log-densities are of actions scaled to [-1, 1].

Deviations from the authors' code:
- The gradient of the temperature is that of α (entropy - target) with respect to log α, as in eq.
  18 of the paper; theirs is that of log α (entropy - target), which lacks the factor α.
- The actor uses the critics after their update. The temperature uses the entropy of the policy
  before its update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.ensembles import check_ensemble, random_critics
from jaxrl.errors import UserError, at_least
from jaxrl.losses import td_target
from jaxrl.optim import Trainable, adam_step, minimise, polyak
from jaxrl.policies import (
    ActionSamples,
    StochasticHead,
    acting,
    categorical_head,
    expectation,
    least_value,
    mean_entropy,
    mean_value,
    squashed_head,
    sum_log_probs,
    target_entropy,
)
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_replay, off_policy
from jaxrl.sources import split_batch
from jaxrl.types import Agent, Array, Batch, Box, Env, EnvSpec, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 1_000_000
    """environment steps of a run after the warm-up, summed over its parallel environments"""
    num_envs: int = 1
    """parallel environments N"""
    num_steps: int = 1
    """steps T per environment and rollout"""
    gradient_steps: int = 1
    """gradient steps per rollout"""
    batch_size: int = 256
    """transitions per gradient step"""
    capacity: int = 1_000_000
    """transitions in the replay buffer"""
    warmup: int = 10_000
    """environment steps with random actions before the first update"""
    n_step: int = 1
    """number n of rewards in the n-step targets"""
    learn_temperature: bool = True
    """learn the temperature for the target entropy; otherwise it stays constant"""
    target_entropy: float | None = bounded(None)
    """target entropy in nats; default -A (box of A dimensions), 0.98 log A (A discrete actions)"""
    entropy_backup: bool = True
    """subtract α log π of the successor's action in the critics' targets"""
    critics: int = 2
    """number N of critics"""
    target_critics: int = 2
    """number M of random critics whose minimum is the target's value"""
    mean_critic: bool = False
    """the policy maximises the mean of all critics instead of their minimum"""
    layer_norm: bool = False
    """LayerNorm before the activations of the critics"""
    policy_every: int = 1
    """gradient steps of the critics per gradient step of policy and temperature"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""

    @property
    def window(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        return self.total_steps // self.window


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    temperature: Any = bounded(0.2, above=0)
    """weight α of the entropy; the initial value if learned"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    critic: PyTree  # the N critics, leaves [N, ...]
    target: PyTree  # target critics
    log_temperature: Array  # [] log α; 0 if not learned
    opt: tuple[optax.OptState, ...]  # Adam of actor, critics and log_temperature


# --- the two kinds of action space ---------------------------------------------------------------


def head_of(cfg: Config, spec: EnvSpec) -> StochasticHead:
    """The head for the action space of `spec`.

    Raises:
      UserError: the action space is a box without bounds or of several axes, or sizes do not
        fit together.
    """
    check_replay(cfg)
    at_least(1, hidden=cfg.hidden, policy_every=cfg.policy_every)
    check_ensemble(cfg.critics, cfg.target_critics)
    if cfg.gradient_steps % cfg.policy_every:
        raise UserError(
            f"policy_every={cfg.policy_every} does not divide gradient_steps={cfg.gradient_steps}"
        )
    critic = functools.partial(nets.MLP, norm=cfg.layer_norm)
    head_for = squashed_head if isinstance(spec.action, Box) else categorical_head
    head = head_for(cfg.hidden, spec, critic=critic)
    if cfg.target_entropy is None:
        return head
    return dataclasses.replace(head, target_entropy=cfg.target_entropy)


# --- learning ------------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
    """
    head = head_of(cfg, spec)

    def init(key, hp, inputs):
        return begin(head, key, hp, learned=cfg.learn_temperature, critics=cfg.critics)

    def update(state, hp, batch, key, step):
        def objective(now: ActionSamples, obs: Array, q: Array, temperature: Array) -> Array:
            return actor_loss(now, q, temperature)

        return learn(cfg, head, state, hp, batch, key, objective, sum_log_probs)

    act = acting(head)
    return Agent(
        init=init,
        update=update,
        act=act,
        noise=head.noise,
        masks=True,
        views=True,
        hypers=Hypers(),
    )


def begin(
    head: StochasticHead, key: Array, hp: Any, *, learned: bool = True, critics: int = 2
) -> State:
    """The state before the first update; `learned` says whether the temperature is."""
    key_actor, key_critic = jax.random.split(key)
    actor = head.actor(key_actor)
    critic = nets.init_stack(head.critic, key_critic, critics)
    initial = jnp.log(jnp.asarray(hp.temperature, jnp.float32))
    log_temperature = initial if learned else jnp.zeros(())
    opt = tuple(optax.adam(hp.lr).init(x) for x in (actor, critic, log_temperature))
    return State(actor, critic, critic, log_temperature, opt)


def learn(
    cfg: Config,
    head: StochasticHead,
    state: State,
    hp: Any,
    batch: Batch,
    key: Array,
    objective: Callable[[ActionSamples, Array, Array, Array], Array],
    log_pi: Callable[[Array], Array],
) -> tuple[State, dict[str, Array]]:
    """Gradient steps of critics, actor and temperature, in this order, on the rows of `batch`.

    Each `policy_every` steps of the critics are followed by one of actor and temperature, on the
    rows of the last.

    Args:
      objective: the actor's loss [] of (sampled actions, obs, their Q-values [B, K], α).
      log_pi: maps log-probabilities by factor [B, K, F] to log π [B, K] in the critics' targets.
    """

    def gradient_steps(state: State, xs: tuple[Transition, Array, Array]) -> tuple[State, Any]:
        opt_actor, opt_critic, opt_temperature = state.opt
        temperature = jnp.exp(state.log_temperature) if cfg.learn_temperature else hp.temperature

        def critic_step(carry: tuple[Trainable, PyTree], xs: PyTree) -> tuple[Any, Any]:
            (at, target), (t, noise, key) = carry, xs
            ahead = head.samples(head.policy(state.actor, t.next_obs), noise[0])
            some = random_critics(target, key, cfg.target_critics)
            value = least_value(head, some, t.next_obs, ahead.action)
            if cfg.entropy_backup:
                value = value - temperature * log_pi(ahead.log_prob)
            y = td_target(t, hp.gamma, expectation(ahead, value))

            def critic_loss(critic: PyTree) -> tuple[Array, Array]:
                q = nets.each(head.value)(critic, t.obs, t.action)  # [N, B]
                return 0.5 * jnp.sum(jnp.mean((q - y[None]) ** 2, -1)), jnp.mean(q)

            at, loss, q = minimise(critic_loss, at, hp.lr)
            target = polyak(target, at.params, hp.tau)
            return (at, target), {"critic_loss": loss, "q": q}

        begin = (Trainable(state.critic, opt_critic), state.target)
        ((critic, opt_critic), target), metrics = jax.lax.scan(critic_step, begin, xs)
        t, (_, noise) = nets.pick(xs[0], -1), xs[1][-1]

        def of_actor(actor: PyTree) -> tuple[Array, ActionSamples]:
            now = head.samples(head.policy(actor, t.obs), noise)
            each = mean_value if cfg.mean_critic else least_value
            return objective(now, t.obs, each(head, critic, t.obs, now.action), temperature), now

        at = Trainable(state.actor, opt_actor)
        (actor, opt_actor), loss_pi, now = minimise(of_actor, at, hp.lr)

        entropy = mean_entropy(now)
        log_temperature = state.log_temperature
        if cfg.learn_temperature:  # gradient of α (entropy - target) with respect to log α
            grads = temperature * (entropy - target_entropy(head, t.obs))
            log_temperature, opt_temperature = adam_step(
                log_temperature, grads, opt_temperature, hp.lr
            )

        opt = (opt_actor, opt_critic, opt_temperature)
        metrics = jax.tree.map(jnp.mean, metrics) | {
            "actor_loss": loss_pi,
            "entropy": entropy,
            "temperature": jnp.asarray(temperature, jnp.float32),
        }
        return State(actor, critic, target, log_temperature, opt), metrics

    # A third key per step only if critics are drawn.
    drawn = cfg.target_critics < cfg.critics
    keys = jax.random.split(key, (cfg.gradient_steps, 2 + drawn))
    noise = jax.vmap(jax.vmap(lambda key: head.noise(key, cfg.batch_size)))(keys[:, :2])
    rows = split_batch(batch.transitions, cfg.gradient_steps)
    # Not `split_batch`, which would divide these gradient steps, not their rows, over devices.
    grouped = lambda x: x.reshape(-1, cfg.policy_every, *x.shape[1:])
    xs = jax.tree.map(grouped, (rows, noise, keys[:, -1]))
    state, metrics = jax.lax.scan(gradient_steps, state, xs)
    return state, jax.tree.map(jnp.mean, metrics)


def actor_loss(now: ActionSamples, q: Array, temperature: Array) -> Array:
    """Mean over states of E[α log π - Q] []; q [B, K]."""
    return jnp.mean(expectation(now, temperature * sum_log_probs(now.log_prob) - q))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    return off_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
