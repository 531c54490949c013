"""OFQL: one-step flow Q-learning, offline Q-learning with a mean-flow policy.

One-Step Flow Q-Learning: Addressing the Diffusion Policy Bottleneck in Offline Reinforcement
Learning. Thanh Nguyen, Chang D. Yoo. ICLR 2026, arXiv:2508.13904. Mean flows: arXiv:2505.13447.

Diffusion-QL (`dql`) with another policy: a network u(z, r, t, s) predicts the velocity, averaged
over times [r, t], of a flow from data (t = 0) to noise (t = 1). An action is e - u(e, 0, 1, s), in
training and in acting. The cloning loss is the mean-flow loss: u regresses (e - a) - (t - r) du/dt
at random times, with r = t in a fraction `flow_ratio` of the rows. Critics, the normalised Q-value
in the policy loss, the EMA policy and the choice among candidates are those of `dql`.

The Q-value term depends on u at (r, t) = (0, 1) only, which random times of the mean-flow loss
rarely reach. `corner` places a fraction of the rows there; 0, the default, is the paper.

Choices where the paper is silent:
- r and t have separate embeddings of unscaled times, cos and sin of frequencies 10⁴^(-k/n), k < n,
  as in CleanDiffuser.
- The mean-flow loss is a mean over action dimensions, as in `dql` (`sum_dims` sums them).
- Actions are clipped to the box before the critics see them.
- The EMA policy is updated as in the code of `dql`.
- Learning rates fall to 0 by a cosine schedule, as in CleanDiffuser (arXiv:2406.09509).
- Observations are standardised and evaluations choose among candidates, as in CleanDiffuser.
- The paper gives no η per dataset; 0.3 is one value of its grid.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import flow, nets
from jaxrl.agents.dql import Generator, check, learner, timed_net
from jaxrl.algorithm import Algorithm
from jaxrl.errors import at_least
from jaxrl.normalise import standardise_obs
from jaxrl.optim import update_if
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_share, offline_program
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 1_000_000
    """gradient steps of a run"""
    batch_size: int = 256
    """transitions per gradient step"""
    flow_ratio: float = 0.5
    """fraction of rows with r = t, where the mean-flow loss is the flow-matching loss"""
    uniform_times: bool = False
    """draw times uniformly instead of from a logit-normal distribution"""
    sum_dims: bool = False
    """sum the mean-flow loss over action dimensions instead of averaging it"""
    eval_steps: int = 1
    """flow steps per action when acting, one network call each"""
    backup_actions: int = 1
    """sampled actions per next state, maximised over in the targets; 10 is the paper's max-Q
    backup"""
    ema_every: int = 5
    """gradient steps between updates of the EMA policy"""
    ema_start: int = 1000
    """gradient steps before the first update of the EMA policy"""
    candidates: int = 50
    """candidate actions per environment step; one is chosen by its Q-value"""
    diagnose_every: int = 500
    """gradient steps between diagnostics of the policy's flow"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    embedding: int = 64
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
    lr_end: Any = bounded(0.0, least=0)
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
    eta: Any = bounded(0.3, least=0)
    """weight of the normalised Q-value in the policy loss, relative to the cloning loss"""
    corner: Any = bounded(0.0, least=0, most=1)
    """fraction of rows with times (r, t) = (0, 1), which one-step sampling uses; 0 in the paper"""
    power: Any = bounded(0.0, least=0)
    """exponent p of the mean-flow loss's adaptive weight 1 / (error² + c)^p; 0 turns it off"""
    selection: Any = bounded(50.0, least=0, finite=False)
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
      UserError: the action space is not a bounded box of one axis, or a size is out of range.
    """
    check(cfg)
    at_least(1, eval_steps=cfg.eval_steps, diagnose_every=cfg.diagnose_every)
    check_share(cfg, "flow_ratio")
    space = box_scale("ofql", spec)
    agent = learner(cfg, spec, space, generator(cfg, spec, space), Hypers())
    net = timed_net(cfg, spec, space, 2)

    def update(state, hp, batch, key, step):
        key_update, key_look = jax.random.split(key)
        new, metrics = agent.update(state, hp, batch, key_update, step)

        def look() -> tuple[tuple[()], dict[str, Array]]:
            t = batch.transitions
            obs = standardise_obs(cfg, state.obs, t.obs).reshape(t.reward.shape[0], -1)
            noise = jax.random.normal(key_look, t.action.shape)
            field = velocity(net, new.actor)
            return (), flow.one_step_fit(field, space.unit(t.action), noise, obs)

        # A conditional branch: the diagnostics cost as much as several updates.
        _, seen = update_if(step % cfg.diagnose_every == 0, look)
        return new, metrics | seen

    return dataclasses.replace(agent, update=update)


def velocity(net: nets.Net, params: Array) -> flow.Field:
    """u(z [B, ..., A], r [B], t [B], obs [B, C]) of the policy's network."""
    return lambda z, r, t, obs: net.apply(params, z, obs, r, t)


def generator(cfg: Config, spec: EnvSpec, space: BoxScale) -> Generator:
    """The mean-flow policy: one network call in training, `cfg.eval_steps` in acting."""
    net = timed_net(cfg, spec, space, 2)
    field = functools.partial(velocity, net)

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
        init=net.init,
        noise=lambda key, rows: jax.random.normal(key, (*rows, 1, space.size)),
        sample=sample,
        act=act,
        cloning=cloning,
    )


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` episodes, the last at the end."""
    return offline_program(cfg, env, make(cfg, env.spec), evals, episodes, explore=True)


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True)
