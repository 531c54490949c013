"""Scores and dynamics of a dataset, trained together by denoising score matching and regression.

The scores are gradients of log-densities, of actions given observations and of states
(`jaxrl.diffusion`). The inverse dynamics predict the action of a change of state; the forward
model predicts the change of an action. Both are deterministic, unlike `jaxrl.dynamics`. One Adam
trains all networks on the sum of their losses.

Shapes: observations [B, S] flat and standardised, changes s' - s [B, S] raw, actions [B, A] in
[-1, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import diffusion, nets
from jaxrl.losses import masked_mean
from jaxrl.normalise import Moments, change_moments, data_moments, standardise, standardise_obs
from jaxrl.optim import Trainable, cosine, minimise, polyak
from jaxrl.sources import known_rows
from jaxrl.spaces import BoxScale
from jaxrl.types import Array, EnvSpec, Learner, Transition

LEVELS = (0.01, 1.0)  # noise levels between which scores are learned
MEMORY = 1e-3  # weight of a batch in the running error on held-out rows


class ScoreModel(NamedTuple):
    """The trained networks, for acting."""

    nets: dict[str, Array]  # flat parameters by network
    obs: Moments  # [*obs] of the data's observations
    change: Moments  # [S] of s' - s, S the elements of an observation


class ScoreState(NamedTuple):
    """The networks in training."""

    params: Array  # [size] of all networks, see `nets.joint`
    slow: Array  # [size] their EMA
    best: Array  # EMA inverse dynamics at their lowest held-out error; (0,) without them
    held: Array  # [] running held-out error; starts at 4, its upper bound
    lowest: Array  # [] lowest running held-out error so far
    opt: optax.OptState
    obs: Moments
    change: Moments


def networks(names: Sequence[str], cfg: Any, spec: EnvSpec, space: BoxScale) -> dict[str, nets.Net]:
    """The networks of these names, with flat parameters.

    Args:
      names: of "action" (noise ε(a | s) in noisy actions), "state" (noise ε(s) in noisy states),
        "inverse" (unit actions before tanh from s and s' - s) and "forward" (standardised s' - s
        from s and a).
      cfg: has `hidden`, the widths of the layers, and `embedding`, the noise-level dimension.
    """
    obs, action = spec.obs_size, space.size

    def noise(size: int, context: int) -> nets.Net:
        net = nets.ConditionalMLP(cfg.hidden, size, cfg.embedding)
        return nets.flat(nets.from_linen(net, (size,), (context,), ()))

    plain = lambda size, out: nets.flat(nets.from_linen(nets.MLP(cfg.hidden, out), (size,)))
    made = {
        "action": noise(action, obs),
        "state": noise(obs, 0),
        "inverse": plain(2 * obs, action),
        "forward": plain(obs + action, obs),
    }
    return {name: made[name] for name in names}


Calls = dict[str, Callable[..., Array]]  # networks with their parameters, by name


def bind(net: dict[str, nets.Net], params: dict[str, Array]) -> Calls:
    """Each network as a function of its inputs."""
    return {name: functools.partial(net[name].apply, params[name]) for name in net}


def inverse(call: Calls, change: Moments, seen: Array, delta: Array) -> Array:
    """I(s, s' - s): unit actions [B, A] of standardised observations and raw changes [B, S]."""
    x = jnp.concatenate([seen, standardise(change, delta, jnp.inf)], -1)
    return jnp.tanh(call["inverse"](x))


def forward(call: Calls, seen: Array, action: Array) -> Array:
    """F(s, a) [B, S], standardised, of standardised observations and unit actions [B, A]."""
    return call["forward"](jnp.concatenate([seen, action], -1))


# --- training the networks -----------------------------------------------------------------------


class Rows(NamedTuple):
    """A batch as input of the networks."""

    seen: Array  # [B, S] standardised observations
    later: Array  # [B, S] standardised next observations; `seen` where these are unknown
    action: Array  # [B, A] unit actions
    delta: Array  # [B, S] s' - s, raw; 0 where s' is unknown
    known: Array  # [B] bool: s' is known
    held: Array  # [B] bool: held out from training the inverse dynamics


def rows_of(cfg: Any, space: BoxScale, seen: Moments, t: Transition) -> Rows:
    """The rows of transitions [B], of extras["held"] [B]."""
    count, known = t.reward.shape[0], known_rows(t)
    after = jnp.where(known.reshape(count, *(1,) * (t.obs.ndim - 1)), t.next_obs, t.obs)
    now, later = (standardise_obs(cfg, seen, x).reshape(count, -1) for x in (t.obs, after))
    delta = (after - t.obs).reshape(count, -1)
    return Rows(now, later, space.unit(t.action), delta, known, t.extras["held"])


def inverse_error(call: Calls, change: Moments, rows: Rows, mask: Array) -> Array:
    """Mean squared error [] of the inverse dynamics over the rows where `mask` [B] holds."""
    guess = inverse(call, change, rows.seen, rows.delta)
    return masked_mean(jnp.mean((guess - rows.action) ** 2, -1), mask)


def losses(call: Calls, change: Moments, rows: Rows, key: Array) -> dict[str, Array]:
    """The loss [] of each network. Dynamics learn from rows with known successors only."""
    key_action, key_state = jax.random.split(key)
    found = {}
    if "action" in call:
        epsilon = diffusion.scaled_epsilon(call["action"], rows.seen)
        found["action_loss"] = diffusion.sampled_dsm_loss(epsilon, rows.action, key_action, *LEVELS)
    if "state" in call:
        epsilon = diffusion.scaled_epsilon(call["state"], diffusion.no_context())
        found["state_loss"] = diffusion.sampled_dsm_loss(epsilon, rows.later, key_state, *LEVELS)
    if "inverse" in call:
        found["inverse_loss"] = inverse_error(call, change, rows, rows.known & ~rows.held)
    if "forward" in call:
        guess = forward(call, rows.seen, rows.action)
        error = (guess - standardise(change, rows.delta, jnp.inf)) ** 2
        found["forward_loss"] = masked_mean(jnp.mean(error, -1), rows.known)
    return found


def learner(net: dict[str, nets.Net], cfg: Any, spec: EnvSpec, space: BoxScale) -> Learner:
    """The learner of all networks, from batches of `sources.held_out`.

    Args:
      net: from `networks`.
      cfg: has `updates` and `normalise_obs`; the hypers have `lr` and `tau`.
    """
    joint = nets.joint(net)

    def init(key, hp, inputs):
        params, slow = nets.init_twice(joint.init, key)
        return ScoreState(
            params=params,
            slow=slow,
            best=joint.split(slow).get("inverse", jnp.zeros(0)),
            held=jnp.float32(4),
            lowest=jnp.float32(4),
            opt=optax.adam(hp.lr).init(params),
            obs=data_moments(cfg, spec, inputs),
            change=change_moments(inputs["data"]),
        )

    def update(state, hp, batch, key, step):
        rows = rows_of(cfg, space, state.obs, batch.transitions)

        def loss(params: Array) -> tuple[Array, dict[str, Array]]:
            found = losses(bind(net, joint.split(params)), state.change, rows, key)
            return jnp.sum(jnp.stack(list(found.values()))), found

        rate = hp.lr * cosine(step / cfg.updates, 0.0)
        (params, opt), _, metrics = minimise(loss, Trainable(state.params, state.opt), rate)
        state = state._replace(params=params, slow=polyak(state.slow, params, hp.tau), opt=opt)
        if "inverse" not in net:
            return state, metrics
        slow = joint.split(state.slow)
        error = inverse_error(bind(net, slow), state.change, rows, rows.known & rows.held)
        state = keep_best(state, slow["inverse"], error, jnp.any(rows.known & rows.held))
        return state, metrics | {"held_error": state.held}

    return Learner(init=init, update=update)


def keep_best(state: ScoreState, now: Array, error: Array, judged: Array) -> ScoreState:
    """`state` with a new held-out error [] of inverse dynamics `now`, stored if it is the lowest.

    The error is ignored if `judged` [] is False, that is, if the batch has no held-out row.
    """
    held = polyak(state.held, jnp.where(judged, error, state.held), jnp.float32(MEMORY))
    best = jnp.where(held < state.lowest, now, state.best)
    return state._replace(best=best, held=held, lowest=jnp.minimum(held, state.lowest))


def trained(net: dict[str, nets.Net], state: ScoreState) -> ScoreModel:
    """The EMA networks, with the best inverse dynamics instead of the last."""
    kept = {"inverse": state.best} if "inverse" in net else {}
    return ScoreModel(nets.joint(net).split(state.slow) | kept, state.obs, state.change)
