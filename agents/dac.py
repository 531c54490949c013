"""DAC: adversarial imitation of demonstrations by an off-policy learner.

Discriminator-Actor-Critic: Addressing Sample Inefficiency and Reward Bias in Adversarial Imitation
Learning. Ilya Kostrikov, Kumar Krishna Agrawal, Debidatta Dwibedi, Sergey Levine, Jonathan Tompson.
ICLR 2019, arXiv:1809.02925.

A discriminator D(s, a) tells the demonstrations from the replay buffer, by logistic loss with a
gradient penalty. Its logit, log D - log (1 - D), is the reward of the policy, which learns from the
same buffer. True rewards are used for reports only.

Where episodes can terminate, the sign of the reward decides whether a long or a short episode is
better, whatever the demonstrations do. The paper adds an absorbing state, in which the reward is
learned too: `--env-options absorbing=true`, for the demonstrations and for the run. Tasks without
terminations need no such state.

Deviations:
- The learner is SAC (`jaxrl.agents.sac`); the paper's is TD3 with an entropy penalty.
- Absorbing states are an option of the environment, in which episodes last to the time limit.
- No importance weights, which the paper drops too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from jaxrl import nets
from jaxrl.adversarial import gradient_penalty, logistic_loss
from jaxrl.agents import sac
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.optim import Trainable, minimise, update_if
from jaxrl.policies import acting, sum_log_probs
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import replayed, single_stage
from jaxrl.sources import mix, split_batch, uniform
from jaxrl.spaces import box_scale
from jaxrl.types import (
    Agent,
    Array,
    Batch,
    Discrete,
    Env,
    EnvSpec,
    PyTree,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Config(sac.Config):
    """Static configuration: a new value compiles a new program."""

    discriminator: tuple[int, ...] = (256, 256)
    """widths of the discriminator's hidden layers"""
    reward: Literal["logit", "softplus"] = "logit"
    """reward of the policy: the logit log D - log (1 - D), or -log (1 - D), which is positive"""
    discriminator_every: int = 1
    """updates per update of the discriminator, which has gradient_steps steps"""


@struct.dataclass
class Hypers(sac.Hypers):
    """Traced hyperparameters: members of one run may differ in each."""

    discriminator_lr: Any = bounded(1e-3, least=0)
    """learning rate of the discriminator's Adam"""
    penalty: Any = bounded(10.0, least=0)
    """weight of the gradient penalty"""


class State(NamedTuple):
    learner: sac.State
    discriminator: PyTree
    opt: optax.OptState  # Adam of the discriminator


class Variant(NamedTuple):
    """What relatives of DAC change.

    loss(expert [B], policy [B]) -> [] of the discriminator's values
    reward(values [B]) -> [B]
    """

    name: str
    loss: Callable[[Array, Array], Array]
    reward: Callable[[Array], Array]


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`; batches are [2 G B], see `make_variant`.

    Raises:
      UserError: the action space is not supported, or sizes do not fit together.
    """
    reward = jax.nn.softplus if cfg.reward == "softplus" else lambda value: value
    agent = make_variant(cfg, spec, Variant("dac", logistic_loss, reward))
    return dataclasses.replace(agent, hypers=Hypers())


def make_variant(cfg: Any, spec: EnvSpec, variant: Variant) -> Agent:
    """SAC on the rewards of a discriminator; raises as `make` does.

    Batches are blocks of G B rows, G gradient steps of B rows: demonstrations, then rows for the
    policy. The last block is also what the discriminator tells from the demonstrations; it may be a
    third one.
    """
    check(cfg)
    head = sac.head_of(cfg, spec)
    inputs_of, size = discriminator_inputs(variant.name, spec)
    mlp = nets.MLP(cfg.discriminator, 1, activation=nn.tanh)
    net = nets.packed(nets.from_linen(mlp, (size,)))
    value_of = lambda params, x: net.apply(params, x)[:, 0]
    count = cfg.gradient_steps * cfg.batch_size

    def init(key, hp, inputs):
        key_learner, key_net = jax.random.split(key)
        own = {"learned": cfg.learn_temperature, "critics": cfg.critics}
        learner = sac.begin(head, key_learner, hp, **own)
        params = net.init(key_net)
        return State(learner, params, optax.adam(hp.discriminator_lr).init(params))

    def update(state, hp, batch, key, step):
        t = batch.transitions
        block = lambda i: jax.tree.map(lambda x: x[i * count : (i + 1) * count], t)
        expert, own, other = block(0), block(1), block(len(t.reward) // count - 1)
        key_net, key_learner = jax.random.split(key)

        def tell_apart() -> tuple[Trainable, dict[str, Array]]:
            def one(at: Trainable, xs: tuple[Array, Array, Array]) -> tuple[Trainable, Any]:
                expert, policy, key = xs

                def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
                    of_expert, of_policy = value_of(params, expert), value_of(params, policy)
                    apart = variant.loss(of_expert, of_policy)
                    slope = gradient_penalty(lambda x: value_of(params, x), expert, policy, key)
                    return apart + hp.penalty * slope, {
                        "discriminator_loss": apart,
                        "gradient_penalty": slope,
                        "value_expert": jnp.mean(of_expert),
                        "value_policy": jnp.mean(of_policy),
                    }

                at, _, seen = minimise(loss, at, hp.discriminator_lr)
                return at, seen

            parts = split_batch((inputs_of(expert), inputs_of(other)), cfg.gradient_steps)
            keys = jax.random.split(key_net, cfg.gradient_steps)
            at, seen = jax.lax.scan(one, kept, (*parts, keys))
            return at, jax.tree.map(jnp.mean, seen)

        kept = Trainable(state.discriminator, state.opt)
        (params, opt), seen = update_if(step % cfg.discriminator_every == 0, tell_apart, kept)
        reward = variant.reward(value_of(params, inputs_of(own)))
        learner, metrics = sac.learn(
            cfg,
            head,
            state.learner,
            hp,
            Batch(own._replace(reward=reward)),
            key_learner,
            lambda now, obs, q, temperature: sac.actor_loss(now, q, temperature),
            sum_log_probs,
        )
        metrics |= seen | {"reward": jnp.mean(reward)}
        return State(learner, params, opt), metrics

    play = acting(head)

    def act(state, hp, obs, start, memory, noise, explore):
        return play(state.learner, hp, obs, start, memory, noise, explore)

    return Agent(init=init, update=update, act=act, noise=head.noise)


def discriminator_inputs(name: str, spec: EnvSpec) -> tuple[Callable[[Transition], Array], int]:
    """The function from transitions [B] to inputs [B, F], observations and actions, and F.

    Actions are scaled to [-1, 1], or one-hot.
    """
    seen, action = spec.obs_size, spec.action
    flat = lambda t: t.obs.reshape(len(t.reward), -1)
    if isinstance(action, Discrete):
        hot = lambda t: jax.nn.one_hot(t.action, action.n)
        return (lambda t: jnp.concatenate([flat(t), hot(t)], -1)), seen + action.n
    space = box_scale(name, spec)
    return (lambda t: jnp.concatenate([flat(t), space.unit(t.action)], -1)), seen + space.size


def check(cfg: Any) -> None:
    """Raises UserError if sizes do not fit together."""
    at_least(
        1,
        discriminator_every=cfg.discriminator_every,
        discriminator=cfg.discriminator,
    )
    if cfg.n_step != 1:
        raise UserError(f"n_step={cfg.n_step}: rewards of a discriminator are one-step; use 1")


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes of the policy's mode."""
    agent, count = make(cfg, env.spec), cfg.gradient_steps * cfg.batch_size
    source = mix(uniform(count), replayed(cfg, env, agent), 0.5, 2 * count)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
