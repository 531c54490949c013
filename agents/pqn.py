"""PQN: parallelised Q-network.

Simplifying Deep Temporal Difference Learning. Matteo Gallici, Mattie Fellows, Benjamin Ellis,
Bartomeu Pou, Ivan Masmitja, Jakob Nicolaus Foerster, Mario Martin. ICLR 2025, arXiv:2407.04811.

Q-learning without replay buffer and without target network: many environments, λ-returns, and
LayerNorm between every linear layer and its ReLU.

Deviations: time limits bootstrap from the true successor (the authors' code treats them as
terminations), and the λ-recursion is the paper's at every step (four of the authors' scripts start
it one step late). With batch norms targets are valued by running statistics, as acting is; the
authors' script for Craftax without memory puts a batch and its successors through the network
together.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl import batchnorm, nets
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.exploration import epsilon_greedy, epsilon_noise
from jaxrl.losses import q_loss
from jaxrl.minibatch import scan_epochs
from jaxrl.normalise import normalised
from jaxrl.optim import clipped_radam, linear
from jaxrl.program import Program
from jaxrl.recipes import single_stage
from jaxrl.returns import lambda_returns, successor_values
from jaxrl.rollout import rollout
from jaxrl.types import Agent, Array, Discrete, Env, EnvSpec, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    total_steps: int = 500_000
    """environment steps of a run, all environments together"""
    num_envs: int = 32
    """parallel environments N"""
    num_steps: int = 64
    """steps T per environment between updates"""
    minibatches: int = 16
    """minibatches per epoch; divides N * T"""
    epochs: int = 4
    """passes over each window"""
    conv: tuple[int, ...] = ()
    """channels of convolutions in front, for images"""
    kernels: tuple[int, ...] = ()
    """their sides, 3 each if empty"""
    strides: tuple[int, ...] = ()
    """their strides, 1 each if empty"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
    normalise_obs: bool = False
    """standardise observations by running statistics"""
    norm_input: Literal["none", "batch", "batch_renorm"] = "none"
    """layer in front of the network: BatchNorm or BatchRenorm"""
    norm: Literal["layer", "batch", "none"] = "layer"
    """layer between every linear layer and its ReLU: LayerNorm, BatchNorm or none"""

    @property
    def updates(self) -> int:
        return self.total_steps // (self.num_envs * self.num_steps)

    @property
    def gradient_steps(self) -> int:
        return self.updates * self.epochs * self.minibatches


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each."""

    lr: Any = 1e-4
    """learning rate of RAdam at the start"""
    lr_end: Any = 0.0
    """learning rate at the end of the linear schedule, as a fraction of lr; 1 keeps it constant"""
    gamma: Any = 0.99
    """discount"""
    lam: Any = 0.95
    """trace decay of the returns"""
    eps_start: Any = 1.0
    """share of random actions at the start"""
    eps_end: Any = 0.2
    """share of random actions after the decay"""
    eps_decay: Any = 0.2
    """share of the run over which the share of random actions decays"""
    max_grad_norm: Any = 10.0
    """gradients are clipped to this global norm"""
    reward_scale: Any = 0.1
    """factor on rewards in targets"""


class State(NamedTuple):
    params: PyTree
    opt: optax.OptState
    eps: Array  # [] share of random actions in the next window
    statistics: PyTree = {}  # running ones of batch norms


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError where the agent does not fit the environment or itself."""
    if not isinstance(spec.action, Discrete):
        raise UserError(f"pqn acts in discrete action spaces only; {spec.name} has {spec.action}")
    at_least(
        1,
        num_envs=cfg.num_envs,
        num_steps=cfg.num_steps,
        minibatches=cfg.minibatches,
        epochs=cfg.epochs,
        smallest_layer=min((*cfg.hidden, *cfg.conv), default=1),
    )
    nets.check_images(spec, cfg.conv, cfg.kernels, cfg.strides)
    if cfg.num_envs * cfg.num_steps % cfg.minibatches:
        raise UserError(
            f"minibatches={cfg.minibatches} does not divide num_envs * num_steps = "
            f"{cfg.num_envs * cfg.num_steps}"
        )
    if cfg.updates < 1:
        raise UserError(
            f"total_steps={cfg.total_steps} is less than one window of num_envs * num_steps = "
            f"{cfg.num_envs * cfg.num_steps}"
        )


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not discrete, or the sizes do not divide.
    """
    check(cfg, spec)
    num_actions = spec.action.n  # type: ignore[union-attr]
    mlp = lambda train: nets.MLP(cfg.hidden, num_actions, **layers(cfg, train))
    net = batchnorm.from_linen(mlp, spec.obs_shape)
    # A window no longer than an episode holds at most one time limit per environment.
    one_limit = spec.max_steps is not None and cfg.num_steps <= spec.max_steps

    def init(key, hp, inputs):
        return begin(*net.init(key), hp)

    def act(state, hp, obs, start, memory, noise, explore):
        q = net.apply(state.params, state.statistics, obs)
        return epsilon_greedy(q, state.eps, noise, explore), memory, {"value": jnp.max(q, -1)}

    def update(state, hp, batch, key, step):
        window = batch.transitions
        value_of = lambda obs: jnp.max(net.apply(state.params, state.statistics, obs), -1)
        targets = lambda_returns(
            hp.reward_scale * window.reward,
            successor_values(value_of, window, one_limit),
            window.terminated,
            window.truncated,
            hp.gamma,
            hp.lam,
        )
        data = (window.obs, window.action, targets)
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)  # [T * N, ...]

        def loss(params: PyTree, statistics: PyTree, part: PyTree) -> tuple[Array, PyTree]:
            obs, action, target = part
            q, statistics = net.learn(params, statistics, obs)
            value, mean_q = q_loss(q, action, target)
            return value, (mean_q, statistics)

        return learn(cfg, hp, state, loss, data, key, step)

    agent = Agent(init=init, update=update, act=act, noise=epsilon_noise(num_actions))
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs)


def layers(cfg: Config, train: bool) -> dict[str, Any]:
    """What `cfg` says of the layers of a `nets.Torso` below its Q-values."""
    rules = {"batch": batchnorm.NORM, "batch_renorm": batchnorm.RENORM}
    batch = {name: partial(batchnorm.BatchNorm, train, rule) for name, rule in rules.items()}
    return {
        "conv": cfg.conv,
        "norm": batch.get(cfg.norm, cfg.norm == "layer"),
        "kernels": cfg.kernels,
        "strides": cfg.strides,
        "first": batch.get(cfg.norm_input),
    }


def begin(params: PyTree, statistics: PyTree, hp: Hypers) -> State:
    """The state before the first update."""
    opt = clipped_radam(hp.lr, hp.max_grad_norm).init(ravel_pytree(params)[0])
    return State(params, opt, jnp.asarray(hp.eps_start, jnp.float32), statistics)


def learn(
    cfg: Config, hp: Hypers, state: State, loss: Any, data: PyTree, key: Array, step: Array
) -> tuple[State, dict[str, Array]]:
    """Epochs of shuffled minibatches of `data` [D, ...] through `loss`, and the next window's ε.

    `loss(params, statistics, part)` gives (loss, (mean Q, statistics after)) of a part
    [D / minibatches, ...].
    """
    # One vector of parameters: ten small leaves cost more in overhead than in work.
    flat, unravel = ravel_pytree(state.params)

    def minibatch(carry: PyTree, part: PyTree) -> tuple[PyTree, tuple[Array, Array]]:
        flat, statistics, opt, count = carry
        of_vector = lambda flat: loss(unravel(flat), statistics, part)
        (value, (q, statistics)), grads = jax.value_and_grad(of_vector, has_aux=True)(flat)
        lr = hp.lr * linear(count / cfg.gradient_steps, 1.0, hp.lr_end)
        updates, opt = clipped_radam(lr, hp.max_grad_norm).update(grads, opt, flat)
        return (optax.apply_updates(flat, updates), statistics, opt, count + 1), (value, q)

    carry = (flat, state.statistics, state.opt, step * (cfg.epochs * cfg.minibatches))
    (flat, statistics, opt, _), (losses, q) = scan_epochs(
        minibatch, carry, key, data, cfg.epochs, cfg.minibatches
    )
    eps = linear((step + 1) / (hp.eps_decay * cfg.updates), hp.eps_start, hp.eps_end)
    metrics = {"loss": jnp.mean(losses), "q": jnp.mean(q), "eps": state.eps}
    return State(unravel(flat), opt, eps, statistics), metrics


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """A whole run: `evals` evaluations of `episodes` whole greedy episodes, the last at the end."""
    agent = make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)
