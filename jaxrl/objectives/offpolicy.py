"""Coefficients for responses of other policies, without ratios or with tapered ones.

Shapes and names as in `jaxrl.objectives`.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl.objectives.aggregate import log_ratio, log_sequence_ratio
from jaxrl.types import Array

Number = Array | float


def reinforce(log_prob: Array, behaviour: Array, advantage: Array, mask: Array) -> Array:
    """c = A, whichever policy the responses are from (REINFORCE, Williams 1992)."""
    return jnp.broadcast_to(advantage, log_prob.shape)


def topr(
    log_prob: Array,
    behaviour: Array,
    advantage: Array,
    mask: Array,
    positive: tuple[Number, Number] = (1.0, 1.0),
    negative: tuple[Number, Number] = (0.0, 1.0),
) -> Array:
    """c = R clip(ρ, a, b), with (a, b) = `positive` for R ≥ 0, `negative` for R < 0.

    ρ is the ratio of the whole response: bad responses that have become unlikely push no further.
    TOPR (arXiv:2503.14286, eq. 7 and 8): rewards ±1 (`sign`), no group baseline. ρ is not
    normalised by length, as in the paper; verl's variant takes the geometric mean per token.
    advantage R [B, 1].
    """
    ratio = jnp.exp(log_sequence_ratio(log_prob, behaviour, mask))
    weight = jnp.where(advantage >= 0, jnp.clip(ratio, *positive), jnp.clip(ratio, *negative))
    return jnp.broadcast_to(advantage * weight, log_prob.shape)


def opmd(
    log_prob: Array, behaviour: Array, advantage: Array, mask: Array, tau: Number = 0.1
) -> Array:
    """c = A - τ (log π(response) - log μ(response)), for all tokens of a response.

    The gradient of (A - τ log ρ)² / (2 τ) (Kimi k1.5, arXiv:2501.12599, eq. 3), with
    A = r - τ log Z (`soft_advantage`) or r - r̄. With the exact log Z the minimum is
    π ∝ μ exp(r / τ). Trinity-RFT's `opmd` is another rule, A / (1 + τ). advantage [B, 1].
    """
    drift = log_sequence_ratio(log_prob, behaviour, mask)
    return jnp.broadcast_to(advantage - tau * drift, log_prob.shape)


def opmd_token(
    log_prob: Array, behaviour: Array, advantage: Array, mask: Array, tau: Number = 0.1
) -> Array:
    """c = A - 2 τ (log π - log μ) per token, the gradient of -A log π + τ (log π - log μ)².

    The k2 regulariser of Trinity-RFT, which absorbs Kimi's ½ into τ.
    """
    return advantage - 2 * tau * log_ratio(log_prob, behaviour, mask)


def asymre(
    log_prob: Array, behaviour: Array, advantage: Array, mask: Array, beta: Number = 0.1
) -> Array:
    """c = A + β: the baseline r̄ of A = r - r̄ lowered by β (AsymRE, arXiv:2506.20520).

    β > 0 weighs good responses more, and adds β E_μ[log π].
    """
    return jnp.broadcast_to(advantage + beta, log_prob.shape)


def red_weight(
    log_prob: Array, behaviour: Array, advantage: Array, mask: Array, temperature: Number = 1.0
) -> Array:
    """c = A exp(A / temperature): RED-Weight (arXiv:2509.24203, and the code of its authors)."""
    weighted = advantage * jnp.exp(advantage / temperature)
    return jnp.broadcast_to(weighted, log_prob.shape)
