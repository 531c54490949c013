"""`OBJECTIVES`: published objectives by name, each with its loss, advantages and data.

A trainer fills `Tokens` with arrays and minimises `OBJECTIVES[name].loss(tokens, hp)`, with `hp`
any record that has the attributes listed in `uses`. `jaxrl.agents.token_pg` is such a trainer.
Shapes as in `jaxrl.objectives`; G prompts with K responses each, A tokens in the alphabet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.objectives import advantages, distillation, offpolicy, ratios, traces
from jaxrl.objectives.aggregate import (
    Aggregate,
    sequence_mean,
    sequence_sum,
    surrogate,
    token_mean,
)
from jaxrl.types import Array


class Tokens(NamedTuple):
    """Responses of a minibatch [B, T]; fields an objective does not use may be None."""

    log_probs: Array  # [B, T, A] of the policy that is updated, differentiable
    action: Array  # [B, T] int32, the tokens
    behaviour: Array  # [B, T] log μ of the tokens
    advantage: Array  # [B, 1]
    reward: Array  # [B, 1]
    mask: Array  # [B, T] bool
    group: int = 1  # K, static; rows of a group are adjacent
    own: Any = None  # [B, 1] bool: False in expert traces
    forced: Any = None  # [B, T] bool: tokens of an expert
    proximal: Any = None  # [B, T] log π_k of the tokens, π_k at the start of the update
    guide: Any = None  # [B, T, A] log-probabilities of the teacher
    progress: Array | float = 0.0  # [] fraction of training done
    noise: Any = None  # [B, T, samples, A] standard Gumbel numbers

    @property
    def log_prob(self) -> Array:
        """log π [B, T] of the tokens."""
        return chosen(self.log_probs, self.action)

    @property
    def guided(self) -> Array:
        """log π_T [B, T] of the tokens."""
        return chosen(self.guide, self.action)


Loss = Callable[[Tokens, Any], Array]
Coefficients = Callable[[Tokens, Any], Array]


class Objective(NamedTuple):
    """An objective, and what it needs of the data.

    Attributes:
      loss: (tokens, hp) -> [].
      uses: hyperparameters that loss, advantage and data read.
      advantage: (reward [G, K], hp, uniform noise [G, K]) -> [G, K].
      grouped: whether a group needs at least two responses.
      traces: whether each prompt comes with an expert trace.
      rows: how responses begin or end: "own", with an expert's "prefix", or "corrected" by an
        expert from the first wrong token on, in half of the group.
      guide: the teacher: none, the "expert" with noise, the "reference" policy or the policy
        "itself", both with privileged context.
      rollouts: the policy that responds: the learner "itself", with privileged context ("hinted"),
        or the "reference" policy.
      proximal: the loss reads the policy at the start of the update.
      draws: the loss draws tokens of its own (OTR).
      perturbed: noise in the hidden states of the learner (ALP).
      tracked: prompts are drawn, and advantages computed, with SPO's tracker.
      replayed: part of the groups is from older rollouts (ReMix).
    """

    loss: Loss
    uses: tuple[str, ...] = ()
    advantage: Callable[[Array, Any, Array], Array] = lambda r, hp, noise: advantages.group_mean(r)
    grouped: bool = True
    traces: bool = False
    rows: Literal["own", "prefix", "corrected"] = "own"
    guide: Literal["", "expert", "reference", "itself"] = ""
    rollouts: Literal["itself", "hinted", "reference"] = "itself"
    proximal: bool = False
    draws: bool = False
    perturbed: bool = False
    tracked: bool = False
    replayed: bool = False


def chosen(log_probs: Any, action: Array) -> Array:
    """[B, T] of log-probabilities [B, T, A]; a one-hot product, cheaper to differentiate."""
    return jnp.sum(log_probs * jax.nn.one_hot(action, log_probs.shape[-1]), -1)


def sampled(coefficients: Coefficients, aggregate: Aggregate = token_mean) -> Loss:
    """The loss with `coefficients` on the policy's own responses."""

    def loss(x: Tokens, hp: Any) -> Array:
        mask = x.mask if x.own is None else x.mask & x.own
        return surrogate(x.log_prob, coefficients(x, hp), mask, aggregate)

    return loss


def basic(x: Tokens) -> tuple[Array, Array, Array, Array]:
    """The four arguments that coefficient functions have in common."""
    return x.log_prob, x.behaviour, x.advantage, x.mask


def group_relative(reward: Array, hp: Any, noise: Array) -> Array:
    return advantages.group_normalised(reward)


def ppo(x: Tokens, hp: Any) -> Array:
    return ratios.ppo(*basic(x), hp.clip_low, hp.clip_high, hp.dual_clip)


def expert_loss(x: Tokens, coefficient: Array) -> Array:
    """The loss with `coefficient` [B, T] on the expert traces."""
    return surrogate(x.log_prob, coefficient, _traces(x), token_mean)


def chord_loss(x: Tokens, hp: Any) -> Array:
    """(1 - μ) PPO + μ φ-weighted likelihood, μ by `chord_weight` over the training run."""
    mu = traces.chord_weight(x.progress, hp.mu, hp.mu_end, hp.mu_warmup, 1 - hp.mu_warmup)
    own = sampled(ppo)(x, hp)
    return (1 - mu) * own + mu * expert_loss(x, traces.chord(x.log_prob, x.mask))


def otr_loss(x: Tokens, hp: Any) -> Array:
    """One-token rollouts: tokens drawn with the Gumbel noise at every position of the traces."""
    drawn = jnp.argmax(jax.lax.stop_gradient(x.log_probs)[:, :, None] + x.noise, -1)
    c = traces.otr(drawn, x.action, hp.wrong_reward)
    drawn = jax.nn.one_hot(drawn, x.log_probs.shape[-1])
    each = jnp.sum(x.log_probs[:, :, None] * drawn, -1)
    return surrogate(jnp.sum(c * each, -1), jnp.ones(x.mask.shape), _traces(x), token_mean)


def prefix_loss(x: Tokens, hp: Any) -> Array:
    """PPO on what follows the expert's prefix."""
    mask = traces.suffix_mask(x.mask, jnp.sum(x.forced, -1))
    return surrogate(x.log_prob, ppo(x, hp), mask, token_mean)


def corrected(x: Tokens, hp: Any) -> Array:
    """PPO's c on own tokens, A on the expert's corrections: the ratio taken as 1."""
    return jnp.where(x.forced, x.advantage, ppo(x, hp))


def scope_opd(x: Tokens, hp: Any) -> Array:
    args = (x.log_prob, x.behaviour, x.guided, x.mask)
    return distillation.scope_opd(*args, x.reward > 0, x.group, hp.temperature)


def opsd_loss(x: Tokens, hp: Any) -> Array:
    """Generalised JSD to the reference policy with privileged context, on own responses."""
    guide = jax.lax.stop_gradient(x.guide)
    return token_mean(distillation.jsd(x.log_probs, guide, hp.jsd_beta), x.mask)


def pi_distill_loss(x: Tokens, hp: Any) -> Array:
    """-(α J_T + (1 - α) J_S) on responses of the policy with privileged context."""
    terms = zip((x.guided, x.log_prob), (hp.alpha, 1 - hp.alpha), strict=True)
    total = jnp.zeros(())
    for log_prob, weight in terms:
        args = (log_prob, x.behaviour, x.advantage, x.mask)
        c = ratios.ppo(*args, hp.clip_low, hp.clip_high, hp.dual_clip)
        total = total + weight * surrogate(log_prob, c, x.mask, token_mean)
    between = distillation.pi_distill(x.log_probs, x.guide, hp.alpha, hp.beta)
    return total + sum(token_mean(each, x.mask) for each in between)


def _traces(x: Tokens) -> Array:
    return x.mask & ~x.own


CLIP = ("clip_low", "clip_high")
DUAL = (*CLIP, "dual_clip")

OBJECTIVES: dict[str, Objective] = {
    # on-policy, and clipped ratios
    "reinforce": Objective(sampled(lambda x, hp: offpolicy.reinforce(*basic(x)))),
    "ppo": Objective(sampled(ppo), DUAL),
    "grpo": Objective(sampled(ppo, sequence_mean), DUAL, group_relative),
    "gspo": Objective(
        sampled(lambda x, hp: ratios.gspo(*basic(x), hp.clip_low, hp.clip_high), sequence_mean),
        CLIP,
        group_relative,
    ),
    "cispo": Objective(
        sampled(lambda x, hp: ratios.cispo(*basic(x), 1.0, hp.clip_high)),
        ("clip_high",),
        group_relative,
    ),
    "sequence_is": Objective(sampled(lambda x, hp: ratios.sequence_is(*basic(x)))),
    "rec": Objective(sampled(lambda x, hp: ratios.rec(*basic(x), hp.clip_low, hp.clip_high)), CLIP),
    "rec_is": Objective(
        sampled(lambda x, hp: ratios.rec_is(*basic(x), hp.clip_low, hp.clip_high)), CLIP
    ),
    "minpro": Objective(
        sampled(lambda x, hp: ratios.minpro(*basic(x), hp.clip_low, hp.clip_high)),
        CLIP,
        group_relative,
    ),
    "bapo": Objective(
        sampled(lambda x, hp: ratios.bapo(*basic(x), hp.balance, dual=hp.dual_clip)),
        ("balance", "dual_clip"),
        group_relative,
    ),
    "spo": Objective(sampled(ppo), DUAL, grouped=False, tracked=True),
    "remix": Objective(
        sampled(lambda x, hp: ratios.remix(*basic(x), x.proximal, hp.clip_high)),
        ("clip_high", "replay_share"),
        group_relative,
        proximal=True,
        replayed=True,
    ),
    "alp": Objective(sampled(ppo), (*DUAL, "sigma"), group_relative, perturbed=True),
    # off-policy
    "topr": Objective(
        sampled(lambda x, hp: offpolicy.topr(*basic(x)), sequence_mean),
        (),
        lambda r, hp, noise: advantages.sign(r),
        grouped=False,
    ),
    "opmd": Objective(
        sampled(lambda x, hp: offpolicy.opmd(*basic(x), hp.tau), sequence_sum), ("tau",)
    ),
    "opmd_log_z": Objective(
        sampled(lambda x, hp: offpolicy.opmd(*basic(x), hp.tau), sequence_sum),
        ("tau",),
        lambda r, hp, noise: advantages.soft_advantage(r, hp.tau),
    ),
    "opmd_token": Objective(
        sampled(lambda x, hp: offpolicy.opmd_token(*basic(x), hp.tau)), ("tau",)
    ),
    "asymre": Objective(
        sampled(lambda x, hp: offpolicy.asymre(*basic(x), hp.baseline_shift)), ("baseline_shift",)
    ),
    "red_drop": Objective(
        sampled(lambda x, hp: offpolicy.reinforce(*basic(x))),
        (),
        lambda r, hp, noise: advantages.red_drop(r, noise),
    ),
    "red_weight": Objective(
        sampled(lambda x, hp: offpolicy.red_weight(*basic(x), hp.temperature)), ("temperature",)
    ),
    # expert traces
    "sft": Objective(
        lambda x, hp: expert_loss(x, jnp.ones(x.mask.shape)), (), grouped=False, traces=True
    ),
    "sft_hinted": Objective(
        lambda x, hp: surrogate(x.guided, jnp.ones(x.mask.shape), _traces(x), token_mean),
        grouped=False,
        traces=True,
        guide="itself",
    ),
    "chord": Objective(
        chord_loss, (*DUAL, "mu", "mu_end", "mu_warmup"), group_relative, traces=True
    ),
    "otr": Objective(otr_loss, ("wrong_reward",), grouped=False, traces=True, draws=True),
    "prefixrl": Objective(prefix_loss, (*DUAL, "prefix_share"), rows="prefix"),
    "scope_step": Objective(sampled(corrected), DUAL, rows="corrected"),
    # distillation
    "opd": Objective(
        sampled(lambda x, hp: distillation.opd(x.log_prob, x.behaviour, x.guided, x.mask)),
        ("teacher_noise",),
        grouped=False,
        guide="expert",
    ),
    "lightning_opd": Objective(
        sampled(lambda x, hp: distillation.lightning_opd(x.log_prob, x.proximal, x.guided, x.mask)),
        ("teacher_noise",),
        grouped=False,
        guide="expert",
        rollouts="reference",
        proximal=True,
    ),
    "scope_opd": Objective(sampled(scope_opd), ("teacher_noise", "temperature"), guide="expert"),
    "opsd": Objective(opsd_loss, ("jsd_beta",), grouped=False, guide="reference"),
    "pi_distill": Objective(
        pi_distill_loss, (*DUAL, "alpha", "beta"), guide="itself", rollouts="hinted"
    ),
}
