"""TD3+BC: TD3 whose actor is also held to the actions of the data.

A Minimalist Approach to Offline Reinforcement Learning. Scott Fujimoto, Shixiang Shane Gu. NeurIPS
2021, arXiv:2106.06860. TD3: Addressing Function Approximation Error in Actor-Critic Methods. Scott
Fujimoto, Herke van Hoof, David Meger. ICML 2018, arXiv:1802.09477.

Twin critics learn from smoothed actions of a slowly moving policy; every second update the policy
climbs the first critic, normalised by its size, and is pulled to the data. Observations are
standardised by the data's statistics.

Deviations: weights begin as flax's (LeCun normal), not as torch's; time limits bootstrap; smoothing
noise is in units of half the action range, whatever the box.
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
from jaxrl.errors import at_least
from jaxrl.losses import action_distance, cloning_loss, critic_loss, scaled_rewards, td_target
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import adam_step, polyak
from jaxrl.policies import deterministic_actor
from jaxrl.program import Program
from jaxrl.recipes import check_offline, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Mean, PyTree, as_mean

OFFLINE = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 1_000_000
    """gradient steps of the critics"""
    batch_size: int = 256
    """rows of the data in a gradient step"""
    policy_every: int = 2
    """critic steps per step of the actor and of the targets"""
    normalise_obs: bool = True
    """standardise observations by the mean and deviation of the data's"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of both Adam optimisers"""
    gamma: Any = 0.99
    """discount"""
    tau: Any = 0.005
    """share of the way that the targets move at each step of the actor"""
    alpha: Any = 2.5
    """weight of the normalised Q in the actor's loss, where cloning has 1"""
    policy_noise: Any = 0.2
    """std of the noise on actions in targets, in half action ranges"""
    noise_clip: Any = 0.5
    """its largest size"""
    reward_scale: Any = 1.0
    """factor on rewards"""
    reward_shift: Any = 0.0
    """added to rewards, after the factor"""


class State(NamedTuple):
    actor: Array  # [size] parameters, as one vector
    critic: Array  # [2, size] of the twins
    actor_target: Array  # [size]
    critic_target: Array  # [2, size]
    opt: tuple[optax.OptState, optax.OptState]  # of actor and critic
    obs: Moments  # [*obs] of the data's observations


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: actions are not in a bounded box of one axis, or a size is below one.
    """
    check_offline(cfg)
    at_least(1, policy_every=cfg.policy_every)
    space = box_scale("td3bc", spec)
    policy = deterministic_actor(cfg.hidden, spec, space)
    shape = (int(np.prod(spec.obs_shape)) + space.size,)
    critic_net = nets.flat(nets.from_linen(nets.MLP(cfg.hidden, 1), shape))

    def q_value(critic: Array, obs: Array, action: Array) -> Array:
        """[B] of one critic; unit actions."""
        x = jnp.concatenate([obs.reshape(obs.shape[0], -1), action], -1)
        return critic_net.apply(critic, x)[:, 0]

    twins = jax.vmap(q_value, (0, None, None))

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        # Loops, not vmaps: XLA would compute networks and targets apart, with other last bits.
        actor, target = jax.lax.map(policy.init, jnp.stack([key_actor, key_actor]))
        critic = jax.lax.map(critic_net.init, jax.random.split(key_critic))
        opt = (optax.adam(hp.lr).init(actor), optax.adam(hp.lr).init(critic))
        return State(actor, critic, target, critic, opt, data_moments(cfg, spec, inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        return (
            space.scaled(policy.apply(state.actor, standardise_obs(cfg, state.obs, obs))),
            memory,
            {},
        )

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        obs, next_obs = (
            standardise_obs(cfg, state.obs, t.obs),
            standardise_obs(cfg, state.obs, t.next_obs),
        )
        action = space.unit(t.action)

        ahead = smoothed(policy.apply(state.actor_target, next_obs), key, hp)
        y = td_target(t, hp.gamma, jnp.min(twins(state.critic_target, next_obs, ahead), 0))

        def of_critic(critic: Array) -> tuple[Array, Array]:
            q = twins(critic, obs, action)
            return critic_loss(q, y), q

        (loss_q, q), grads = jax.value_and_grad(of_critic, has_aux=True)(state.critic)
        critic, opt_critic = adam_step(state.critic, grads, state.opt[1], hp.lr)

        def of_actor(actor: Array) -> tuple[Array, Array]:
            chosen = policy.apply(actor, obs)
            return actor_loss(q_value(critic[0], obs, chosen), chosen, action, hp.alpha), chosen

        def improve() -> tuple[PyTree, dict[str, Mean]]:
            (loss, chosen), grads = jax.value_and_grad(of_actor, has_aux=True)(state.actor)
            actor, opt = adam_step(state.actor, grads, state.opt[0], hp.lr)
            targets = (
                polyak(state.actor_target, actor, hp.tau),
                polyak(state.critic_target, critic, hp.tau),
            )
            metrics = {"actor_loss": loss, "action_distance": action_distance(chosen, action)}
            return (actor, opt, *targets), {name: as_mean(x) for name, x in metrics.items()}

        def wait() -> tuple[PyTree, dict[str, Mean]]:
            nothing = Mean(jnp.float32(0), jnp.float32(0))
            metrics = {"actor_loss": nothing, "action_distance": nothing}
            kept = (state.actor, state.opt[0], state.actor_target, state.critic_target)
            return kept, metrics

        (actor, opt_actor, actor_target, critic_target), metrics = jax.lax.cond(
            (step + 1) % cfg.policy_every == 0, improve, wait
        )
        opt = (opt_actor, opt_critic)
        state = State(actor, critic, actor_target, critic_target, opt, state.obs)
        error = jnp.mean(jnp.abs(q - y[None]))
        return state, metrics | {"critic_loss": loss_q, "q": jnp.mean(q), "td_error": error}

    return Agent(init=init, update=update, act=act)


def smoothed(action: Array, key: Array, hp: Hypers) -> Array:
    """clip(a + clip(ε, ±noise_clip), ±1), ε ~ N(0, policy_noise²), of unit actions [B, A]."""
    noise = hp.policy_noise * jax.random.normal(key, action.shape)
    return jnp.clip(action + jnp.clip(noise, -hp.noise_clip, hp.noise_clip), -1.0, 1.0)


def actor_loss(q: Array, chosen: Array, action: Array, alpha: Array | float) -> Array:
    """mean [-λ Q(s, π(s)) + (π(s) - a)²], λ = α / mean |Q(s, π(s))| held constant (eq. 3 and 5).

    q [B]; chosen, action [B, A].
    """
    weight = alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return cloning_loss(chosen, action) - weight * jnp.mean(q)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes, the last at the end."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes)
