"""The record that describes an algorithm to commands. Importing this file does not import JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl.program import Program
    from jaxrl.types import Agent, Array


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """Description of an algorithm for commands: `ALGORITHM` at the end of an agent's file.

    Attributes:
      Config: frozen dataclass of static settings.
      Hypers: dataclass of traced hyperparameters.
      make: make(cfg, spec) gives the `Agent`.
      program: program(cfg, env, *, evals, episodes) gives the `Program` of a run; it also takes
        `base`, a trained policy, where `base_points` is given.
      offline: whether the agent learns from a dataset, `inputs["data"]`.
      extras: the dataset extras that the agent reads.
      check_request: check_request(cfg, hp, inputs) raises UserError if values and data do not fit
        together.
      log_prob: log_prob(cfg, spec) gives (state, hp, obs, action) -> log π(a|s), float32 [n].
      base_points: base_points(hp, runs) gives the points of an agent that builds on finished runs;
        "base" of a point is the index of its base run.
      base_acts: base_acts(hp) says which members [P] act as their base run does, with which the
        summary then compares the others; None for no such comparison.
      base_data: whether base runs must have been trained on the dataset of the run.
    """

    Config: type
    Hypers: type
    make: Callable[..., Agent]
    program: Callable[..., Program]
    offline: bool = False
    extras: tuple[str, ...] = ()
    check_request: Callable[..., None] | None = None
    log_prob: Callable[..., Callable[..., Array]] | None = None
    base_points: Callable[..., tuple[dict[str, Any], ...]] | None = None
    base_acts: Callable[..., Array] | None = None
    base_data: bool = True

    @property
    def module(self) -> str:
        """The dotted name of the module that defines `program`."""
        return self.program.__module__


def one_each(hp: Any, runs: int) -> tuple[dict[str, Any], ...]:
    """`Algorithm.base_points` of an agent with a member per base run."""
    return tuple({"base": run} for run in range(runs))
