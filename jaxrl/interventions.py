"""Interventions: when an expert takes over from a policy, and rewards made of interventions.

RLIF: Interactive Imitation Learning as Reinforcement Learning. Jianlan Luo, Perry Dong, Yuexiang
Zhai, Yi Ma, Sergey Levine. ICLR 2024, arXiv:2311.12996.

The expert is the policy of an earlier run, inputs["base"], without exploration. An intervener is a
pure function of what it sees; its state is the number of steps [n] int32 for which the expert stays
in control. The reference Q-function of interventions by value is the expert's, fitted to the
dataset with the task's rewards (`jaxrl.ope.fqe`), in a stage of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.errors import at_least
from jaxrl.ope import fqe
from jaxrl.ope.targets import target
from jaxrl.policies import Trained, greedy
from jaxrl.program import Stage
from jaxrl.sources import uniform
from jaxrl.spaces import box_scale
from jaxrl.types import (
    Array,
    Batch,
    EnvSpec,
    Learner,
    Policy,
    PyTree,
    Source,
    Transition,
    mean_where,
)

EXTRA = "intervened"  # [T, N] bool: the expert acted
TAUGHT = "taught"  # [T, N, A]: the expert's action
WEIGHT = "weight"  # [...] float32: 1 for rows whose action is a label to clone, 0 for others


class Watch(NamedTuple):
    """What an intervener goes by."""

    expert: Trained
    reference: fqe.State | tuple[()]  # the expert's Q-function; () for random interventions


class Intervener(NamedTuple):
    """An expert that takes over from a policy in training.

    init(inputs) -> Watch, of inputs["base"] and, by value, inputs["reference"]
    act(watch, hp, obs [n, *obs], start [n], left [n], own [n, A], coin [n])
        -> (action [n, A], left [n], intervened [n] bool, the expert's action [n, A])
    """

    init: Callable[[dict[str, Any]], Watch]
    act: Callable[..., tuple[Array, Array, Array, Array]]


def intervener(cfg: Any, spec: EnvSpec, expert: Policy, agent: str) -> Intervener:
    """The intervener of a configuration with `intervention`, `intervention_steps` and the sizes of
    `reference_stages`; hp has `delta`, `slip` and `probability`.

    Raises:
      UserError: a size is below one.
    """
    at_least(
        1,
        intervention_steps=cfg.intervention_steps,
        reference_updates=cfg.reference_updates,
        reference_batch=cfg.reference_batch,
    )
    space, critic = box_scale(agent, spec), fqe.critic(fqe.Config(), spec)
    by_value = cfg.intervention == "value"

    def init(inputs: dict[str, Any]) -> Watch:
        own = Trained(*jax.tree.map(jnp.asarray, inputs["base"]))
        return Watch(own, inputs["reference"] if by_value else ())

    def act(
        watch: Watch, hp: Any, obs: PyTree, start: Array, left: Array, own: Array, coin: Array
    ) -> tuple[Array, Array, Array, Array]:
        taught = greedy(expert, watch.expert, obs)
        if by_value:
            q: Any = watch.reference
            value = lambda action: critic.value(q, q.params, obs, space.unit(action)) * q.scale
            wanted = value_based(value(own), value(taught), hp.delta, hp.slip, coin)
        else:
            wanted = coin < hp.probability
        intervened, left = take_over(left, start, wanted, cfg.intervention_steps)
        return jnp.where(intervened[:, None], taught, own), left, intervened, taught

    return Intervener(init, act)


def take_over(left: Array, start: Array, wanted: Array, steps: int) -> tuple[Array, Array]:
    """Whether the expert acts [n] bool, and for how many steps it then stays in control [n].

    Args:
      left: [n] int32, steps for which the expert stays in control; ignored as episodes start.
      start: [n] bool, first steps of episodes.
      wanted: [n] bool, whether the expert would take over where it is not in control.
      steps: number of steps of an intervention.
    """
    left = jnp.where(start, 0, left)
    left = jnp.where((left == 0) & wanted, steps, left)
    return left > 0, jnp.maximum(left - 1, 0)


def value_based(own: Array, expert: Array, delta: Array, slip: Array, coin: Array) -> Array:
    """Whether the expert wants to take over [n] bool: if Q(s, π(s)) < δ Q(s, a_expert), except with
    probability `slip`, in which it decides the other way.

    Args:
      own, expert: [n] values of the policy's and the expert's action.
      coin: [n] in [0, 1).
    """
    return (own < delta * expert) ^ (coin < slip)


def intervention_rewards(t: Transition) -> Array:
    """Rewards [T - 1, N] of the first T - 1 steps of a window [T, N]: -1 where the policy acted and
    the expert took over at the next step of the episode, 0 elsewhere."""
    expert = t.extras[EXTRA]
    led = ~expert[:-1] & expert[1:] & ~t.done[:-1]
    return -led.astype(jnp.float32)


def relabelled(windows: Source) -> Source:
    """Windows [T, N] of `windows`, [T + 1, N] with `EXTRA`, with rewards of interventions.

    Metric: `intervention_rate`, the fraction of steps in which the expert acted.
    """

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = windows.next(src, learner_state, hp, inputs, key, step)
        t = batch.transitions
        first: Transition = jax.tree.map(lambda x: x[:-1], t)
        new: Transition = jax.tree.map(lambda x: x[1:], t)
        told = first._replace(reward=intervention_rewards(t), extras={})
        return src, batch._replace(transitions=told), seen | _rate(new)

    return dataclasses.replace(windows, next=next)


def taught(windows: Source, every: bool) -> Source:
    """Windows [T, N] of `windows`, with `EXTRA` and `TAUGHT`, whose actions are the expert's.

    `WEIGHT` is 1 at all steps if `every`, otherwise at those at which the expert acted. Metric:
    `intervention_rate`, the fraction of steps in which the expert acted.
    """

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = windows.next(src, learner_state, hp, inputs, key, step)
        t = batch.transitions
        acted = t.extras[EXTRA].astype(jnp.float32)
        weight = jnp.ones_like(acted) if every else acted
        told = t._replace(action=t.extras[TAUGHT], extras={WEIGHT: weight})
        return src, batch._replace(transitions=told), seen | _rate(t)

    return dataclasses.replace(windows, next=next)


def weighted(source: Source) -> Source:
    """`source` with `WEIGHT` 1."""

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = source.next(src, learner_state, hp, inputs, key, step)
        t = batch.transitions
        told = t._replace(extras={WEIGHT: jnp.ones_like(t.reward)})
        return src, batch._replace(transitions=told), seen

    return dataclasses.replace(source, next=next)


def _rate(t: Transition) -> dict[str, Any]:
    """The metric of windows of rollouts [T, N] with `EXTRA`."""
    rate = t.extras[EXTRA].astype(jnp.float32)
    return {"intervention_rate": mean_where(rate, jnp.ones(rate.shape, bool))}


def unrewarded(source: Source) -> Source:
    """`source` with rewards of 0."""

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = source.next(src, learner_state, hp, inputs, key, step)
        t = batch.transitions
        return src, batch._replace(transitions=t._replace(reward=jnp.zeros_like(t.reward))), seen

    return dataclasses.replace(source, next=next)


# --- the reference Q-function --------------------------------------------------------------------


def reference_stages(cfg: Any, spec: EnvSpec, base: Policy, evals: int) -> tuple[Stage, ...]:
    """The stage of the reference Q-function, with `reference_updates` on batches of
    `reference_batch`; () for random interventions."""
    if cfg.intervention == "random":
        return ()
    stage = Stage(
        name="reference",
        learner=reference(spec),
        source=expert_rows(base, spec, cfg.reference_batch),
        updates=cfg.reference_updates,
        evals=evals,
    )
    return (stage,)


def reference(spec: EnvSpec) -> Learner:
    """The learner of the intervener's Q-function: FQE on batches of `expert_rows`, with the agent's
    hyperparameters lr, gamma and tau."""
    inner = fqe.learner(fqe.Config(), spec, target(spec))
    rates = lambda hp: fqe.Hypers(lr=hp.lr, gamma=hp.gamma, tau=hp.tau)

    def init(key, hp, inputs):
        return inner.init(key, rates(hp), inputs)

    def update(state, hp, batch, key, step):
        return inner.update(state, rates(hp), batch, key, step)

    return Learner(init=init, update=update)


def expert_rows(base: Policy, spec: EnvSpec, batch_size: int) -> Source:
    """`uniform` with unit actions and the expert's actions at s', extras["next_mode"] [B, A]."""
    inner, unit = uniform(batch_size), box_scale("an intervener", spec).unit

    def next(src, learner_state, hp, inputs, key, step):
        src, batch, seen = inner.next(src, learner_state, hp, inputs, key, step)
        t, trained = batch.transitions, Trained(*inputs["base"])
        ahead = {"next_mode": unit(greedy(base, trained, t.next_obs))}
        return src, Batch(t._replace(action=unit(t.action), extras=ahead)), seen

    return dataclasses.replace(inner, next=next)
