"""DQL: Diffusion-QL, offline Q-learning with a diffusion policy of a few denoising steps.

Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning. Zhendong Wang,
Jonathan J Hunt, Mingyuan Zhou. ICLR 2023, arXiv:2208.06193.

The policy denoises an action in T steps of a variance-preserving chain. Its loss is the noise
prediction error on the dataset's actions minus η mean Q_i(s, π(s)) / mean |Q_j(s, π(s))|, where
(i, j) is a random order of the twin critics, drawn anew in every update. The critics' target is
r + γ min_i Q'_i(s', a') with a' from an EMA of the policy. With `backup_actions` J > 1 each critic
takes its maximum over J actions (the max-Q backup, used for AntMaze).

Acting draws `candidates` actions from the EMA policy and takes one with probability
softmax(selection · min_i Q'_i); evaluations do the same. Without exploration the candidates' noise
is fixed and the best candidate is taken, so that the action is a function of the state.

Deviations from the authors' code:
- Observations are standardised, as in CleanDiffuser (arXiv:2406.09509).
- The EMA policy acts, as in CleanDiffuser.
- Time limits bootstrap.
- Steps are embedded by cos and sin of frequencies 10⁴^(-k/n), k < n, as in CleanDiffuser (there
  10⁴^(-k/(n-1))).
- The critics have LayerNorm if `critic_norm` is set.

The parts shared with OFQL are in this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import diffusion, nets
from jaxrl.algorithm import Algorithm
from jaxrl.errors import at_least
from jaxrl.losses import action_distance, critic_loss, scaled_rewards, td_target
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import Trainable, cosine, minimise, polyak
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_offline, offline_program
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """transitions per gradient step"""
    steps: int = 5
    """steps T of the diffusion"""
    backup_actions: int = 1
    """sampled actions per next state, maximised over in the targets; 10 is the paper's max-Q
    backup"""
    ema_every: int = 5
    """gradient steps between updates of the EMA policy"""
    ema_start: int = 1000
    """gradient steps before the first update of the EMA policy"""
    candidates: int = 50
    """candidate actions per environment step; one is chosen by its Q-value"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    embedding: int = 16
    """dimension of the time embedding"""
    critic_norm: bool = False
    """LayerNorm in every hidden layer of the critics"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """initial learning rate of the critics' Adam"""
    actor_lr: Any = bounded(3e-4, least=0)
    """initial learning rate of the policy's Adam"""
    lr_end: Any = bounded(1.0, least=0)
    """final learning rates (cosine), as a fraction of lr and actor_lr; 1 keeps them constant"""
    max_grad_norm: Any = bounded(float("inf"), above=0, finite=False)
    """global norm to which gradients are clipped, critics and policy separately; inf turns it
    off"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    policy_tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the EMA policy"""
    eta: Any = bounded(1.0, least=0)
    """weight of the normalised Q-value in the policy loss, relative to the cloning loss"""
    selection: Any = bounded(1.0, least=0, finite=False)
    """inverse temperature of the softmax over the candidates' Q-values; inf takes the best"""
    temperature: Any = bounded(1.0, least=0)
    """factor on the candidates' initial noise"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is below 1.
    """
    check(cfg)
    at_least(1, steps=cfg.steps)
    space = box_scale("dql", spec)
    return learner(cfg, spec, space, generator(cfg, spec, space), Hypers())


def generator(cfg: Config, spec: EnvSpec, space: BoxScale) -> Generator:
    """The diffusion policy: `cfg.steps` denoising steps per action."""
    chain, net = diffusion.vp_chain(cfg.steps), timed_net(cfg, spec, space, 1)
    shape = (cfg.steps, space.size)

    def epsilon(params: Array, obs: Array) -> Callable[[Array, Array], Array]:
        return lambda x, i: net.apply(params, x, obs, i.astype(jnp.float32))

    def sample(params: Array, noise: Array, obs: Array) -> Array:
        noise = jnp.moveaxis(noise, -2, 0)
        return diffusion.ddpm(epsilon(params, obs), chain, noise[0], noise, bound=1.0)

    def cloning(params: Array, hp: Hypers, action: Array, obs: Array, key: Array) -> Array:
        key_noise, key_index = jax.random.split(key)
        noise = jax.random.normal(key_noise, action.shape)
        index = jax.random.randint(key_index, action.shape[:1], 0, cfg.steps)
        return diffusion.epsilon_loss(epsilon(params, obs), chain, action, noise, index)

    return Generator(
        init=net.init,
        noise=lambda key, rows: jax.random.normal(key, (*rows, *shape)),
        sample=sample,
        act=sample,
        cloning=cloning,
    )


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes, the last at the end."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes, explore=True)


# --- shared with OFQL ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A policy that maps noise to unit actions; flat parameters, flat obs [B, C].

    init(key) -> params
    noise(key, rows) -> [*rows, K, A]; [..., 0, :] is the initial noise of the sampler
    sample(params, noise [B, ..., K, A], obs) -> actions [B, ..., A] in training
    act(params, noise [B, ..., K, A], obs) -> actions [B, ..., A] in acting
    cloning(params, hp, action [B, A], obs, key) -> cloning loss []
    """

    init: Callable[[Array], Array]
    noise: Callable[[Array, tuple[int, ...]], Array]
    sample: Callable[[Array, Array, Array], Array]
    act: Callable[[Array, Array, Array], Array]
    cloning: Callable[[Array, Any, Array, Array, Array], Array]


class State(NamedTuple):
    actor: Array  # [size] flat parameters
    critic: Array  # [2, size] flat parameters of the twin critics
    actor_target: Array  # [size] EMA policy
    critic_target: Array  # [2, size] target critics
    opt: tuple[optax.OptState, optax.OptState]  # Adam of actor and critics
    obs: Moments  # [*obs] mean and variance of the dataset's observations


def learner(cfg: Any, spec: EnvSpec, space: BoxScale, policy: Generator, hypers: Any) -> Agent:
    """Offline Q-learning with a generative policy; see the module docstring."""
    critic_net = value_net(cfg, spec, space)
    twins = nets.each(critic_net.apply)  # [2, B, ...]

    def see_flat(state: State, obs: Array) -> Array:
        return standardise_obs(cfg, state.obs, obs).reshape(obs.shape[0], -1)

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        actor, target = nets.init_twice(policy.init, key_actor)
        critic = nets.init_stack(critic_net.init, key_critic)
        opt = (optax.adam(hp.actor_lr).init(actor), optax.adam(hp.lr).init(critic))
        return State(actor, critic, target, critic, opt, data_moments(cfg, spec, inputs))

    def noise(key: Array, n: int) -> tuple[Array, Array]:
        """Noise of the candidates, and Gumbel noise [n, candidates] of their choice."""
        key_noise, key_choice = jax.random.split(key)
        rows = (n, cfg.candidates)
        return policy.noise(key_noise, rows), jax.random.gumbel(key_choice, rows)

    def act(state, hp, obs, start, memory, noise, explore):
        seen = see_flat(state, obs)
        init_noise, gumbel = noise
        if not explore:
            fixed = policy.noise(jax.random.key(0), (1, cfg.candidates))
            init_noise = jnp.broadcast_to(fixed, init_noise.shape)
            gumbel = None
        init_noise = init_noise.at[..., 0, :].multiply(hp.temperature)
        candidates = policy.act(state.actor_target, init_noise, seen)  # [n, candidates, A]
        q = jnp.min(twins(state.critic_target, seen, candidates), 0)
        return space.scaled(select(candidates, q, gumbel, hp.selection)), memory, {}

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        obs, next_obs = see_flat(state, t.obs), see_flat(state, t.next_obs)
        action, rows = space.unit(t.action), t.reward.shape[0]
        key_ahead, key_now, key_clone, key_swap = jax.random.split(key, 4)
        rate = cosine(step / cfg.updates, hp.lr_end)

        ahead = policy.noise(key_ahead, (rows, cfg.backup_actions))
        ahead = policy.sample(state.actor_target, ahead, next_obs)
        y = td_target(t, hp.gamma, backup(twins(state.critic_target, next_obs, ahead)))

        def of_critic(critic: Array) -> tuple[Array, Array]:
            q = twins(critic, obs, action)
            return critic_loss(q, y), q

        at = Trainable(state.critic, state.opt[1])
        (critic, opt_critic), loss_q, q = minimise(of_critic, at, rate * hp.lr, hp.max_grad_norm)

        swap = jax.random.bernoulli(key_swap)
        maximised, other = (jnp.where(swap, critic[i], critic[1 - i]) for i in (1, 0))
        init_noise = policy.noise(key_now, (rows,))

        def of_actor(actor: Array) -> tuple[Array, tuple[Array, Array]]:
            chosen = policy.sample(actor, init_noise, obs)
            q_actor, q_norm = (critic_net.apply(x, obs, chosen) for x in (maximised, other))
            held = policy.cloning(actor, hp, action, obs, key_clone)
            return held - hp.eta * normalised_q(q_actor, q_norm), (held, chosen)

        at = Trainable(state.actor, state.opt[0])
        found = minimise(of_actor, at, rate * hp.actor_lr, hp.max_grad_norm)
        (actor, opt_actor), loss_pi, (held, chosen) = found

        moves = (step >= cfg.ema_start) & (step % cfg.ema_every == 0)
        slower = polyak(state.actor_target, actor, hp.policy_tau)
        actor_target = jnp.where(moves, slower, state.actor_target)
        critic_target = polyak(state.critic_target, critic, hp.tau)
        opt = (opt_actor, opt_critic)
        metrics = {
            "critic_loss": loss_q,
            "actor_loss": loss_pi,
            "cloning_loss": held,
            "q": jnp.mean(q),
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "action_distance": action_distance(chosen, action),
        }
        return State(actor, critic, actor_target, critic_target, opt, state.obs), metrics

    return Agent(init=init, update=update, act=act, noise=noise, hypers=hypers)


def timed_net(cfg: Any, spec: EnvSpec, space: BoxScale, times: int) -> nets.Net:
    """Network of a policy: (actions [B, ..., A], obs [B, C], *times [B]) -> [B, ..., A]."""
    net = nets.ConditionalMLP(cfg.hidden, space.size, cfg.embedding)
    shapes = ((space.size,), (spec.obs_size,), *[()] * times)
    return nets.flat(nets.from_linen(net, *shapes))


def value_net(cfg: Any, spec: EnvSpec, space: BoxScale) -> nets.Net:
    """Network of a critic: (obs [B, C], actions [B, ..., A]) -> [B, ...]."""
    net = nets.ConditionalMLP(cfg.hidden, 1, norm=cfg.critic_norm)
    net = nets.flat(nets.from_linen(net, (space.size,), (spec.obs_size,)))
    return nets.Net(net.init, lambda params, obs, action: net.apply(params, action, obs)[..., 0])


def backup(q: Array) -> Array:
    """V(s') [B] = min_i max_j q_ij of q [2, B, J], J actions."""
    return jnp.min(jnp.max(q, -1), 0)


def normalised_q(q_actor: Array, q_norm: Array) -> Array:
    """mean Q_i / mean |Q_j| [] of the policy's actions [B]; no gradient in the denominator."""
    return jnp.mean(q_actor) / jax.lax.stop_gradient(jnp.mean(jnp.abs(q_norm)))


def select(candidates: Array, q: Array, gumbel: Array | None, weight: Array | float) -> Array:
    """One of J candidates [n, J, A], with probability softmax(weight q) of q [n, J].

    Gumbel-max trick with Gumbel noise [n, J], divided by the weight, so that an infinite weight
    gives the argmax of q. Without noise the argmax.
    """
    if gumbel is not None:
        q = jnp.where(weight > 0, q + gumbel / jnp.where(weight > 0, weight, 1.0), gumbel)
    best = jnp.argmax(q, -1)
    return jnp.take_along_axis(candidates, best[:, None, None], 1)[:, 0]


def check(cfg: Any) -> None:
    """Raises UserError for the first size of `cfg` that is too small."""
    check_offline(cfg)
    at_least(1, backup_actions=cfg.backup_actions, candidates=cfg.candidates)
    at_least(1, ema_every=cfg.ema_every)
    at_least(0, ema_start=cfg.ema_start)
    at_least(2, embedding=cfg.embedding)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
