"""ALP: noise in the hidden states of the policy that is updated.

Adaptive Layerwise Perturbation: Unifying Off-Policy Corrections for LLM RL. Chenlu Ye, Xuanchang
Zhang, Yifan Hao, Zhou Yu, Ziji Zhang, Abhinav Gullapalli, Hao Chen, Jing Huang, Tong Zhang. 2026,
arXiv:2603.19470.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl.types import Array


def perturb(hidden: Array, log_sigma: Array, noise: Array) -> Array:
    """h + σ ε [..., H], the input of a layer with its learnable scale σ = exp(`log_sigma`) [].

    The perturbed network gives log π̃ of the sampled tokens. The ratio is exp(log π̃ - log μ), with
    `ppo` or `gspo` as its coefficient, and the gradient flows into network and σ; rollouts stay
    unperturbed. Scales given for σ differ between versions of the authors' README.

    Args:
      noise: standard normal numbers [..., H].
    """
    return hidden + jnp.exp(log_sigma) * noise
