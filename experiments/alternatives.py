"""Agents that suit an environment, for the message of an agent that does not."""

from __future__ import annotations

import dataclasses

from jaxrl.agents import AGENTS
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.experiments.agents import load
from jaxrl.types import Env, EnvSpec


def alternatives(name: str, env: Env, offline: bool) -> str:
    """ "; agents for it: ppo, sac", those of jaxrl that run in `env`; "" for none.

    Args:
      name: of an agent that is not for this environment.
      offline: name agents that learn from a dataset, instead of agents that learn by acting.
    """
    known = {each: load(each) for each in AGENTS if each != name}
    found = [
        each
        for each, other in known.items()
        if other.offline == offline and other.base_points is None and runs_in(other, env)
    ]
    return f"; agents for it: {', '.join(found)}" if found else ""


def runs_in(algorithm: Algorithm, env: Env) -> bool:
    """Whether the agent with default settings supports the environment."""
    try:
        algorithm.program(algorithm.Config(), env)
    except UserError:
        return False
    return True


def acts_in(algorithm: Algorithm, spec: EnvSpec) -> bool:
    """Whether the agent with default settings supports the actions of `spec`."""
    try:
        algorithm.make(algorithm.Config(), dataclasses.replace(spec, obs_shape=(4,)))
    except UserError:
        return False
    return True
