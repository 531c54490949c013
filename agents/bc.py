"""BC: behaviour cloning. The policy is a regression of the data's actions on its observations.

A Framework for Behavioural Cloning. Michael Bain, Claude Sammut. Machine Intelligence 15, 1995; as
the baseline of offline learning in D4RL, arXiv:2004.07219.

A deterministic policy a = π(s) minimises E‖π(s) - a‖² / A over rows of the data, with actions in
units of half the box. That is the likelihood of a normal distribution of fixed width, and the term
that keeps TD3+BC near the data, whose networks these are: TD3+BC with α = 0 is this agent.

What the offline agents share is in this file too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrl import nets
from jaxrl.agents.pqn import single_stage
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.normalise import Moments, moments, standardise
from jaxrl.program import Program
from jaxrl.sources import uniform
from jaxrl.types import Agent, Array, Batch, Box, Env, EnvSpec, PyTree, Transition

OFFLINE = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """rows of the data in a gradient step"""
    normalise_obs: bool = True
    """standardise observations by the mean and deviation of the data's"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of Adam"""


class State(NamedTuple):
    actor: Array  # [size] parameters, as one vector
    opt: optax.OptState
    obs: Moments  # [*obs] of the data's observations


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: actions are not in a bounded box of one axis, or a size is below one.
    """
    check_sizes(cfg)
    space = action_range("bc", spec)
    policy = actor_net(cfg.hidden, spec, space)

    def init(key: Array, hp: Hypers, inputs: PyTree) -> State:
        actor = policy.init(key)
        return State(actor, optax.adam(hp.lr).init(actor), observed(cfg, spec, inputs))

    def act(
        state: State,
        hp: Hypers,
        obs: Array,
        start: Array,
        memory: PyTree,
        noise: PyTree,
        explore: bool,
    ) -> tuple[Array, PyTree, dict[str, Array]]:
        return space.scaled(policy.apply(state.actor, see(cfg, state.obs, obs))), memory, {}

    def update(
        state: State, hp: Hypers, batch: Batch, key: Array, step: Array
    ) -> tuple[State, dict[str, Array]]:
        t = batch.transitions
        obs, action = see(cfg, state.obs, t.obs), space.unit(t.action)

        def loss(actor: Array) -> tuple[Array, Array]:
            chosen = policy.apply(actor, obs)
            return cloning_loss(chosen, action), distance(chosen, action)

        (value, far), grads = jax.value_and_grad(loss, has_aux=True)(state.actor)
        actor, opt = descend(state.actor, grads, state.opt, hp.lr)
        return State(actor, opt, state.obs), {"actor_loss": value, "action_distance": far}

    return Agent(init=init, update=update, act=act)


def cloning_loss(chosen: Array, action: Array) -> Array:
    """mean of (π(s) - a)² [] over rows and dimensions of unit actions [B, A]."""
    return jnp.mean((chosen - action) ** 2)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes, the last at the end."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes)


# --- shared by the offline agents ----------------------------------------------------------------


class Range(NamedTuple):
    """A bounded box of A actions, which networks see in units of half its width, [-1, 1]."""

    centre: np.ndarray  # [1, A]
    scale: np.ndarray  # [1, A]

    @property
    def size(self) -> int:
        return self.scale.shape[-1]

    def unit(self, action: Array) -> Array:
        """Actions [B, A] of the box in [-1, 1]."""
        return (action - self.centre) / self.scale

    def scaled(self, action: Array) -> Array:
        """Actions [B, A] in [-1, 1] as those of the box."""
        return action * self.scale + self.centre


def action_range(agent: str, spec: EnvSpec) -> Range:
    """The bounds of `spec`'s actions; UserError where they are no bounded box of one axis."""
    space = spec.action
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise UserError(f"{agent} acts in boxes of one axis; {spec.name} has {space}")
    low, high = np.array([space.low], np.float32), np.array([space.high], np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"{agent} needs bounded actions; {spec.name} has {space}")
    return Range((high + low) / 2, (high - low) / 2)


def actor_net(hidden: tuple[int, ...], spec: EnvSpec, space: Range) -> nets.Net:
    """A deterministic policy: obs [B, *obs] to actions [B, A] in [-1, 1]; flat parameters."""
    net = nets.flat(nets.from_linen(nets.MLP(hidden, space.size), spec.obs_shape))
    return nets.Net(net.init, lambda params, obs: jnp.tanh(net.apply(params, obs)))


def check_sizes(cfg: Any) -> None:
    """Raises UserError for the first size of an offline agent's `Config` below one."""
    smallest = min((*cfg.hidden, 1))
    at_least(1, updates=cfg.updates, batch_size=cfg.batch_size, smallest_layer=smallest)


def one_value(hp: Any, instead: str, *names: str) -> None:
    """Raises UserError where members that share a model differ in what it is learnt with.

    Args:
      hp: hyperparameters [P] of all members.
      instead: what to do about it, the end of the message.
    """
    for name in names:
        if len(np.unique(np.asarray(getattr(hp, name)))) > 1:
            raise UserError(f"{name} differs between members: {instead}")


def observed(cfg: Any, spec: EnvSpec, inputs: PyTree) -> Moments:
    """Moments [*obs] of the observations of inputs["data"], where `cfg` asks for them.

    As in the authors' code of TD3+BC, 1e-3 is added to each deviation, so that an element which
    hardly varies in the data does not explode.
    """
    if not cfg.normalise_obs:
        return moments(spec.obs_shape)
    data: Transition = inputs["data"]
    scale = jnp.std(data.obs, 0) + 1e-3
    return Moments(jnp.mean(data.obs, 0), scale**2, jnp.float32(data.reward.shape[0]))


def see(cfg: Any, seen: Moments, obs: Array) -> Array:
    """Observations [B, *obs] as networks see them."""
    return standardise(seen, obs, jnp.inf) if cfg.normalise_obs else obs


def rewarded(t: Transition, hp: Any) -> Transition:
    """`t` with rewards as learnt from: reward_scale r + reward_shift."""
    return t._replace(reward=hp.reward_scale * t.reward + hp.reward_shift)


def critic_loss(q: Array, target: Array) -> Array:
    """Σ_i mean (Q_i - y)² [] of N critics' q [N, B] and their common target [B]."""
    return jnp.sum(jnp.mean((q - target[None]) ** 2, -1))


def descend(params: Array, grads: Array, opt: PyTree, lr: Array) -> tuple[PyTree, PyTree]:
    """One step of Adam on one vector (or stack) of parameters: these, and the optimiser's state."""
    change, opt = optax.adam(lr).update(grads, opt)
    return optax.apply_updates(params, change), opt


def distance(chosen: Array, action: Array) -> Array:
    """mean of ‖π(s) - a‖ [] over rows of unit actions [B, A]."""
    return jnp.mean(jnp.linalg.norm(jax.lax.stop_gradient(chosen) - action, axis=-1))


def offline_program(cfg: Any, env: Env, agent: Agent, evals: int, episodes: int) -> Program:
    """Updates on uniform batches of inputs["data"]; the environment serves for evaluation."""
    evaluate = evaluator(env, agent, episodes)
    return single_stage(cfg, agent, uniform(cfg.batch_size), evaluate, evals)
