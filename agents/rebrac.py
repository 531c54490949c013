"""ReBRAC: TD3+BC with separate penalties for actor and critics, LayerNorm and deeper networks.

Revisiting the Minimalist Approach to Offline Reinforcement Learning. Denis Tarasov, Vladislav
Kurenkov, Alexander Nikulin, Sergey Kolesnikov. NeurIPS 2023, arXiv:2305.09836.

The critics' target is r + γ [min_i Q'_i(s', a') - β₂ ‖a' - â'‖²], with the smoothed target action
a' and the dataset's next action â'. The actor minimises mean [β₁ ‖π(s) - a‖² - Q(s, π(s)) / mean
|Q|], Q the minimum of both critics. The rest is TD3+BC's.

Deviations from the authors' code (tinkoff-ai/ReBRAC):
- LayerNorm is applied before the activation, there after.
- Weights are initialised as in flax (LeCun normal), not as in EDAC.
- Rows that end an episode by a time limit bootstrap without the critics' penalty, since their next
  action is unknown; there they are left out.
- Targets follow the updated networks; there those before the update.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents import td3bc
from jaxrl.algorithm import Algorithm
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import offline_program
from jaxrl.sources import following
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps of the critics"""
    batch_size: int = 1024
    """transitions per gradient step"""
    policy_every: int = 2
    """critic updates per update of the policy and the target networks"""
    normalise_obs: bool = False
    """standardise observations with the mean and standard deviation of the dataset"""
    norm: bool = True
    """LayerNorm in the critics"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(1e-3, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target networks"""
    actor_penalty: Any = bounded(0.01, least=0)
    """weight β₁ of the squared distance to the dataset's action in the policy loss"""
    critic_penalty: Any = bounded(0.01, least=0)
    """weight β₂ of the squared distance to the dataset's next action in the critics' target"""
    policy_noise: Any = bounded(0.2, least=0)
    """std of the target-policy noise, in half action ranges"""
    noise_clip: Any = bounded(0.5, least=0)
    """clipping range of the target-policy noise, in half action ranges"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; batches have the extras of `sources.following`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is below 1.
    """
    space = box_scale("rebrac", spec)

    def penalty(ahead: Array, t: Transition, hp: Hypers) -> Array:
        return critic_penalty(ahead, space.unit(t.extras["next_action"]), t.extras["next_row"], hp)

    variant = td3bc.Variant("rebrac", actor_loss, penalty, least=True, norm=cfg.norm)
    return dataclasses.replace(td3bc.make_variant(cfg, spec, variant), hypers=Hypers())


def critic_penalty(ahead: Array, action: Array, known: Array, hp: Hypers) -> Array:
    """β₂ ‖a' - â'‖² [B] of target actions and the dataset's next ones [B, A]; 0 if unknown."""
    return jnp.where(known, hp.critic_penalty * jnp.sum((ahead - action) ** 2, -1), 0.0)


def actor_loss(q: Array, chosen: Array, t: Transition, hp: Hypers) -> Array:
    """Mean of β₁ ‖π(s) - a‖² - Q(s, π(s)) / mean |Q| []. q [B]; chosen [B, A]."""
    distance = jnp.sum((chosen - t.action) ** 2, -1)
    weight = 1 / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return hp.actor_penalty * jnp.mean(distance) - weight * jnp.mean(q)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes, the last at the end."""
    agent, source = make(cfg, env.spec), following(cfg.batch_size)
    return offline_program(cfg, env, agent, evals, episodes, source=source)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
