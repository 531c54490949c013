"""Teams: several agents act at once in an environment and share one policy.

In an environment with `EnvSpec.agents` = A, observations, actions and rewards have an axis [A], and
all else is as for one agent. Rollouts and evaluations give the policy and the learner N * A rows,
environment by environment, so that every agent of jaxrl learns in teams as independent learners
with shared parameters (IPPO with PPO). A learner that sees the team reshapes its rows to [N, A].
Without `agents` the functions return their input.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.errors import UserError
from jaxrl.types import Array, EnvSpec, PyTree


def team_size(spec: EnvSpec) -> int:
    """Rows of the policy per environment."""
    return spec.agents or 1


def to_rows(tree: PyTree, spec: EnvSpec) -> PyTree:
    """Leaves [N, A, ...] as rows [N * A, ...]."""
    if spec.agents is None:
        return tree
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def to_teams(tree: PyTree, spec: EnvSpec) -> PyTree:
    """Rows [N * A, ...] as [N, A, ...]."""
    if spec.agents is None:
        return tree
    return jax.tree.map(lambda x: x.reshape(-1, team_size(spec), *x.shape[1:]), tree)


def per_agent(x: Array, spec: EnvSpec) -> Array:
    """What holds for an environment [N], for each of its agents [N * A]."""
    return x if spec.agents is None else jnp.repeat(x, team_size(spec), axis=0)


def window_of_teams(window: PyTree, spec: EnvSpec) -> PyTree:
    """A window's leaves [T, N * A, ...] as [T, N, A, ...]."""
    return jax.tree.map(lambda x: x.reshape(len(x), -1, team_size(spec), *x.shape[2:]), window)


def check_single(spec: EnvSpec, what: str) -> None:
    """Raises UserError if `spec` has a team; `what` begins the message."""
    if spec.agents is not None:
        raise UserError(f"{what} takes one agent; {spec.name} has a team of {spec.agents}")
