"""DQL: Q-learning from data with a policy that is a diffusion of a few steps (Diffusion-QL).

Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning. Zhendong Wang,
Jonathan J Hunt, Mingyuan Zhou. ICLR 2023, arXiv:2208.06193.

The policy turns noise into an action by T steps of a variance-preserving chain. Its loss is that of
predicting the noise on the data's actions, minus η Q of its own actions over mean |Q|, where one of
the twin critics is climbed and the other gives the mean, by lot at each update. The critics follow
r + γ min_i Q'_i(s', a') of actions a' of a slowly moving policy; `backup_actions` above one takes
for each critic its best of so many (the max-Q backup, for AntMaze).

An action is one of `candidates`, all drawn by the slowly moving policy and scored by the smaller
of the target critics, with probability softmax(selection Q); evaluations are played so. Without
exploration the candidates' noise is always the same and the best of them is taken, so that an
action follows from its state.

Deviations from the authors' code: observations are standardised and the slowly moving policy acts,
both as in CleanDiffuser (arXiv:2406.09509); time limits bootstrap; each layer of the critics has
LayerNorm where `critic_norm` asks for it. What OFQL shares is in this file too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import diffusion, nets
from jaxrl.errors import at_least
from jaxrl.losses import action_distance, critic_loss, scaled_rewards, td_target
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.optim import adam_step, clip_norm, cosine, polyak
from jaxrl.program import Program
from jaxrl.recipes import candidate_program, check_offline
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec

OFFLINE = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """rows of the data in a gradient step"""
    steps: int = 5
    """steps T of the diffusion"""
    backup_actions: int = 1
    """actions per successor, the best of which counts for each critic; 10 is the max-Q backup"""
    ema_every: int = 5
    """updates between moves of the slow policy"""
    ema_start: int = 1000
    """updates before the first of them"""
    candidates: int = 50
    """actions among which one is chosen when acting"""
    normalise_obs: bool = True
    """standardise observations by the mean and deviation of the data's"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers of policy and critics"""
    embedding: int = 16
    """numbers that a time is made into"""
    critic_norm: bool = False
    """LayerNorm in the critics"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 3e-4
    """learning rate of the critics' Adam"""
    actor_lr: Any = 3e-4
    """learning rate of the policy's Adam"""
    lr_end: Any = 1.0
    """share of both learning rates that is left at the end of their cosine; 1 keeps them"""
    max_grad_norm: Any = float("inf")
    """norm to which the gradients of critics and of policy are clipped"""
    gamma: Any = 0.99
    """discount"""
    tau: Any = 0.005
    """share of the way that the target critics move at each update"""
    policy_tau: Any = 0.005
    """share of the way that the slow policy moves each time"""
    eta: Any = 1.0
    """weight of the normalised Q in the policy's loss, where cloning has 1"""
    selection: Any = 1.0
    """weight of Q in the softmax over candidates; inf takes the best"""
    temperature: Any = 1.0
    """factor on the noise that candidates begin from"""
    reward_scale: Any = 1.0
    """factor on rewards"""
    reward_shift: Any = 0.0
    """added to rewards, after the factor"""


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: actions are not in a bounded box of one axis, or a size is below one.
    """
    check(cfg)
    at_least(1, steps=cfg.steps)
    space = box_scale("dql", spec)
    return learner(cfg, spec, space, generator(cfg, spec, space))


def generator(cfg: Config, spec: EnvSpec, space: BoxScale) -> Generator:
    """Actions by `cfg.steps` steps of a chain backwards."""
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
    """A whole run: `evals` evaluations of `episodes` whole episodes, the last at the end."""
    return candidate_program(cfg, env, make(cfg, env.spec), evals, episodes)


# --- shared with OFQL ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A policy that makes unit actions of noise; parameters are one vector, obs [B, C] flat.

    init(key) -> params
    noise(key, rows) -> [*rows, K, A], of which [..., 0, :] is where samples begin
    sample(params, noise [B, ..., K, A], obs) -> actions [B, ..., A], as learnt from
    act(params, noise [B, ..., K, A], obs) -> the same, as acted with
    cloning(params, hp, action [B, A], obs, key) -> loss [] that holds the policy to the data
    """

    init: Callable[[Array], Array]
    noise: Callable[[Array, tuple[int, ...]], Array]
    sample: Callable[[Array, Array, Array], Array]
    act: Callable[[Array, Array, Array], Array]
    cloning: Callable[[Array, Any, Array, Array, Array], Array]


class State(NamedTuple):
    actor: Array  # [size] parameters, as one vector
    critic: Array  # [2, size] of the twins
    actor_target: Array  # [size], the slow policy
    critic_target: Array  # [2, size]
    opt: tuple[optax.OptState, optax.OptState]  # of actor and critic
    obs: Moments  # [*obs] of the data's observations


def learner(cfg: Any, spec: EnvSpec, space: BoxScale, policy: Generator) -> Agent:
    """Q-learning from data with a policy that samples; see this file's head."""
    critic_net = value_net(cfg, spec, space)
    twins = jax.vmap(critic_net.apply, (0, None, None))  # [2, B, ...]

    def see_flat(state: State, obs: Array) -> Array:
        return standardise_obs(cfg, state.obs, obs).reshape(obs.shape[0], -1)

    def init(key, hp, inputs):
        key_actor, key_critic = jax.random.split(key)
        # Loops, not vmaps: XLA would compute networks and targets apart, with other last bits.
        actor, target = jax.lax.map(policy.init, jnp.stack([key_actor, key_actor]))
        critic = jax.lax.map(critic_net.init, jax.random.split(key_critic))
        opt = (optax.adam(hp.actor_lr).init(actor), optax.adam(hp.lr).init(critic))
        return State(actor, critic, target, critic, opt, data_moments(cfg, spec, inputs))

    def noise(key: Array, n: int) -> tuple[Array, Array]:
        """Noise of the candidates, and Gumbel numbers [n, candidates] to choose by."""
        key_noise, key_choice = jax.random.split(key)
        rows = (n, cfg.candidates)
        return policy.noise(key_noise, rows), jax.random.gumbel(key_choice, rows)

    def act(state, hp, obs, start, memory, noise, explore):
        seen = see_flat(state, obs)
        begin, luck = noise
        if not explore:
            fixed = policy.noise(jax.random.key(0), (1, cfg.candidates))
            begin, luck = jnp.broadcast_to(fixed, begin.shape), jnp.zeros_like(luck)
        begin = begin.at[..., 0, :].multiply(hp.temperature)
        offered = policy.act(state.actor_target, begin, seen)  # [n, candidates, A]
        q = jnp.min(twins(state.critic_target, seen, offered), 0)
        return space.scaled(select(offered, q, luck, hp.selection)), memory, {}

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

        (loss_q, q), grads = jax.value_and_grad(of_critic, has_aux=True)(state.critic)
        grads = clip_norm(grads, hp.max_grad_norm)
        critic, opt_critic = adam_step(state.critic, grads, state.opt[1], rate * hp.lr)

        swap = jax.random.bernoulli(key_swap)
        climbed, judge = (jnp.where(swap, critic[i], critic[1 - i]) for i in (1, 0))
        begin = policy.noise(key_now, (rows,))

        def of_actor(actor: Array) -> tuple[Array, tuple[Array, Array]]:
            chosen = policy.sample(actor, begin, obs)
            values = [critic_net.apply(params, obs, chosen) for params in (climbed, judge)]
            held = policy.cloning(actor, hp, action, obs, key_clone)
            return held - hp.eta * normalised(*values), (held, chosen)

        (loss_pi, (held, chosen)), grads = jax.value_and_grad(of_actor, has_aux=True)(state.actor)
        grads = clip_norm(grads, hp.max_grad_norm)
        actor, opt_actor = adam_step(state.actor, grads, state.opt[0], rate * hp.actor_lr)

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

    return Agent(init=init, update=update, act=act, noise=noise)


def timed_net(cfg: Any, spec: EnvSpec, space: BoxScale, times: int) -> nets.Net:
    """A policy's network (actions [B, ..., A], obs [B, C], *times [B]) -> [B, ..., A]."""
    net = nets.ConditionalMLP(cfg.hidden, space.size, cfg.embedding)
    shapes = ((space.size,), (flat_size(spec),), *[()] * times)
    return nets.flat(nets.from_linen(net, *shapes))


def value_net(cfg: Any, spec: EnvSpec, space: BoxScale) -> nets.Net:
    """A critic's network (obs [B, C], actions [B, ..., A]) -> [B, ...]."""
    net = nets.ConditionalMLP(cfg.hidden, 1, norm=cfg.critic_norm)
    net = nets.flat(nets.from_linen(net, (space.size,), (flat_size(spec),)))
    return nets.Net(net.init, lambda params, obs, action: net.apply(params, action, obs)[..., 0])


def flat_size(spec: EnvSpec) -> int:
    """Elements of one observation."""
    return math.prod(spec.obs_shape)


def backup(q: Array) -> Array:
    """V(s') [B] from q [2, B, J] of J actions: each critic's best, of these the smaller."""
    return jnp.min(jnp.max(q, -1), 0)


def normalised(climbed: Array, judge: Array) -> Array:
    """mean Q_i / mean |Q_j| [] of the policy's actions, the denominator held constant. [B] each."""
    return jnp.mean(climbed) / jax.lax.stop_gradient(jnp.mean(jnp.abs(judge)))


def select(offered: Array, q: Array, luck: Array, weight: Array | float) -> Array:
    """One of the actions offered [n, J, A], with probability softmax(weight q) over q [n, J].

    By the Gumbel-max trick, `luck` [n, J] being Gumbel numbers; divided by the weight, so that an
    infinite one leaves q alone.
    """
    best = jnp.argmax(q + luck / weight, -1)
    return jnp.take_along_axis(offered, best[:, None, None], 1)[:, 0]


def check(cfg: Any) -> None:
    """Raises UserError for the first size of a `Config` that is too small."""
    check_offline(cfg)
    at_least(1, backup_actions=cfg.backup_actions, candidates=cfg.candidates)
    at_least(1, ema_every=cfg.ema_every)
    at_least(0, ema_start=cfg.ema_start)
    at_least(2, embedding=cfg.embedding)
