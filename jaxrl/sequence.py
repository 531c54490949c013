"""A small causal policy over sequences: a GRU that reads one observation per token."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl import recurrent
from jaxrl.objectives import perturb
from jaxrl.precision import lowered, raised
from jaxrl.products import Dense
from jaxrl.types import Array, Discrete, EnvSpec, PyTree


class SequenceParams(NamedTuple):
    net: PyTree
    log_sigma: Array | None = None  # [2] of ALP's noise before the GRU and the output layer


class Network(nn.Module):
    """Inputs [T, B, F] to logits [T, B, A]: Dense, tanh, GRU, Dense."""

    embedding: int
    memory: int
    actions: int

    @nn.compact
    def __call__(
        self,
        carry: Array,
        x: Array,
        start: Array,
        log_sigma: Array | None = None,
        noise: Array | None = None,
    ) -> tuple[Array, Array]:
        """(carry [B, H] after the window, logits); ALP's `noise` is [T, B, embedding + H]."""
        x = jnp.tanh(Dense(self.embedding)(x))
        if noise is not None and log_sigma is not None:
            x = perturb(x, log_sigma[0], noise[..., : self.embedding])
        carries, x = recurrent.Recurrent("gru", self.memory)(carry, x, start)
        if noise is not None and log_sigma is not None:
            x = perturb(x, log_sigma[1], noise[..., self.embedding :])
        size, length = x.shape[1], x.shape[0]
        logits = Dense(self.actions)(x.reshape(length * size, -1))
        return carries[-1], logits.reshape(length, size, -1)


class SequenceModel(NamedTuple):
    """The network for one environment; privileged context [..., A] is zero where it is None."""

    net: Network
    inputs: int  # size of a flat observation

    def init(self, key: Array, sigma: Array | float | None = None) -> SequenceParams:
        """Initial parameters; with ALP's noise if its scale `sigma` is given."""
        x = jnp.zeros((1, 1, self.inputs + self.net.actions))
        args = (jnp.zeros((1, self.net.memory)), x, jnp.zeros((1, 1), bool))
        params = self.net.init(key, *args)["params"]
        if sigma is None:
            return SequenceParams(params)
        return SequenceParams(params, jnp.full(2, jnp.log(jnp.asarray(sigma, jnp.float32))))

    def step(
        self, params: SequenceParams, carry: Array, obs: Array, start: Array, context: Array | None
    ) -> tuple[Array, Array]:
        """(carry [n, H], log-probabilities [n, A]) after one observation [n, *obs] each."""
        x = self._inputs(obs.reshape(obs.shape[0], -1), context)[None]
        carry, logits = self._apply(params, carry, x, start[None])
        return carry, jax.nn.log_softmax(logits[0])

    def log_probs(
        self,
        params: SequenceParams,
        obs: Array,
        context: Array | None = None,
        noise: Array | None = None,
    ) -> Array:
        """Log-probabilities [B, T, A] along responses with observations [B, T, *obs]."""
        size, length = obs.shape[:2]
        turn = lambda x: None if x is None else jnp.swapaxes(x, 0, 1)
        x = turn(self._inputs(obs.reshape(size, length, -1), context))
        start, carry = jnp.zeros((length, size), bool), jnp.zeros((size, self.net.memory))
        logits = self._apply(params, carry, x, start, turn(noise))[1]
        return jnp.swapaxes(jax.nn.log_softmax(logits), 0, 1)

    def _apply(self, params: SequenceParams, carry: Array, x: Array | None, *rest: Any) -> Any:
        start, *noise = rest
        variables = {"params": lowered(params.net)}
        inputs = lowered((carry, x, start, params.log_sigma, *noise))
        return raised(self.net.apply(variables, *inputs))

    def _inputs(self, x: Array, context: Array | None) -> Array:
        none = jnp.zeros((*x.shape[:-1], self.net.actions))
        return jnp.concatenate([x, none if context is None else context], -1)


def sequence_model(embedding: int, memory: int, spec: EnvSpec) -> SequenceModel:
    """The model of `embedding` and `memory` units for the discrete actions of `spec`."""
    assert isinstance(spec.action, Discrete)
    net = Network(embedding, memory, spec.action.n)
    return SequenceModel(net, spec.obs_size)
