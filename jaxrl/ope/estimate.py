"""All estimators of all candidates at once: the members of a run times the spreads of a target.

FQE's networks of all candidates start alike and see the same batches (common random numbers), so
that differences between candidates are not differences of luck.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.fitting import by_pieces, fit
from jaxrl.ope import doubly_robust, fqe, importance
from jaxrl.ope.episodes import Padded, discounted
from jaxrl.ope.targets import Target, greedy_actions
from jaxrl.policies import Trained
from jaxrl.types import Array, Discrete, EnvSpec, Policy, Transition

WEIGHTED = ("tis", "sntis", "pdis", "snpdis", "dr", "sndr")
NAMES = ("fqe", *WEIGHTED)


class Estimates(NamedTuple):
    """Estimated values of candidates [M, S], members times spreads.

    Attributes:
      value: by name of estimator (`NAMES`).
      error: standard errors over episodes, by name. They leave out the error of Q̂ and of a fitted
        behaviour policy.
      effective: number of episodes that the importance weights leave, see
        `importance.effective_episodes`.
    """

    value: dict[str, Array]
    error: dict[str, Array]
    effective: Array


def estimates(
    cfg: fqe.Config,
    spec: EnvSpec,
    target: Target,
    agent: Policy,
    updates: int,
    trained: Trained,
    hp: fqe.Hypers,
    data: Transition,
    log_behaviour: Array,
    episodes: Padded,
    key: Array,
) -> Estimates:
    """Estimates of the target policies of M members, at S spreads each; to be compiled.

    In a box, candidates of spread 0 have no density, and estimators with weights are NaN.

    Args:
      updates: gradient steps of FQE.
      trained: states and hyperparameters of the members, leaves [M, ...].
      hp: of FQE; `hp.spread` [S].
      data: rows [D] with actions of the environment and without extras.
      log_behaviour: [D] log π_b(a|s), of unit actions in a box.
      episodes: of the rows.
    """
    greedy = lambda member, obs: greedy_actions(agent, member, target.unit, obs)
    data = data._replace(action=target.unit(data.action))
    learner, critic = fqe.learner(cfg, spec, target), fqe.critic(cfg, spec)
    reward = episodes.column(data.reward)

    def of_member(member: Trained) -> dict[str, tuple[Array, Array]]:
        mode, ahead = greedy(member, data.obs), greedy(member, data.next_obs)
        rows = data._replace(extras={"next_mode": ahead})

        def of_spread(spread: Array) -> dict[str, tuple[Array, Array]]:
            own = dataclasses.replace(hp, spread=spread)
            key_fit, key_value = jax.random.split(key)
            state = fit(learner, own, rows, key_fit, updates, cfg.batch_size)
            of_rows = functools.partial(fqe.q_and_value, critic, target, state, spread, key_value)
            q, value = by_pieces(of_rows, (data.obs, data.action, mode))
            log_target = target.log_prob(mode, data.action, spread)
            if not isinstance(spec.action, Discrete):
                log_target = jnp.where(spread > 0, log_target, jnp.nan)
            log_weight = importance.log_weights(
                episodes.column(log_target),
                episodes.column(log_behaviour),
                jnp.asarray(episodes.live),
            )
            return terms(log_weight, reward, episodes.column(q), episodes.column(value), hp.gamma)

        return jax.vmap(of_spread)(hp.spread)

    found = jax.vmap(of_member)(trained)
    pick = lambda i: {name: found[name][i] for name in NAMES}
    return Estimates(pick(0), pick(1), found["effective"][0])


def terms(
    log_weight: Array, reward: Array, q: Array, value: Array, gamma: Array | float
) -> dict[str, tuple[Array, Array]]:
    """(estimate [], standard error []) by name of estimator; arrays [E, T] as in `importance`."""
    plain, normed = jnp.exp(log_weight), importance.self_normalised(log_weight)
    robust = lambda weight: doubly_robust.doubly_robust(weight, reward, q, value, gamma)
    found = {
        "fqe": doubly_robust.direct(value),
        "tis": importance.trajectory(plain, reward, gamma),
        "sntis": importance.trajectory(normed, reward, gamma),
        "pdis": importance.per_decision(plain, reward, gamma),
        "snpdis": importance.per_decision(normed, reward, gamma),
        "dr": robust(plain),
        "sndr": robust(normed),
    }
    count = reward.shape[0]
    error = lambda x: jnp.std(x) / jnp.sqrt(max(count - 1, 1))
    effective = importance.effective_episodes(log_weight)
    summary = {name: (jnp.mean(x), error(x)) for name, x in found.items()}
    return summary | {"effective": (effective, jnp.zeros(()))}


def behaviour_value(data: Transition, episodes: Padded, gamma: Array | float) -> Array:
    """J(π_b) []: the mean of Σ_t γ^t r_t over the episodes of the data."""
    return jnp.mean(discounted(episodes.column(data.reward), gamma))
