"""PGD: policy-guided diffusion, synthetic experience on the policy that learns from it.

Policy-Guided Diffusion. Matthew Thomas Jackson, Michael Tryfan Matthews, Cong Lu, Benjamin Ellis,
Shimon Whiteson, Jakob Foerster. RLC 2024, arXiv:2404.06356.

A diffusion model learns windows of the data: whole pieces of episodes at once, not step by step.
While it samples, actions are pushed up the gradient of the current policy's log-probability, and
states follow through the denoiser. So trajectories lie between those of the data and those of the
policy, about as p(τ) Π_t π(a_t|s_t)^λ, and errors do not add up as in rollouts of a model.
An offline agent learns from batches of which `real_share` are rows of the data and the others
synthetic, made anew every `generate_every` updates. `pgd_iql`, `pgd_td3bc` and `pgd_ofql` join an
agent with this, in a few lines each.

`synthetic` chooses what the agent learns from beside the data:

  guided          the above; the first set is unguided, since a policy that has learned nothing
                  leads nowhere
  unguided        the same model without the policy
  autoregressive  rollouts of the policy, as long, in an ensemble of networks that predict one step
                  (`jaxrl.dynamics`)
  none            nothing

The guiding log-probability is the agent's own, `log_prob(cfg, spec)` of its module, of actions in
its box. An agent without one counts as deterministic: N(π(s), 1) over actions in units of half the
box, as published, whatever its own actions are before they are bounded.

Deviations from the authors' code: a last step that terminates is kept, which needs no successor
(there, no synthetic transition ever terminates except where a model trained on shorter windows is
sampled longer); nothing follows a step that terminates; channels are standardised by the moments of
the rows of the data, not of windows; windows begin at every `stride`-th row of an episode; a
trajectory is as long as the windows that were learned; narrow networks have fewer groups of
channels (`jaxrl.unet`); 1e-8 guards the norm of the gradient and is not added to it. Neither paper
nor code names the coefficient that was used: that of `Rates` is ours, from
`jaxrl.experiments.studies.guidance`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import diffusion, dynamics
from jaxrl.errors import UserError, at_least
from jaxrl.imagination import imagined
from jaxrl.normalise import Moments
from jaxrl.policies import LogProb, unit_normal
from jaxrl.program import Program, Stage
from jaxrl.sources import below, mix, take, uniform, whole
from jaxrl.spaces import box_scale
from jaxrl.trajectories import Codec, DiffusionState, codec, diffuser, network, raw
from jaxrl.types import (
    Array,
    Batch,
    Env,
    EnvSpec,
    PyTree,
    Source,
    Transition,
    mean_where,
)
from jaxrl.windows import find, windows


@dataclasses.dataclass(frozen=True)
class Settings:
    """Static, beside those of the agent that learns. By default a model for small machines; presets
    named after the paper's tasks have its sizes."""

    synthetic: Literal["guided", "unguided", "autoregressive", "none"] = "guided"
    """what the agent learns from beside the data"""
    real_share: float = 0.0625
    """share of the rows of a batch that come from the data"""
    generate_every: int = 5_000
    """updates between sets of synthetic trajectories"""
    trajectories: int = 1024
    """trajectories of a set"""
    sample_batch: int = 256
    """of them, those that are made at the same time; divides trajectories"""
    horizon: int = 32
    """steps of a window of the data, and of a trajectory"""
    stride: int = 8
    """rows from the beginning of one window to that of the next"""
    share_model: bool = True
    """one model for all members; else each has its own"""
    model_updates: int = 30_000
    """gradient steps of the diffusion model"""
    model_batch: int = 32
    """windows of a gradient step of the diffusion model"""
    model_features: int = 32
    """channels of its network, doubled in each block; a power of two from 8 on"""
    model_blocks: int = 3
    """its blocks; each but the last halves time"""
    model_ema_every: int = 10
    """updates between moves of the slow average of its weights, which is what is sampled from"""
    sampler_steps: int = 32
    """steps N of Heun's rule, two calls of the network each"""
    stochastic: bool = True
    """add noise in the sampler's steps; else they follow the probability flow"""
    normalise_guidance: bool = False
    """divide the policy's gradient by its norm over the whole trajectory; narrow policies, whose
    gradients are huge, need it"""
    guide_denoised: bool = False
    """take it at the denoised trajectory instead of the noisy one"""
    ensemble_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """widths of the hidden layers of the autoregressive model"""
    ensemble_epochs: int = 200
    """passes of the data that it learns from at most"""


@struct.dataclass
class Rates:
    """Traced, beside those of the agent that learns."""

    guidance: Any = 0.1
    """coefficient of the policy's gradient, about 1 where it is normalised, else about 0.03 to 0.3
    for wide policies only; to sample without it say synthetic=unguided"""
    guidance_wave: Any = 0.3
    """how much more of it there is half-way"""
    model_lr: Any = 2e-3
    """learning rate of the model, for diffusion its highest; a shared one has the first member's"""
    model_ema: Any = 0.995
    """share of the slow average that stays at each of its moves"""


# --- trajectories as numbers ---------------------------------------------------------------------


# --- the model -----------------------------------------------------------------------------------


# --- guidance ------------------------------------------------------------------------------------


def schedule(hp: Rates, k: Array, steps: int) -> Array:
    """λ_k = coefficient (1 - k / N + wave sin(π (k + 1) / N)), the strength before step k."""
    return hp.guidance * (1 - k / steps + hp.guidance_wave * jnp.sin(jnp.pi * (k + 1) / steps))


def policy_gradient(
    code: Codec, steps: Moments, log_prob: Callable[[Array, Array], Array], x: Array
) -> Array:
    """∇_u Σ_t log π(tanh(u_t) | s_t) [B, T, channels] of standardised trajectories.

    With respect to the standardised actions before tanh, states held as they are; 0 in the other
    channels. `log_prob` takes (obs [n, *obs], action [n, A]).
    """
    obs = code.seen(raw(steps, x))

    def total(action: Array) -> Array:
        moved = x.at[..., code.of_action].set(action)
        return jnp.sum(log_prob(obs, code.action(raw(steps, moved)[..., code.of_action])))

    grads = jax.grad(total)(x[..., code.of_action])
    return jnp.zeros_like(x).at[..., code.of_action].set(grads)


def unit_length(grads: Array) -> Array:
    """Each trajectory's gradient [B, T, channels] divided by its norm."""
    norm = jnp.sqrt(jnp.sum(grads**2, (1, 2), keepdims=True))
    return grads / jnp.maximum(norm, 1e-8)


def guidance(
    cfg: Settings,
    code: Codec,
    steps: Moments,
    log_prob: Callable[[Array, Array], Array],
    denoise: diffusion.Denoiser,
    hp: Rates,
    strength: Array | float = 1.0,
) -> Callable[[Array, Array, Array], Array]:
    """The guide of `diffusion.heun`: actions a + strength λ_k g before step k."""

    def guide(x: Array, sigma: Array, k: Array) -> Array:
        at = denoise(x, sigma[None]) if cfg.guide_denoised else x
        grads = policy_gradient(code, steps, log_prob, at)
        grads = unit_length(grads) if cfg.normalise_guidance else grads
        return x + strength * schedule(hp, k, cfg.sampler_steps) * grads

    return guide


def likelihood(module: Any, cfg: Any, spec: EnvSpec) -> LogProb:
    """log π of the agent in `module`: its own, or that of a deterministic policy."""
    if hasattr(module, "log_prob"):
        return module.log_prob(cfg, spec)
    return unit_normal(module.make(cfg, spec), box_scale("pgd", spec))


# --- sampling ------------------------------------------------------------------------------------


def sampler(cfg: Settings, spec: EnvSpec, log_prob: LogProb | None) -> Callable[..., Array]:
    """Function (model, agent_state, hp, key, count, strength) -> trajectories [count, T, channels].

    They are raw, to be decoded. `strength` scales the guidance; with `log_prob` None there is none.
    """
    code = codec(spec)
    net = network(cfg, code)
    sigmas = diffusion.edm_sigmas(cfg.sampler_steps)

    def sample(
        model: DiffusionState, state: PyTree, hp: Any, key: Array, count: int, strength: Array
    ) -> Array:
        denoise = diffusion.precondition(lambda x, c: net.apply(model.slow, x, c))
        key_start, key_churn = jax.random.split(key)

        guide = None
        if log_prob is not None:
            own = functools.partial(log_prob, state, hp)
            guide = guidance(cfg, code, model.steps, own, denoise, hp, strength)
        start = sigmas[0] * jax.random.normal(key_start, (count, cfg.horizon, code.channels))
        x = diffusion.heun(
            denoise,
            start,
            sigmas,
            churn=(key_churn, diffusion.Churn()) if cfg.stochastic else None,
            guide=guide,
        )
        return raw(model.steps, x)

    return sample


class Pool(NamedTuple):
    """The latest set of trajectories, flat; the first `filled` rows are real transitions."""

    rows: Transition  # [trajectories * T, ...]
    filled: Array  # [] int32
    seen: dict[str, Array]  # metrics of the set


def generated(cfg: Any, spec: EnvSpec, log_prob: LogProb, name: str = "diffusion") -> Source:
    """Batches [B], with replacement, of transitions sampled from the diffusion model inputs[name].

    Every `generate_every` updates `trajectories` of them are made, guided by the policy as it is
    then, or not. Metrics of the latest set: `synthetic_log_prob`, the mean log-probability of its
    actions under the policy at that time, and `synthetic_reward`.
    """
    code = codec(spec)
    sample = sampler(cfg, spec, log_prob if cfg.synthetic == "guided" else None)

    def refresh(src, learner_state, hp, inputs, key, step):
        def some(key: Array) -> tuple[Transition, Array, Array]:
            strength = (step > 0).astype(jnp.float32)
            x = sample(inputs[name], learner_state, hp.agent, key, cfg.sample_batch, strength)
            rows, used = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), code.decode(x))
            return rows, used, log_prob(learner_state, hp.agent, rows.obs, rows.action)

        sets = jax.lax.map(some, jax.random.split(key, cfg.trajectories // cfg.sample_batch))
        rows, used, likely = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sets)
        kept = jnp.flatnonzero(used, size=used.size, fill_value=0)
        seen = {"synthetic_log_prob": likely, "synthetic_reward": rows.reward}
        return Pool(
            take(rows, kept),
            jnp.sum(used, dtype=jnp.int32),
            {name: mean_where(x, used).value for name, x in seen.items()},
        )

    def init(key, learner_state, hp, inputs):
        size = cfg.trajectories * cfg.horizon
        rows = jax.tree.map(lambda x: x[0], code.decode(jnp.zeros((1, size, code.channels)))[0])
        seen = {"synthetic_log_prob": jnp.float32(0), "synthetic_reward": jnp.float32(0)}
        return Pool(rows, jnp.int32(1), seen)

    def next(src, learner_state, hp, inputs, key, step):
        rows = below(key, cfg.batch_size, jnp.maximum(src.filled, 1))
        return src, Batch(take(src.rows, rows)), src.seen

    return Source(init=init, next=next, refresh=refresh, every=cfg.generate_every)


# --- runs ----------------------------------------------------------------------------------------


def stepwise(cfg: Settings) -> dynamics.Ensemble:
    """What the autoregressive model is like."""
    return dynamics.Ensemble(hidden=cfg.ensemble_hidden)


def experience(module: Any, cfg: Any, spec: EnvSpec) -> Source:
    """Batches of real rows and of what `cfg.synthetic` says."""
    real = uniform(cfg.batch_size)
    if cfg.synthetic == "none":
        return real
    if cfg.synthetic == "autoregressive":
        made = imagined(
            dynamics.model(stepwise(cfg), spec),
            module.make(cfg, spec),
            starts=cfg.trajectories,
            steps=cfg.horizon - 1,
            every=cfg.generate_every,
            retain=1,
            batch_size=cfg.batch_size,
        )
    else:
        made = generated(cfg, spec, likelihood(module, cfg, spec))
    return mix(real, made, cfg.real_share, cfg.batch_size)


def modelling(cfg: Any, spec: EnvSpec, evals: int) -> tuple[Stage, ...]:
    """The stage of the model that experience comes from; none where there is none."""
    if cfg.synthetic == "none":
        return ()
    if cfg.synthetic == "autoregressive":
        learner, source = dynamics.ensemble(stepwise(cfg), spec), whole()
        name, updates, reads = "dynamics", cfg.ensemble_epochs, ("model_lr",)
    else:
        held = max(cfg.model_batch // 16, 1)
        source = windows(cfg.model_batch + held, cfg.horizon, cfg.stride, held=held)
        learner, name, updates = diffuser(cfg, spec), "diffusion", cfg.model_updates
        reads = ("model_lr", "model_ema")
    stage = Stage(
        name=name,
        learner=learner,
        source=source,
        updates=updates,
        evals=evals,
        shared=cfg.share_model,
        reads=reads,
        unshared="say --agent.no-share-model",
    )
    return (stage,)


def program(module: Any, cfg: Any, env: Env, evals: int, episodes: int) -> Program:
    """The model, then the program of the agent in `module` on mixed batches.

    Args:
      module: of an offline agent: `make`, `program`, and `log_prob` where it has one.
      cfg: the agent's Config, with `Settings`.
    """
    check(cfg)
    learning, *others = module.program(cfg, env, evals=evals, episodes=episodes).stages
    learning = dataclasses.replace(learning, source=experience(module, cfg, env.spec))
    return Program((*modelling(cfg, env.spec, evals), learning, *others))


def check(cfg: Any) -> None:
    """Raises UserError where a size is too small or does not divide."""
    at_least(1, generate_every=cfg.generate_every, trajectories=cfg.trajectories)
    at_least(1, sample_batch=cfg.sample_batch, stride=cfg.stride, model_batch=cfg.model_batch)
    at_least(1, model_updates=cfg.model_updates, model_ema_every=cfg.model_ema_every)
    at_least(1, ensemble_epochs=cfg.ensemble_epochs)
    at_least(2, horizon=cfg.horizon, sampler_steps=cfg.sampler_steps)
    if cfg.trajectories % cfg.sample_batch:
        raise UserError(
            f"sample_batch={cfg.sample_batch} does not divide trajectories={cfg.trajectories}"
        )
    if not 0 <= cfg.real_share <= 1:
        raise UserError(f"real_share={cfg.real_share} must be between 0 and 1")


def check_request(cfg: Any, hp: Any, inputs: PyTree) -> None:
    """Raises UserError for what is not asked for but would be got.

    Args:
      hp: hyperparameters [P] of all members.
      inputs: with the data, on the host.
    """
    if cfg.synthetic == "guided" and not np.all(hp.guidance):
        raise UserError("guidance=0 guides nothing: say --agent.synthetic unguided")
    if cfg.synthetic in ("guided", "unguided"):
        if not int(find(inputs["data"], cfg.horizon, cfg.stride).learned):
            raise UserError(f"the data have no episode with a window of horizon={cfg.horizon} rows")
