"""PQN: parallelised Q-network.

Simplifying Deep Temporal Difference Learning. Matteo Gallici, Mattie Fellows, Benjamin Ellis,
Bartomeu Pou, Ivan Masmitja, Jakob Nicolaus Foerster, Mario Martin. ICLR 2025, arXiv:2407.04811.

Q-learning without replay buffer and target network: parallel environments, λ-returns, and LayerNorm
between every linear layer and its ReLU. Temporal differences of off-policy data can diverge: with
features f(s) of the output layer by up to (γ/2)² ‖f‖² per unit of its weights. LayerNorm bounds ‖f‖
for every input, and a penalty `l2` on the output weights cancels the rest
(`jaxrl.experiments.studies.baird`). The authors' runs, and the default, have no penalty.

Deviations from the authors' code:
- Time limits bootstrap from the true successor (there they count as terminations).
- The λ-recursion is the paper's at every step (four of the authors' scripts start one step late).
- With BatchNorm, targets use running statistics, as acting does (the authors' script for Craftax
  without memory passes a batch and its successors through the network together).
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
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError
from jaxrl.evaluate import evaluator
from jaxrl.exploration import epsilon_greedy, epsilon_noise
from jaxrl.losses import q_loss
from jaxrl.masks import legal_only, unmask
from jaxrl.minibatch import scan_epochs
from jaxrl.normalise import normalised
from jaxrl.optim import clipped_radam, linear
from jaxrl.policies import agent_of
from jaxrl.program import Program
from jaxrl.ranges import bounded
from jaxrl.recipes import check_rollouts, single_stage
from jaxrl.returns import lambda_returns, successor_values
from jaxrl.rollout import rollout
from jaxrl.sources import merge_axes
from jaxrl.types import Agent, Array, Discrete, Env, EnvSpec, Policy, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    total_steps: int = 500_000
    """environment steps of a run, summed over its parallel environments"""
    num_envs: int = 32
    """parallel environments N"""
    num_steps: int = 64
    """steps T per environment and rollout"""
    minibatches: int = 16
    """minibatches per epoch; divides N * T"""
    epochs: int = 4
    """passes over each rollout"""
    conv: tuple[int, ...] = ()
    """channels of convolutions before the dense layers, for image observations"""
    kernels: tuple[int, ...] = ()
    """kernel sizes of the convolutions; 3 each if empty"""
    strides: tuple[int, ...] = ()
    """strides of the convolutions; 1 each if empty"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers"""
    normalise_obs: bool = False
    """standardise observations with running statistics"""
    norm_input: Literal["none", "batch", "batch_renorm"] = "none"
    """normalisation of the input: BatchNorm, BatchRenorm or none"""
    norm: Literal["layer", "batch", "none"] = "layer"
    """normalisation between each linear layer and its ReLU: LayerNorm, BatchNorm or none"""

    @property
    def updates(self) -> int:
        return self.total_steps // (self.num_envs * self.num_steps)

    @property
    def gradient_steps(self) -> int:
        return self.updates * self.epochs * self.minibatches


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each."""

    lr: Any = bounded(1e-4, least=0)
    """initial learning rate of RAdam"""
    lr_end: Any = bounded(0.0, least=0)
    """final learning rate of the linear schedule, as a fraction of lr; 1 keeps it constant"""
    gamma: Any = bounded(0.99, least=0, most=1)
    """discount factor"""
    lam: Any = bounded(0.95, least=0, most=1)
    """λ of the λ-returns"""
    eps_start: Any = bounded(1.0, least=0, most=1)
    """epsilon at the start of training"""
    eps_end: Any = bounded(0.05, least=0, most=1)
    """epsilon after the decay"""
    eps_decay: Any = bounded(0.1, least=0, most=1)
    """fraction of training over which epsilon decays"""
    max_grad_norm: Any = bounded(10.0, above=0, finite=False)
    """global norm to which gradients are clipped"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards in the targets"""
    l2: Any = bounded(0.0, least=0)
    """weight η of ½ ‖w‖² in the loss, w being the weights of the output layer"""


class State(NamedTuple):
    params: PyTree
    opt: optax.OptState
    eps: Array  # [] epsilon of the next rollout
    statistics: PyTree = {}  # running statistics of BatchNorm layers


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError if the environment is not supported or sizes do not fit together."""
    if not isinstance(spec.action, Discrete):
        raise UserError(f"pqn needs discrete actions; {spec.name} has {spec.action}")
    nets.check_images(spec, cfg.conv, cfg.kernels, cfg.strides)
    check_rollouts(cfg, "hidden", "conv")


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: the action space is not discrete, or sizes are not divisible as required.
    """
    check(cfg, spec)
    num_actions = spec.action.n  # type: ignore[union-attr]
    mlp = lambda train: nets.MLP(cfg.hidden, num_actions, **layers(cfg, train))
    net = batchnorm.from_linen(mlp, spec.obs_shape)

    def init(key, hp, inputs):
        return begin(*net.init(key), hp)

    def values(state: State, seen: Any) -> Array:
        """Q-values [B, A], -inf of illegal actions."""
        obs, legal = unmask(seen)
        return legal_only(net.apply(state.params, state.statistics, obs), legal)

    def act(state, hp, obs, start, memory, noise, explore):
        q = values(state, obs)
        action = epsilon_greedy(q, state.eps, noise, explore, unmask(obs)[1])
        return action, memory, {"value": jnp.max(q, -1)}

    def update(state, hp, batch, key, step):
        window = batch.transitions
        value_of = lambda obs: jnp.max(values(state, obs), -1)
        targets = lambda_returns(
            hp.reward_scale * window.reward,
            successor_values(value_of, window.next_obs, window.extras["value"], window.truncated),
            window.terminated,
            window.truncated,
            hp.gamma,
            hp.lam,
        )
        data = merge_axes((unmask(window.obs)[0], window.action, targets))  # [T * N, ...]

        def loss(params: PyTree, statistics: PyTree, part: PyTree) -> tuple[Array, PyTree]:
            obs, action, target = part
            q, statistics = net.learn(params, statistics, obs)
            value, mean_q = q_loss(q, action, target)
            return value + penalty(hp, params["Dense_0"]), (mean_q, statistics)

        return learn(cfg, hp, state, loss, data, key, step)

    noise = epsilon_noise(num_actions, spec.masked)
    acting = Policy(act=act, noise=noise, masks=True, bytes=True)
    agent = agent_of(acting, init, update, Hypers())
    return normalised(agent, spec, cfg.num_envs, obs=cfg.normalise_obs)


def layers(cfg: Config, train: bool) -> dict[str, Any]:
    """Keyword arguments of a `nets.Torso` from `cfg`."""
    rules = {"batch": batchnorm.NORM, "batch_renorm": batchnorm.RENORM}
    batch = {name: partial(batchnorm.BatchNorm, train, rule) for name, rule in rules.items()}
    return {
        "conv": cfg.conv,
        "norm": batch.get(cfg.norm, cfg.norm == "layer"),
        "kernels": cfg.kernels,
        "strides": cfg.strides,
        "first": batch.get(cfg.norm_input),
    }


def penalty(hp: Hypers, output: PyTree) -> Array:
    """½ η ‖w‖² [] of the parameters of the output layer; its bias is free."""
    return 0.5 * hp.l2 * jnp.sum(output["kernel"] ** 2)


def begin(params: PyTree, statistics: PyTree, hp: Hypers) -> State:
    """The state before the first update."""
    opt = clipped_radam(hp.lr, hp.max_grad_norm).init(ravel_pytree(params)[0])
    return State(params, opt, jnp.asarray(hp.eps_start, jnp.float32), statistics)


def learn(
    cfg: Config, hp: Hypers, state: State, loss: Any, data: PyTree, key: Array, step: Array
) -> tuple[State, dict[str, Array]]:
    """Epochs of minibatch gradient steps on `data` [D, ...], and ε of the next rollout.

    `loss(params, statistics, part)` returns (loss, (mean Q, new statistics)) of a minibatch
    [D / minibatches, ...].
    """
    # Flat parameters: the overhead of many small leaves exceeds their computation.
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
    """Program of a run with `evals` evaluations of `episodes` greedy episodes."""
    agent = make(cfg, env.spec)
    source = rollout(env, agent, cfg.num_envs, cfg.num_steps)
    return single_stage(cfg, agent, source, evaluator(env, agent, episodes), evals)


ALGORITHM = Algorithm(Config, Hypers, make, program)
