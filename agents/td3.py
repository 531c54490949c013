"""TD3: twin delayed deep deterministic policy gradient.

Addressing Function Approximation Error in Actor-Critic Methods. Scott Fujimoto, Herke van Hoof,
David Meger. ICML 2018, arXiv:1802.09477.

The core is that of `jaxrl.agents.td3bc` without cloning: twin critics have the target
r + γ min_i Q'_i(s', π'(s') + clipped noise), and every `policy_every` gradient steps the actor
maximises mean Q_1(s, π(s)) and the target networks are updated. Actions in training have normal
noise added.

An update is a rollout of T steps in N environments, followed by `gradient_steps` gradient steps on
batches of the replay buffer.

Deviations from the authors' code:
- Weights are initialised as in flax (LeCun normal), not as in torch.
- Noise is in units of half the action range, for every box.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxrl.agents.td3bc import Variant, exploring, make_variant
from jaxrl.algorithm import Algorithm
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_replay, off_policy, several_steps
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 1_000_000
    """environment steps of a run after the warm-up, summed over its parallel environments"""
    num_envs: int = 1
    """parallel environments N"""
    num_steps: int = 1
    """steps T per environment and rollout"""
    gradient_steps: int = 1
    """gradient steps per rollout"""
    batch_size: int = 256
    """transitions per gradient step"""
    capacity: int = 1_000_000
    """transitions in the replay buffer"""
    warmup: int = 25_000
    """environment steps with random actions before the first update"""
    policy_every: int = 2
    """critic updates per update of the policy and the target networks"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""

    @property
    def window(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        return self.total_steps // self.window

    @property
    def n_step(self) -> int:
        """Targets have one reward."""
        return 1

    @property
    def normalise_obs(self) -> bool:
        """There are no data whose statistics could standardise observations."""
        return False


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target networks"""
    exploration: Any = bounded(0.1, least=0)
    """std of the noise of actions in training, in half action ranges"""
    policy_noise: Any = bounded(0.2, least=0)
    """std of the target-policy noise, in half action ranges"""
    noise_clip: Any = bounded(0.5, least=0)
    """clipping range of the target-policy noise, in half action ranges"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or sizes do not fit together.
    """
    space = box_scale("td3", spec)
    check_replay(cfg)
    core = make_variant(cfg, spec, Variant("td3", lambda q, chosen, t, hp: -jnp.mean(q)))

    stepping = several_steps(core, cfg.gradient_steps)

    def update(state, hp, batch, key, step):
        state, metrics = stepping.update(state, hp, batch, key, step)
        metrics.pop("action_distance")  # from replayed actions, which are the agent's own
        return state, metrics

    return dataclasses.replace(exploring(core, space), update=update, hypers=Hypers())


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes without noise."""
    return off_policy(cfg, env, make(cfg, env.spec), evals, episodes)


ALGORITHM = Algorithm(Config, Hypers, make, program)
