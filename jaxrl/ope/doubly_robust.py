"""The direct method and the doubly robust estimator, from an estimate Q̂ of the target's Q-values.

    direct method    V̂(s_0) = Σ_a π(a|s_0) Q̂(s_0, a)
    doubly robust    Σ_t γ^t [w_{0:t} (r_t - Q̂(s_t, a_t)) + w_{0:t-1} V̂(s_t)]

The second is unbiased for any Q̂ if the behaviour policy is known, and has a smaller variance than
per-decision importance sampling if Q̂ is good. Nan Jiang, Lihong Li. Doubly Robust Off-policy Value
Evaluation for Reinforcement Learning. ICML 2016, arXiv:1511.03722; in this form Philip Thomas, Emma
Brunskill. ICML 2016, arXiv:1604.00923.

Both return a term per episode, [E]. Past the end of an episode rewards, Q̂ and V̂ are 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl.ope.episodes import discounted
from jaxrl.types import Array


def direct(value: Array) -> Array:
    """V̂(s_0) [E] of values V̂ [E, T]."""
    return value[:, 0]


def doubly_robust(
    weight: Array, reward: Array, q: Array, value: Array, gamma: Array | float
) -> Array:
    """The terms [E] of the doubly robust estimator.

    Args:
      weight: [E, T] w_{0:t}, plain or self-normalised (`importance`).
      reward: [E, T].
      q: [E, T] Q̂(s_t, a_t) of the actions taken.
      value: [E, T] V̂(s_t) under the target policy.
    """
    before = jnp.concatenate([jnp.ones_like(weight[:, :1]), weight[:, :-1]], 1)
    return discounted(weight * (reward - q) + before * value, gamma)
