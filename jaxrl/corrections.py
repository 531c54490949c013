"""Corrections of offline critics that over- or underfit.

vib       variational information bottleneck: features are samples of N(μ(s, a), σ²(s, a)), and
          their divergence from the standard normal distribution is penalised
dropout   hidden units are dropped in training with a probability
dr3       φ(s, a)·φ(s', a') is penalised, so that features of successive pairs do not align. Aviral
          Kumar, Rishabh Agarwal, Tengyu Ma, Aaron Courville, George Tucker, Sergey Levine. DR3.
          ICLR 2022, arXiv:2112.04716

The first two are for critics that overfit, the third for critics that underfit (Aviral Kumar,
Anikait Singh, Stephen Tian, Chelsea Finn, Sergey Levine. A Workflow for Offline Model-Free Robotic
Reinforcement Learning. CoRL 2021, arXiv:2109.10813).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.distributions import gaussian_kl
from jaxrl.nets import Net, from_linen, packed
from jaxrl.precision import lowered, raised
from jaxrl.products import Dense
from jaxrl.types import Array, PyTree

Correction = Literal["none", "vib", "dropout", "dr3"]


class Trained(NamedTuple):
    """What a critic gives in training, for rows [B]."""

    q: Array  # [B]
    features: Array  # [B, F] inputs of the last layer
    divergence: Array  # [B] KL of the bottleneck; 0 without one


class Critic(nn.Module):
    """[Dense -> ReLU] per width, a bottleneck of the last width for vib, and a linear layer.

    `__call__` is the critic as it is used in targets and by the policy: without noise.
    """

    hidden: tuple[int, ...]
    out: int = 1
    correction: Correction = "none"

    @nn.compact
    def train(self, x: Array, key: Array | None, strength: Array | float) -> Trained:
        """Outputs for rows x [B, X]; without a key, no units are dropped and features are means."""
        for i, width in enumerate(self.hidden):
            x = nn.relu(Dense(width)(x))
            if self.correction == "dropout" and key is not None:
                x = dropped(x, jax.random.fold_in(key, i), strength)
        divergence = jnp.zeros(len(x))
        if self.correction == "vib":
            mean, log_var = jnp.split(Dense(2 * self.hidden[-1])(x), 2, -1)
            divergence = gaussian_kl(mean, log_var)
            noise = 0.0 if key is None else jax.random.normal(key, mean.shape)
            x = mean + jnp.exp(0.5 * log_var) * noise
        return Trained(Dense(self.out)(x)[:, 0], x, divergence)

    def __call__(self, x: Array) -> Array:
        return self.train(x, None, 0.0).q[:, None]


def training(
    hidden: tuple[int, ...], size: int, correction: Correction
) -> Callable[[PyTree, Array, Array, Array | float], Trained]:
    """Function (parameters of a packed `Critic`, x [B, X], key, strength) -> `Trained`."""
    module = Critic(hidden, 1, correction)
    init = from_linen(module, (size,)).init

    def apply(params: PyTree, x: Array, key: Array, strength: Array | float) -> Trained:
        args = lowered(x), key, strength
        return raised(module.apply({"params": lowered(params)}, *args, method="train"))

    return packed(Net(init, apply)).apply


def dropped(x: Array, key: Array, rate: Array | float) -> Array:
    """x with elements set to 0 with probability `rate`, the others divided by 1 - rate."""
    keep = jax.random.uniform(key, x.shape) >= rate
    return jnp.where(keep, x / (1 - rate), 0.0)


def dr3(features: Array, ahead: Array, continues: Array) -> Array:
    """Σ_i mean φ_i(s, a)·φ_i(s', a') [] of N critics' features [N, B, F]; no gradient flows to the
    second factor. Rows that do not continue, [B], count as 0."""
    product = jnp.sum(features * jax.lax.stop_gradient(ahead), -1)
    return jnp.sum(jnp.mean(jnp.where(continues[None], product, 0.0), -1))
