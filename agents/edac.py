"""EDAC: offline SAC with an ensemble of critics whose action gradients are diversified.

Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble. Gaon An, Seungyong
Moon, Jang-Hyun Kim, Hyun Oh Song. NeurIPS 2021, arXiv:2110.01548.

Targets and policy use the minimum of N critics, which is low where the critics disagree: outside
the dataset. Diverse action gradients make fewer critics sufficient. Without the diversity term
(`diversity` False) the agent is SAC-N of the same paper.

The target is y = r + γ (min_i Q'_i(s', a') - α log π(a'|s')). The critics' loss is

  Σ_i mean (Q_i(s, a) - y)² + η mean 1/(N - 1) Σ_{i≠j} <g_i, g_j>,  g_i = ∇_a Q_i / ‖∇_a Q_i‖.

The first sum grows with the square of the rewards and the second does not, so η is relative to the
rewards' scale. With one action dimension g_i is a sign: the second sum has no gradient and the
agent is SAC-N for every η.

An update goes temperature, actor, critics, targets, each with the results of the previous one.
Weights are initialised as in the authors' code. `jaxrl.agents.ravl` trains this agent on imagined
transitions.

Deviations from the authors' code:
- Time limits bootstrap.
- `normalise_obs` standardises observations; it is off by default, as there.

The gradient of the temperature is theirs, that of log α (entropy - target), without the factor α
that `jaxrl.agents.sac` has.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl import nets, policies
from jaxrl.agents.sac import actor_loss, begin
from jaxrl.algorithm import Algorithm
from jaxrl.errors import at_least
from jaxrl.losses import critic_loss, scaled_rewards, td_target
from jaxrl.normalise import standardised
from jaxrl.optim import Trainable, adam_step, minimise, polyak
from jaxrl.policies import StochasticHead
from jaxrl.products import Dense
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_offline, offline_program
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, PyTree, Transition, mean_where

# A larger |Q|, relative to (max |reward| + entropy bonus) / (1 - γ), counts as divergence.
DIVERGED = 2.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 3_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """transitions per gradient step"""
    critics: int = 10
    """critics N; targets and policy use their minimum"""
    diversity: bool = True
    """add the diversity term with weight eta; without it the agent is SAC-N"""
    normalise_obs: bool = False
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(3e-4, least=0)
    """learning rate of Adam"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    temperature: Any = bounded(1.0, above=0)
    """initial weight α of the entropy, learned for a target entropy of -A nats"""
    eta: Any = bounded(1.0, least=0)
    """weight η of the diversity term"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards after scaling"""


class State(NamedTuple):
    actor: PyTree  # parameters (`nets.packed`)
    critic: PyTree  # the N critics, leaves [N, ...]
    target: PyTree  # target critics
    log_temperature: Array  # [] log α
    opt: tuple[optax.OptState, ...]  # Adam of actor, critics and log_temperature
    largest: Array  # [] largest |Q| so far
    reward: Array  # [] largest |reward| of the dataset
    bonus: Array  # [] largest mean |α log π| of an update so far


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not a bounded box of one axis, or a size is too small.
    """
    check_offline(cfg)
    at_least(2 if cfg.diversity else 1, critics=cfg.critics)
    scale = box_scale("edac", spec).scale
    head = head_of(cfg, spec)
    values = nets.each(head.values)

    def init(key, hp, inputs):
        data: Transition = inputs["data"]
        reward = jnp.max(jnp.abs(scaled_rewards(data, hp).reward))
        nothing = jnp.zeros(())
        return State(*begin(head, key, hp, critics=cfg.critics), nothing, reward, nothing)

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        opt_actor, opt_critic, opt_temperature = state.opt
        key_now, key_ahead = jax.random.split(key)
        noise_now, noise_ahead = (head.noise(k, cfg.batch_size) for k in (key_now, key_ahead))

        now = head.samples(head.policy(state.actor, t.obs), noise_now)
        entropy = policies.mean_entropy(now)
        # gradient of log α (entropy - target) with respect to log α
        log_temperature, opt_temperature = adam_step(
            state.log_temperature, entropy - head.target_entropy, opt_temperature, hp.lr
        )
        temperature = jnp.exp(log_temperature)

        def of_actor(actor: PyTree) -> tuple[Array, None]:
            now = head.samples(head.policy(actor, t.obs), noise_now)
            q = policies.least_value(head, state.critic, t.obs, now.action)
            return actor_loss(now, q, temperature), None

        at = Trainable(state.actor, opt_actor)
        (actor, opt_actor), loss_pi, _ = minimise(of_actor, at, hp.lr)

        ahead = head.samples(head.policy(actor, t.next_obs), noise_ahead)
        q_ahead = values(state.target, t.next_obs, ahead.action)  # [N, B, 1]
        bonus = temperature * policies.sum_log_probs(ahead.log_prob)  # [B, K], subtracted
        value = policies.expectation(ahead, jnp.min(q_ahead, 0) - bonus)
        y = td_target(t, hp.gamma, value)

        def of_critic(critic: PyTree) -> tuple[Array, tuple[Array, Array, Array]]:
            if cfg.diversity:
                q, slope = slopes(head, critic, t.obs, t.action)
                alike = similarity(slope * scale[None])
            else:
                q = nets.each(head.value)(critic, t.obs, t.action)
                alike = jnp.zeros(())
            loss = critic_loss(q, y)
            return loss + hp.eta * alike, (q, loss, alike)

        at = Trainable(state.critic, opt_critic)
        (critic, opt_critic), _, (q, loss_q, alike) = minimise(of_critic, at, hp.lr)
        target = polyak(state.target, critic, hp.tau)

        largest = jnp.maximum(state.largest, jnp.max(jnp.abs(q)))
        bonus = jnp.maximum(state.bonus, jnp.mean(jnp.abs(bonus)))
        # Rewards of 0 give Q-values no scale, so nothing counts as divergence.
        limit = jnp.where(state.reward > 0, state.reward + bonus, jnp.inf)
        bound = DIVERGED * limit / (1 - hp.gamma)
        metrics = {
            "critic_loss": loss_q,
            "actor_loss": loss_pi,
            "q": jnp.mean(q),
            "q_largest": largest,
            "diverged": (largest > bound).astype(jnp.float32),
            "similarity": alike / cfg.critics,
            "td_error": jnp.mean(jnp.abs(q - y[None])),
            "entropy": entropy,
            "temperature": temperature,
            **disagreement(jnp.std(q_ahead[..., 0], 0), t),
        }
        opt = (opt_actor, opt_critic, opt_temperature)
        state = State(actor, critic, target, log_temperature, opt, largest, state.reward, bonus)
        return state, metrics

    act = policies.acting(head)
    agent = Agent(init=init, update=update, act=act, noise=head.noise, hypers=Hypers())
    return standardised(agent, cfg, spec)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes)


# --- networks and losses -------------------------------------------------------------------------


class Layers(nn.Module):
    """ReLU layers initialised as in the authors' code; output weights and biases within ±`end`."""

    hidden: tuple[int, ...]
    out: int
    end: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        within = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1 / √inputs
        tenth = nn.initializers.constant(0.1)
        for width in self.hidden:
            x = nn.relu(Dense(width, kernel_init=within, bias_init=tenth)(x))

        def near_zero(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -self.end, self.end)

        return Dense(self.out, kernel_init=near_zero, bias_init=near_zero)(x)


def head_of(cfg: Config, spec: EnvSpec) -> StochasticHead:
    """SAC's policy with log-std in [-5, 2]; critics as in the authors' code."""
    ending = lambda end: functools.partial(Layers, end=end)
    return policies.squashed_head(cfg.hidden, spec, -5.0, actor=ending(1e-3), critic=ending(3e-3))


def slopes(head: StochasticHead, critic: Array, obs: Array, action: Array) -> tuple[Array, Array]:
    """Q_i(s, a) [N, B] and its action gradients [N, B, A]."""

    def one(params: PyTree) -> tuple[Array, Array]:
        def total(action: Array) -> tuple[Array, Array]:
            q = head.value(params, obs, action)
            return jnp.sum(q), q

        slope, q = jax.grad(total, has_aux=True)(action)
        return q, slope

    return jax.vmap(one)(critic)


def similarity(slope: Array) -> Array:
    """mean over rows of 1/(N - 1) Σ_{i≠j} <g_i, g_j> [] with g_i = slope_i / ‖slope_i‖.

    Slopes are [N, B, A]; values lie between -N/(N - 1) and N. The sum over pairs is computed as
    ‖Σ_i g_i‖² - Σ_i ‖g_i‖². A zero slope, as from dead units, and its gradient stay 0.
    """
    square = jnp.sum(slope * slope, -1, keepdims=True)
    unit = jnp.where(square > 0, slope * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    together = jnp.sum(jnp.sum(unit, 0) ** 2, -1) - jnp.sum(unit * unit, (0, 2))
    return jnp.mean(together) / (slope.shape[0] - 1)


def disagreement(spread: Array, t: Transition) -> dict[str, Any]:
    """Mean std over the critics at next states, separately for the ends of rollouts.

    spread is [B]. extras["rollout_end"] [B] marks last steps, see `jaxrl.imagination.imagined`.
    """
    if "rollout_end" not in t.extras:
        return {"q_std": jnp.mean(spread)}
    edge = t.extras["rollout_end"]
    return {"q_std": mean_where(spread, ~edge), "q_std_edge": mean_where(spread, edge)}


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
