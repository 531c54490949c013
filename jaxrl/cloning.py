"""Ensembles of policies by behaviour cloning that are held apart.

After Lei et al., Uni-O4, ICLR 2024, arXiv:2311.03351.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import nets
from jaxrl.distributions import Normal
from jaxrl.optim import Trainable, minimise
from jaxrl.spaces import BoxScale
from jaxrl.types import Array, Learner, PyTree


def cloning_losses(dists: Normal, sample: Array, diversity: Array | float) -> tuple[Array, Array]:
    """-log π_i(a|s) - α KL(π_i || π_j) as means [P] over rows, and the divergences [P].

    π_j is the policy of the ensemble with the highest log π_j(a|s) of the row, held constant.

    Args:
      dists: normal distributions [P, B] over unit actions.
      sample: [B, A] unit actions of the data.
    """
    log_prob = dists.log_prob(sample[None])
    best, rows = jnp.argmax(log_prob, 0), jnp.arange(sample.shape[0])
    nearest = jax.tree.map(lambda x: jax.lax.stop_gradient(x[best, rows])[None], dists)
    divergence = jnp.mean(dists.kl(nearest), -1)
    return -jnp.mean(log_prob, -1) - diversity * divergence, divergence


class Clones(NamedTuple):
    actor: PyTree  # [P, ...] parameters
    opt: optax.OptState


def diverse_clones(policy: nets.Net, space: BoxScale, count: int) -> Learner:
    """The learner of `count` policies, an ensemble P.

    The hyperparameters have `clone_lr` and `diversity`, the weight α.

    Args:
      policy: apply(params, obs [B, *obs]) -> normal distribution over unit actions [B, A].
    """

    def init(key, hp, inputs):
        actor = nets.init_stack(policy.init, key, count)
        return Clones(actor, optax.adam(hp.clone_lr).init(actor))

    def update(state, hp, batch, key, step):
        t = batch.transitions

        def loss(actor: PyTree) -> tuple[Array, tuple[Array, Array]]:
            dists = nets.each(policy.apply)(actor, t.obs)
            each, divergence = cloning_losses(dists, space.unit(t.action), hp.diversity)
            return jnp.sum(each), (jnp.mean(each), jnp.mean(divergence))

        at = Trainable(state.actor, state.opt)
        (actor, opt), _, (mean, divergence) = minimise(loss, at, hp.clone_lr)
        return Clones(actor, opt), {"clone_loss": mean, "divergence": divergence}

    return Learner(init=init, update=update)
