"""Scaling of bounded action boxes to [-1, 1]."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.types import Array, Box, Discrete, EnvSpec


class BoxScale(NamedTuple):
    """Centre and half-widths of a bounded box of A actions, for scaling to [-1, 1]."""

    centre: np.ndarray  # [1, A]
    scale: np.ndarray  # [1, A]

    @property
    def size(self) -> int:
        return self.scale.shape[-1]

    def unit(self, action: Array) -> Array:
        """Actions [B, A] of the box, scaled to [-1, 1]."""
        return (action - self.centre) / self.scale

    def scaled(self, action: Array) -> Array:
        """Actions [B, A] in [-1, 1], scaled to the box."""
        return action * self.scale + self.centre


def box_scale(agent: str, spec: EnvSpec) -> BoxScale:
    """Centre and scale of `spec`'s actions.

    Args:
      agent: name of the agent, for error messages.

    Raises:
      UserError: the action space is not a bounded box of one axis.
    """
    space = spec.action
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise UserError(f"{agent} needs actions in a box of one axis; {spec.name} has {space}")
    low, high = np.array([space.low], np.float32), np.array([space.high], np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"{agent} needs bounded actions; {spec.name} has {space}")
    return BoxScale((high + low) / 2, (high - low) / 2)


def clip_to_box(space: Discrete | Box, action: Array) -> Array:
    """Actions [n, ...] clipped to the bounds of a box."""
    if isinstance(space, Discrete):
        return action
    return jnp.clip(action, np.array([space.low], np.float32), np.array([space.high], np.float32))
