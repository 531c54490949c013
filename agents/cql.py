"""CQL: conservative Q-learning, SAC with critics pushed down on actions outside the dataset.

Conservative Q-Learning for Offline Reinforcement Learning. Aviral Kumar, Aurick Zhou, George
Tucker, Sergey Levine. NeurIPS 2020, arXiv:2006.04779. The variant is CQL(H), eq. 4.

The critic loss is the squared TD error of twin critics plus the regulariser

  weight · E[log ∫ exp Q(s, a) da - Q(s, a_data)].

The integral is estimated by importance sampling from uniform actions and the policy's at s and s'.
Policy and temperature are SAC's. Targets leave out the entropy, as in the authors' code.
`correction` regularises critics that over- or underfit (`jaxrl.corrections`).

Fine-tuning mixes batches from the dataset and from a replay buffer of the agent's transitions, with
the same loss.

Deviations from the authors' code:
- The actor is trained on the critics after their update (there on those before it).
- The actor is not pretrained by behaviour cloning.
- The integral is estimated by a mean over samples, which changes the loss by a constant.
- The gradient of the temperature is that of α (entropy - target) with respect to log α; theirs is
  that of log α (entropy - target), which lacks the factor α.

CORL's reimplementation (arXiv:2210.07105) is the options `normalise_obs`, `networks` "corl" and, on
MuJoCo tasks where it scales rewards, `--normalise-returns`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jaxrl import corrections, nets, policies
from jaxrl.agents.sac import State, actor_loss, begin
from jaxrl.algorithm import Algorithm
from jaxrl.corrections import Correction
from jaxrl.errors import UserError, at_least
from jaxrl.losses import action_distance, critic_loss, scaled_rewards, td_target
from jaxrl.normalise import standardised
from jaxrl.optim import Trainable, adam_step, minimise, polyak
from jaxrl.policies import StochasticHead
from jaxrl.products import Dense
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_fine_tuning, check_offline, fine_tuning, offline_program
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """transitions per gradient step"""
    samples: int = 10
    """actions per row from each of: the uniform distribution, the policy at s, the policy at s'"""
    learn_temperature: bool = True
    """learn the temperature for a target entropy of -A nats; otherwise it stays constant"""
    normalise_obs: bool = False
    """standardise observations with the mean and standard deviation of the dataset"""
    networks: Literal["plain", "corl"] = "plain"
    """initial weights: LeCun normal; or as in CORL's code, whose policy also multiplies the log-std
    by a learned factor (at first 1) and adds a learned offset (at first -1)"""
    hidden: tuple[int, ...] = (256, 256, 256)
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
    correction: Correction = "none"
    """of critics that overfit: vib, a variational information bottleneck, or dropout; of critics
    that underfit: dr3, a penalty on the alignment of successive features"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of the critics' Adam"""
    actor_lr: Any = bounded(3e-5, least=0)
    """learning rate of Adam for policy and temperature"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    temperature: Any = bounded(1.0, above=0)
    """weight α of the entropy; the initial value if learned"""
    weight: Any = bounded(10.0, least=0)
    """weight of the conservative regulariser, relative to the squared TD error"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""
    strength: Any = bounded(1e-3, least=0)
    """weight of the bottleneck's divergence or of dr3's penalty, or the probability of dropout"""


Calibrate = Callable[[Array, Transition], Array]
"""(values [2, K, B] of the proposals, rows [B]) -> values [2, K, B]; uniform actions come first."""


def _unchanged(elsewhere: Array, t: Transition) -> Array:
    return elsewhere


class Proposals(NamedTuple):
    """K actions per row for the importance-sampled integral, and their log-densities."""

    action: Array  # [K, B, A] in the environment's units
    log_density: Array  # [K, B] log-density of the unit actions under their proposal distribution


def make(cfg: Config, spec: EnvSpec, calibrate: Calibrate = _unchanged) -> Agent:
    """The agent for environments of `spec`.

    Args:
      calibrate: changes the values that the regulariser pushes down.

    Raises:
      UserError: the action space is not a bounded box of one axis, or sizes do not fit together.
    """
    check_offline(cfg)
    check_fine_tuning(cfg)
    at_least(1, samples=cfg.samples)
    space = box_scale("cql", spec)
    head = head_of(cfg, spec)
    inputs = spec.obs_size + space.size
    trained = corrections.training(cfg.hidden, inputs, cfg.correction)
    twins = nets.each(head.value)
    least = functools.partial(policies.least_value, head)

    def init(key, hp, inputs):
        return begin(head, key, hp, learned=cfg.learn_temperature)

    def in_training(critic: PyTree, obs: Array, action: Array, key: Array, hp: Hypers) -> Any:
        """`corrections.Trained` of both critics, [2, B]."""
        x = jnp.concatenate([obs.reshape(len(obs), -1), space.unit(action)], -1)
        return jax.vmap(trained, (0, None, 0, None))(critic, x, jax.random.split(key), hp.strength)

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        opt_actor, opt_critic, opt_temperature = state.opt
        temperature = jnp.exp(state.log_temperature) if cfg.learn_temperature else hp.temperature
        key_ahead, key_now, key_push, key_correct = jax.random.split(key, 4)

        dist, noise = head.policy(state.actor, t.next_obs), head.noise(key_ahead, cfg.batch_size)
        ahead = head.samples(dist, noise)
        q = least(state.target, t.next_obs, ahead.action)
        y = td_target(t, hp.gamma, policies.expectation(ahead, q))
        pushed = propose(head, space, state.actor, t, key_push, cfg.samples)

        def of_critic(critic: PyTree) -> tuple[Array, tuple[Array, ...]]:
            count, rows = pushed.log_density.shape
            obs = jnp.broadcast_to(t.obs[None], (count, *t.obs.shape))
            # One pass for the dataset's actions and the proposals.
            every = jnp.concatenate([t.obs[None], obs]).reshape(-1, *t.obs.shape[1:])
            action = jnp.concatenate([t.action[None], pushed.action]).reshape(-1, space.size)
            penalty = jnp.zeros(())
            if cfg.correction == "none":
                out = twins(critic, every, action)
            else:
                found = in_training(critic, every, action, key_correct, hp)
                out, own = found.q, jax.tree.map(lambda x: x[:, :rows], found)
                if cfg.correction == "vib":
                    penalty = hp.strength * jnp.sum(jnp.mean(own.divergence, 1))
                if cfg.correction == "dr3":
                    then = space.scaled(jnp.tanh(ahead.action))
                    follows = in_training(critic, t.next_obs, then, key_correct, hp).features
                    penalty = hp.strength * corrections.dr3(own.features, follows, ~t.terminated)
            out = out.reshape(2, 1 + count, rows)
            q, elsewhere = out[:, 0], calibrate(out[:, 1:], t)
            error, push = critic_loss(q, y), regulariser(q, elsewhere, pushed.log_density)
            return error + hp.weight * push + penalty, (error, push, q, penalty)

        at = Trainable(state.critic, opt_critic)
        (critic, opt_critic), _, (error, push, q, penalty) = minimise(of_critic, at, hp.lr)

        def of_actor(actor: PyTree) -> tuple[Array, tuple[Array, Array]]:
            dist = head.policy(actor, t.obs)
            now = head.samples(dist, head.noise(key_now, cfg.batch_size))
            q = least(critic, t.obs, now.action)
            loss = actor_loss(now, q, temperature)
            return loss, (policies.mean_entropy(now), jnp.tanh(dist.mode))

        at = Trainable(state.actor, opt_actor)
        (actor, opt_actor), loss_pi, (entropy, mode) = minimise(of_actor, at, hp.actor_lr)

        log_temperature = state.log_temperature
        if cfg.learn_temperature:  # gradient of α (entropy - target) with respect to log α
            grads = temperature * (entropy - head.target_entropy)
            after = adam_step(log_temperature, grads, opt_temperature, hp.actor_lr)
            log_temperature, opt_temperature = after

        metrics = {
            "critic_loss": error,
            "regulariser": push,
            "actor_loss": loss_pi,
            "correction": penalty,
            "q": jnp.mean(q),
            "q_std": jnp.std(q),
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "entropy": entropy,
            "temperature": jnp.asarray(temperature, jnp.float32),
            "action_distance": action_distance(mode, space.unit(t.action)),
        }
        target, opt = polyak(state.target, critic, hp.tau), (opt_actor, opt_critic, opt_temperature)
        return State(actor, critic, target, log_temperature, opt), metrics

    act = policies.acting(head)
    agent = Agent(init=init, update=update, act=act, noise=head.noise, hypers=Hypers())
    return standardised(agent, cfg, spec)


# --- networks ------------------------------------------------------------------------------------


class CorlCritic(nn.Module):
    """ReLU layers of orthogonal weights, gain √2, and an output layer of gain 0.01; zero biases."""

    hidden: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(Dense(width, kernel_init=nets.orthogonal(np.sqrt(2)))(x))
        return Dense(self.out, kernel_init=nets.orthogonal(0.01))(x)


class CorlActor(nn.Module):
    """Observations [B, *obs] to mean and log-std [B, out]: ReLU layers initialised as in torch,
    Glorot uniform weights of gain 0.01, and a learned affine function of the log-std."""

    hidden: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nets.torch_dense(width, x.shape[-1])(x))
        glorot = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")  # gain squared
        mean, log_std = jnp.split(Dense(self.out, kernel_init=glorot)(x), 2, -1)
        factor = self.param("factor", nn.initializers.ones, (1, 1))
        offset = self.param("offset", nn.initializers.constant(-1.0), (1, 1))
        return jnp.concatenate([mean, factor * log_std + offset], -1)


def head_of(cfg: Config, spec: EnvSpec) -> StochasticHead:
    """SAC's policy and critic for the box of `spec`."""
    if cfg.networks == "plain":
        return policies.squashed_head(cfg.hidden, spec, critic=critic_of(cfg))
    if cfg.correction != "none":
        raise UserError(
            f"correction={cfg.correction} needs --agent.networks plain, not {cfg.networks}"
        )
    return policies.squashed_head(cfg.hidden, spec, actor=CorlActor, critic=CorlCritic)


def critic_of(cfg: Config) -> policies.Mlp:
    """Makes the critics' network from the widths of hidden layers and a number of outputs."""
    if cfg.correction == "none":
        return nets.MLP
    return functools.partial(corrections.Critic, correction=cfg.correction)


# --- the regulariser -----------------------------------------------------------------------------


def propose(
    head: StochasticHead, space: BoxScale, actor: Array, t: Transition, key: Array, samples: int
) -> Proposals:
    """3 `samples` actions per row of `t`: uniform, from the policy at s, from the policy at s'."""
    key_uniform, key_here, key_ahead = jax.random.split(key, 3)
    rows = t.reward.shape[0]
    unit = jax.random.uniform(key_uniform, (samples, rows, space.size), minval=-1.0)
    uniform = jnp.full((samples, rows), -space.size * jnp.log(2.0))

    def of_policy(obs: Array, key: Array) -> tuple[Array, Array]:
        dist = head.policy(actor, obs)
        noise = jax.vmap(lambda k: head.noise(k, rows))(jax.random.split(key, samples))
        log_prob = lambda n: policies.sum_log_probs(head.samples(dist, n).log_prob)[:, 0]
        return jax.vmap(lambda n: head.act(dist, n, True))(noise), jax.vmap(log_prob)(noise)

    here, ahead = of_policy(t.obs, key_here), of_policy(t.next_obs, key_ahead)
    action = jnp.concatenate([jax.vmap(space.scaled)(unit), here[0], ahead[0]])
    return Proposals(action, jnp.concatenate([uniform, here[1], ahead[1]]))


def regulariser(q: Array, elsewhere: Array, log_density: Array) -> Array:
    """Σ_i mean [log 1/K Σ_k exp(Q_i(s, a_k)) / p(a_k) - Q_i(s, a_data)] [] (eq. 4).

    Args:
      q: [2, B] of the dataset's actions.
      elsewhere: [2, K, B] of the proposals.
      log_density: [K, B] of the proposals.
    """
    integral = jax.nn.logsumexp(elsewhere - log_density[None], 1) - jnp.log(1.0 * len(log_density))
    return jnp.sum(jnp.mean(integral - q, -1))


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online."""
    agent = make(cfg, env.spec)
    online = fine_tuning(cfg, env, agent, evals, episodes)
    return offline_program(cfg, env, agent, evals, episodes, after=online)


def check_request(cfg: Config, hp: Hypers, inputs: Mapping[str, PyTree]) -> None:
    """Raises UserError for a probability of dropout of 1 or more."""
    if cfg.correction == "dropout" and np.max(hp.strength) >= 1:
        raise UserError("strength is the probability of dropout: choose one below 1, such as 0.1")


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True, check_request=check_request)
