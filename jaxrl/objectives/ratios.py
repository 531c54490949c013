"""Coefficients with clipped probability ratios. Shapes and names as in `jaxrl.objectives`.

ρ_t = exp(log π - log μ) is the ratio of a token, ρ that of a whole response.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxrl.objectives.aggregate import log_ratio, log_sequence_ratio, sequence_average
from jaxrl.types import Array

Number = Array | float


def ppo(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    dual: Number = math.inf,
) -> Array:
    """c = A ρ_t 1[A ≥ 0: ρ_t ≤ 1 + ε_high; A < 0: 1 - ε_low ≤ ρ_t ≤ dual].

    The gradient of min(ρ_t A, clip(ρ_t, 1 - ε_low, 1 + ε_high) A) (PPO, arXiv:1707.06347, eq. 7;
    two ranges: DAPO, arXiv:2503.14476), bounded below by dual · A for A < 0 (dual clip,
    arXiv:1912.09729, eq. 6). GRPO is this with `group_normalised` advantages.
    """
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    return _clipped(ratio, advantage, 1 - clip_low, 1 + clip_high, dual)


def gspo(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    clip_low: Number = 3e-4,
    clip_high: Number = 4e-4,
) -> Array:
    """PPO's c with the ratio s = ρ^(1/T) of the response, T its length, for all of its tokens.

    GSPO (arXiv:2507.18071, eq. 5 to 7), with `sequence_mean`. advantage [B, 1].
    """
    ratio = jnp.exp(sequence_average(log_ratio(log_prob, behaviour, mask), mask))
    coefficient = _clipped(ratio, advantage, 1 - clip_low, 1 + clip_high, math.inf)
    return jnp.broadcast_to(coefficient, log_prob.shape)


def cispo(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    clip_low: Number = 1.0,
    clip_high: Number = 0.2,
) -> Array:
    """c = A clip(ρ_t, 1 - ε_low, 1 + ε_high): clipped weights, no masked tokens.

    CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4 and 5); ε_low = 1 is no lower bound.
    """
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    return advantage * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)


def rec(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
) -> Array:
    """c = A 1[A ≥ 0: ρ_t ≤ 1 + ε_high; A ≤ 0: ρ_t ≥ 1 - ε_low].

    REC-OneSide-NoIS (arXiv:2509.24203): PPO's mask without its ratio. A wide range is
    (0.6, 2.0). Advantages are `group_mean`.
    """
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    inside = ((advantage >= 0) & (ratio <= 1 + clip_high)) | (
        (advantage <= 0) & (ratio >= 1 - clip_low)
    )
    return jnp.where(inside, advantage, 0.0)


def rec_is(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
) -> Array:
    """ρ_t times the c of `rec`: REC-OneSide-IS (arXiv:2509.24203), PPO without the dual clip."""
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    return ratio * rec(log_prob, behaviour, advantage, mask, clip_low, clip_high)


def sequence_is(log_prob: Array, behaviour: Array, advantage: Array, mask: Array) -> Array:
    """c = A ρ: the unbiased policy gradient from responses of another policy."""
    ratio = jnp.exp(log_sequence_ratio(log_prob, behaviour, mask))
    return jnp.broadcast_to(advantage * ratio, log_prob.shape)


def minpro(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
) -> Array:
    """c = min_{i<t} ρ_i times the c of PPO, with the minimum over the tokens before t.

    MinPRO (arXiv:2601.22718). The paper's clipping rule could not be verified: here it is PPO's on
    ρ_t, and the minimum is not capped; the first token has the factor 1.
    """
    log = log_ratio(log_prob, behaviour, mask)
    before = jnp.where(mask, log, jnp.inf)[:, :-1]
    least = jax.lax.cummin(before, axis=1)
    least = jnp.pad(jnp.where(jnp.isfinite(least), least, 0.0), ((0, 0), (1, 0)))
    return jnp.exp(least) * ppo(log_prob, behaviour, advantage, mask, clip_low, clip_high)


def remix(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    proximal: Array,
    clip: Number = 0.2,
) -> Array:
    """c = A ρ_t 1[A ≥ 0: ρ_t ≤ ρ_k + ε; A < 0: ρ_t ≥ ρ_k - ε], ρ_k = π_k / μ.

    The clipping range is around the ratio of the policy π_k at the start of the update, as rows
    come from older policies μ (ReMix's Mix-PPG, arXiv:2507.06892).

    Args:
      proximal: log π_k [B, T] of the sampled tokens.
    """
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    centre = jnp.exp(log_ratio(proximal, behaviour, mask))
    inside = jnp.where(advantage >= 0, ratio <= centre + clip, ratio >= centre - clip)
    return jnp.where(inside, advantage * ratio, 0.0)


def bapo_bounds(
    ratio: Array,
    advantage: Array,
    mask: Array,
    target: Number = 0.5,
    low: tuple[Number, Number] = (0.6, 0.9),
    high: tuple[Number, Number] = (1.2, 3.0),
    steps: tuple[int, int] = (6, 36),
) -> tuple[Array, Array]:
    """BAPO's clipping bounds (c_low [], c_high []) of a batch (arXiv:2510.18927, alg. 1).

    The lower bound rises from low[0] to low[1], then the upper one from high[0] to high[1], in
    equal steps, until positive advantages have at least the share `target` of
    Σ |A| min(ρ_t, c_high) over A ≥ 0 and Σ |A| max(ρ_t, c_low) over A < 0. Without success the
    bounds are the last ones. In this measure a higher lower bound never raises the share, so the
    upper bound decides.

    The authors' code compares positive with negative sums instead of the share: its targets 1 and
    0.5 are the shares 1/2 and 1/3.

    Args:
      ratio: ρ_t [B, T].
      steps: static, numbers of steps of the lower and of the upper bound.
    """
    rise = lambda span, count: span[0] + (span[1] - span[0]) * jnp.arange(count + 1) / count
    lows, highs = rise(low, steps[0]), rise(high, steps[1])
    lows = jnp.concatenate([lows, jnp.full(steps[1], lows[-1])])
    highs = jnp.concatenate([jnp.full(steps[0], highs[0]), highs])
    total = lambda x: jnp.sum(jnp.where(mask, x, 0.0))

    def share(low: Array, high: Array) -> Array:
        positive = total(jnp.maximum(advantage, 0) * jnp.minimum(ratio, high))
        negative = total(jnp.maximum(-advantage, 0) * jnp.maximum(ratio, low))
        return jnp.where(negative > 0, positive / jnp.maximum(positive + negative, 1e-30), 1.0)

    reached = jax.vmap(share)(lows, highs) >= target
    first = jnp.where(jnp.any(reached), jnp.argmax(reached), len(lows) - 1)
    return lows[first], highs[first]


def bapo(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    target: Number = 0.5,
    low: tuple[Number, Number] = (0.6, 0.9),
    high: tuple[Number, Number] = (1.2, 3.0),
    steps: tuple[int, int] = (6, 36),
    dual: Number = 3.0,
) -> Array:
    """PPO's c with the bounds of `bapo_bounds`, which give positive advantages their share."""
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    spread = jnp.broadcast_to(advantage, ratio.shape)
    bounds = bapo_bounds(ratio, spread, mask, target, low, high, steps)
    return _clipped(ratio, advantage, *bounds, dual)


def _clipped(ratio: Array, advantage: Array, low: Number, high: Number, dual: Number) -> Array:
    """A ρ where PPO's surrogate with the bounds has a gradient, otherwise 0."""
    inside = jnp.where(advantage >= 0, ratio <= high, (ratio >= low) & (ratio <= dual))
    return jnp.where(inside, advantage * ratio, 0.0)
