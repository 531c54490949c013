"""Policy extraction: losses that turn Q- and V-functions of a dataset into a policy.

awr         advantage-weighted regression: clone the dataset's actions with weights exp(β A)
best_of_n   clone the best of N actions of the policy and the dataset's action, if its advantage
            exceeds a threshold. Hao Bai, Yifei Zhou, Li Erran Li, Sergey Levine, Aviral Kumar.
            Digi-Q. ICLR 2025, arXiv:2502.15760
ddpg_bc     follow the gradient of Q(s, π(s)) and clone the dataset's actions. Seohong Park,
            Kevin Frans, Sergey Levine, Aviral Kumar. Is Value Learning Really the Main
            Bottleneck in Offline RL? NeurIPS 2024, arXiv:2406.09329
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl.types import Array


def advantage_weights(
    advantage: Array,
    beta: Array | float,
    max_weight: Array | float,
    divergence: Literal["kl", "chi2"] = "kl",
) -> Array:
    """min(w, limit) [B] of advantages [B]; w π_b is about the maximiser of E_π A - D_f(π, π_b) / β.

    kl: w = exp(β A) (IQL, eq. 7), exact up to a factor. chi2, f(x) = (x - 1)² / 2:
    w = max(0, 1 + β A), exact if advantages have mean 0 under π_b and no weight is cut off. It is 0
    for actions of low advantage, as in Haoran Xu et al. Offline RL with No OOD Actions: In-Sample
    Learning via Implicit Value Regularization. ICLR 2023, arXiv:2303.15810.
    """
    scaled = beta * advantage
    weight = jnp.exp(scaled) if divergence == "kl" else jnp.maximum(0.0, 1 + scaled)
    return jnp.minimum(weight, max_weight)


def weighted_cloning_loss(log_prob: Array, weight: Array) -> Array:
    """-mean w log π(a|s) [] of [B] each."""
    return -jnp.mean(weight * log_prob)


def best_of(advantage: Array, action: Array, threshold: float) -> tuple[Array, Array]:
    """The action [B, ...] of the highest advantage of each row, and its weight [B]: 1 if its
    advantage exceeds the threshold, otherwise 0.

    Args:
      advantage: [N, B] of the candidates.
      action: [N, B, ...].
    """
    best = jnp.argmax(advantage, 0)
    chosen = action[best, jnp.arange(len(best))]
    return chosen, (jnp.max(advantage, 0) > threshold).astype(jnp.float32)


def ddpg_bc_loss(q: Array, log_prob: Array, beta: Array | float) -> Array:
    """-mean log π(a|s) - β mean Q(s, π(s)) / mean |Q(s, π(s))| [], of [B] each; the divisor is a
    constant."""
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return -jnp.mean(log_prob) - beta * jnp.mean(q) / scale
