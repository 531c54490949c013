"""DAgger: cloning of an expert's actions in the states that the clone itself visits.

DAgger: A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning.
Stéphane Ross, Geoffrey J. Gordon, J. Andrew Bagnell. AISTATS 2011, arXiv:1011.0686.
HG-DAgger: Interactive Imitation Learning with Human Experts. Michael Kelly, Chelsea Sidrane,
Katherine Driggs-Campbell, Mykel J. Kochenderfer. ICRA 2019, arXiv:1810.02890.

The expert is the policy of an earlier run (`--base`). The networks and the loss are those of
`jaxrl.agents.bc`. A batch has `data_share` rows of the dataset, the others are steps of training
with the expert's action as label: with `labels` "all" those of all steps (DAgger), with
"interventions" those of the expert's steps only (HG-DAgger). When the expert acts is decided as in
RLIF (`jaxrl.interventions`), with which these agents are compared. The rewards of the task are not
used, except by the reference Q-function of interventions by value.

Deviations:
- The clone makes a gradient step per rollout on all rows so far; there it is fitted anew after each
  round of episodes.
- HG-DAgger's measure of doubt, which picks unsafe states after training, is not here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import interventions
from jaxrl.algorithm import Algorithm, one_each
from jaxrl.errors import at_least
from jaxrl.evaluate import evaluator
from jaxrl.losses import masked_mean
from jaxrl.optim import Trainable, minimise
from jaxrl.policies import check_base, deterministic_actor
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_replay, check_share, single_stage
from jaxrl.rollout import rollout
from jaxrl.sources import mix, replay, split_batch, uniform
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 250_000
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
    warmup: int = 1_000
    """environment steps of policy and expert before the first update"""
    labels: Literal["all", "interventions"] = "all"
    """steps with the expert's action as label: all (DAgger), or the expert's own (HG-DAgger)"""
    intervention: Literal["value", "random"] = "value"
    """the expert takes over where the policy's action is worse, or at random"""
    intervention_steps: int = 4
    """steps for which the expert takes over"""
    reference_updates: int = 20_000
    """gradient steps of the reference Q-function, for intervention=value"""
    reference_batch: int = 256
    """transitions per gradient step of the reference Q-function"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
    data_share: float = 0.5
    """fraction of each batch drawn from the dataset"""

    @property
    def window(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        return self.total_steps // self.window


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor of the reference Q-function"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the reference Q-function's slow copy"""
    delta: Any = bounded(0.97, least=0)
    """fraction δ of the expert's value below which the expert takes over, for intervention=value"""
    slip: Any = bounded(0.05, least=0, most=1)
    """probability that the expert decides the other way, for intervention=value"""
    probability: Any = bounded(0.5, least=0, most=1)
    """probability that the expert takes over in a step, for intervention=random"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    opt: optax.OptState
    watch: interventions.Watch  # the frozen expert and the Q-function of interventions


def labelled_loss(chosen: Array, label: Array, labelled: Array) -> Array:
    """Mean of (π(s) - a)² [] over dimensions and the rows that have a label.

    Args:
      chosen, label: [B, A] unit actions of the policy and of the data or the expert.
      labelled: [B] whether the row has a label.
    """
    return masked_mean(jnp.mean((chosen - label) ** 2, -1), labelled)


def make(cfg: Config, spec: EnvSpec, base: Policy | None = None) -> Agent:
    """The learner with the expert `base`, whose `Trained` of this member is inputs["base"].

    For intervention=value, inputs["reference"] is the state of the reference Q-function.

    Raises:
      UserError: there is no base, or one with memory; the action space is not a bounded box of
        one axis, or sizes do not fit together.
    """
    check_share(cfg)
    check_replay(cfg)
    at_least(1, hidden=cfg.hidden)
    expert, space = check_base("dagger", base), box_scale("dagger", spec)
    policy = deterministic_actor(cfg.hidden, spec, space)
    watcher = interventions.intervener(cfg, spec, expert, "dagger")

    def init(key, hp, inputs):
        actor = policy.init(key)
        return State(actor, optax.adam(hp.lr).init(actor), watcher.init(inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        own = space.scaled(policy.apply(state.actor, obs))
        if not explore:
            return own, memory, {}
        seen = (obs, start, memory, own, noise)
        action, memory, intervened, taught = watcher.act(state.watch, hp, *seen)
        return action, memory, {interventions.EXTRA: intervened, interventions.TAUGHT: taught}

    def update(state, hp, batch, key, step):
        def one(trained: Trainable, part: Any) -> tuple[Trainable, Array]:
            t = part.transitions
            label, labelled = space.unit(t.action), t.extras[interventions.WEIGHT] > 0
            loss = lambda actor: (labelled_loss(policy.apply(actor, t.obs), label, labelled), ())
            trained, value, _ = minimise(loss, trained, hp.lr)
            return trained, value

        parts = split_batch(batch, cfg.gradient_steps)
        (actor, opt), losses = jax.lax.scan(one, Trainable(state.actor, state.opt), parts)
        return state._replace(actor=actor, opt=opt), {"actor_loss": losses.mean()}

    return Agent(
        init=init,
        update=update,
        act=act,
        memory=lambda n: jnp.zeros(n, jnp.int32),
        noise=lambda key, n: jax.random.uniform(key, (n,)),
        hypers=Hypers(),
    )


def program(
    cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128, base: Policy | None = None
) -> Program:
    """The reference Q-function if it is needed, then the agent with `evals` evaluations of
    `episodes` episodes of the policy, without interventions.

    Args:
      base: the expert, the same in all members but for inputs["base"], see `make`.
    """
    agent = make(cfg, env.spec, base)
    assert base is not None  # `make` refuses this
    rows = cfg.gradient_steps * cfg.batch_size
    windows = rollout(env, agent, cfg.num_envs, cfg.num_steps)
    own = replay(
        interventions.taught(windows, cfg.labels == "all"),
        cfg.capacity,
        rows,
        warmup=math.ceil(cfg.warmup / cfg.window),
    )
    data = interventions.weighted(uniform(rows))
    source = mix(data, own, cfg.data_share, rows, cfg.gradient_steps)
    learning = single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)
    return Program((*interventions.reference_stages(cfg, env.spec, base, evals), *learning.stages))


ALGORITHM = Algorithm(
    Config, Hypers, make, program, offline=True, base_points=one_each, base_data=False
)
