"""Scaling of bounded action boxes to [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UserError
from jaxrl.types import Array, Box, Discrete, EnvSpec


class BoxScale(NamedTuple):
    """Centre and half-widths of a box of A actions, for scaling to [-1, 1]."""

    centre: np.ndarray  # [1, A]
    scale: np.ndarray  # [1, A] positive divisor: the half-width, or 1 if low = high
    half: np.ndarray  # [1, A] half-width

    @property
    def size(self) -> int:
        return self.scale.shape[-1]

    def unit(self, action: Array) -> Array:
        """Actions [B, A] of the box, scaled to [-1, 1]."""
        return (action - self.centre) / self.scale

    def scaled(self, action: Array) -> Array:
        """Actions [B, A] in [-1, 1], scaled to the box."""
        return action * self.half + self.centre


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
    if not np.isfinite([space.low, space.high]).all():
        raise UserError(f"{agent} needs bounded actions; {spec.name} has {space}")
    return scale_of(space)


def scale_of(space: Box) -> BoxScale:
    """Centre and scale of a box of one axis; 0 and 1 for actions without two finite bounds."""
    low, high = np.array([space.low], np.float32), np.array([space.high], np.float32)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
    half = (high - low) / 2
    return BoxScale((high + low) / 2, np.where(half > 0, half, 1), half)


def from_units(space: Discrete | Box) -> Callable[[Array], Array]:
    """Function from actions [n, A] in half-widths around the centre to actions of the box.

    Discrete actions, and actions without two finite bounds, are unchanged.
    """
    if isinstance(space, Discrete):
        return lambda action: action
    units = scale_of(space)
    if (units.centre == 0).all() and (units.half == 1).all():
        return lambda action: action
    return units.scaled


def clip_to_box(space: Discrete | Box, action: Array) -> Array:
    """Actions [n, ...] clipped to the bounds of a box."""
    if isinstance(space, Discrete):
        return action
    return jnp.clip(action, np.array([space.low], np.float32), np.array([space.high], np.float32))
