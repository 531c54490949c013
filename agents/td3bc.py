"""TD3+BC: TD3 with a behaviour-cloning term in the actor's loss.

A Minimalist Approach to Offline Reinforcement Learning. Scott Fujimoto, Shixiang Shane Gu. NeurIPS
2021, arXiv:2106.06860. TD3: Addressing Function Approximation Error in Actor-Critic Methods. Scott
Fujimoto, Herke van Hoof, David Meger. ICML 2018, arXiv:1802.09477.

Twin critics have the target r + γ min_i Q'_i(s', a') with a' = π'(s') plus clipped noise. Every
`policy_every` updates the actor minimises mean [-λ Q_1(s, π(s)) + (π(s) - a)²] with
λ = α / mean |Q_1(s, π(s))| (eq. 3 and 5), and the targets are updated. Observations are
standardised with the dataset's statistics.

Fine-tuning is TD3 from these networks: batches mix the dataset with a replay buffer of the agent's
transitions, and the weight of the cloning term is `finetune_cloning`.

Deviations from the authors' code:
- Weights are initialised as in flax (LeCun normal), not as in torch.
- Time limits bootstrap.
- Target-policy noise is in units of half the action range, for every box.
- Fine-tuning is an addition: the paper trains offline only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.distributions import Normal
from jaxrl.errors import at_least
from jaxrl.exploration import smoothed
from jaxrl.losses import action_distance, cloning_loss, critic_loss, scaled_rewards, td_target
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import Trainable, minimise, polyak, update_if
from jaxrl.policies import deterministic_actor
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_fine_tuning, check_offline, fine_tuning, offline_program
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps of the critics"""
    batch_size: int = 256
    """transitions per gradient step"""
    policy_every: int = 2
    """critic updates per update of the policy and the target networks"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
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
    """Polyak step size of the target networks"""
    alpha: Any = bounded(2.5, least=0)
    """weight α of the normalised Q-value in the policy loss, relative to the cloning loss"""
    policy_noise: Any = bounded(0.2, least=0)
    """std of the target-policy noise, in half action ranges"""
    noise_clip: Any = bounded(0.5, least=0)
    """clipping range of the target-policy noise, in half action ranges"""
    exploration: Any = bounded(0.1, least=0)
    """std of the noise of actions in fine-tuning, in half action ranges"""
    finetune_cloning: Any = bounded(1.0, least=0)
    """weight of the cloning loss in fine-tuning; 0 is TD3"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    critic: PyTree  # twin critics, leaves [2, ...]
    actor_target: PyTree  # target policy
    critic_target: PyTree  # target critics
    opt: tuple[optax.OptState, optax.OptState]  # Adam of actor and critics
    obs: Moments  # [*obs] mean and variance of the dataset's observations


class Variant(NamedTuple):
    """What relatives of TD3+BC change. Batches `t` have actions in [-1, 1] and scaled rewards.

    actor_loss(q [B], chosen [B, A], t, hp) -> [] loss of the policy's actions
    penalty(ahead [B, A], t, hp) -> [B], subtracted from the values of target actions

    Attributes:
      least: whether the actor maximises the minimum of both critics, or the first critic.
      norm: whether critics have LayerNorm.
    """

    name: str
    actor_loss: Callable[[Array, Array, Transition, Any], Array]
    penalty: Callable[[Array, Transition, Any], Array] | None = None
    least: bool = False
    norm: bool = False


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or sizes do not fit together.
    """
    return _with_loss(cfg, spec, lambda hp: 1.0)


def fine_tuned(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent of fine-tuning, with the state of the agent of `make`."""
    return _with_loss(cfg, spec, lambda hp: hp.finetune_cloning)


def _with_loss(cfg: Config, spec: EnvSpec, cloning: Callable[[Any], Array | float]) -> Agent:
    """TD3+BC with a weight of its cloning loss."""
    check_fine_tuning(cfg)
    loss = lambda q, chosen, t, hp: actor_loss(q, chosen, t.action, hp.alpha, cloning(hp))
    agent = make_variant(cfg, spec, Variant("td3bc", loss))
    return dataclasses.replace(exploring(agent, box_scale("td3bc", spec)), hypers=Hypers())


def exploring(agent: Agent, space: BoxScale) -> Agent:
    """`agent` with normal noise on its actions in training, of std `hp.exploration`."""

    def act(state, hp, obs, start, memory, noise, explore):
        action, memory, extras = agent.act(state, hp, obs, start, memory, noise, explore)
        if explore:
            unit = space.unit(action) + hp.exploration * noise
            action = space.scaled(jnp.clip(unit, -1.0, 1.0))
        return action, memory, extras

    noise = lambda key, n: Normal.noise(key, (n, space.size))
    return dataclasses.replace(agent, act=act, noise=noise)


def make_variant(cfg: Any, spec: EnvSpec, variant: Variant) -> Agent:
    """TD3 on data, with the losses of a variant; raises as `make` does.

    Args:
      cfg: has the entries of `Config`; `hp` those of `Hypers`, except alpha.
    """
    check_offline(cfg)
    at_least(1, policy_every=cfg.policy_every)
    space = box_scale(variant.name, spec)
    policy = deterministic_actor(cfg.hidden, spec, space)
    shape = (spec.obs_size + space.size,)
    mlp = nets.MLP(cfg.hidden, 1, norm=variant.norm)
    critic_net = nets.packed(nets.from_linen(mlp, shape))

    def q_value(critic: PyTree, obs: Array, action: Array) -> Array:
        """Q-values [B] of one critic at unit actions."""
        x = jnp.concatenate([obs.reshape(obs.shape[0], -1), action], -1)
        return critic_net.apply(critic, x)[:, 0]

    twins = nets.each(q_value)

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        actor, target = nets.init_twice(policy.init, key_actor)
        critic = nets.init_stack(critic_net.init, key_critic)
        opt = (optax.adam(hp.lr).init(actor), optax.adam(hp.lr).init(critic))
        return State(actor, critic, target, critic, opt, data_moments(cfg, spec, inputs))

    def act(state, hp, obs, start, memory, noise, explore):
        chosen = policy.apply(state.actor, standardise_obs(cfg, state.obs, obs))
        return space.scaled(chosen), memory, {}

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        obs, next_obs = (standardise_obs(cfg, state.obs, x) for x in (t.obs, t.next_obs))
        action = space.unit(t.action)
        t = t._replace(action=action)

        ahead = smoothed(policy.apply(state.actor_target, next_obs), key, hp)
        value = jnp.min(twins(state.critic_target, next_obs, ahead), 0)
        if variant.penalty is not None:
            value = value - variant.penalty(ahead, t, hp)
        y = td_target(t, hp.gamma, value)

        def of_critic(critic: PyTree) -> tuple[Array, Array]:
            q = twins(critic, obs, action)
            return critic_loss(q, y), q

        at = Trainable(state.critic, state.opt[1])
        (critic, opt_critic), loss_q, q = minimise(of_critic, at, hp.lr)

        def of_actor(actor: PyTree) -> tuple[Array, Array]:
            chosen = policy.apply(actor, obs)
            if variant.least:
                q = jnp.min(twins(critic, obs, chosen), 0)
            else:
                q = q_value(nets.pick(critic, 0), obs, chosen)
            return variant.actor_loss(q, chosen, t, hp), chosen

        def improve() -> tuple[PyTree, dict[str, Array]]:
            at = Trainable(state.actor, state.opt[0])
            (actor, opt), loss, chosen = minimise(of_actor, at, hp.lr)
            targets = (
                polyak(state.actor_target, actor, hp.tau),
                polyak(state.critic_target, critic, hp.tau),
            )
            metrics = {"actor_loss": loss, "action_distance": action_distance(chosen, action)}
            return (actor, opt, *targets), metrics

        kept = (state.actor, state.opt[0], state.actor_target, state.critic_target)
        (actor, opt_actor, actor_target, critic_target), metrics = update_if(
            (step + 1) % cfg.policy_every == 0, improve, kept
        )
        opt = (opt_actor, opt_critic)
        state = State(actor, critic, actor_target, critic_target, opt, state.obs)
        error = jnp.mean(jnp.abs(q - y[None]))
        told = {"critic_loss": loss_q, "q": jnp.mean(q), "q_std": jnp.std(q), "td_error": error}
        return state, metrics | told

    return Agent(init=init, update=update, act=act)


def actor_loss(
    q: Array,
    chosen: Array,
    action: Array,
    alpha: Array | float,
    cloning: Array | float = 1.0,
) -> Array:
    """Mean of -λ Q(s, π(s)) + cloning (π(s) - a)²; λ = α / mean |Q| is constant (eq. 3 and 5).

    q [B]; chosen, action [B, A].
    """
    weight = alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    return cloning * cloning_loss(chosen, action) - weight * jnp.mean(q)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Offline training; with `finetune_steps` a second stage fine-tunes online."""
    online = fine_tuning(cfg, env, fine_tuned(cfg, env.spec), evals, episodes)
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes, after=online)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
