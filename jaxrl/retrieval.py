"""Behavior Retrieval: rows of a large dataset that resemble a few demonstrations.

Behavior Retrieval: Few-Shot Imitation Learning by Querying Unlabeled Datasets. Maximilian Du, Suraj
Nair, Dorsa Sadigh, Chelsea Finn. RSS 2023, arXiv:2304.08742.

A variational autoencoder of (s, a) is trained on the prior data. A prior row scores the negative
distance of its latent mean to the nearest one of a demonstration, scaled to [0, 1] over the prior
rows; rows of a score above a threshold are kept. Deviation: low-dimensional observations only.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrl import nets
from jaxrl.distributions import gaussian_kl
from jaxrl.fitting import by_pieces
from jaxrl.neighbours import nearest
from jaxrl.normalise import Moments, row_moments, standardise
from jaxrl.optim import Trainable, minimise
from jaxrl.ranges import bounded
from jaxrl.types import Array, Learner, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    batch_size: int = 100
    """rows per gradient step"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of encoder and decoder"""
    latent: int = 14
    """latent dimensions"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters."""

    lr: Any = bounded(1e-3, least=0)
    """learning rate of Adam"""
    kl: Any = bounded(1e-4, least=0)
    """weight of the divergence from the standard normal prior"""


class State(NamedTuple):
    params: dict[str, PyTree]  # of encoder and decoder
    opt: optax.OptState
    rows: Moments  # [F] of the prior rows


def networks(cfg: Config, size: int) -> tuple[nets.Net, nets.Net]:
    """Encoder, rows [B, F] to mean and log-variance [B, 2 L], and decoder, [B, L] to [B, F]."""
    encoder = nets.from_linen(nets.MLP(cfg.hidden, 2 * cfg.latent), (size,))
    return encoder, nets.from_linen(nets.MLP(cfg.hidden, size), (cfg.latent,))


def autoencoder(cfg: Config, size: int) -> Learner:
    """Trains on batches whose `obs` are rows [B, F] of observations and actions (`pairs`)."""
    encoder, decoder = networks(cfg, size)

    def init(key, hp, inputs):
        keys = jax.random.split(key)
        params = {"encoder": encoder.init(keys[0]), "decoder": decoder.init(keys[1])}
        return State(params, optax.adam(hp.lr).init(params), row_moments(inputs["data"].obs))

    def update(state, hp, batch, key, step):
        x = standardise(state.rows, batch.transitions.obs, jnp.inf)
        noise = jax.random.normal(key, (len(x), cfg.latent))

        def loss(params: dict[str, PyTree]) -> tuple[Array, tuple[Array, Array]]:
            mean, log_var = jnp.split(encoder.apply(params["encoder"], x), 2, -1)
            z = mean + jnp.exp(0.5 * log_var) * noise
            error = jnp.mean((decoder.apply(params["decoder"], z) - x) ** 2)
            divergence = jnp.mean(gaussian_kl(mean, log_var))
            return error + hp.kl * divergence, (error, divergence)

        at = Trainable(state.params, state.opt)
        (params, opt), _, (error, divergence) = minimise(loss, at, hp.lr)
        return State(params, opt, state.rows), {"reconstruction": error, "kl": divergence}

    return Learner(init=init, update=update, hypers=Hypers())


def embed(cfg: Config, state: State, rows: Array) -> Array:
    """Latent means [D, L] of rows [D, F]."""
    encoder, _ = networks(cfg, rows.shape[1])

    def some(rows: Array) -> Array:
        x = standardise(state.rows, rows, jnp.inf)
        return jnp.split(encoder.apply(state.params["encoder"], x), 2, -1)[0]

    return by_pieces(some, rows)


def scores(prior: Array, expert: Array) -> Array:
    """Scores [D] in [0, 1] of prior latents [D, L]: 1 for those nearest to an expert one [E, L],
    and if all are at the same distance."""
    distance = by_pieces(lambda z: jnp.sqrt(nearest(z, expert)[1]), prior)
    low, high = jnp.min(distance), jnp.max(distance)
    return jnp.where(high > low, (high - distance) / jnp.maximum(high - low, 1e-30), 1.0)


def pairs(obs: np.ndarray, action: np.ndarray, actions: int) -> np.ndarray:
    """Rows [D, F] of flat observations and actions [D, ...]; whole numbers below `actions` become
    one-hot vectors."""
    if action.dtype.kind == "i":
        action = np.eye(actions, dtype=np.float32)[action.reshape(len(obs))]
    parts = (np.asarray(x, np.float32).reshape(len(obs), -1) for x in (obs, action))
    return np.concatenate([*parts], 1)


def precision_recall(kept: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Fraction of kept rows that are wanted, and of wanted rows that are kept, of [D] bool each;
    NaN without any."""
    both = float(np.sum(kept & wanted))
    of = lambda rows: both / rows.sum() if rows.any() else float("nan")
    return of(kept), of(wanted)
