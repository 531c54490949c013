"""Ensembles of probabilistic networks that model an environment's dynamics.

Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models. Kurtland
Chua, Roberto Calandra, Rowan McAllister, Sergey Levine. NeurIPS 2018, arXiv:1805.12114; in the form
of MBPO (arXiv:1906.08253) and MOPO (arXiv:2005.13239).

Each of E networks predicts independent normal distributions of s' - s and r, and the probability of
termination. Each learns from a bootstrap sample of the data. The networks with the lowest error on
held-out rows are the elites, from which `model` draws steps.

Deviations from the authors' code: terminations are learned, by logistic regression, unless a
function is given; the bounds of variances are stored with the best weights; there is no minimum
number of epochs, and the learning rate stays the same (RAVL's code multiplies it by 0.3 once, when
the held-out errors first stall).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl.errors import UserError, at_least
from jaxrl.imagination import Model, Outcome
from jaxrl.nets import init_stack
from jaxrl.normalise import Moments, row_moments, standardise
from jaxrl.program import Stage
from jaxrl.sources import below, expand, whole
from jaxrl.types import Array, EnvSpec, HyperParams, Learner, PyTree, Transition

CLIP = 10.0  # bound of standardised inputs
DECAYS, HEAD_DECAY = (2.5e-5, 5e-5, 7.5e-5), 1e-4  # weight decay by layer; the last repeats
BOUNDS, BOUND_WEIGHT = (-10.0, 0.5), 0.01  # initial bounds of log-variances; loss weight
HELD = 5  # one row in HELD is held out
IMPROVED = 0.01  # relative decrease of the held-out error that counts as improvement
PIECE = 1024  # held-out rows evaluated at once


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Static configuration of the networks and their training.

    `reward` and `terminated` are functions of (obs, action, next_obs), rows [n, ...], if these are
    known; None if they are learned.
    """

    members: int = 7
    elites: int = 5
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    batch_size: int = 256
    patience: int = 5
    """epochs without improvement after which training stops"""
    reward: Callable[[Array, Array, Array], Array] | None = None
    terminated: Callable[[Array, Array, Array], Array] | None = None

    def outputs(self, spec: EnvSpec) -> int:
        """Number of predicted elements: those of s' - s, and r if it is learned."""
        return spec.obs_size + (self.reward is None)


class Nets(NamedTuple):
    """E networks, and the bounds of the log-variances of their outputs."""

    params: Array  # [E, size] flat parameters, see `layers`
    bounds: Array  # [2, F], or [E, 2, F]


class State(NamedTuple):
    nets: Nets  # the networks in training
    best: Nets  # each network at its lowest held-out error
    loss: Array  # [E] lowest held-out error; infinite at first
    elites: Array  # [elites] int32
    opt: optax.OptState  # on `nets` as one vector
    waiting: Array  # [] int32 epochs since any network improved
    inputs: Moments  # [obs + action]
    order: Array  # [D] int32 rows of the data: held out, training, without known successor
    held: Array  # [] int32 number of held-out rows
    known: Array  # [] int32 number of rows with known successors
    seed: Array  # [] uint32 seed of the bootstrap samples


def ensemble(cfg: Ensemble, spec: EnvSpec) -> Learner:
    """The learner: an update is an epoch, a batch is the whole dataset (`sources.whole`).

    The hyperparameters have `model_lr`. After `patience` epochs in which no network improved by
    more than 1 %, updates change nothing; without vmap they are then skipped.

    Raises:
      UserError: a size below one, or more elites than networks.
    """
    at_least(1, models=cfg.members, elites=cfg.elites, model_batch=cfg.batch_size)
    at_least(1, model_patience=cfg.patience, model_hidden=cfg.hidden)
    if cfg.elites > cfg.members:
        raise UserError(f"elites={cfg.elites} of only {cfg.members} models")

    shapes = sizes(cfg, spec)

    def init(key, hp, inputs):
        key_nets, key_order, key_boot = jax.random.split(key, 3)
        data = expand(inputs["data"])
        nets = begin(shapes, cfg.members, key_nets)
        known = data.extras.get("next_known", jnp.ones(data.reward.shape, bool))
        order = jnp.lexsort((jax.random.uniform(key_order, known.shape), ~known))
        count = jnp.sum(known, dtype=jnp.int32)
        return State(
            nets=nets,
            best=each(cfg, nets),
            loss=jnp.full(cfg.members, jnp.inf, jnp.float32),
            elites=jnp.arange(cfg.elites, dtype=jnp.int32),
            opt=optax.adam(hp.model_lr).init(ravel_pytree(nets)[0]),
            waiting=jnp.int32(0),
            inputs=row_moments(joined(data.obs, data.action)),
            order=order.astype(jnp.int32),
            held=jnp.maximum(1, count // HELD),
            known=count,
            seed=jax.random.bits(key_boot),
        )

    def update(state, hp, batch, key, step):
        learning = state.waiting < cfg.patience
        epoch = lambda state: validate(learn(state, hp, batch.transitions, key), batch.transitions)
        state = jax.lax.cond(learning, epoch, lambda state: state, state)
        return state, {
            "model_error": jnp.mean(state.loss[state.elites]),
            "learning": learning.astype(jnp.float32),
        }

    def learn(state: State, hp: Any, data: Transition, key: Array) -> State:
        """An epoch of gradient steps, each network on its own shuffled bootstrap sample."""
        total = data.reward.shape[0]
        steps = -(-(total - held_rows(total)) // cfg.batch_size)
        size = steps * cfg.batch_size
        # The same sample in every epoch: fresh samples would cover all rows in time.
        key_sample = jax.random.key(state.seed)
        sample = below(key_sample, cfg.members * size, jnp.maximum(state.known - state.held, 1))
        sample = state.order[state.held + sample].reshape(cfg.members, size)
        rows = jax.random.permutation(key, sample, 1, independent=True)
        optimiser = optax.adam(hp.model_lr)
        start, unravel = ravel_pytree(state.nets)

        def descend(i: Array, carry: PyTree) -> PyTree:
            nets, opt = carry
            x, y, ends = examples(cfg, state.inputs, data, rows[i])
            grads = jax.grad(lambda nets: loss(shapes, unravel(nets), x, y, ends))(nets)
            change, opt = optimiser.update(grads, opt)
            return optax.apply_updates(nets, change), opt

        rows = jnp.moveaxis(rows.reshape(cfg.members, steps, cfg.batch_size), 1, 0)
        nets, opt = jax.lax.fori_loop(0, hidden_length(steps), descend, (start, state.opt))
        return state._replace(nets=unravel(nets), opt=opt)

    def validate(state: State, data: Transition) -> State:
        """Stores each network whose held-out error is lower than ever before."""
        found = held_error(cfg, shapes, state, data)
        better = found < (1 - IMPROVED) * state.loss
        keep = lambda new, old: jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        error = jnp.where(better, found, state.loss)
        return state._replace(
            best=jax.tree.map(keep, each(cfg, state.nets), state.best),
            loss=error,
            elites=jnp.argsort(error)[: cfg.elites].astype(jnp.int32),
            waiting=jnp.where(jnp.any(better), 0, state.waiting + 1),
        )

    return Learner(init=init, update=update)


def stage(
    cfg: Ensemble, spec: EnvSpec, *, epochs: int, evals: int, shared: bool, unshared: str
) -> Stage:
    """The stage "dynamics" that trains the ensemble; see `program.Stage` for `shared` and
    `unshared`."""
    at_least(0, model_epochs=epochs)
    return Stage(
        name="dynamics",
        learner=ensemble(cfg, spec),
        source=whole(),
        updates=epochs,
        evals=evals,
        shared=shared,
        reads=("model_lr",),
        unshared=unshared,
    )


def model(cfg: Ensemble, spec: EnvSpec, name: str = "dynamics") -> Model:
    """Steps of the ensemble in inputs[name], each drawn from a random elite.

    The uncertainty is that of MOPO, max_i ‖σ_i‖ over all networks.
    """

    shapes = sizes(cfg, spec)

    def step(
        inputs: PyTree, hp: HyperParams, world: PyTree, obs: Array, action: Array, key: Array
    ) -> tuple[PyTree, Outcome]:
        key_elite, key_noise = jax.random.split(key)
        state: State = inputs[name]
        n = obs.shape[0]
        x = standardise(state.inputs, joined(obs, action), CLIP)
        mean, log_var, logit = apply(
            shapes, state.best, jnp.broadcast_to(x, (cfg.members, *x.shape))
        )
        std = jnp.exp(0.5 * log_var)
        who = state.elites[jax.random.randint(key_elite, (n,), 0, cfg.elites)]
        drawn = mean + std * jax.random.normal(key_noise, mean.shape[1:])[None]
        drawn = drawn[who, jnp.arange(n)]
        size = spec.obs_size
        next_obs = obs + drawn[:, :size].reshape(obs.shape)
        seen = (obs, action, next_obs)
        reward = drawn[:, -1] if cfg.reward is None else cfg.reward(*seen)
        if cfg.terminated is None:
            terminated = logit[who, jnp.arange(n)] > 0
        else:
            terminated = cfg.terminated(*seen)
        uncertainty = jnp.max(jnp.linalg.norm(std, axis=-1), 0)
        return world, Outcome(next_obs, reward, terminated, jnp.zeros(n, bool), uncertainty)

    return Model(start=lambda data: (), step=step)


# --- networks ------------------------------------------------------------------------------------


Sizes = tuple[int, ...]  # widths of inputs, hidden layers and outputs


def sizes(cfg: Ensemble, spec: EnvSpec) -> Sizes:
    """Widths of the layers; outputs are F means, F log-variances and the logit of termination."""
    inputs = spec.obs_size + math.prod(spec.action.shape)
    return (inputs, *cfg.hidden, 2 * cfg.outputs(spec) + 1)


def begin(shapes: Sizes, members: int, key: Array) -> Nets:
    """Initial networks: weights normal, std 1 / (2 √in), truncated at two std; biases zero."""

    pairs = list(zip(shapes, shapes[1:], strict=False))

    def one(key: Array) -> Array:
        parts = []
        for own, (a, b) in zip(jax.random.split(key, len(pairs)), pairs, strict=True):
            parts += [jax.random.truncated_normal(own, -2.0, 2.0, (a * b,)) / (2 * a**0.5)]
            parts += [jnp.zeros(b)]
        return jnp.concatenate(parts)

    params = init_stack(one, key, members)
    bounds = jnp.broadcast_to(jnp.array(BOUNDS)[:, None], (2, shapes[-1] // 2))
    return Nets(params, bounds)


def layers(shapes: Sizes, params: Array) -> list[tuple[Array, Array]]:
    """Weights [E, in, out] and biases [E, out] of each layer, from flat parameters [E, size]."""
    found, start = [], 0
    for a, b in zip(shapes, shapes[1:], strict=False):
        middle, end = start + a * b, start + a * b + b
        found.append((params[:, start:middle].reshape(-1, a, b), params[:, middle:end]))
        start = end
    return found


def each(cfg: Ensemble, nets: Nets) -> Nets:
    """`nets` with bounds [E, 2, F], one pair per network."""
    return nets._replace(bounds=jnp.broadcast_to(nets.bounds, (cfg.members, *nets.bounds.shape)))


def apply(shapes: Sizes, nets: Nets, x: Array) -> tuple[Array, Array, Array]:
    """Means and log-variances [E, B, F], and logits of termination [E, B], of inputs [E, B, in]."""
    *inner, last = layers(shapes, nets.params)
    affine = lambda x, layer: jnp.einsum("ebi,eio->ebo", x, layer[0]) + layer[1][:, None]
    for layer in inner:
        x = jax.nn.silu(affine(x, layer))
    x = affine(x, last)
    outputs = nets.bounds.shape[-1]
    mean, log_var, logit = x[..., :outputs], x[..., outputs:-1], x[..., -1]
    low, high = (nets.bounds[..., i, :].reshape(-1, 1, outputs) for i in range(2))
    return mean, soft_clamp(log_var, low, high), logit


def soft_clamp(x: Array, low: Array, high: Array) -> Array:
    """x, smoothly bounded by low and by high + softplus(low - high)."""
    x = high - jax.nn.softplus(high - x)
    return low + jax.nn.softplus(x - low)


def loss(shapes: Sizes, nets: Nets, x: Array, y: Array, ends: Array) -> Array:
    """Σ_i mean [log σ_i² + (μ_i - y)² / σ_i²], twice the negative log-likelihood up to a constant.

    Added are the log-loss of terminations, the distance of the bounds of log-variances, and weight
    decay by layer. x [E, B, in], y [E, B, F], ends [E, B].
    """
    mean, log_var, logit = apply(shapes, nets, x)
    fit = jnp.mean(log_var + (mean - y) ** 2 * jnp.exp(-log_var), (1, 2))
    ending = jnp.mean(jax.nn.softplus(logit) - ends * logit, 1)
    bounds = BOUND_WEIGHT * jnp.sum(nets.bounds[1] - nets.bounds[0])
    *inner, last = [jnp.sum(weight**2) for weight, _ in layers(shapes, nets.params)]
    decay = HEAD_DECAY * last + sum(DECAYS[min(i, 2)] * x for i, x in enumerate(inner))
    return jnp.sum(fit + ending) + bounds + 0.5 * decay


# --- data ----------------------------------------------------------------------------------------


def joined(obs: Array, action: Array) -> Array:
    """[B, obs + action]: raw inputs of the networks."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in (obs, action)], -1)


def examples(
    cfg: Ensemble, inputs: Moments, data: Transition, rows: Array
) -> tuple[Array, Array, Array]:
    """Inputs [E, B, in], targets [E, B, F] and terminations [E, B] of `rows` [E, B]."""
    members, size = rows.shape
    t: Transition = jax.tree.map(lambda x: x[rows.reshape(-1)], data._replace(extras={}))
    change = (t.next_obs - t.obs).reshape(members * size, -1)
    y = jnp.concatenate([change, t.reward[:, None]], -1) if cfg.reward is None else change
    x = standardise(inputs, joined(t.obs, t.action), CLIP)
    back = lambda z: z.reshape(members, size, *z.shape[1:])
    return back(x), back(y), back(t.terminated.astype(jnp.float32))


def held_rows(total: int) -> int:
    """Number of held-out rows if all successors are known, the maximum."""
    return max(1, total // HELD)


def held_error(cfg: Ensemble, shapes: Sizes, state: State, data: Transition) -> Array:
    """Mean of (μ_i - y)² [E] over the held-out rows."""
    most = held_rows(data.reward.shape[0])
    piece = min(PIECE, most)

    def add(i: Array, total: Array) -> Array:
        place = i * piece + jnp.arange(piece)
        rows = state.order[jnp.minimum(place, most - 1)]
        x, y, _ = examples(cfg, state.inputs, data, rows[None])
        x = jnp.broadcast_to(x, (cfg.members, *x.shape[1:]))
        error = jnp.mean((apply(shapes, state.nets, x)[0] - y) ** 2, -1)  # [E, piece]
        return total + jnp.sum(jnp.where((place < state.held)[None], error, 0.0), -1)

    pieces = hidden_length(-(-most // piece))
    return jax.lax.fori_loop(0, pieces, add, jnp.zeros(cfg.members)) / state.held


def hidden_length(count: int) -> Array:
    """A loop length [] hidden from the compiler.

    A loop known to run once would be inlined, and the last bits would depend on what it is fused
    with.
    """
    return jax.lax.optimization_barrier(jnp.int32(count))
