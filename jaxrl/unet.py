"""A U-Net along time: the denoiser of trajectories of policy-guided diffusion.

Policy-Guided Diffusion. Matthew Thomas Jackson, Michael Tryfan Matthews, Cong Lu, Benjamin Ellis,
Shimon Whiteson, Jakob Foerster. RLC 2024, arXiv:2404.06356. Its layers are those of the authors'
code: convolutions alone, no attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.errors import UserError, at_least
from jaxrl.nets import sinusoids
from jaxrl.types import Array

GROUPS, WIDE = 8, 16  # groups of the normalisations, at most, and channels of each, at least


class UNet(nn.Module):
    """(x [B, T, channels], t [B] or [1]) to [B, T, channels].

    Block i < n on the way down has features 2^i channels; behind each but the last, time is halved.
    On the way up each is met again, twice as long as the one before, with what it gave on the way
    down beside it.
    """

    features: int
    blocks: int
    channels: int

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        wave = sinusoids(t, self.features // 4)
        wave = nn.Dense(self.features)(jax.nn.silu(nn.Dense(self.features)(wave)))
        passed = []
        for i in range(self.blocks):
            width = self.features * 2**i
            x = nn.max_pool(x, (2,), (2,)) if i else x
            x = groupnorm_relu(Convolution(width, 3)(x) + at_time(width, wave))
            x = groupnorm_relu(Convolution(width, 3)(x))
            passed.append(x)
        for i in reversed(range(self.blocks - 1)):
            width = self.features * 2**i
            x = Convolution(width, 2)(jnp.repeat(x, 2, 1))
            x = jnp.concatenate([passed[i], groupnorm_relu(x + at_time(width, wave))], -1)
            for _ in range(2):
                x = groupnorm_relu(Convolution(width, 3)(x))
        return nn.Dense(self.channels)(x)


class Convolution(nn.Module):
    """[B, T, C] to [B, T, features]: each step sees `side` steps around it, zeros beyond the ends.

    One product of shifted copies, with the numbers of `nn.Conv`. In a loop, as in training, XLA's
    gradients of convolutions take CPUs eight times as long (16 channels) or sixteen times (32). Of
    an even number of steps, one more is ahead than behind.
    """

    features: int
    side: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, steps = (self.side - 1) // 2, x.shape[1]
        wide = jnp.pad(x, ((0, 0), (before, self.side - 1 - before), (0, 0)))
        shifted = [wide[:, i : i + steps] for i in range(self.side)]
        return nn.Dense(self.features)(jnp.concatenate(shifted, -1))


def at_time(width: int, wave: Array) -> Array:
    """What a block adds at every step [B, 1, width], from embedded times."""
    return nn.Dense(width)(jax.nn.silu(wave))[:, None]


def groupnorm_relu(x: Array) -> Array:
    """Group normalisation over time and channels, in the authors' eight groups, then ReLU.

    Narrow networks get fewer groups: over two channels, say, little would be left of how large a
    trajectory's numbers are, since each group is divided by its own deviation over time.
    """
    return nn.relu(nn.GroupNorm(min(GROUPS, max(1, x.shape[-1] // WIDE)))(x))


def check(features: int, blocks: int, length: int) -> None:
    """Raises UserError where such a network cannot be made for so many steps."""
    at_least(1, model_blocks=blocks)
    if features < 8 or features & (features - 1):
        raise UserError(f"model_features={features} must be a power of two from 8 on")
    if length % 2 ** (blocks - 1):
        raise UserError(
            f"horizon={length} must be a multiple of {2 ** (blocks - 1)}, of model_blocks={blocks}"
        )
