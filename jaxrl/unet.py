"""A one-dimensional U-Net over time, the denoiser of policy-guided diffusion.

Policy-Guided Diffusion. Matthew Thomas Jackson, Michael Tryfan Matthews, Cong Lu, Benjamin Ellis,
Shimon Whiteson, Jakob Foerster. RLC 2024, arXiv:2404.06356. The layers are those of the authors'
code: convolutions without attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.errors import UserError, at_least
from jaxrl.nets import sinusoids
from jaxrl.products import Dense
from jaxrl.types import Array

GROUPS, WIDE = 8, 16  # group normalisation: maximum number of groups, minimum channels per group


class UNet(nn.Module):
    """(x [B, T, channels], t [B] or [1]) to [B, T, channels].

    Block i of the encoder has features * 2^i channels; between blocks the time axis is halved. The
    decoder doubles the time axis again and concatenates the output of the corresponding encoder
    block.
    """

    features: int
    blocks: int
    channels: int

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        wave = sinusoids(t, self.features // 4)
        wave = Dense(self.features)(jax.nn.silu(Dense(self.features)(wave)))
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
        return Dense(self.channels)(x)


class Convolution(nn.Module):
    """Convolution over time of kernel size `side` and zero padding: [B, T, C] to [B, T, features].

    One product with shifted copies, equal to `nn.Conv`. Inside loops, as in training, XLA's
    gradients of convolutions take CPUs eight (16 channels) to sixteen (32 channels) times as long.
    An even kernel reaches one step further ahead than back.
    """

    features: int
    side: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, steps = (self.side - 1) // 2, x.shape[1]
        wide = jnp.pad(x, ((0, 0), (before, self.side - 1 - before), (0, 0)))
        shifted = [wide[:, i : i + steps] for i in range(self.side)]
        return Dense(self.features)(jnp.concatenate(shifted, -1))


def at_time(width: int, wave: Array) -> Array:
    """Offset [B, 1, width] of a block, computed from embedded times."""
    return Dense(width)(jax.nn.silu(wave))[:, None]


def groupnorm_relu(x: Array) -> Array:
    """Group normalisation over time and channels, in up to eight groups as the authors', then ReLU.

    Narrow networks get fewer groups. Each group is divided by its deviation over time, so with two
    channels per group, little information about the magnitude of a trajectory would remain.
    """
    return nn.relu(nn.GroupNorm(min(GROUPS, max(1, x.shape[-1] // WIDE)))(x))


def check(features: int, blocks: int, length: int) -> None:
    """Raises UserError if the sizes do not fit trajectories of `length` steps."""
    at_least(1, model_blocks=blocks)
    if features < 8 or features & (features - 1):
        raise UserError(f"model_features={features} must be a power of two, at least 8")
    if length % 2 ** (blocks - 1):
        raise UserError(
            f"horizon={length} must be a multiple of {2 ** (blocks - 1)} for model_blocks={blocks}"
        )
