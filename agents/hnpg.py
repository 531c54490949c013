"""HNPG: hybrid natural policy gradient, on-policy rollouts with critics that also fit offline data.

Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees. Yifei Zhou, Ayush Sekhari,
Yuda Song, Wen Sun. ICLR 2024, arXiv:2311.08384.

Episodes have H steps, without discount; one that ends earlier stays where it is, without rewards,
until step H. Each step h has a policy and a critic of its own, whose parameters are stacked along a
leading axis H. An iteration plays whole episodes with the policy and draws as many episodes of the
data. Critics minimise, from the last step to the first,

  mean (Q_h(s, a) - R_h)²                              over own steps, R_h being the sum of rewards,
  + mean (Q_h(s, a) - r - Q_{h+1}(s', a'))²            over the data, a' ~ π_{h+1},

so that the Monte-Carlo part holds also where the data are poor. Each policy then takes one step of
TRPO (`jaxrl.natural`) on the union of own steps, with GAE advantages, and of the data's states with
actions drawn from the policy, with advantages Q - V. V is the mean of Q over drawn actions. The
data thus show the policy states that it cannot yet reach. Without `hybrid` the agent is TRPO with a
network per step.

Deviations from the authors' code:
- A step is accepted if the divergence is at most max_kl and the objective increases; there if the
  increase is a tenth of the expected one.
- Critics see actions clipped to the box, as the environment does.
- Weights are initialised as in flax (LeCun normal), not as in torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from jaxrl import nets
from jaxrl.algorithm import Algorithm
from jaxrl.distributions import Normal
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.natural import natural_step
from jaxrl.optim import Trainable, minimise
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import single_stage
from jaxrl.returns import gae
from jaxrl.rollout import rollout
from jaxrl.sources import below, expand, take
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree, Source, TimeStep, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    horizon: int = 10
    """steps H of every episode, the time limit of the environment"""
    total_steps: int = 1_000_000
    """environment steps of a run"""
    num_envs: int = 100
    """episodes per iteration, played in parallel environments, and as many of the data"""
    hybrid: bool = True
    """learn from the data too; otherwise TRPO with a policy and a critic per step"""
    actor: tuple[int, ...] = (16, 16)
    """widths of the hidden layers of each policy"""
    critic: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of each critic"""
    critic_steps: int = 30
    """gradient steps of each critic per iteration"""
    value_samples: int = 10
    """actions drawn per state for V, the mean of Q"""
    cg_steps: int = 10
    """iterations of conjugate gradients"""
    backtracks: int = 10
    """largest number of halvings of a step; after them the policy is kept"""

    @property
    def updates(self) -> int:
        return self.total_steps // (self.num_envs * self.horizon)


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    max_kl: Any = bounded(0.01, above=0)
    """largest mean KL divergence of a policy step, in nats"""
    damping: Any = bounded(0.1, least=0)
    """multiple of the identity that is added to Fisher's information matrix"""
    critic_lr: Any = bounded(3e-4, least=0)
    """learning rate of the critics' Adam, which starts afresh in every iteration"""
    lam: Any = bounded(0.97, least=0, most=1)
    """λ of generalised advantage estimation (GAE)"""


class State(NamedTuple):
    actor: Array  # [H, size] a policy per step
    critic: Array  # [H, size] a critic per step


class Gaussian(nn.Module):
    """Observations [B, *obs] to a normal distribution over unit actions, with one log-std each."""

    hidden: tuple[int, ...]
    size: int

    @nn.compact
    def __call__(self, obs: Array) -> Normal:
        mean = nets.MLP(self.hidden, self.size, activation=nn.tanh)(obs)
        log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
        return Normal(mean, jnp.broadcast_to(log_std[None], mean.shape))


class Networks(NamedTuple):
    """A policy and a critic of one step."""

    actor: nets.Net  # apply(params [size], obs [B, *obs]) -> Normal over unit actions [B, A]
    critic: nets.Net  # apply(params [size], inputs [B, S + A]) -> [B, 1]

    def q(self, critic: Array, obs: Array, sample: Array) -> Array:
        """Q [B] of samples [B, A], which are clipped to [-1, 1]."""
        action = jnp.clip(sample, -1.0, 1.0)
        x = jnp.concatenate([obs.reshape(len(obs), -1), action], -1)
        return self.critic.apply(critic, x)[:, 0]

    def drawn(self, actor: Array, obs: Array, key: Array) -> Array:
        """Unit actions [B, A] of the policy, not clipped."""
        dist = self.actor.apply(actor, obs)
        return dist.sample(dist.noise(key, dist.mean.shape))

    def value(self, actor: Array, critic: Array, obs: Array, key: Array, samples: int) -> Array:
        """V [B], the mean of Q over actions of the policy."""
        one = lambda key: self.q(critic, obs, self.drawn(actor, obs, key))
        return jnp.mean(jax.vmap(one)(jax.random.split(key, samples)), 0)


class Rows(NamedTuple):
    """Steps of whole episodes, by time."""

    obs: Array  # [H, B, *obs]
    sample: Array  # [H, B, A] unit actions, not clipped
    reward: Array  # [H, B]
    next_obs: Array  # [H, B, *obs]


def fit_critics(
    cfg: Config, model: Networks, state: State, hp: Hypers, own: Rows, data: Rows, key: Array
) -> tuple[Array, dict[str, Array]]:
    """Critics [H, size] after `critic_steps` steps each, from the last step to the first.

    The target of own steps is the sum of rewards to the end of the episode, and that of the data
    r + Q_{h+1}(s', a') with the critic of step h + 1 that was fitted just before.
    """
    returns = jnp.cumsum(own.reward[::-1], 0)[::-1]

    def fit(later: Array, xs: PyTree) -> tuple[Array, tuple[Array, Array]]:
        critic, actor_after, own, data, returns, key, last = xs
        ahead = model.q(later, data.next_obs, model.drawn(actor_after, data.next_obs, key))
        target = data.reward + jnp.where(last, 0.0, ahead)

        def loss(critic: Array) -> tuple[Array, Array]:
            of_own = jnp.mean((model.q(critic, own.obs, own.sample) - returns) ** 2)
            of_data = jnp.mean((model.q(critic, data.obs, data.sample) - target) ** 2)
            both = jnp.stack([of_own, of_data])
            return jnp.sum(both) if cfg.hybrid else of_own, both

        def step(_: Array, carry: tuple[Trainable, Array]) -> tuple[Trainable, Array]:
            at, _, losses = minimise(loss, carry[0], hp.critic_lr)
            return at, losses

        begin = Trainable(critic, optax.adam(hp.critic_lr).init(critic))
        at, losses = jax.lax.fori_loop(0, cfg.critic_steps, step, (begin, jnp.zeros(2)))
        return at.params, (at.params, losses)

    steps = cfg.horizon
    after = jnp.roll(state.actor, -1, 0)
    last = jnp.arange(steps) == steps - 1
    xs = (state.critic, after, own, data, returns, jax.random.split(key, steps), last)
    _, (critic, losses) = jax.lax.scan(fit, state.critic[0], xs, reverse=True)
    own_loss, data_loss = jnp.mean(losses, 0)
    return critic, {"critic_loss": own_loss, "critic_loss_data": data_loss}


def advantages(
    cfg: Config, model: Networks, state: State, hp: Hypers, own: Rows, data: Rows, key: Array
) -> tuple[Rows, Array]:
    """Rows [H, B] for the policies' steps and their advantages [H, B].

    Own steps have GAE advantages; states of the data have actions of the policy and Q - V.
    """
    keys = jax.random.split(key, (3, cfg.horizon))
    value_of = jax.vmap(lambda a, c, obs, key: model.value(a, c, obs, key, cfg.value_samples))
    value = value_of(state.actor, state.critic, own.obs, keys[0])
    ahead = jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])
    never = jnp.zeros(value.shape, bool)
    gained = gae(own.reward, value, ahead, never.at[-1].set(True), never, 1.0, hp.lam)
    if not cfg.hybrid:
        return own, gained
    sample = jax.vmap(model.drawn)(state.actor, data.obs, keys[1])
    q = jax.vmap(model.q)(state.critic, data.obs, sample)
    offline = q - value_of(state.actor, state.critic, data.obs, keys[2])
    join = lambda x, y: jnp.concatenate([x, y], 1)
    return jax.tree.map(join, own, data._replace(sample=sample)), join(gained, offline)


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; batches are those of `hybrid_batches`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is too small.
    """
    space = box_scale("hnpg", spec)
    check(cfg)
    shape = (spec.obs_size + space.size,)
    critic = nets.MLP(cfg.critic, 1, activation=nn.tanh)
    model = Networks(
        nets.flat(nets.from_linen(Gaussian(cfg.actor, space.size), spec.obs_shape)),
        nets.flat(nets.from_linen(critic, shape)),
    )

    def init(key, hp, inputs):
        keys = jax.random.split(key, (2, cfg.horizon))
        return State(
            jax.lax.map(model.actor.init, keys[0]), jax.lax.map(model.critic.init, keys[1])
        )

    def update(state, hp, batch, key, step):
        key_fit, key_values = jax.random.split(key)
        t = batch.transitions
        rows = Rows(t.obs, t.extras["sample"], t.reward, t.next_obs)
        own, data = (
            jax.tree.map(lambda x, part=part: x[:, part], rows)
            for part in (slice(None, cfg.num_envs), slice(cfg.num_envs, None))
        )
        fitted, metrics = fit_critics(cfg, model, state, hp, own, data, key_fit)
        state = State(state.actor, fitted)
        used, advantage = advantages(cfg, model, state, hp, own, data, key_values)

        def improve(actor: Array, rows: Rows, advantage: Array) -> tuple[Array, dict[str, Array]]:
            old = model.actor.apply(actor, rows.obs)
            log_prob = old.log_prob(rows.sample)

            def objective(actor: Array) -> Array:
                new = model.actor.apply(actor, rows.obs)
                return jnp.mean(jnp.exp(new.log_prob(rows.sample) - log_prob) * advantage)

            moved = natural_step(
                objective,
                lambda actor: jnp.mean(old.kl(model.actor.apply(actor, rows.obs))),
                actor,
                hp.max_kl,
                hp.damping,
                cg_steps=cfg.cg_steps,
                backtracks=cfg.backtracks,
            )
            seen = {"kl": moved.kl, "gain": moved.gain, "step_fraction": moved.fraction}
            return moved.params, seen | {"entropy": jnp.mean(old.entropy())}

        actor, seen = jax.vmap(improve)(state.actor, used, advantage)
        metrics |= {name: jnp.mean(x) for name, x in seen.items()}
        return State(actor, fitted), metrics

    def act(state, hp, obs, start, memory, noise, explore):
        h = jnp.where(start, 0, memory)
        own = state.actor[jnp.minimum(h, cfg.horizon - 1)]
        dist = jax.vmap(lambda actor, obs: model.actor.apply(actor, obs[None]))(own, obs)
        dist = Normal(dist.mean[:, 0], dist.log_std[:, 0])
        if not explore:
            return space.scaled(jnp.clip(dist.mode, -1.0, 1.0)), h + 1, {}
        sample = dist.sample(noise)
        return space.scaled(jnp.clip(sample, -1.0, 1.0)), h + 1, {"sample": sample}

    return Agent(
        init=init,
        update=update,
        act=act,
        memory=lambda n: jnp.zeros(n, jnp.int32),
        noise=lambda key, n: Normal.noise(key, (n, space.size)),
        hypers=Hypers(),
    )


def waiting(env: Env) -> Env:
    """`env` whose episodes all last until the time limit: after an earlier end the observation
    stays and rewards are 0. The state is (inner state, obs, over [] bool).

    Raises:
      UserError: state of `env` outlives episodes, or `env` runs on the host.
    """
    if env.persist is not None or env.host is not None:
        what = "normalises by running statistics" if env.host is None else "runs on the host"
        raise UserError(f"{env.spec.name} {what}, which hnpg does not support")
    keep = lambda over, old, new: jax.tree.map(lambda x, y: jnp.where(over, x, y), old, new)

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        state, obs = env.reset(key, params)
        return (state, obs, jnp.zeros((), bool)), obs

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        inner, obs, over = state
        after, ts = env.step(key, inner, action, params)
        state = (keep(over, inner, after), keep(over, obs, ts.next_obs))
        reward, no = jnp.where(over, 0.0, ts.reward), jnp.zeros((), bool)
        over = over | ts.terminated | ts.truncated
        ts = ts._replace(next_obs=state[1], reward=reward, terminated=no, truncated=no)
        return (*state, over), ts

    return dataclasses.replace(env, reset=reset, step=step, outcome=None, render=None, expert=None)


def hybrid_batches(cfg: Config, env: Env, agent: Agent) -> Source:
    """Batches [H, 2 N]: N episodes of the agent, then N of inputs["data"], drawn with replacement.

    All episodes have H steps, see `waiting`; a window is one episode of each environment.
    """
    inner = rollout(waiting(env), agent, cfg.num_envs, cfg.horizon)
    space = box_scale("hnpg", env.spec)

    def next(src, learner_state, hp, inputs, key, step):
        key_own, key_data = jax.random.split(key)
        src, batch, seen = inner.next(src, learner_state, hp, inputs, key_own, step)
        data = expand(inputs["data"])
        which = below(key_data, cfg.num_envs, jnp.int32(len(data.reward) // cfg.horizon))
        rows = which[None] * cfg.horizon + jnp.arange(cfg.horizon)[:, None]
        t: Transition = take(data._replace(extras={}), rows)
        unit = space.unit(t.action.reshape(-1, space.size)).reshape(t.action.shape)
        t = t._replace(extras={"sample": unit})
        own = batch.transitions
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), own, t)
        return src, batch._replace(transitions=both), seen

    return dataclasses.replace(inner, next=next)


def check(cfg: Config) -> None:
    """Raises UserError if a size is too small."""
    at_least(
        1,
        horizon=cfg.horizon,
        num_envs=cfg.num_envs,
        critic_steps=cfg.critic_steps,
        value_samples=cfg.value_samples,
        cg_steps=cfg.cg_steps,
        actor=cfg.actor,
        critic=cfg.critic,
    )
    at_least(0, backtracks=cfg.backtracks)
    if cfg.updates < 1:
        raise UserError(f"total_steps={cfg.total_steps} is less than num_envs * horizon")


def check_request(cfg: Config, hp: Any, inputs: PyTree) -> None:
    """Raises UserError if the episodes of the data do not all have `horizon` steps."""
    starts, rows = np.asarray(inputs["data"].start), len(inputs["data"].reward)
    lengths = np.diff(np.append(np.flatnonzero(starts), rows))
    # The end of a dataset may cut its last episode.
    if len(lengths) == 0 or not starts[0] or {*lengths[:-1], max(lengths)} != {cfg.horizon}:
        found = ", ".join(map(str, sorted(set(lengths.tolist()))[:3]))
        raise UserError(
            f"hnpg needs data whose episodes all have horizon={cfg.horizon} steps; these have "
            f"{found}"
        )


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode.

    Raises:
      UserError: the environment has another time limit than `horizon`.
    """
    limit = env.spec.max_steps
    if limit != cfg.horizon:
        raise UserError(
            f"horizon={cfg.horizon} is not the time limit of {env.spec.name}: pass "
            f"--agent.horizon {limit}"
        )
    agent = make(cfg, env.spec)
    source = hybrid_batches(cfg, env, agent)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True, check_request=check_request)
