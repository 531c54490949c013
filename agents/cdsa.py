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
corrections off, the base's action is unchanged bit for bit. With `gate`, a quantile, this is also
so for actions whose score is no longer than that quantile of the scores of the dataset's actions.

The networks are trained once and shared by all members, each of which corrects a base policy of its
own: base runs are points of the run, their members its seeds. A base without correction is a point
of zero strengths, evaluated from the same initial states.

Deviations from the paper:
- Networks, noise levels and formulas are original, since the paper's are not published.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import diffusion, nets, scores
from jaxrl.algorithm import Algorithm
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import Evaluator, HostEvaluator, evaluator
from jaxrl.losses import action_distance
from jaxrl.normalise import standardise_obs
from jaxrl.policies import Trained
from jaxrl.program import Program, Stage
from jaxrl.ranges import bounded
from jaxrl.recipes import check_offline
from jaxrl.scores import ScoreModel
from jaxrl.sources import gather, held_out
from jaxrl.spaces import BoxScale, box_scale
from jaxrl.types import (
    Agent,
    Array,
    Env,
    EnvSpec,
    HyperParams,
    Learner,
    Policy,
    PyTree,
    Transition,
)

NEEDED = {
    "action": ("action",),
    "next": ("state", "inverse", "forward"),
    "current": ("state", "inverse"),
    "both": ("action", "state", "inverse", "forward"),
}


GATED = 4096  # rows of the dataset whose scores set the limit of a gate


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

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
    gate: float = bounded(0.0, least=0, below=1)
    """correct only actions of the base whose score is longer than this quantile of the dataset's
    actions' scores, at the ladder's lowest noise level; 0 corrects every action"""
    normalise_obs: bool = True
    """standardise observations with the mean and standard deviation of the dataset"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    embedding: int = 16
    """dimension of the noise-level embedding"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters: members of one run may differ in each, except lr and tau."""

    lr: Any = bounded(3e-4, least=0)
    """initial learning rate of Adam; a cosine schedule lowers it to 0"""
    tau: Any = bounded(1e-3, least=0, most=1)
    """Polyak step size of the EMA networks, which compute the corrections"""
    alpha: Any = bounded(0.5, least=0)
    """strength α of the action correction; 0 turns it off"""
    w: Any = bounded(1.0, least=0)
    """strength w of the correction through states; 0 turns it off"""
    beta: Any = bounded(1.0, least=0)
    """weight β of the action that leads to the corrected next state; 0 turns it off"""
    sigma: Any = bounded(0.3, above=0)
    """noise level σ of the state score, in standard deviations of the dataset"""


def base_points(hp: Hypers, runs: int) -> tuple[dict[str, Any], ...]:
    """The points of a run over `runs` base runs: each run uncorrected and corrected."""
    strengths = ({"agent.alpha": 0.0, "agent.w": 0.0}, {"agent.alpha": hp.alpha, "agent.w": hp.w})
    return tuple({"base": run} | each for run in range(runs) for each in strengths)


# --- corrections ---------------------------------------------------------------------------------


def networks(cfg: Config, spec: EnvSpec, space: BoxScale) -> dict[str, nets.Net]:
    """The networks that the correction needs; a gate needs the score of actions."""
    needed = NEEDED[cfg.correction]
    if cfg.gate and "action" not in needed:
        needed = (*needed, "action")
    return scores.networks(needed, cfg, spec, space)


def modeller(cfg: Config, spec: EnvSpec) -> Learner:
    """Learns the networks, from batches of `held_out`."""
    space = box_scale("cdsa", spec)
    return scores.learner(networks(cfg, spec, space), cfg, spec, space)


class CorrectedState(NamedTuple):
    """The state of a corrected policy."""

    base: Trained
    model: ScoreModel
    limit: Array | float = 0.0  # [] length of scores beyond which the gate lets corrections pass


def corrected_policy(base: Policy, cfg: Config, spec: EnvSpec) -> Policy:
    """`base` with corrected actions: a policy of state `CorrectedState` and hypers `Hypers`.

    Records of the base about its own action, such as a log-probability, are left out.

    Raises:
      UserError: actions are not in a bounded box of one axis.
    """
    space = box_scale("cdsa", spec)
    net = networks(cfg, spec, space)

    def act(state, hp, obs, start, memory, noise, explore):
        own = state.base
        raw, memory, _ = base.act(own.state, own.hp, obs, start, memory, noise, explore)
        # Compiled as it would be alone, so that strengths of zero give the base's bits.
        raw = jax.lax.optimization_barrier(raw)
        action, changed = correct(cfg, net, state.model, hp, obs, space.unit(raw))
        if cfg.gate:
            far = score_length(cfg, net, state.model, obs, space.unit(raw)) > state.limit
            changed = changed & far[:, None]
        return jnp.where(changed, space.scaled(action), raw), memory, {}

    return Policy(act=act, memory=base.memory, noise=base.noise)


def score_length(
    cfg: Config, net: dict[str, nets.Net], model: ScoreModel, obs: Array, action: Array
) -> Array:
    """‖σ² ∇_a log p_σ(a|s)‖ [B] of unit actions [B, A], at the lowest noise level of the ladder."""
    seen = standardise_obs(cfg, model.obs, obs).reshape(obs.shape[0], -1)
    epsilon = diffusion.scaled_epsilon(scores.bind(net, model.nets)["action"], seen)
    step = diffusion.score_step(epsilon, action, jnp.full(1, min(cfg.ladder), jnp.float32))
    return jnp.linalg.norm(step, axis=-1)


def gate_limit(
    cfg: Config, net: dict[str, nets.Net], space: BoxScale, model: ScoreModel, data: Transition
) -> Array:
    """The quantile `gate` [] of score lengths over at most GATED rows of the dataset."""
    count = min(GATED, data.reward.shape[0])
    t = gather(data, jnp.asarray(np.arange(count) * data.reward.shape[0] // count, jnp.int32))
    lengths = score_length(cfg, net, model, t.obs, space.unit(t.action))
    return jnp.quantile(lengths, cfg.gate).astype(jnp.float32)


def correct(
    cfg: Config, net: dict[str, nets.Net], model: ScoreModel, hp: Hypers, obs: Array, action: Array
) -> tuple[Array, Array]:
    """Corrected unit actions [B, A] at obs [B, *obs], and whether any correction is on []."""
    call, change = scores.bind(net, model.nets), model.change
    seen = standardise_obs(cfg, model.obs, obs).reshape(obs.shape[0], -1)
    deviation = jnp.sqrt(model.obs.var.reshape(1, -1))
    changed = jnp.bool_(False)

    def state_step(x: Array) -> Array:
        """The score step [B, S], raw, at standardised states x [B, S]."""
        sigma = jnp.reshape(jnp.asarray(hp.sigma, jnp.float32), 1)
        epsilon = diffusion.scaled_epsilon(call["state"], diffusion.no_context())
        return diffusion.score_step(epsilon, x, sigma) * deviation

    if cfg.correction in ("next", "both"):
        on = (hp.w != 0) & (hp.beta != 0)
        delta = change.mean[None] + jnp.sqrt(change.var[None]) * scores.forward(call, seen, action)
        target_delta = delta + hp.w * state_step(seen + delta / deviation)
        target_action = scores.inverse(call, change, seen, target_delta)
        action = jnp.where(on, (1 - hp.beta) * action + hp.beta * target_action, action)
        changed = changed | on
    if cfg.correction == "current":
        to_action = functools.partial(scores.inverse, call, change, seen)
        delta = to_action(state_step(seen)) - to_action(jnp.zeros_like(seen))
        action = jnp.clip(action + hp.w * delta, -1.0, 1.0)
        changed = changed | (hp.w != 0)
    if cfg.correction in ("action", "both"):
        on = hp.alpha != 0
        epsilon = diffusion.scaled_epsilon(call["action"], seen)
        denoised = diffusion.anneal(epsilon, action, cfg.ladder, cfg.ladder_steps, hp.alpha)
        action = jnp.where(on, denoised, action)
        changed = changed | on
    return action, changed


# --- the agent -----------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec, base: Policy | None = None) -> Agent:
    """The corrected policy `base` of a trained member, without further learning.

    inputs["base"] is the `Trained` that `base` acts with, of this member; inputs["model"] is the
    `ScoreState` of the networks; inputs["data"] is read with a gate only.

    Raises:
      UserError: there is no base, the actions are not in a bounded box of one axis, a size is
        below one, or a noise level is outside the range of training.
    """
    check_offline(cfg)
    at_least(1, ladder_steps=cfg.ladder_steps)
    at_least(2, embedding=cfg.embedding)
    low, high = scores.LEVELS
    if not all(low <= level <= high for level in cfg.ladder):
        raise UserError(f"ladder={cfg.ladder} must lie between {low} and {high}, as in training")
    space = box_scale("cdsa", spec)
    if base is None:
        raise UserError("cdsa needs a trained policy: pass --base runs/NAME")
    net, corrected = networks(cfg, spec, space), corrected_policy(base, cfg, spec)

    def init(key, hp, inputs):
        own = Trained(*jax.tree.map(jnp.asarray, inputs["base"]))
        model, limit = scores.trained(net, inputs["model"]), jnp.float32(0)
        if cfg.gate:
            limit = gate_limit(cfg, net, space, model, inputs["data"])
        return CorrectedState(own, model, limit)

    act, memory, noise = corrected.act, corrected.memory, corrected.noise
    return Agent(init=init, act=act, memory=memory, noise=noise, hypers=Hypers())


def measured(
    cfg: Config, spec: EnvSpec, base: Policy, play: Evaluator | HostEvaluator
) -> Evaluator | HostEvaluator:
    """The evaluation `play`, unless on the host, with mean distances between unit actions.

    On `batch_size` rows of the dataset: `base_distance` between base and dataset, `action_distance`
    between corrected policy and dataset, `moved` between base and corrected policy.
    """
    if isinstance(play, HostEvaluator):
        return play
    space = box_scale("cdsa", spec)
    corrected = corrected_policy(base, cfg, spec)

    def measure(
        state: CorrectedState, hp: HyperParams, inputs: PyTree, key: Array
    ) -> dict[str, Array]:
        data: Transition = inputs["data"]
        n = cfg.batch_size
        t = gather(data, jnp.asarray(np.arange(n) * data.reward.shape[0] // n, jnp.int32))
        given = (t.obs, t.start, base.memory(n), base.noise(key, n), False)
        plain = space.unit(base.act(state.base.state, state.base.hp, *given)[0])
        action = space.unit(corrected.act(state, hp.agent, *given)[0])
        return {
            "base_distance": action_distance(plain, space.unit(t.action)),
            "action_distance": action_distance(action, space.unit(t.action)),
            "moved": action_distance(action, plain),
        }

    return play.measuring(measure)


def program(
    cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128, base: Policy | None = None
) -> Program:
    """Training of the networks shared by all members, then one evaluation of `episodes` episodes.

    Args:
      evals: reports of metrics in training.
      base: the trained policy, the same in all members but for inputs["base"], see `make`.
    """
    agent = make(cfg, env.spec, base)
    assert base is not None  # `make` refuses this
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
        evaluate=measured(cfg, env.spec, base, evaluator(env, agent, episodes)),
    )
    return Program((modelling, playing))


ALGORITHM = Algorithm(
    Config,
    Hypers,
    make,
    program,
    offline=True,
    extras=("next_known",),
    base_points=base_points,
    base_acts=lambda hp: (hp.alpha == 0) & (hp.w == 0),
)
