"""Distributions over actions, as records of their parameters.

`sample(noise)` transforms random numbers drawn by `noise(key, shape)` into a sample, since a policy
draws the numbers of a whole window at once (`jaxrl.types.Policy.noise`). Leading axes [...] are
batch axes. Log-densities are in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array

LOG_2PI = float(np.log(2 * np.pi))


class Categorical(NamedTuple):
    """Actions 0 .. A-1 with log-probabilities logits + constant. logits [..., A]."""

    logits: Array

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """Standard Gumbel numbers of shape [..., A]."""
        return jax.random.gumbel(key, shape)

    @property
    def log_probs(self) -> Array:
        """[..., A]."""
        return jax.nn.log_softmax(self.logits)

    @property
    def mode(self) -> Array:
        """The most probable action [...] int32."""
        return jnp.argmax(self.logits, -1)

    def sample(self, noise: Array) -> Array:
        """Actions [...] int32 from Gumbel `noise` [..., A] (the Gumbel-max trick)."""
        return jnp.argmax(self.logits + noise, -1)

    def log_prob(self, action: Array) -> Array:
        """[...] of actions [...]; a one-hot product, whose gradient is cheaper than a gather's."""
        return jnp.sum(self.log_probs * jax.nn.one_hot(action, self.logits.shape[-1]), -1)

    def entropy(self) -> Array:
        """[...]."""
        return -jnp.sum(jnp.exp(self.log_probs) * self.log_probs, -1)

    def kl(self, other: Categorical) -> Array:
        """KL(self || other) [...]."""
        log_p = self.log_probs
        return jnp.sum(jnp.exp(log_p) * (log_p - other.log_probs), -1)


class Normal(NamedTuple):
    """Independent normal components. mean and log_std [..., A]; densities are joint over A."""

    mean: Array
    log_std: Array

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """Standard normal numbers of shape [..., A]."""
        return jax.random.normal(key, shape)

    @property
    def mode(self) -> Array:
        """[..., A]."""
        return self.mean

    def sample(self, noise: Array) -> Array:
        """Actions [..., A] from standard normal `noise` [..., A], differentiable."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        """[...] of actions [..., A]."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * (z * z + LOG_2PI) - self.log_std, -1)

    def entropy(self) -> Array:
        """[...]."""
        return jnp.sum(jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 * (1 + LOG_2PI), -1)

    def kl(self, other: Normal) -> Array:
        """KL(self || other) [...]."""
        var = jnp.exp(2 * (self.log_std - other.log_std))
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(other.log_std - self.log_std + 0.5 * (var + shift * shift - 1), -1)


class TruncatedNormal(NamedTuple):
    """Independent normal components restricted to [-1, 1]. mean and log_std [..., A].

    Means lie in [-1, 1], where log-densities are exact: the interval holds much of the mass.
    """

    mean: Array
    log_std: Array

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """Uniform numbers in [0, 1) of shape [..., A]."""
        return jax.random.uniform(key, shape)

    @property
    def mode(self) -> Array:
        """[..., A]."""
        return self.mean

    def _ends(self) -> tuple[Array, Array]:
        """Cumulative probabilities [..., A] of the untruncated components at -1 and 1."""
        scale = jnp.exp(-self.log_std)
        low, high = (-1 - self.mean) * scale, (1 - self.mean) * scale
        return jax.scipy.special.ndtr(low), jax.scipy.special.ndtr(high)

    def sample(self, noise: Array) -> Array:
        """Actions [..., A] from uniform `noise` [..., A], by the inverse of the distribution."""
        low, high = self._ends()
        z = jax.scipy.special.ndtri(jnp.clip(low + noise * (high - low), 1e-7, 1 - 1e-7))
        return jnp.clip(self.mean + jnp.exp(self.log_std) * z, -1.0, 1.0)

    def log_prob(self, action: Array) -> Array:
        """[...] of actions [..., A] in [-1, 1]."""
        low, high = self._ends()
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * (z * z + LOG_2PI) - self.log_std - jnp.log(high - low), -1)


def tanh_correction(pre: Array) -> Array:
    """Sum of log(1 - tanh(pre)²) [...] over the last axis of `pre` [..., A].

    log p(tanh(u)) = log p(u) - tanh_correction(u). Computed as 2 (log 2 - u - softplus(-2 u)),
    which is exact also where tanh saturates (Haarnoja et al. 2018, app. C).
    """
    return jnp.sum(2 * (jnp.log(2.0) - pre - jax.nn.softplus(-2 * pre)), -1)


def gaussian_kl(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, var) || N(0, 1)) [B] of independent dimensions [B, L]."""
    return 0.5 * jnp.sum(mean**2 + jnp.exp(log_var) - 1 - log_var, -1)
