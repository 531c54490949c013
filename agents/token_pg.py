"""Token policy gradients: objectives of language-model RL, on a small causal sequence policy.

One agent for the objectives of `jaxrl.objectives.table.OBJECTIVES`, each with its paper there:
REINFORCE, PPO, GRPO, GSPO, CISPO, REC, TOPR, OPMD, AsymRE, RED, BAPO, MinPRO, SPO, ReMix, ALP,
CHORD, OTR, PrefixRL, both SCOPEs, OPD, Lightning OPD, OPSD, π-Distill, and the likelihood of expert
traces.

A GRU reads observations, one per token; prompts are initial states and responses are episodes. Each
update draws `prompts` groups of `group` responses, `staleness` updates old, and makes `epochs`
passes of Adam steps on their tokens. The gradient of almost every objective is that of

    -Agg[sg(c) log π]

with a coefficient c per token. Objectives with a teacher, expert traces or corrections need an
environment with an expert (`Env.expert`), such as `jaxrl.envs.tokens`. Privileged context is the
expert's next action as a further input of the network, zero elsewhere.

Deviations:
- Adam at rates for a network of 10^4 parameters; the papers tune billions at 1e-6.
- SPO's tracker starts at 1/2 instead of at the rate over eight offline samples per prompt.
- ReMix is its first stage, without KL-convex constraint and reincarnation.
- Lightning OPD draws new responses of the fixed policy instead of reusing a fixed set of them.
- ALP perturbs the inputs of the GRU and of the output layer; Adam tunes log σ with the rate `lr`.
- In π-Distill and OPSD the policy learns privileged context in `sft_updates`, from expert traces.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl.algorithm import Algorithm
from jaxrl.distributions import Categorical
from jaxrl.errors import UserError, at_least, nearest
from jaxrl.evaluate import evaluator
from jaxrl.groups import Steering, delayed, groups
from jaxrl.minibatch import sgd_epochs
from jaxrl.objectives import spo_priority, token_mean
from jaxrl.objectives.table import OBJECTIVES
from jaxrl.policies import agent_of
from jaxrl.program import Program, Stage
from jaxrl.ranges import bounded
from jaxrl.responses import Responses, Tracked, fresh_tracker, responses, tokens_of
from jaxrl.sequence import SequenceParams, sequence_model
from jaxrl.types import Agent, Array, Discrete, Env, EnvSpec, Policy, PyTree, Source


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    objective: str = "ppo"
    """name of the objective, a key of jaxrl.objectives.table.OBJECTIVES"""
    updates: int = 600
    """updates of a run, each on prompts * group responses"""
    prompts: int = 16
    """prompts per update"""
    group: int = 8
    """responses per prompt"""
    pool: int = 0
    """number of training prompts, drawn once per member; 0 draws new ones in every update"""
    staleness: int = 0
    """age in updates of the policy whose responses are learned from"""
    older: int = 2
    """further age in updates of the older responses of remix, at most"""
    rollout_mantissa: int = 23
    """bits of mantissa that parameters keep for responses, as in low-precision inference"""
    epochs: int = 1
    """passes over the responses of an update"""
    minibatches: int = 1
    """minibatches of whole groups per pass; divides prompts"""
    sft_updates: int = 0
    """updates on expert traces before the others"""
    embedding: int = 32
    """units of the layer before the GRU"""
    memory: int = 32
    """units of the GRU"""


@struct.dataclass
class Hypers:
    """Traced hyperparameters; an objective reads those listed in its entry of `OBJECTIVES`."""

    lr: Any = bounded(3e-3, least=0)
    """learning rate of Adam"""
    max_grad_norm: Any = bounded(1.0, above=0, finite=False)
    """global norm to which gradients are clipped"""
    entropy_weight: Any = bounded(0.0)
    """weight of an entropy bonus, for all objectives"""
    clip_low: Any = bounded(0.2, least=0)
    """lower clipping range of the probability ratio"""
    clip_high: Any = bounded(0.28, least=0, finite=False)
    """upper clipping range of the probability ratio"""
    dual_clip: Any = bounded(10.0, least=1, finite=False)
    """largest ratio of tokens with negative advantages"""
    balance: Any = bounded(0.5, least=0, most=1)
    """share of positive advantages that bapo aims at"""
    replay_share: Any = bounded(0.4, least=0, most=1)
    """fraction of prompts whose responses are older, in remix"""
    sigma: Any = bounded(0.01, above=0)
    """initial scale of the noise in hidden states, in alp"""
    tau: Any = bounded(0.1, above=0)
    """weight of the divergence from the policy that responded, in opmd"""
    baseline_shift: Any = bounded(0.2)
    """amount by which asymre lowers its baseline"""
    temperature: Any = bounded(1.0, above=0)
    """temperature of the weights of red_weight and scope_opd"""
    mu: Any = bounded(0.5, least=0, most=1)
    """largest weight of expert traces in chord, after its warm-up"""
    mu_end: Any = bounded(0.0, least=0, most=1)
    """last weight of expert traces in chord"""
    mu_warmup: Any = bounded(0.1, least=0, most=1)
    """fraction of training over which chord's weight rises"""
    wrong_reward: Any = bounded(-0.1)
    """reward of tokens that differ from the expert's, in otr"""
    prefix_share: Any = bounded(0.5, least=0, most=1)
    """fraction of prompts with an expert's prefix, in prefixrl"""
    teacher_noise: Any = bounded(0.05, above=0, most=1)
    """probability with which the teacher of opd, lightning_opd and scope_opd acts at random"""
    jsd_beta: Any = bounded(0.5, least=0, most=1)
    """β of opsd's divergence: 0 is KL(teacher || student), 1 the reverse"""
    alpha: Any = bounded(0.5, least=0, most=1)
    """weight of the teacher's objective in pi_distill"""
    beta: Any = bounded(0.1, least=0)
    """weight of the divergences in pi_distill"""


GENERAL = ("lr", "max_grad_norm", "entropy_weight")  # read by every objective


class State(NamedTuple):
    params: SequenceParams
    opt: optax.OptState  # of the flat parameters
    reference: SequenceParams  # the initial policy
    tracked: Tracked | None  # of spo


# --- the policy ----------------------------------------------------------------------------------


def acting(cfg: Config, spec: EnvSpec, who: Literal["itself", "hinted", "reference"]) -> Policy:
    """The policy; "hinted" observes [obs, privileged context], "reference" is the initial one."""
    model = sequence_model(cfg.embedding, cfg.memory, spec)
    actions = model.net.actions

    def act(state, hp, obs, start, memory, noise, explore):
        context = None
        if who == "hinted":
            obs, context = obs[..., :-actions], obs[..., -actions:]
        params = state.reference if who == "reference" else state.params
        if explore:
            params = rounded(params, cfg.rollout_mantissa)
        memory, log_probs = model.step(params, memory, obs, start, context)
        dist = Categorical(log_probs)
        action = dist.sample(noise) if explore else dist.mode
        return action, memory, {"log_probs": log_probs}

    noise = lambda key, n: Categorical.noise(key, (n, actions))
    return Policy(act=act, memory=lambda n: jnp.zeros((n, cfg.memory)), noise=noise)


def rounded(params: PyTree, mantissa: int) -> PyTree:
    """Parameters with `mantissa` bits of mantissa; the same ones if that is all 23."""
    if mantissa == 23:
        return params
    return jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, mantissa), params)


# --- the agent -----------------------------------------------------------------------------------


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      UserError: unknown objective, actions that are not discrete, or sizes that do not fit.
    """
    check(cfg, spec)
    objective, policy = OBJECTIVES[cfg.objective], acting(cfg, spec, "itself")
    model = sequence_model(cfg.embedding, cfg.memory, spec)

    def init(key, hp, inputs):
        params = model.init(key, hp.sigma if objective.perturbed else None)
        if "sft" in inputs:  # the policy after the updates on expert traces
            params = params._replace(net=inputs["sft"].params.net)
        opt = optimiser(hp).init(ravel_pytree(params)[0])
        return State(params, opt, params, fresh_tracker(spec, cfg.pool, objective))

    def update(state, hp, batch, key, step):
        key_data, key_epochs = jax.random.split(key)
        data, tracked = responses(cfg, objective, model, state, hp, batch.transitions, key_data)

        def loss(params: SequenceParams, part: Responses) -> tuple[Array, dict[str, Array]]:
            tokens = tokens_of(cfg, objective, model, params, part, step / cfg.updates)
            mean = lambda x: token_mean(x, tokens.mask)
            entropy = mean(-jnp.sum(jnp.exp(tokens.log_probs) * tokens.log_probs, -1))
            total = objective.loss(tokens, hp) - hp.entropy_weight * entropy
            gap = jnp.where(tokens.mask, jnp.abs(tokens.log_prob - tokens.behaviour), 0.0)
            own = part.advantage[:, : cfg.group]
            return total, {
                "entropy": entropy,
                "drift": mean(gap),
                "drift_max": jnp.max(gap),
                "informative": jnp.mean(own != 0, dtype=jnp.float32),  # advantages
            }

        (params, opt), metrics = sgd_epochs(
            loss,
            (state.params, state.opt),
            optimiser(hp),
            key_epochs,
            data,
            cfg.epochs,
            cfg.minibatches,
        )
        return State(params, opt, state.reference, tracked), metrics

    return agent_of(policy, init, update, Hypers())


def optimiser(hp: Any) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then Adam."""
    return optax.chain(optax.clip_by_global_norm(hp.max_grad_norm), optax.adam(hp.lr))


# --- the program ---------------------------------------------------------------------------------


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """Program of a run with `evals` evaluations of `episodes` greedy responses.

    Raises:
      UserError: `make` refuses, or the environment has no time limit or no expert and needs one.
    """
    agent, objective = make(cfg, env.spec), OBJECTIVES[cfg.objective]
    main = Stage(
        name="agent",
        learner=agent,
        source=source(cfg, env),
        updates=cfg.updates,
        evals=evals,
        evaluate=evaluator(env, agent, episodes),
    )
    if not cfg.sft_updates:
        return Program((main,))
    name = "sft_hinted" if objective.guide in ("reference", "itself") else "sft"
    own = dataclasses.replace(
        cfg,
        objective=name,
        updates=cfg.sft_updates,
        group=1,
        staleness=0,
        epochs=1,
        minibatches=1,
    )
    first = Stage(
        name="sft", learner=make(own, env.spec), source=source(own, env), updates=own.updates
    )
    return Program((first, main))


def source(cfg: Config, env: Env) -> Source:
    """The responses that the objective learns from."""
    objective = OBJECTIVES[cfg.objective]
    steering = Steering(
        traces=int(objective.traces),
        corrected=cfg.group // 2 if objective.rows == "corrected" else 0,
        prefix_share=(lambda hp: hp.prefix_share) if objective.rows == "prefix" else None,
    )
    priority = lambda state: spo_priority(state.tracked.tracker.value)
    found = groups(
        env,
        acting(cfg, env.spec, objective.rollouts),
        cfg.prompts,
        cfg.group,
        steering=steering,
        expert=objective.guide != "",
        hints=objective.rollouts == "hinted",
        pool=cfg.pool,
        priority=priority if objective.tracked else None,
    )
    older = cfg.older if objective.replayed else 0
    return delayed(found, cfg.prompts, cfg.staleness, older=older, share=lambda hp: hp.replay_share)


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError for an unknown objective, an action space or sizes that do not fit."""
    name = cfg.objective
    if name not in OBJECTIVES:
        hint = nearest(name, OBJECTIVES) or f"; there are {', '.join(OBJECTIVES)}"
        raise UserError(f"unknown objective {name!r}{hint}")
    if not isinstance(spec.action, Discrete):
        raise UserError(f"token_pg needs discrete actions; {spec.name} has {spec.action}")
    at_least(1, updates=cfg.updates, prompts=cfg.prompts, group=cfg.group, epochs=cfg.epochs)
    at_least(1, minibatches=cfg.minibatches, embedding=cfg.embedding, memory=cfg.memory)
    at_least(0, staleness=cfg.staleness, sft_updates=cfg.sft_updates, pool=cfg.pool)
    if not 0 <= cfg.rollout_mantissa <= 23:
        raise UserError(f"rollout_mantissa={cfg.rollout_mantissa} must be from 0 to 23")
    if cfg.prompts % cfg.minibatches:
        raise UserError(f"minibatches={cfg.minibatches} does not divide prompts={cfg.prompts}")
    objective = OBJECTIVES[name]
    if objective.grouped and cfg.group < 2:
        raise UserError(f"objective={name} compares responses to a prompt: group must be 2 or more")
    if objective.tracked and cfg.pool < cfg.prompts:
        raise UserError(f"objective={name} needs a pool of at least prompts={cfg.prompts} prompts")
    if objective.replayed:
        at_least(1, older=cfg.older)


def check_request(cfg: Config, hp: Any, inputs: PyTree) -> None:
    """Raises UserError if a hyperparameter is set that the objective does not read."""
    used = (*GENERAL, *OBJECTIVES[cfg.objective].uses)
    for name, value in dataclasses.asdict(Hypers()).items():
        changed = np.any(np.float32(getattr(hp, name)) != np.float32(value))
        if changed and name not in used:
            raise UserError(
                f"objective={cfg.objective} does not read {name}, but {', '.join(used)}"
            )


ALGORITHM = Algorithm(Config, Hypers, make, program, check_request=check_request)
