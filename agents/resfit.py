"""ResFiT: off-policy learning of a residual on the actions of a frozen base policy.

Residual Off-Policy RL for Finetuning Behavior Cloning Policies. Lars Ankile, Zhenyu Jiang, Rocky
Duan, Guanya Shi, Pieter Abbeel, Anusha Nagabandi. arXiv:2509.19301.

The base is the policy of an earlier run (`--base`), without exploration. With its action b at s,
the agent acts a = clip(b + scale · μ(s, b)), μ = tanh(...) with an output layer of zeros, so that
it begins as the base. Critics see s and a. The n-step targets of all N critics, with LayerNorm,
have the minimum of M random ones at the next base action plus target residual plus clipped noise;
the residual maximises the mean of all. Each batch has `data_share` of its rows from the
demonstrations, the others from the replay buffer, which is warmed up with b plus uniform noise. The
first `critic_warmup` gradient steps leave the residual as it is.

Deviations from the authors' code:
- In the critic warm-up the agent goes on acting, as the base with exploration noise.
- Adam instead of AdamW; critics' loss is the mean squared error of each (there one variant squares
  the mean of absolute errors over critics).
- The base acts at each step, without chunks, and has no memory; its actions are computed in updates
  instead of stored.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm, one_each
from jaxrl.distributions import Normal
from jaxrl.ensembles import check_ensemble, random_critics
from jaxrl.errors import at_least
from jaxrl.evaluate import evaluator
from jaxrl.exploration import smoothed
from jaxrl.losses import action_distance, critic_loss, td_target
from jaxrl.optim import Trainable, minimise, polyak, update_if
from jaxrl.policies import Trained, check_base, greedy
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_replay, check_share, mixed, single_stage
from jaxrl.sources import split_batch
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Policy, PyTree, as_mean


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 200_000
    """environment steps of a run after the warm-up, summed over its parallel environments"""
    num_envs: int = 1
    """parallel environments N"""
    num_steps: int = 1
    """steps T per environment and rollout"""
    gradient_steps: int = 4
    """gradient steps of the critics per rollout"""
    policy_every: int = 4
    """gradient steps of the critics per gradient step of the residual"""
    batch_size: int = 256
    """transitions per gradient step"""
    capacity: int = 200_000
    """transitions in the replay buffer"""
    warmup: int = 10_000
    """environment steps of the base with uniform noise before the first update"""
    critic_warmup: int = 10_000
    """gradient steps of the critics before the first one of the residual"""
    n_step: int = 5
    """number n of rewards in the n-step targets"""
    data_share: float = 0.5
    """fraction of each batch drawn from the demonstrations"""
    critics: int = 10
    """number N of critics"""
    target_critics: int = 2
    """number M of random critics whose minimum is the target's value"""
    layer_norm: bool = True
    """LayerNorm before the activations of the critics"""
    zero_start: bool = True
    """the residual is zero at the start; otherwise its output layer is initialised as others"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""

    @property
    def window(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def updates(self) -> int:
        return self.total_steps // self.window


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(1e-4, least=0)
    """learning rate of the critics' Adam"""
    actor_lr: Any = bounded(1e-6, least=0)
    """learning rate of the residual's Adam"""
    gamma: Any = bounded(0.995, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target networks"""
    scale: Any = bounded(0.2, least=0)
    """largest residual, in half action ranges"""
    exploration: Any = bounded(0.05, least=0)
    """std of the noise of actions in training, in half action ranges"""
    warmup_noise: Any = bounded(0.2, least=0)
    """largest noise of the base's actions in the warm-up, in half action ranges"""
    policy_noise: Any = bounded(0.05, least=0)
    """std of the target-policy noise, in half action ranges"""
    noise_clip: Any = bounded(0.1, least=0)
    """clipping range of the target-policy noise, in half action ranges"""
    max_grad_norm: Any = bounded(1.0, above=0, finite=False)
    """global norm to which gradients are clipped"""


class State(NamedTuple):
    base: Trained  # the frozen base policy
    actor: PyTree  # parameters of the residual (`nets.packed`)
    critic: PyTree  # the N critics, leaves [N, ...]
    actor_target: PyTree  # target residual
    critic_target: PyTree  # target critics
    opt: tuple[optax.OptState, optax.OptState]  # Adam of residual and critics


def warmup_policy(base: Policy, space: BoxScale) -> Policy:
    """The base with uniform noise of up to `warmup_noise`; its state is the agent's."""

    def act(state, hp, obs, start, memory, noise, explore):
        unit = space.unit(greedy(base, state.base, obs)) + hp.warmup_noise * noise
        return space.scaled(jnp.clip(unit, -1.0, 1.0)), memory, {}

    noise = lambda key, n: jax.random.uniform(key, (n, space.size), minval=-1.0)
    return Policy(act=act, noise=noise)


def make(cfg: Config, spec: EnvSpec, base: Policy | None = None) -> Agent:
    """The residual on the policy `base`, whose `Trained` of this member is inputs["base"].

    Raises:
      UserError: there is no base, or one with memory; the action space is not a bounded box of
        one axis, or sizes do not fit together.
    """
    check(cfg)
    plain, space = check_base("resfit", base), box_scale("resfit", spec)
    size = space.size
    act_base = lambda trained, obs: space.unit(greedy(plain, trained, obs))
    flat = spec.obs_size + size
    end = nn.initializers.zeros if cfg.zero_start else nn.initializers.lecun_normal()
    actor_net = nets.packed(nets.from_linen(nets.MLP(cfg.hidden, size, end=end), (flat,)))
    mlp = nets.MLP(cfg.hidden, 1, norm=cfg.layer_norm)
    critic_net = nets.packed(nets.from_linen(mlp, (flat,)))
    joined = lambda obs, action: jnp.concatenate([obs.reshape(obs.shape[0], -1), action], -1)

    def act_at(actor: PyTree, hp: Hypers, obs: Array, b: Array) -> Array:
        """Unit actions [B, A] of the residual on base actions b [B, A]."""
        residual = jnp.tanh(actor_net.apply(actor, joined(obs, b)))
        return jnp.clip(b + hp.scale * residual, -1.0, 1.0)

    def values(critics: PyTree, obs: Array, action: Array) -> Array:
        """Q_i(s, a) [N, B]."""
        return nets.each(critic_net.apply)(critics, joined(obs, action))[..., 0]

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        own = Trained(*jax.tree.map(jnp.asarray, inputs["base"]))
        actor, target = nets.init_twice(actor_net.init, key_actor)
        critic = nets.init_stack(critic_net.init, key_critic, cfg.critics)
        opt = (optax.adam(hp.actor_lr).init(actor), optax.adam(hp.lr).init(critic))
        return State(own, actor, critic, target, critic, opt)

    def act(state, hp, obs, start, memory, noise, explore):
        unit = act_at(state.actor, hp, obs, act_base(state.base, obs))
        if explore:
            unit = jnp.clip(unit + hp.exploration * noise, -1.0, 1.0)
        return space.scaled(unit), memory, {}

    def update(state, hp, batch, key, step):
        def gradient_step(state: State, xs: PyTree) -> tuple[State, PyTree]:
            t, key, count = xs
            key_noise, key_draw = jax.random.split(key)
            both = jnp.concatenate([t.obs, t.next_obs])
            b, b_ahead = jnp.split(act_base(state.base, both), 2)
            ahead = act_at(state.actor_target, hp, t.next_obs, b_ahead)
            some = random_critics(state.critic_target, key_draw, cfg.target_critics)
            value = jnp.min(values(some, t.next_obs, smoothed(ahead, key_noise, hp)), 0)
            y = td_target(t, hp.gamma, value)
            action = space.unit(t.action)

            def of_critic(critic: PyTree) -> tuple[Array, Array]:
                q = values(critic, t.obs, action)
                return critic_loss(q, y), q

            at = Trainable(state.critic, state.opt[1])
            (critic, opt_critic), loss_q, q = minimise(of_critic, at, hp.lr, hp.max_grad_norm)

            def of_actor(actor: PyTree) -> tuple[Array, Array]:
                chosen = act_at(actor, hp, t.obs, b)
                return -jnp.mean(values(critic, t.obs, chosen)), chosen

            def improve() -> tuple[PyTree, PyTree]:
                at = Trainable(state.actor, state.opt[0])
                best, loss, chosen = minimise(of_actor, at, hp.actor_lr, hp.max_grad_norm)
                told = {"actor_loss": loss, "moved": action_distance(chosen, b)}
                return (*best, polyak(state.actor_target, best.params, hp.tau)), told

            kept = (state.actor, state.opt[0], state.actor_target)
            due = (count >= cfg.critic_warmup) & ((count + 1) % cfg.policy_every == 0)
            (actor, opt_actor, actor_target), told = update_if(due, improve, kept)
            critic_target = polyak(state.critic_target, critic, hp.tau)
            seen = {"critic_loss": loss_q, "q": jnp.mean(q)}
            seen |= {"td_error": jnp.mean(jnp.abs(q - y[None]))}
            told |= {name: as_mean(x) for name, x in seen.items()}
            opt = (opt_actor, opt_critic)
            return State(state.base, actor, critic, actor_target, critic_target, opt), told

        rows = split_batch(batch.transitions, cfg.gradient_steps)
        keys = jax.random.split(key, cfg.gradient_steps)
        count = step * cfg.gradient_steps + jnp.arange(cfg.gradient_steps)
        state, metrics = jax.lax.scan(gradient_step, state, (rows, keys, count))
        return state, jax.tree.map(jnp.sum, metrics)

    noise = lambda key, n: Normal.noise(key, (n, size))
    return Agent(init=init, update=update, act=act, noise=noise, hypers=Hypers())


def check(cfg: Config) -> None:
    """Raises UserError if sizes do not fit together."""
    check_replay(cfg)
    check_share(cfg)
    check_ensemble(cfg.critics, cfg.target_critics)
    at_least(0, critic_warmup=cfg.critic_warmup)
    at_least(1, policy_every=cfg.policy_every, hidden=cfg.hidden)


def program(
    cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128, base: Policy | None = None
) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes without noise.

    Args:
      base: the trained policy, the same in all members but for inputs["base"], see `make`.
    """
    agent = make(cfg, env.spec, base)
    assert base is not None  # `make` refuses this
    first = warmup_policy(base, box_scale("resfit", env.spec))
    source = mixed(cfg, env, agent, first)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(
    Config, Hypers, make, program, offline=True, base_points=one_each, base_data=False
)
