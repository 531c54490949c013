"""PGD: policy-guided diffusion, synthetic experience that follows the learning policy.

Policy-Guided Diffusion. Matthew Thomas Jackson, Michael Tryfan Matthews, Cong Lu, Benjamin Ellis,
Shimon Whiteson, Jakob Foerster. RLC 2024, arXiv:2404.06356.

A diffusion model learns windows of the dataset: whole pieces of episodes at once. Sampling adds the
gradient of the current policy's log-probability to the actions; states follow through the denoiser.
Trajectories come from about p(τ) Π_t π(a_t|s_t)^λ, between dataset and policy, without the
compounding errors of model rollouts. An offline agent learns from batches with a fraction
`real_share` of dataset rows and otherwise synthetic transitions, generated anew every
`generate_every` updates. `pgd_iql`, `pgd_td3bc` and `pgd_ofql` each combine an agent with PGD.

`synthetic` selects the synthetic experience:

  guided          as above; the first set is unguided, since the policy is untrained
  unguided        the same model without guidance
  autoregressive  policy rollouts of the same length in an ensemble of one-step models
                  (`jaxrl.dynamics`)
  none            nothing

Guidance uses log-probabilities of actions under the agent's policy. A deterministic agent counts
as N(π(s), 1) over actions scaled to [-1, 1], as published (`policies.unit_normal`).

Deviations from the authors' code:
- A terminating last step is kept, since it needs no successor, and nothing follows it (there
  synthetic transitions only terminate when a model trained on shorter windows is sampled longer).
- Channels are standardised with the moments of the dataset's rows, not of its windows.
- Windows begin at every `stride`-th row of an episode; trajectories have their length.
- Narrow networks have fewer channel groups (`jaxrl.unet`).
- The stochastic Heun step predicts from the state with its fresh noise, as algorithm 2 of EDM does;
  there it predicts from the state without it.
- The frequencies of the embedded time are 10⁴^(-k/n), k < n (there 10⁴^(-k/(n-1))).
- The guard 1e-8 bounds the gradient's norm from below and is not added to the norm.
- `rewards` "given" and `rare_share` are additions, off by default.
- The paper and its code name no guidance coefficient; the default in `Rates` comes from
  `jaxrl.experiments.studies.guidance`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import diffusion, dynamics, trajectories
from jaxrl.errors import UserError, at_least
from jaxrl.imagination import Rule, imagined, known_outcomes
from jaxrl.normalise import Moments
from jaxrl.policies import LogProb
from jaxrl.program import Program, Stage
from jaxrl.ranges import bounded
from jaxrl.recipes import check_share, offline_program
from jaxrl.sources import mix, uniform
from jaxrl.trajectories import Codec, DiffusionState, codec, diffuser, raw
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree, Source
from jaxrl.windows import find, windows


@dataclasses.dataclass(frozen=True)
class Settings:
    """Static settings in addition to the agent's. The default model suits small machines; presets
    named after the paper's tasks have the paper's sizes."""

    synthetic: Literal["guided", "unguided", "autoregressive", "none"] = "guided"
    """synthetic experience: guided or unguided diffusion, autoregressive model rollouts, or none"""
    real_share: float = 0.0625
    """fraction of each batch drawn from the dataset"""
    generate_every: int = 5_000
    """gradient steps between new sets of synthetic trajectories"""
    trajectories: int = 1024
    """synthetic trajectories per set"""
    sample_batch: int = 256
    """trajectories sampled at the same time; divides trajectories"""
    horizon: int = 32
    """steps per window of the dataset and per synthetic trajectory"""
    stride: int = 8
    """rows between the starts of consecutive windows of the dataset"""
    rare_share: float = bounded(0.0, least=0, most=1)
    """fraction of the diffusion model's windows drawn among those with one of the highest rewards
    (from the dataset's 99 % quantile on), which the model then samples more often"""
    rewards: Literal["learned", "given"] = "learned"
    """source of synthetic rewards: the model, or the environment (`Env.outcome`)"""
    share_model: bool = True
    """train one model for all members; otherwise one per member"""
    model_updates: int = 30_000
    """gradient steps of the diffusion model"""
    model_batch: int = 32
    """windows per gradient step of the diffusion model"""
    model_features: int = 32
    """channels of the diffusion model's first block, doubled per block; a power of two >= 8"""
    model_blocks: int = 3
    """blocks of the diffusion model; each but the last halves the time axis"""
    model_ema_every: int = 10
    """gradient steps between updates of the diffusion model's EMA, which samples"""
    sampler_steps: int = 32
    """steps N of the Heun sampler, two network calls each"""
    stochastic: bool = True
    """add noise in the sampler; otherwise it follows the probability-flow ODE"""
    normalise_guidance: bool = False
    """divide the policy's gradient by its norm over the whole trajectory; needed for narrow
    policies, whose gradients are huge"""
    guide_denoised: bool = False
    """take the policy's gradient at the denoised trajectory instead of the noisy one"""
    ensemble_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """widths of the autoregressive model's hidden layers"""
    ensemble_epochs: int = 200
    """maximum passes over the dataset in training the autoregressive model"""


@struct.dataclass
class Rates:
    """Traced hyperparameters in addition to the agent's."""

    guidance: Any = bounded(0.1, least=0)
    """coefficient of the policy's gradient: about 1 if normalised, otherwise 0.03 to 0.3, for wide
    policies only; for sampling without guidance set synthetic=unguided"""
    guidance_wave: Any = bounded(0.3, least=0)
    """height of the sine in the guidance schedule, relative to guidance; largest half-way"""
    model_lr: Any = bounded(2e-3, least=0)
    """learning rate of the model (diffusion: its peak), equal for members that share one"""
    model_ema: Any = bounded(0.995, least=0, most=1)
    """decay of the EMA of the diffusion model's weights; equal for members that share a model"""


# --- guidance ------------------------------------------------------------------------------------


def schedule(hp: Rates, k: Array, steps: int) -> Array:
    """λ_k = guidance (1 - k / N + wave sin(π (k + 1) / N)), the coefficient before step k."""
    return hp.guidance * (1 - k / steps + hp.guidance_wave * jnp.sin(jnp.pi * (k + 1) / steps))


def policy_gradient(
    code: Codec, steps: Moments, log_prob: Callable[[Array, Array], Array], x: Array
) -> Array:
    """∇_u Σ_t log π(tanh(u_t) | s_t) [B, T, channels] of standardised trajectories.

    The gradient is with respect to the standardised actions before tanh, for constant states; it is
    0 in the other channels. `log_prob` takes (obs [n, *obs], action [n, A]).
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
) -> diffusion.Guide:
    """The guide of `diffusion.heun`: actions a + strength λ_k g before step k."""

    def guide(x: Array, sigma: Array, k: Array) -> Array:
        at = denoise(x, sigma[None]) if cfg.guide_denoised else x
        grads = policy_gradient(code, steps, log_prob, at)
        grads = unit_length(grads) if cfg.normalise_guidance else grads
        return x + strength * schedule(hp, k, cfg.sampler_steps) * grads

    return guide


# --- synthetic experience ------------------------------------------------------------------------


def sampler(cfg: Settings, spec: EnvSpec, log_prob: LogProb | None) -> Callable[..., Array]:
    """Function (model, agent_state, hp, key, count, strength) -> raw trajectories [count, T,
    channels], see `trajectories.sampler`; guided by `log_prob`, if any, scaled by `strength`."""
    code, draw = codec(spec), trajectories.sampler(cfg, spec)

    def sample(
        model: DiffusionState, state: PyTree, hp: Any, key: Array, count: int, strength: Array
    ) -> Array:
        if log_prob is None:
            return draw(model, key, count, None)
        own = functools.partial(log_prob, state, hp)
        guide_of = lambda denoise, steps: guidance(cfg, code, steps, own, denoise, hp, strength)
        return draw(model, key, count, guide_of)

    return sample


def generated(cfg: Any, spec: EnvSpec, log_prob: LogProb, rule: Rule | None = None) -> Source:
    """Batches of transitions sampled from the diffusion model, guided or not; `rule` gives their
    rewards, if they are not the model's."""
    sample = sampler(cfg, spec, log_prob if cfg.synthetic == "guided" else None)
    return trajectories.generated(cfg, spec, sample, log_prob, "diffusion", rule)


def stepwise(cfg: Settings, rule: Rule | None = None) -> dynamics.Ensemble:
    """Settings of the autoregressive model."""
    reward = None if rule is None else lambda *rows: rule(*rows)[0]
    return dynamics.Ensemble(hidden=cfg.ensemble_hidden, reward=reward)


def given_rewards(cfg: Settings, env: Env) -> Rule | None:
    """The environment's rule if `rewards` is "given"; raises UserError if there is none."""
    if cfg.rewards == "learned" or cfg.synthetic == "none":
        return None
    return known_outcomes(env, "--agent.rewards learned")


def experience(cfg: Any, env: Env, agent: Agent, log_prob: LogProb) -> Source:
    """Batches of dataset rows mixed with the synthetic experience `cfg.synthetic`."""
    spec, rule, real = env.spec, given_rewards(cfg, env), uniform(cfg.batch_size)
    if cfg.synthetic == "none":
        return real
    if cfg.synthetic == "autoregressive":
        made = imagined(
            dynamics.model(stepwise(cfg, rule), spec),
            agent,
            starts=cfg.trajectories,
            steps=cfg.horizon - 1,
            every=cfg.generate_every,
            retain=1,
            batch_size=cfg.batch_size,
        )
    else:
        made = generated(cfg, spec, log_prob, rule)
    return mix(real, made, cfg.real_share, cfg.batch_size)


# --- runs ----------------------------------------------------------------------------------------


def modelling(cfg: Any, env: Env, evals: int) -> tuple[Stage, ...]:
    """The stage that trains the model of the synthetic experience; () without a model."""
    if cfg.synthetic == "none":
        return ()
    alone: Any = {"shared": cfg.share_model, "unshared": "pass --agent.no-share-model"}
    if cfg.synthetic == "autoregressive":
        own = stepwise(cfg, given_rewards(cfg, env))
        return (dynamics.stage(own, env.spec, epochs=cfg.ensemble_epochs, evals=evals, **alone),)
    held = max(cfg.model_batch // 16, 1)
    size, rare = cfg.model_batch + held, cfg.rare_share
    diffusing = Stage(
        name="diffusion",
        learner=diffuser(cfg, env.spec),
        source=windows(size, cfg.horizon, cfg.stride, held=held, rare=rare),
        updates=cfg.model_updates,
        evals=evals,
        reads=("model_lr", "model_ema"),
        **alone,
    )
    return (diffusing,)


def program(
    cfg: Any,
    env: Env,
    agent: Agent,
    log_prob: LogProb,
    evals: int,
    episodes: int,
    *,
    explore: bool = False,
    after: tuple[Stage, ...] = (),
) -> Program:
    """Training of the model, then of an offline agent on mixed batches.

    Args:
      cfg: the agent's Config, with `Settings`.
      agent: with default hypers that include `Rates`; log_prob is that of its policy.
      explore, after: as in `offline_program`.
    """
    check(cfg)
    source = experience(cfg, env, agent, log_prob)
    learning = offline_program(
        cfg, env, agent, evals, episodes, source=source, explore=explore, after=after
    )
    return Program((*modelling(cfg, env, evals), *learning.stages))


def check(cfg: Any) -> None:
    """Raises UserError where a size is too small or does not divide."""
    at_least(1, generate_every=cfg.generate_every, trajectories=cfg.trajectories)
    at_least(1, sample_batch=cfg.sample_batch, stride=cfg.stride, model_batch=cfg.model_batch)
    at_least(1, model_updates=cfg.model_updates, model_ema_every=cfg.model_ema_every)
    at_least(1, ensemble_epochs=cfg.ensemble_epochs, ensemble_hidden=cfg.ensemble_hidden)
    at_least(2, horizon=cfg.horizon, sampler_steps=cfg.sampler_steps)
    if cfg.trajectories % cfg.sample_batch:
        raise UserError(
            f"sample_batch={cfg.sample_batch} does not divide trajectories={cfg.trajectories}"
        )
    check_share(cfg, "real_share")


def check_request(cfg: Any, hp: Any, inputs: PyTree) -> None:
    """Raises UserError if guidance would silently be off, or if no window fits into an episode.

    Args:
      hp: hyperparameters [P] of all members.
      inputs: on the host, with the dataset as "data".
    """
    if cfg.synthetic == "guided" and not np.all(hp.guidance):
        raise UserError("guidance=0 turns guidance off: pass --agent.synthetic unguided")
    if cfg.synthetic in ("guided", "unguided"):
        if not int(find(inputs["data"], cfg.horizon, cfg.stride).learned):
            raise UserError(f"no episode has a window of horizon={cfg.horizon} rows: lower horizon")
