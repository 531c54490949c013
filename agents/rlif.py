"""RLIF: reinforcement learning whose only reward is that an expert does not intervene.

RLIF: Interactive Imitation Learning as Reinforcement Learning. Jianlan Luo, Perry Dong, Yuexiang
Zhai, Yi Ma, Sergey Levine. ICLR 2024, arXiv:2311.12996.

The expert is the policy of an earlier run (`--base`), without exploration. In training it takes
over for `intervention_steps` steps: with `intervention` "value" mostly where the policy's action is
worth less than δ times its own by a reference Q-function, with "random" at a constant probability.
The step of the policy that led to an intervention has reward -1, all others 0; the rewards of the
task are not used. The learner is that of `jaxrl.agents.rlpd`: SAC with RED-Q critics and
LayerNorm, on rows of the dataset, with rewards 0, and of the replay buffer.

The reference Q-function belongs to the intervener, not to the learner (`jaxrl.interventions`).

Deviations from the authors' code:
- The reference is the Q-function of the expert; there it is that of a converged agent.
- Steps of the expert are in the replay buffer, with reward 0. There -1 goes to each step before one
  of the expert's, its own included.
- Data and replay are drawn separately; there the data are put into the buffer first.
- Control goes back to the policy after `intervention_steps` steps, unless the expert at once wants
  to go on; there the policy has one step in between.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import interventions
from jaxrl.agents import sac
from jaxrl.algorithm import Algorithm, one_each
from jaxrl.evaluate import evaluator
from jaxrl.policies import check_base
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_share, single_stage
from jaxrl.rollout import rollout
from jaxrl.sources import mix, replay, uniform
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Env, EnvSpec, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """Static configuration: a new value compiles a new program."""

    warmup: int = 1_000
    """environment steps of policy and expert before the first update"""
    intervention: Literal["value", "random"] = "value"
    """the expert takes over where the policy's action is worse, or at random"""
    intervention_steps: int = 4
    """steps for which the expert takes over"""
    reference_updates: int = 20_000
    """gradient steps of the reference Q-function, for intervention=value"""
    reference_batch: int = 256
    """transitions per gradient step of the reference Q-function"""
    critics: int = 10
    """number N of critics"""
    mean_critic: bool = True
    """the policy maximises the mean of all critics instead of their minimum"""
    layer_norm: bool = True
    """LayerNorm before the activations of the critics"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    data_share: float = 0.5
    """fraction of each batch drawn from the dataset"""


@struct.dataclass
class Hypers(sac.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    temperature: Any = bounded(1.0, above=0)
    """weight α of the entropy; the initial value if learned"""
    delta: Any = bounded(0.97, least=0)
    """fraction δ of the expert's value below which the expert takes over, for intervention=value"""
    slip: Any = bounded(0.05, least=0, most=1)
    """probability that the expert decides the other way, for intervention=value"""
    probability: Any = bounded(0.5, least=0, most=1)
    """probability that the expert takes over in a step, for intervention=random"""


class State(NamedTuple):
    sac: sac.State
    watch: interventions.Watch  # the frozen expert and the Q-function of interventions


def make(cfg: Config, spec: EnvSpec, base: Policy | None = None) -> Agent:
    """The learner with the expert `base`, whose `Trained` of this member is inputs["base"].

    For intervention=value, inputs["reference"] is the state of the reference Q-function.

    Raises:
      UserError: there is no base, or one with memory; the action space is not a bounded box of
        one axis, or sizes do not fit together.
    """
    check_share(cfg)
    expert, space = check_base("rlif", base), box_scale("rlif", spec)
    if cfg.target_entropy is None:
        cfg = dataclasses.replace(cfg, target_entropy=-space.size / 2)
    inner, watcher = sac.make(cfg, spec), interventions.intervener(cfg, spec, expert, "rlif")

    def init(key, hp, inputs):
        return State(inner.init(key, hp, inputs), watcher.init(inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        drawn, coin = noise
        own = inner.act(state.sac, hp, obs, start, (), drawn, explore)[0]
        if not explore:
            return own, memory, {}
        seen = (obs, start, memory, own, coin)
        action, memory, intervened, _ = watcher.act(state.watch, hp, *seen)
        return action, memory, {interventions.EXTRA: intervened}

    def noise(key: jax.Array, n: int) -> PyTree:
        key_own, key_coin = jax.random.split(key)
        return inner.noise(key_own, n), jax.random.uniform(key_coin, (n,))

    def update(state, hp, batch, key, step):
        learnt, metrics = inner.update(state.sac, hp, batch, key, step)
        return state._replace(sac=learnt), metrics

    return Agent(
        init=init,
        update=update,
        act=act,
        memory=lambda n: jnp.zeros(n, jnp.int32),
        noise=noise,
        hypers=Hypers(),
    )


def program(
    cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128, base: Policy | None = None
) -> Program:
    """The reference Q-function if it is needed, then the agent with `evals` evaluations of
    `episodes` episodes of the policy's mode, without interventions.

    Args:
      base: the expert, the same in all members but for inputs["base"], see `make`.
    """
    agent = make(cfg, env.spec, base)
    assert base is not None  # `make` refuses this
    rows = cfg.gradient_steps * cfg.batch_size
    windows = interventions.relabelled(rollout(env, agent, cfg.num_envs, cfg.num_steps, keep=1))
    own = replay(
        windows, cfg.capacity, rows, warmup=math.ceil(cfg.warmup / cfg.window), n_step=cfg.n_step
    )
    data = interventions.unrewarded(uniform(rows, n_step=cfg.n_step))
    source = mix(data, own, cfg.data_share, rows, cfg.gradient_steps)
    learning = single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)
    return Program((*interventions.reference_stages(cfg, env.spec, base, evals), *learning.stages))


ALGORITHM = Algorithm(
    Config, Hypers, make, program, offline=True, base_points=one_each, base_data=False
)
