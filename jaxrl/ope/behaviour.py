"""log π_b(a|s) of the data's actions: recorded in the dataset, or of a policy fitted to it.

The fitted policy maximises the likelihood of the data's actions: a categorical distribution, or a
normal distribution truncated to the box, the family of `targets`. Densities are those of unit
actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxrl import nets
from jaxrl.distributions import Categorical, TruncatedNormal
from jaxrl.errors import UserError
from jaxrl.fitting import by_pieces, fit
from jaxrl.normalise import Moments, data_moments, standardise_obs
from jaxrl.ope.fqe import Config, Hypers
from jaxrl.optim import Trainable, minimise
from jaxrl.types import Array, Discrete, EnvSpec, Learner, PyTree, Transition


class State(NamedTuple):
    params: PyTree  # of the fitted policy (`nets.packed`)
    opt: optax.OptState
    obs: Moments  # [*obs] mean and variance of the dataset's observations


LogProbOf = Callable[[State, Array, Array], Array]
"""(state, obs [n, *obs], unit action [n, ...]) -> log π_b(a|s) [n]"""


def policy(cfg: Config, spec: EnvSpec) -> tuple[nets.Net, LogProbOf]:
    """The network of a fitted policy, and its log-probabilities."""
    space = spec.action
    size = space.n if isinstance(space, Discrete) else 2 * space.shape[0]
    net = nets.packed(nets.from_linen(nets.MLP(cfg.hidden, size), spec.obs_shape))

    def log_prob(state: State, obs: Array, action: Array) -> Array:
        out = net.apply(state.params, standardise_obs(cfg, state.obs, obs))
        if isinstance(space, Discrete):
            return Categorical(out).log_prob(action)
        mean, log_std = jnp.split(out, 2, -1)
        return TruncatedNormal(jnp.tanh(mean), jnp.clip(log_std, -4.0, 1.0)).log_prob(action)

    return net, log_prob


def learner(cfg: Config, spec: EnvSpec) -> Learner:
    """Maximises the mean of log π_b(a|s) over batches with unit actions."""
    net, log_prob = policy(cfg, spec)

    def init(key, hp, inputs):
        params = net.init(key)
        return State(params, optax.adam(hp.lr).init(params), data_moments(cfg, spec, inputs))

    def update(state, hp, batch, key, step):
        t = batch.transitions

        def loss(params: PyTree) -> tuple[Array, tuple[()]]:
            return -jnp.mean(log_prob(state._replace(params=params), t.obs, t.action)), ()

        (params, opt), value, _ = minimise(loss, Trainable(state.params, state.opt), hp.lr)
        return State(params, opt, state.obs), {"loss": value}

    return Learner(init=init, update=update, hypers=Hypers())


def fitted(
    cfg: Config, spec: EnvSpec, hp: Hypers, data: Transition, key: Array, updates: int
) -> Array:
    """log π_b(a|s) [D] of the rows of `data`, with unit actions, under a policy fitted to them."""
    state = fit(learner(cfg, spec), hp, data, key, updates, cfg.batch_size)
    _, log_prob = policy(cfg, spec)
    return by_pieces(lambda rows: log_prob(state, *rows), (data.obs, data.action))


def recorded(data: Transition, name: str = "the dataset") -> Array:
    """extras["log_prob"] [D].

    Raises:
      UserError: the dataset has none.
    """
    if "log_prob" not in data.extras:
        raise UserError(f"{name} has no log-probabilities of its actions: pass --behaviour fitted")
    return jnp.asarray(data.extras["log_prob"])
