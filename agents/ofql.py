"""OFQL: Q-learning from data with a policy that makes an action in one call of its network.

One-Step Flow Q-Learning: Addressing the Diffusion Policy Bottleneck in Offline Reinforcement
Learning. Thanh Nguyen, Chang D. Yoo. ICLR 2026, arXiv:2508.13904. Mean flows: arXiv:2505.13447.

Diffusion-QL (`dql`) with another policy: a network u(z, r, t, s) is the velocity, averaged over
times [r, t], of a flow from data (t = 0) to noise (t = 1). An action is e - u(e, 0, 1, s), in
learning and in acting. What holds it to the data is the mean-flow loss: u has to be
(e - a) - (t - r) du/dt at random times, in a share `flow_ratio` of which r = t. Critics, the
normalised Q in the policy's loss, slow copies and the choice among candidates are those of `dql`.

The Q-term acts at (r, t) = (0, 1) alone, where the times of the mean-flow loss hardly ever lie;
`corner` puts a share of them there. 0, the default, is the paper.

Where the text is silent, what stands here is ours: raw times go into embeddings of their own for r
and t; the mean-flow loss is a mean over dimensions, as in `dql` (`sum_dims` sums them); actions are
clipped to the box before critics see them; the slow policy moves as in the code of `dql`; learning
rates fall to 0 along a cosine, observations are standardised and evaluations are played as in
CleanDiffuser (arXiv:2406.09509); the paper gives no η per dataset, 0.3 is one of its grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import flow
from jaxrl.agents.dql import Generator, check, learner, timed_net
from jaxrl.errors import UserError, at_least
from jaxrl.normalise import standardise_obs
from jaxrl.program import Program
from jaxrl.recipes import candidate_program
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Mean, as_mean

OFFLINE = True
MANY = 20  # steps of the flow that one-step actions are compared with


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """rows of the data in a gradient step"""
    flow_ratio: float = 0.5
    """share of the rows at which r = t, where the mean-flow loss is that of flow matching"""
    uniform_times: bool = False
    """uniform times in place of logit-normal ones"""
    sum_dims: bool = False
    """sum the mean-flow loss over action dimensions, where the default is their mean"""
    eval_steps: int = 1
    """calls of the policy's network per action when acting"""
    backup_actions: int = 1
    """actions per successor, the best of which counts for each critic; 10 is the max-Q backup"""
    ema_every: int = 5
    """updates between moves of the slow policy"""
    ema_start: int = 1000
    """updates before the first of them"""
    candidates: int = 50
    """actions among which one is chosen when acting"""
    diagnose_every: int = 500
    """updates between looks at the policy's flow"""
    normalise_obs: bool = True
    """standardise observations by the mean and deviation of the data's"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers of policy and critics"""
    embedding: int = 64
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
    lr_end: Any = 0.0
    """share of both learning rates that is left at the end of their cosine; 1 keeps them"""
    max_grad_norm: Any = float("inf")
    """norm to which the gradients of critics and of policy are clipped"""
    gamma: Any = 0.99
    """discount"""
    tau: Any = 0.005
    """share of the way that the target critics move at each update"""
    policy_tau: Any = 0.005
    """share of the way that the slow policy moves each time"""
    eta: Any = 0.3
    """weight of the normalised Q in the policy's loss, where cloning has 1"""
    corner: Any = 0.0
    """share of the rows whose times are put at (r, t) = (0, 1)"""
    power: Any = 0.0
    """of the mean-flow loss's adaptive weight 1 / (error² + c)^power"""
    selection: Any = 50.0
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
      UserError: actions are not in a bounded box of one axis, or a size is out of range.
    """
    check(cfg)
    at_least(1, eval_steps=cfg.eval_steps, diagnose_every=cfg.diagnose_every)
    if not 0 <= cfg.flow_ratio <= 1:
        raise UserError(f"flow_ratio={cfg.flow_ratio} must be between 0 and 1")
    space = box_scale("ofql", spec)
    agent, field = learner(cfg, spec, space, generator(cfg, spec, space)), fields(cfg, spec, space)

    def update(state, hp, batch, key, step):
        key_update, key_look = jax.random.split(key)
        new, metrics = agent.update(state, hp, batch, key_update, step)

        def look() -> dict[str, Mean]:
            t = batch.transitions
            obs = standardise_obs(cfg, state.obs, t.obs).reshape(t.reward.shape[0], -1)
            noise = jax.random.normal(key_look, t.action.shape)
            found = diagnose(field(new.actor), space.unit(t.action), noise, obs)
            return {name: as_mean(x) for name, x in found.items()}

        # A branch of its own: everything here costs as much as several updates.
        nothing = lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(look))
        seen = jax.lax.cond(step % cfg.diagnose_every == 0, look, nothing)
        return new, metrics | seen

    return dataclasses.replace(agent, update=update)


def fields(cfg: Config, spec: EnvSpec, space: BoxScale) -> Callable[[Array], flow.Field]:
    """From parameters to u(z [B, ..., A], r [B], t [B], obs [B, C]) of the policy's network."""
    net = timed_net(cfg, spec, space, 2)
    return lambda params: lambda z, r, t, obs: net.apply(params, z, obs, r, t)


def generator(cfg: Config, spec: EnvSpec, space: BoxScale) -> Generator:
    """Actions by average velocities: one call in learning, `cfg.eval_steps` in acting."""
    field = fields(cfg, spec, space)

    def sample(params: Array, noise: Array, obs: Array) -> Array:
        return jnp.clip(flow.one_step(field(params), noise[..., 0, :], obs), -1.0, 1.0)

    def act(params: Array, noise: Array, obs: Array) -> Array:
        action = flow.k_step(field(params), noise[..., 0, :], cfg.eval_steps, obs)
        return jnp.clip(action, -1.0, 1.0)

    def cloning(params: Array, hp: Hypers, action: Array, obs: Array, key: Array) -> Array:
        key_noise, key_times = jax.random.split(key)
        noise, rows = jax.random.normal(key_noise, action.shape), action.shape[0]
        same = round(cfg.flow_ratio * rows)
        r, t = flow.pair_times(key_times, rows, same, uniform=cfg.uniform_times, corner=hp.corner)
        loss = flow.mean_flow_loss(
            field(params), action, noise, r, t, obs, same=same, power=hp.power
        )
        return loss * space.size if cfg.sum_dims else loss

    return Generator(
        init=timed_net(cfg, spec, space, 2).init,
        noise=lambda key, rows: jax.random.normal(key, (*rows, 1, space.size)),
        sample=sample,
        act=act,
        cloning=cloning,
    )


def diagnose(u: flow.Field, action: Array, noise: Array, obs: Array) -> dict[str, Array]:
    """How well the flow fits where one-step samples are made; unit actions [B, A].

    step_gap: mean distance of one-step samples from those of many small steps from the same noise.
    corner_loss: the mean-flow loss at (r, t) = (0, 1).
    """
    zeros = jnp.zeros(action.shape[0])
    gap = flow.one_step(u, noise, obs) - flow.euler(u, noise, MANY, obs)
    return {
        "step_gap": jnp.mean(jnp.linalg.norm(gap, axis=-1)),
        "corner_loss": flow.mean_flow_loss(u, action, noise, zeros, zeros + 1, obs),
    }


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole episodes, the last at the end."""
    return candidate_program(cfg, env, make(cfg, env.spec), evals, episodes)
