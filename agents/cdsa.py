"""CDSA: a trained policy whose actions are corrected towards regions of high data density.

CDSA: Conservative Denoising Score-based Algorithm for Offline Reinforcement Learning. Zeyuan Liu,
Kai Yang, Xiu Li. arXiv:2406.07541.

From the paper: the policy itself stays unchanged. Its actions are corrected with scores (gradients
of the data's log-density), learned by denoising score matching, and with an inverse dynamics model
that turns a change of state into an action. One score model serves several policies.

With the base's action a, observations s standardised with the data's statistics, and the score step
g_σ = σ² ∇ log p_σ, the corrections are

  "action"   (i)   a <- clip(a + α g_σ(a | s)), `ladder_steps` times for each σ of the `ladder`
  "next"     (ii)  a <- (1 - β) a + β I(s, F(s, a) + w g_σ(s + F(s, a)))
  "current"  (iii) a <- clip(a + w (I(s, g_σ(s)) - I(s, 0)))
  "both"     (ii), then (i)

with inverse dynamics I(s, s' - s) and forward model F(s, a) = s' - s. The score of actions is
conditional: only a is noisy. A strength of zero (α; w or β) turns its correction off; with all
corrections off, the base's action is unchanged bit for bit.

The networks are trained once and shared by all members. `run` and `member` of a member select its
base: base runs are points of the run, their members its seeds. A base without correction is a point
of zero strengths, evaluated from the same initial states.

Deviations from the paper:
- Networks, noise levels and formulas are original, since the paper's are not published.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrl import diffusion, nets
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import HostEvaluator, evaluator
from jaxrl.flow import along
from jaxrl.losses import action_distance
from jaxrl.normalise import Moments, data_moments, standardise, standardise_obs
from jaxrl.optim import adam_step, cosine, polyak
from jaxrl.policies import Switch, Trained, one_of
from jaxrl.program import Algorithm, Program, Stage
from jaxrl.recipes import check_offline
from jaxrl.sources import held_out, known_rows, take
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import (
    Agent,
    Array,
    Env,
    EnvSpec,
    Episodes,
    HyperParams,
    Learner,
    Policy,
    PyTree,
    Transition,
)

LEVELS = (0.01, 1.0)  # between which scores are learned
MEMORY = 1e-3  # weight of a batch in the running error of held rows
NEEDED = {
    "action": ("action",),
    "next": ("state", "inverse", "forward"),
    "current": ("state", "inverse"),
    "both": ("action", "state", "inverse", "forward"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Static: a new value is a new program."""

    updates: int = 200_000
    """gradient steps of the networks"""
    batch_size: int = 256
    """transitions per gradient step"""
    correction: Literal["action", "next", "current", "both"] = "both"
    """action (score of actions), next or current (score of states), or both (next, then action)"""
    ladder: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05)
    """noise levels of the action correction, in half action ranges, in order"""
    ladder_steps: int = 3
    """correction steps per noise level of the ladder"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    embedding: int = 16
    """dimension of the noise-level embedding"""


@struct.dataclass
class Hypers:
    """Traced: members of one population may differ in each, apart from lr and tau."""

    lr: Any = 3e-4
    """initial learning rate of Adam; a cosine schedule lowers it to 0"""
    tau: Any = 1e-3
    """Polyak step size of the EMA networks, which compute the corrections"""
    alpha: Any = 0.5
    """strength α of the action correction; 0 turns it off"""
    w: Any = 1.0
    """strength w of the correction through states; 0 turns it off"""
    beta: Any = 1.0
    """weight β of the action that leads to the corrected next state; 0 turns it off"""
    sigma: Any = 0.3
    """noise level σ of the state score, in standard deviations of the dataset"""
    run: Any = 0.0
    """index of the base run"""
    member: Any = 0.0
    """index of the base run's member"""


def base_points(hp: Hypers, runs: int) -> tuple[dict[str, float], ...]:
    """The points of a run over so many base runs: each as it is, and corrected."""
    strengths = ({"agent.alpha": 0.0, "agent.w": 0.0}, {"agent.alpha": hp.alpha, "agent.w": hp.w})
    return tuple({"agent.run": float(run)} | each for run in range(runs) for each in strengths)


# --- the networks --------------------------------------------------------------------------------


class Model(NamedTuple):
    """What corrections are computed with."""

    nets: dict[str, Array]  # parameters by name, a vector each
    obs: Moments  # [*obs] of the data's observations
    change: Moments  # [S] of s' - s, S the elements of an observation


class State(NamedTuple):
    """The networks in training."""

    params: Array  # of all networks, as one vector
    slow: Array  # their moving average
    best: Array  # slow inverse dynamics where they predicted held rows best, (0,) without them
    held: Array  # [] running error of held rows; begins at 4, the largest that it can be
    lowest: Array  # [] its lowest value so far
    opt: optax.OptState
    obs: Moments
    change: Moments


def networks(cfg: Config, spec: EnvSpec, space: BoxScale) -> dict[str, nets.Net]:
    """Those that the correction needs, of flat parameters.

    ε of noisy actions (a, s, log σ) and of noisy states (s, nothing, log σ); inverse dynamics
    (s, s' - s) and the forward model (s, a), each on one vector.
    """
    obs, action = math.prod(spec.obs_shape), space.size

    def noisy(size: int, context: int) -> nets.Net:
        net = nets.ConditionalMLP(cfg.hidden, size, cfg.embedding)
        return nets.flat(nets.from_linen(net, (size,), (context,), ()))

    plain = lambda size, out: nets.flat(nets.from_linen(nets.MLP(cfg.hidden, out), (size,)))
    made = {
        "action": noisy(action, obs),
        "state": noisy(obs, 0),
        "inverse": plain(2 * obs, action),
        "forward": plain(obs + action, obs),
    }
    return {name: made[name] for name in NEEDED[cfg.correction]}


def epsilon(net: nets.Net, params: Array, context: Array) -> Callable[[Array, Array], Array]:
    """ε(x [B, D], σ [B] or [1]) given `context` [B or 1, C]; inputs of deviation one at every σ."""

    def predict(x: Array, sigma: Array) -> Array:
        scale = along(jax.lax.rsqrt(1 + sigma**2), x)
        return net.apply(params, scale * x, context, jnp.log(sigma))

    return predict


def inverse(net: nets.Net, params: Array, change: Moments, seen: Array, delta: Array) -> Array:
    """I(s, s' - s): unit actions [B, A] from observations as seen and their changes [B, S]."""
    x = jnp.concatenate([seen, standardise(change, delta, jnp.inf)], -1)
    return jnp.tanh(net.apply(params, x))


def forward(net: nets.Net, params: Array, seen: Array, action: Array) -> Array:
    """F(s, a) [B, S], standardised."""
    return net.apply(params, jnp.concatenate([seen, action], -1))


def unpack(net: dict[str, nets.Net], flat: Array) -> dict[str, Array]:
    """The parameters of each network out of those of all."""
    sizes = [jax.eval_shape(each.init, jax.random.key(0)).size for each in net.values()]
    return dict(zip(net, jnp.split(flat, np.cumsum(sizes)[:-1]), strict=True))


def nowhere() -> Array:
    """The context of a score without one."""
    return jnp.zeros((1, 0))


def modeller(cfg: Config, spec: EnvSpec) -> Learner:
    """Learns all networks at once, from batches of `split`. Rows of unknown successors say nothing
    of the dynamics, and for the score of states their own state counts."""
    space = box_scale("cdsa", spec)
    net = networks(cfg, spec, space)

    def init(key, hp, inputs):
        def begin(key: Array) -> Array:
            keys = jax.random.split(key, len(net))
            return jnp.concatenate([net[name].init(k) for name, k in zip(net, keys, strict=True)])

        # A loop, not a copy: XLA would compute both apart, with other last bits.
        params, slow = jax.lax.map(begin, jnp.stack([key, key]))
        return State(
            params=params,
            slow=slow,
            best=unpack(net, slow).get("inverse", jnp.zeros(0)),
            held=jnp.float32(4),
            lowest=jnp.float32(4),
            opt=optax.adam(hp.lr).init(params),
            obs=data_moments(cfg, spec, inputs),
            change=changes(inputs["data"]),
        )

    def update(state, hp, batch, key, step):
        t = batch.transitions
        rows = t.reward.shape[0]
        known, held = known_rows(t), t.extras["held"]
        kept = known & ~held
        # A row without successor still has a state.
        after = jnp.where(known.reshape(rows, *(1,) * (t.obs.ndim - 1)), t.next_obs, t.obs)
        seen, later = (standardise_obs(cfg, state.obs, x).reshape(rows, -1) for x in (t.obs, after))
        delta, action = (after - t.obs).reshape(rows, -1), space.unit(t.action)
        shift = standardise(state.change, delta, jnp.inf)
        key_action, key_state = jax.random.split(key)

        def matching(predict: Callable[[Array, Array], Array], x: Array, key: Array) -> Array:
            key_noise, key_level = jax.random.split(key)
            noise = jax.random.normal(key_noise, x.shape)
            sigma = diffusion.log_uniform(key_level, rows, *LEVELS)
            return diffusion.dsm_loss(predict, x, noise, sigma)

        def error(inverse_params: Array, mask: Array) -> Array:
            guess = inverse(net["inverse"], inverse_params, state.change, seen, delta)
            return mean_of((guess - action) ** 2, mask)

        def loss(flat: Array) -> tuple[Array, dict[str, Array]]:
            params, parts = unpack(net, flat), {}
            if "action" in net:
                predict = epsilon(net["action"], params["action"], seen)
                parts["action_loss"] = matching(predict, action, key_action)
            if "state" in net:
                predict = epsilon(net["state"], params["state"], nowhere())
                parts["state_loss"] = matching(predict, later, key_state)
            if "inverse" in net:
                parts["inverse_loss"] = error(params["inverse"], kept)
            if "forward" in net:
                guess = forward(net["forward"], params["forward"], seen, action)
                parts["forward_loss"] = mean_of((guess - shift) ** 2, known)
            return jnp.sum(jnp.stack(list(parts.values()))), parts

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        rate = hp.lr * cosine(step / cfg.updates, 0.0)
        params, opt = adam_step(state.params, grads, state.opt, rate)
        slow = polyak(state.slow, params, hp.tau)
        state = state._replace(params=params, slow=slow, opt=opt)
        if "inverse" in net:
            judged, own = known & held, unpack(net, slow)["inverse"]
            found = jnp.where(jnp.any(judged), error(own, judged), state.held)
            running = polyak(state.held, found, jnp.float32(MEMORY))
            better = running < state.lowest
            state = state._replace(
                best=jnp.where(better, own, state.best),
                held=running,
                lowest=jnp.minimum(running, state.lowest),
            )
            metrics["held_error"] = running
        return state, metrics

    return Learner(init=init, update=update)


def trained(net: dict[str, nets.Net], state: State) -> Model:
    """What is acted with: slow networks, inverse dynamics as they were best."""
    kept = {"inverse": state.best} if "inverse" in net else {}
    return Model(unpack(net, state.slow) | kept, state.obs, state.change)


def changes(data: Transition) -> Moments:
    """Moments [S] of s' - s; as of observations, 1e-3 is added to each deviation."""
    rows = data.reward.shape[0]
    known = known_rows(data)
    weight = known[:, None] / jnp.maximum(jnp.sum(known), 1)
    delta = (data.next_obs - data.obs).reshape(rows, -1)
    mean = jnp.sum(weight * delta, 0)
    scale = jnp.sqrt(jnp.sum(weight * (delta - mean[None]) ** 2, 0)) + 1e-3
    return Moments(mean, scale**2, jnp.float32(rows))


def mean_of(errors: Array, mask: Array) -> Array:
    """Mean [] of [B, D] over the rows where `mask` [B] holds; 0 without any."""
    total = jnp.sum(jnp.where(mask, jnp.mean(errors, -1), 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)


# --- corrections ---------------------------------------------------------------------------------


class Adjusted(NamedTuple):
    """The state of an adjusted policy."""

    base: Trained
    model: Model


def adjust(base: Policy, cfg: Config, spec: EnvSpec) -> Policy:
    """`base` with corrected actions: a policy of state `Adjusted` and hyperparameters `Hypers`.

    What the base records of its own action is not true of the corrected one, and is left out.

    Raises:
      UserError: actions are not in a bounded box of one axis.
    """
    space = box_scale("cdsa", spec)
    net = networks(cfg, spec, space)

    def act(state, hp, obs, start, memory, noise, explore):
        raw, memory, _ = base.act(
            state.base.state, state.base.hp, obs, start, memory, noise, explore
        )
        # Compiled as it would be alone, so that strengths of zero give its bits.
        raw = jax.lax.optimization_barrier(raw)
        through, directly = (hp.w != 0) & (hp.beta != 0), hp.alpha != 0
        action, moved = space.unit(raw), jnp.bool_(False)
        params, change = state.model.nets, state.model.change
        seen = standardise_obs(cfg, state.model.obs, obs).reshape(obs.shape[0], -1)
        deviation = jnp.sqrt(state.model.obs.var.reshape(1, -1))

        def climb(x: Array) -> Array:
            """σ² ∇ log p_σ of states x [B, S] as seen, in raw units."""
            sigma = jnp.reshape(jnp.asarray(hp.sigma, jnp.float32), 1)
            predict = epsilon(net["state"], params["state"], nowhere())
            return along(sigma**2, x) * diffusion.score(predict, x, sigma) * deviation

        def action_for(delta: Array) -> Array:
            return inverse(net["inverse"], params["inverse"], change, seen, delta)

        if cfg.correction in ("next", "both"):
            step = forward(net["forward"], params["forward"], seen, action)
            delta = change.mean[None] + jnp.sqrt(change.var[None]) * step
            aim = action_for(delta + hp.w * climb(seen + delta / deviation))
            action = jnp.where(through, (1 - hp.beta) * action + hp.beta * aim, action)
            moved = moved | through
        if cfg.correction == "current":
            push = action_for(climb(seen)) - action_for(jnp.zeros_like(seen))
            action = jnp.clip(action + hp.w * push, -1.0, 1.0)
            moved = moved | (hp.w != 0)
        if cfg.correction in ("action", "both"):
            predict = epsilon(net["action"], params["action"], seen)
            denoised = anneal(predict, action, cfg.ladder, cfg.ladder_steps, hp.alpha)
            action = jnp.where(directly, denoised, action)
            moved = moved | directly
        return jnp.where(moved, space.scaled(action), raw), memory, {}

    return Policy(act=act, memory=base.memory, noise=base.noise)


def anneal(
    predict: Callable[[Array, Array], Array],
    action: Array,
    ladder: tuple[float, ...],
    steps: int,
    alpha: Array | float,
) -> Array:
    """a <- clip(a + α σ² ∇ log p_σ(a)), `steps` times for each σ; unit actions [B, A].

    `predict` is the ε of the score. With α = 1 a step is to the mean of the clean actions that the
    noisy one may come from.
    """

    def step(action: Array, sigma: Array) -> tuple[Array, None]:
        climb = along(sigma**2, action) * diffusion.score(predict, action, sigma)
        return jnp.clip(action + alpha * climb, -1.0, 1.0), None

    levels = jnp.repeat(jnp.float32(ladder), steps)[:, None]
    return jax.lax.scan(step, action, levels)[0]


# --- the agent -----------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec, bases: Sequence[Policy] = ()) -> Agent:
    """The corrected policies of trained ones, which learn no more.

    inputs["base"] has a `Trained` for each of `bases`, of leaves [M, ...] over the run's members,
    and inputs["model"] the `State` of the networks.

    Raises:
      UserError: nothing to correct, actions that are not in a bounded box of one axis, a size
        below one, or a level at which no score is learned.
    """
    check_offline(cfg)
    at_least(1, ladder_steps=cfg.ladder_steps)
    at_least(2, embedding=cfg.embedding)
    low, high = LEVELS
    if not all(low <= level <= high for level in cfg.ladder):
        raise UserError(f"ladder={cfg.ladder} must lie between {low} and {high}, as in training")
    space = box_scale("cdsa", spec)
    if not bases:
        raise UserError("cdsa needs a trained policy: pass --base runs/NAME")
    net, base = networks(cfg, spec, space), one_of(bases)
    adjusted = adjust(base, cfg, spec)

    def init(key, hp, inputs):
        row = jnp.asarray(hp.member, jnp.int32)
        each = jax.tree.map(lambda x: jnp.asarray(x)[row], tuple(inputs["base"]))
        chosen = Switch(jnp.asarray(hp.run, jnp.int32), each)
        return Adjusted(Trained(chosen, ()), trained(net, inputs["model"]))

    act, memory, noise = adjusted.act, adjusted.memory, adjusted.noise
    return Agent(init=init, act=act, memory=memory, noise=noise, hypers=Hypers())


def measured(
    cfg: Config, spec: EnvSpec, bases: Sequence[Policy], play: Callable[..., Episodes]
) -> Callable[..., Episodes]:
    """`play` with distances on `batch_size` rows of the data, unless it is on the host.

    Between actions in units of half the box: `base_distance` of the base from the data's,
    `action_distance` of the corrected, `moved` from base to corrected.
    """
    if isinstance(play, HostEvaluator):
        return play
    space, base = box_scale("cdsa", spec), one_of(bases)
    adjusted = adjust(base, cfg, spec)

    def evaluate(state: Adjusted, hp: HyperParams, inputs: PyTree, key: Array) -> Episodes:
        data: Transition = inputs["data"]
        n = cfg.batch_size
        t = take(data, jnp.asarray(np.arange(n) * data.reward.shape[0] // n, jnp.int32))
        given = (t.obs, t.start, base.memory(n), base.noise(key, n), False)
        plain = space.unit(base.act(state.base.state, (), *given)[0])
        action = space.unit(adjusted.act(state, hp.agent, *given)[0])
        found = {
            "base_distance": action_distance(plain, space.unit(t.action)),
            "action_distance": action_distance(action, space.unit(t.action)),
            "moved": action_distance(action, plain),
        }
        return play(state, hp, inputs, key)._replace(measured=found)

    return evaluate


def program(
    cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128, bases: Sequence[Policy] = ()
) -> Program:
    """The networks, once for all members, with `evals` reports; then one evaluation."""
    agent = make(cfg, env.spec, bases)
    modelling = Stage(
        name="model",
        learner=modeller(cfg, env.spec),
        source=held_out(cfg.batch_size),
        updates=cfg.updates,
        evals=evals,
        shared=True,
        reads=("lr", "tau"),
    )
    playing = Stage(
        name="agent",
        learner=agent,
        updates=0,
        evaluate=measured(cfg, env.spec, bases, evaluator(env, agent, episodes)),
    )
    return Program((modelling, playing))


ALGORITHM = Algorithm(
    Config, Hypers, make, program, offline=True, extras=("next_known",), base_points=base_points
)
