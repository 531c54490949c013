"""SPO's tracker of success rates: a Beta distribution per prompt.

Single-stream Policy Optimization. Zhongwen Xu, Zihan Ding. 2025, arXiv:2509.13232; constants of the
authors' code.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxrl.types import Array

LEAST, MOST = 0.875, 0.96  # bounds of the forgetting factor ρ
HALF_LIFE = 0.06  # mean |Δ log π| at which half of the past is forgotten


class SpoTracker(NamedTuple):
    """Beta(α, β) of any number of prompts; the value is α / (α + β)."""

    alpha: Array  # [...]
    beta: Array  # [...]

    @property
    def value(self) -> Array:
        """Tracked success rate v̂ [...]."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def weight(self) -> Array:
        """Effective number of observations N [...]."""
        return self.alpha + self.beta


def spo_begin(successes: Array, samples: Array | int) -> SpoTracker:
    """From offline samples: α₀ = N₀ (Σ r + ½) / (n + 1), N₀ = 1 / (1 - 0.875) = 8.

    Args:
      successes: Σ r [...], rewards in [0, 1].
      samples: n; without samples the value is ½.
    """
    count = 1 / (1 - LEAST)
    alpha = count * (successes + 0.5) / (samples + 1)
    return SpoTracker(alpha, count - alpha)


def spo_forgetting(distance: Array) -> Array:
    """ρ = clip(2^(-D / 0.06), 0.875, 0.96) [...].

    Args:
      distance: D [...], mean |Δ log π| over the tokens of the prompt's last response.
    """
    return jnp.clip(2.0 ** (-distance / HALF_LIFE), LEAST, MOST)


def spo_track(tracker: SpoTracker, reward: Array, forgetting: Array) -> SpoTracker:
    """α ← ρ α + r, β ← ρ β + 1 - r [...], which is v̂ ← v̂ + η (r - v̂) with η = 1 / (ρ N + 1)."""
    return SpoTracker(forgetting * tracker.alpha + reward, forgetting * tracker.beta + 1 - reward)


def spo_priority(value: Array) -> Array:
    """√(v̂ (1 - v̂)) + 0.05 [...], to which the probability of drawing a prompt is proportional.

    As in the authors' code; the paper divides by a power of the number of observations.
    """
    return jnp.sqrt(value * (1 - value)) + 0.05
