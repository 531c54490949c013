"""Objectives with expert traces. Shapes and names as in `jaxrl.objectives`."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl.types import Array

Number = Array | float


def chord(log_prob: Array, mask: Array) -> Array:
    """c = φ(p) = p (1 - p) of the expert's tokens, p = π(token): CHORD-φ (arXiv:2508.11408).

    Tokens that the policy already knows, and those it finds absurd, count least. The whole loss is
    (1 - μ) PPO on rollouts + μ times this one on expert tokens.
    """
    p = jnp.exp(jnp.where(mask, log_prob, 0.0))
    return p * (1 - p)


def chord_weight(
    step: Number, peak: Number, valley: Number, warmup: Number, decay: Number
) -> Array:
    """CHORD's μ []: linear from 0 to `peak` over `warmup` steps, then along half a cosine to
    `valley` over `decay` steps, constant from there."""
    rising = peak * jnp.clip(step / jnp.maximum(warmup, 1e-9), 0.0, 1.0)
    progress = jnp.clip((step - warmup) / jnp.maximum(decay, 1e-9), 0.0, 1.0)
    falling = valley + 0.5 * (peak - valley) * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)


def otr(sampled: Array, target: Array, beta: Number = -0.1) -> Array:
    """c = R(a) / K [..., K] of K tokens drawn at a position of an expert trace.

    R = 1 if a is the expert's token, otherwise β: a one-token rollout per position
    (OTR, arXiv:2509.26313). The paper's K = 256 and β = -0.1 could not be verified.

    Args:
      sampled: [..., K] tokens of the policy at the expert's prefixes.
      target: [...] the expert's tokens.
    """
    reward = jnp.where(sampled == target[..., None], 1.0, beta)
    return reward / sampled.shape[-1]


def suffix_mask(mask: Array, prefix: Array) -> Array:
    """`mask` [B, T] without the first `prefix` [B] tokens of each response.

    PrefixRL (arXiv:2601.18795): prompts are followed by prefixes of successful traces, which get no
    gradient. Coefficients are any of the on-policy ones.
    """
    return mask & (jnp.arange(mask.shape[-1])[None] >= prefix[:, None])


def first_error(step_correct: Array, mask: Array) -> Array:
    """Index [B] of the first wrong token, T without one.

    Args:
      step_correct: [B, T] bool from a step verifier.
    """
    length = mask.shape[-1]
    wrong = mask & ~step_correct
    return jnp.where(jnp.any(wrong, -1), jnp.argmax(wrong, -1), length)


def splice(response: Array, correction: Array, first: Array) -> Array:
    """Tokens [B, T] of `response` before index `first` [B], of `correction` from there on.

    SCOPE's step-wise correction (arXiv:2602.24110): wrong responses keep their own correct prefix
    and get a corrected suffix, which is off-policy. The loss on the suffix is not pinned down by
    the sources at hand; `jaxrl.objectives.table` takes that of `rec`.
    """
    return jnp.where(jnp.arange(response.shape[-1])[None] < first[:, None], response, correction)
