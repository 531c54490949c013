"""FQL: Flow Q-learning, a one-step policy distilled from a cloned flow, offline and online.

Flow Q-Learning. Seohong Park, Qiyang Li, Sergey Levine. ICML 2025, arXiv:2502.02538.

A flow policy clones the dataset's actions by flow matching. A one-step policy μ(s, z) with
z ~ N(0, I) maximises the mean of twin critics and stays near the flow's action from the same z:

    L(μ) = E [ -Q(s, μ(s, z)) + α |μ(s, z) - flow(s, z)|² / A ]

with `flow_steps` Euler steps and no gradient through the flow, A the dimension of actions. Critics
regress r + γ Q'(s', μ(s', z')). Actions are clipped to the box where critics see them and in
acting, which draws z; without exploration z = 0.

Fine-tuning continues with the same losses on batches from the dataset and from a replay buffer of
the agent's transitions.

Deviations from the authors' code:
- Times run from data at 0 to noise at 1, as in `jaxrl.flow`; there the other way round.
- Weights are initialised as in flax (LeCun normal), and LayerNorm is applied before the activation.
- Fine-tuning draws from dataset and replay buffer separately; there one buffer holds both.
- Time limits bootstrap.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl import flow, nets
from jaxrl.algorithm import Algorithm
from jaxrl.errors import at_least
from jaxrl.losses import action_distance, cloning_loss, critic_loss, scaled_rewards, td_target
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import Trainable, minimise, polyak
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_fine_tuning, check_offline, fine_tuning, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps on the dataset"""
    batch_size: int = 256
    """transitions per gradient step"""
    flow_steps: int = 10
    """Euler steps of the cloned flow"""
    q_agg: Literal["mean", "min"] = "mean"
    """value of the twin critics in targets; the policy always maximises their mean"""
    normalise_q: bool = False
    """divide the policy's Q-value by the mean of its absolute values, as TD3+BC does"""
    normalise_obs: bool = False
    """standardise observations with the mean and standard deviation of the dataset"""
    norm: bool = True
    """LayerNorm in the critics"""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """widths of the hidden layers of all networks"""
    finetune_steps: int = 0
    """environment steps of online fine-tuning after offline training; 0 turns it off"""
    num_envs: int = 1
    """parallel environments N of fine-tuning"""
    finetune_gradient_steps: int = 1
    """gradient steps per N environment steps of fine-tuning"""
    capacity: int = 1_000_000
    """transitions in the replay buffer of fine-tuning"""
    data_share: float = 0.5
    """fraction of each fine-tuning batch drawn from the dataset"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    alpha: Any = bounded(10.0, least=0)
    """weight α of the distance to the cloned flow in the policy loss; to be tuned per task"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


class State(NamedTuple):
    flow: PyTree  # the cloned flow (`nets.packed`)
    actor: PyTree  # the one-step policy
    critic: PyTree  # twin critics, leaves [2, ...]
    target: PyTree  # target critics
    opt: tuple[optax.OptState, optax.OptState, optax.OptState]  # Adam of flow, actor, critics
    obs: Moments  # [*obs] mean and variance of the dataset's observations


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or sizes do not fit together.
    """
    check_offline(cfg)
    check_fine_tuning(cfg)
    at_least(1, flow_steps=cfg.flow_steps)
    space = box_scale("fql", spec)
    size, seen = space.size, spec.obs_size
    net = lambda inputs, out, norm=False: nets.packed(
        nets.from_linen(nets.MLP(cfg.hidden, out, norm=norm, activation=nn.gelu), (inputs,))
    )
    velocity, policy = net(seen + size + 1, size), net(seen + size, size)
    critic_net = net(seen + size, 1, cfg.norm)

    def field(params: PyTree) -> flow.Field:
        """The velocity u(x [B, A], r, t [B] or [1], obs [B, C]) at time t; r is ignored."""

        def u(x: Array, r: Array, t: Array, obs: Array) -> Array:
            time = jnp.broadcast_to(t[:, None], (x.shape[0], 1))
            return velocity.apply(params, jnp.concatenate([obs, x, time], -1))

        return u

    def one_step(params: PyTree, obs: Array, z: Array) -> Array:
        """Unit actions [B, A] of the one-step policy, not clipped, from z [B, A]."""
        return policy.apply(params, jnp.concatenate([obs, z], -1))

    def twins(critic: PyTree, obs: Array, action: Array) -> Array:
        """Q-values [2, B] at unit actions, which are clipped to the box."""
        x = jnp.concatenate([obs, jnp.clip(action, -1.0, 1.0)], -1)
        return nets.each(critic_net.apply)(critic, x)[..., 0]

    def flat_obs(state: State, obs: Array) -> Array:
        return standardise_obs(cfg, state.obs, obs).reshape(obs.shape[0], -1)

    def init(key, hp, inputs):
        key_flow, key_actor, key_critic = jax.random.split(key, 3)
        cloned, actor = velocity.init(key_flow), policy.init(key_actor)
        critic = nets.init_stack(critic_net.init, key_critic)
        adam = optax.adam(hp.lr).init
        opt = (adam(cloned), adam(actor), adam(critic))
        return State(cloned, actor, critic, critic, opt, data_moments(cfg, spec, inputs))

    def noise(key: Array, n: int) -> Array:
        return jax.random.normal(key, (n, size))

    def act(state, hp, obs, start, memory, noise, explore):
        z = noise if explore else jnp.zeros_like(noise)
        chosen = one_step(state.actor, flat_obs(state, obs), z)
        return space.scaled(jnp.clip(chosen, -1.0, 1.0)), memory, {}

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        obs, next_obs, action = (
            flat_obs(state, t.obs),
            flat_obs(state, t.next_obs),
            space.unit(t.action),
        )
        key_ahead, key_flow, key_time, key_now = jax.random.split(key, 4)
        z_ahead, e, z = (noise(k, action.shape[0]) for k in (key_ahead, key_flow, key_now))
        at = jax.random.uniform(key_time, action.shape[:1])

        ahead = twins(state.target, next_obs, one_step(state.actor, next_obs, z_ahead))
        value = jnp.min(ahead, 0) if cfg.q_agg == "min" else jnp.mean(ahead, 0)
        y = td_target(t, hp.gamma, value)

        def of_critic(critic: PyTree) -> tuple[Array, Array]:
            q = twins(critic, obs, action)
            return critic_loss(q, y) / q.shape[0], q

        def of_flow(params: PyTree) -> tuple[Array, None]:
            reached = field(params)(flow.interpolate(action, e, at), at, at, obs)
            return cloning_loss(reached, e - action), None

        goal = jnp.clip(flow.euler(field(state.flow), z, cfg.flow_steps, obs), -1.0, 1.0)

        def of_actor(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
            chosen = one_step(params, obs, z)
            # The critics before this update, as in the authors' single loss of all networks.
            q = jnp.mean(twins(state.critic, obs, chosen), 0)
            scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(q))) if cfg.normalise_q else 1.0
            far = cloning_loss(chosen, goal)
            return hp.alpha * far - jnp.mean(q) / scale, (far, chosen)

        trained = [Trainable(*x) for x in zip(state[:3], state.opt, strict=True)]
        cloned, loss_flow, _ = minimise(of_flow, trained[0], hp.lr)
        actor, loss_pi, (far, chosen) = minimise(of_actor, trained[1], hp.lr)
        critic, loss_q, q = minimise(of_critic, trained[2], hp.lr)
        metrics = {
            "critic_loss": loss_q,
            "flow_loss": loss_flow,
            "actor_loss": loss_pi,
            "distillation_loss": far,
            "q": jnp.mean(q),
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "action_distance": action_distance(jnp.clip(chosen, -1.0, 1.0), action),
        }
        target = polyak(state.target, critic.params, hp.tau)
        networks = (cloned.params, actor.params, critic.params, target)
        return State(*networks, (cloned.opt, actor.opt, critic.opt), state.obs), metrics

    return Agent(init=init, update=update, act=act, noise=noise, hypers=Hypers())


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online.

    Evaluations draw z, as the authors' do.
    """
    agent = make(cfg, env.spec)
    online = fine_tuning(cfg, env, agent, evals, episodes, explore=True)
    return offline_program(cfg, env, agent, evals, episodes, explore=True, after=online)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
