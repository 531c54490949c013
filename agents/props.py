"""PROPS: PPO whose behaviour policy corrects the sampling error of the data collected so far.

On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling. Nicholas E. Corrado,
Josiah P. Hanna. 2023, arXiv:2311.08290. ROS: Robust On-Policy Sampling for Data-Efficient Policy
Evaluation in Reinforcement Learning. Rujie Zhong, Duohan Zhang, Lukas Schäfer, Stefano V.
Albrecht, Josiah P. Hanna. NeurIPS 2022, arXiv:2111.14552.

Few samples of a policy contain some actions too often and others too seldom. PROPS collects with a
behaviour policy φ in place of the target policy θ. Every `sampling_every` steps φ starts from θ and
minimises E[max(ρ, clip(ρ, 1 - ε, 1 + ε))], ρ = π_φ(a|s) / π_θ(a|s), on the buffer D of the last
`batches` batches: actions that D contains become less likely, most of all those that it contains
too often. It stops at KL(θ || φ) > `sampling_kl`. ROS is one gradient step on E[ρ].

The target policy learns from the whole buffer by PPO, as if the data were its own: values and
log-probabilities are those of the current θ, whatever policy acted.

The claim is about few samples: with hundreds of parallel environments batches are large, and there
is little sampling error to correct. Members of a run are the axis to widen.

Deviations from the authors' code (discrete actions):
- The regulariser λ KL is left out, as there, where it is commented out.
- Advantages reach over the whole buffer; there the recursion covers its first batch only.
- Minibatches are parts of the buffer; there each has all of it.
- The behaviour policy is updated after a PPO update, from the new θ; there before it.
- Until the buffer is full, PPO repeats its rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl.agents import ppo
from jaxrl.algorithm import Algorithm
from jaxrl.distributions import Categorical, Normal
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.losses import masked_mean
from jaxrl.minibatch import sgd_until
from jaxrl.objectives.advantages import batch_normalised
from jaxrl.optim import linear, update_if
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import single_stage
from jaxrl.rollout import rollout
from jaxrl.sources import merge_axes, take, write
from jaxrl.types import Agent, Array, Box, Env, EnvSpec, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """Static configuration: a new value compiles a new program."""

    num_envs: int = 1
    """parallel environments N"""
    num_steps: int = 2048
    """steps per environment and PPO update"""
    minibatches: int = 16
    """minibatches per epoch; divides N * T"""
    epochs: int = 16
    """largest number of passes over the buffer per PPO update"""
    batches: int = 2
    """batches of N * T steps in the buffer"""
    sampling: Literal["props", "ros", "on_policy"] = "props"
    """update of the behaviour policy: PROPS, one gradient step (ROS), or none, which is PPO with a
    buffer"""
    sampling_every: int = 16
    """steps per environment between updates of the behaviour policy; divides num_steps"""
    sampling_epochs: int = 16
    """largest number of passes over the buffer per update of the behaviour policy"""
    sampling_minibatches: int = 4
    """minibatches per epoch of the behaviour policy"""
    error_steps: int = bounded(0, least=0)
    """Adam steps of the fit that measures the sampling error at each PPO update; 0 turns it off"""

    @property
    def updates(self) -> int:
        return self.total_steps // (self.num_envs * self.sampling_every)

    @property
    def chunks(self) -> int:
        """Updates of the behaviour policy per PPO update."""
        return self.num_steps // self.sampling_every


@struct.dataclass
class Hypers(ppo.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(1e-3, least=0)
    """initial learning rate of Adam"""
    entropy_weight: Any = bounded(0.01, least=0)
    """weight of the entropy bonus"""
    target_kl: Any = bounded(0.03, above=0, finite=False)
    """KL divergence in nats after which a PPO update ends"""
    sampling_lr: Any = bounded(1e-3, least=0)
    """learning rate of the behaviour policy's Adam"""
    sampling_clip: Any = bounded(0.3, above=0, finite=False)
    """clipping range ε of the behaviour policy's probability ratio"""
    sampling_kl: Any = bounded(0.01, above=0, finite=False)
    """KL divergence in nats after which an update of the behaviour policy ends"""


class Steps(NamedTuple):
    """What the buffer keeps of transitions."""

    obs: Array
    sample: Array  # action before scaling and clipping
    reward: Array
    next_obs: Array
    terminated: Array
    truncated: Array


class State(NamedTuple):
    params: dict[str, PyTree]  # target policy "actor" and value network "critic"
    behaviour: PyTree  # parameters of the policy that collects
    opt: tuple[optax.OptState, optax.OptState]  # Adam of params and behaviour
    ring: Steps  # [slots, T', N, ...], T' = sampling_every


# --- sampling ------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """Actions in the buffer as rows [B]."""

    obs: Array  # [B, *obs]
    sample: Array  # [B, ...]
    log_prob: Array  # [B] under the target policy
    held: Array  # [B] bool, False for rows that are not in the buffer


PolicyOf = Callable[[PyTree, Array], Categorical | Normal]  # (params, obs [B, *obs]) -> [B]


def sampling_loss(ratio: Array, held: Array, clip: Array | float) -> Array:
    """Mean [] of max(ρ, clip(ρ, 1 - ε, 1 + ε)) over the rows that are held [B]."""
    return masked_mean(jnp.maximum(ratio, jnp.clip(ratio, 1 - clip, 1 + clip)), held)


def improve_sampling(
    policy_of: PolicyOf,
    target: PyTree,
    opt: optax.OptState,
    rows: Sampled,
    key: Array,
    hp: Any,
    *,
    ros: bool,
    epochs: int,
    count: int,
) -> tuple[tuple[PyTree, optax.OptState], dict[str, Array]]:
    """The behaviour policy for the next steps, from the target policy's parameters.

    Args:
      opt: state of Adam on flat parameters; continues across updates, as in the authors' code.
      hp: has sampling_lr, sampling_clip and sampling_kl.
      ros: one step on the mean of ρ, without clipping.
      epochs, count: passes of `count` minibatches each.

    Returns:
      ((parameters, Adam's state), metrics). Without rows the parameters are the target's.
    """
    clip = jnp.inf if ros else hp.sampling_clip

    def loss(params: PyTree, part: Sampled) -> tuple[Array, dict[str, Array]]:
        log_ratio = policy_of(params, part.obs).log_prob(part.sample) - part.log_prob
        value = sampling_loss(jnp.exp(log_ratio), part.held, clip)
        kl = masked_mean(jnp.expm1(log_ratio) - log_ratio, part.held)
        return value, {"sampling_loss": value, "sampling_kl": kl}

    adam = optax.adam(hp.sampling_lr, eps=1e-5)
    passes = (1, 1) if ros else (epochs, count)
    enough = lambda metrics: metrics["sampling_kl"] > hp.sampling_kl
    found, metrics = sgd_until(loss, (target, opt), adam, key, rows, *passes, enough)
    some = jnp.any(rows.held)
    return jax.tree.map(lambda new, old: jnp.where(some, new, old), found, (target, opt)), metrics


def sampling_error(policy_of: PolicyOf, params: PyTree, rows: Sampled, steps: int) -> Array:
    """Mean [] of log π_MLE(a|s) - log π_θ(a|s) over the buffer, the KL divergence of the empirical
    policy from the target policy.

    π_MLE maximises the likelihood of the buffer: `steps` steps of Adam (1e-3) from θ.
    """
    flat, unravel = ravel_pytree(params)
    adam = optax.adam(1e-3)
    log_prob = lambda flat: policy_of(unravel(flat), rows.obs).log_prob(rows.sample)

    def step(i: Array, carry: PyTree) -> PyTree:
        flat, opt = carry
        grads = jax.grad(lambda flat: -masked_mean(log_prob(flat), rows.held))(flat)
        change, opt = adam.update(grads, opt)
        return optax.apply_updates(flat, change), opt

    fitted, _ = jax.lax.fori_loop(0, steps, step, (flat, adam.init(flat)))
    return masked_mean(log_prob(fitted) - rows.log_prob, rows.held)


# --- the agent -----------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is neither discrete nor a box of one axis, sizes do not fit
        together, or running statistics are on.
    """
    check(cfg, spec)
    model, slots = ppo.networks(cfg, spec), cfg.batches * cfg.chunks
    own = ppo.acting(model, spec)
    window = (slots, cfg.sampling_every, cfg.num_envs)

    def init(key, hp, inputs):
        params = model.init(key)
        size = lambda x: ravel_pytree(x)[0]
        opt = (
            ppo.optimiser(hp.lr, hp.max_grad_norm).init(size(params)),
            optax.adam(hp.sampling_lr, eps=1e-5).init(size(params["actor"])),
        )
        obs, flag = jnp.zeros((*window, *spec.obs_shape)), jnp.zeros(window, bool)
        kind = jnp.float32 if isinstance(spec.action, Box) else jnp.int32
        sample = jnp.zeros((*window, *spec.action.shape), kind)
        return State(
            params, params["actor"], opt, Steps(obs, sample, jnp.zeros(window), obs, flag, flag)
        )

    def update(state, hp, batch, key, step):
        key_policy, key_sampling = jax.random.split(key)
        t = batch.transitions
        new = Steps(t.obs, t.extras["sample"], t.reward, t.next_obs, t.terminated, t.truncated)
        ring, written = write(state.ring, new, step % slots), step + 1
        # Oldest slot first, the newest at the end.
        order = (written + jnp.arange(slots)) % slots
        steps = jax.tree.map(lambda x: x[order].reshape(-1, *x.shape[2:]), ring)

        def improve_target(params: PyTree, opt: PyTree, steps: Steps) -> PyTree:
            data = experience(cfg, model, params, hp, steps)
            kept = jnp.minimum(written, slots) * cfg.sampling_every * cfg.num_envs
            total = len(data.value)
            data = take(data, total - 1 - jnp.arange(total) % kept)
            if cfg.advantages == "batch":
                data = data._replace(advantage=batch_normalised(data.advantage))
            rate = hp.lr * linear(step / cfg.updates, 1.0, hp.lr_end)
            found, metrics = sgd_until(
                functools.partial(ppo.clipped_loss, cfg, model, hp),
                (params, opt),
                ppo.optimiser(rate, hp.max_grad_norm),
                key_policy,
                data,
                cfg.epochs,
                cfg.minibatches,
                lambda metrics: metrics["kl"] > hp.target_kl,
            )
            if cfg.error_steps:
                rows = in_buffer(params["actor"], jnp.minimum(written, slots))
                error = sampling_error(model.actor.apply, params["actor"], rows, cfg.error_steps)
                metrics = metrics | {"sampling_error": error}
            return found, metrics

        def in_buffer(actor: PyTree, kept: Array) -> Sampled:
            """The last `kept` slots as rows."""
            rows = merge_axes(steps)
            held = jnp.repeat(jnp.arange(slots) >= slots - kept, len(rows.reward) // slots)
            log_prob = model.actor.apply(actor, rows.obs).log_prob(rows.sample)
            return Sampled(rows.obs, rows.sample, log_prob, held)

        kept = (state.params, state.opt[0])
        (params, opt), metrics = update_if(
            written % cfg.chunks == 0,
            lambda: improve_target(state.params, state.opt[0], steps),
            kept,
        )
        behaviour, opt_behaviour = params["actor"], state.opt[1]
        if cfg.sampling != "on_policy":
            # The oldest batch leaves the buffer as soon as the next one begins.
            kept = jnp.minimum(written, slots - cfg.chunks + written % cfg.chunks)
            (behaviour, opt_behaviour), seen = improve_sampling(
                model.actor.apply,
                params["actor"],
                opt_behaviour,
                in_buffer(params["actor"], kept),
                key_sampling,
                hp,
                ros=cfg.sampling == "ros",
                epochs=cfg.sampling_epochs,
                count=cfg.sampling_minibatches,
            )
            metrics = metrics | seen
        return State(params, behaviour, (opt, opt_behaviour), ring), metrics

    def act(state, hp, obs, start, memory, noise, explore):
        params = state.params | ({"actor": state.behaviour} if explore else {})
        return own.act(ppo.State(params, ()), hp, obs, start, memory, noise, explore)

    return Agent(init=init, update=update, act=act, noise=own.noise, hypers=Hypers())


def experience(
    cfg: Config, model: ppo.Networks, params: dict[str, PyTree], hp: Any, steps: Steps
) -> ppo.Experience:
    """PPO's rows of steps [T, N], log-probabilities being those of `params`."""
    obs, sample = merge_axes((steps.obs, steps.sample))
    log_prob = model.actor.apply(params["actor"], obs).log_prob(sample)
    extras = {
        "sample": steps.sample,
        "log_prob": log_prob.reshape(steps.reward.shape),
    }
    rest = (steps.next_obs, steps.terminated, steps.truncated, steps.terminated, extras)
    window = Transition(steps.obs, steps.sample, steps.reward, *rest)
    raw = dataclasses.replace(cfg, advantages="raw")
    return ppo.experience(raw, model, params, hp, window)


# --- runs ----------------------------------------------------------------------------------------


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError if the environment is not supported or sizes do not fit together."""
    if cfg.normalise_obs or cfg.normalise_reward:
        raise UserError(
            "a buffer has no running statistics: pass --env-options normalise_obs=true instead of "
            "normalise_obs or normalise_reward of the agent"
        )
    at_least(
        1,
        batches=cfg.batches,
        sampling_every=cfg.sampling_every,
        sampling_epochs=cfg.sampling_epochs,
        sampling_minibatches=cfg.sampling_minibatches,
    )
    if cfg.num_steps % cfg.sampling_every:
        raise UserError(
            f"sampling_every={cfg.sampling_every} does not divide num_steps={cfg.num_steps}"
        )
    ppo.check(cfg, spec)
    ppo.check_advantages(cfg, "minibatches", cfg.minibatches)
    if cfg.resets and cfg.sampling_every % cfg.resets:
        raise UserError(f"resets={cfg.resets} does not divide sampling_every={cfg.sampling_every}")
    rows = cfg.batches * cfg.num_steps * cfg.num_envs
    if rows % cfg.sampling_minibatches:
        raise UserError(
            f"sampling_minibatches={cfg.sampling_minibatches} does not divide the buffer of {rows}"
        )


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the target's mode."""
    agent = make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.sampling_every, resets=cfg.resets or None)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program)
