"""Uni-O4: one on-policy objective for offline training and online fine-tuning.

Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy
Optimization. Kun Lei, Zhengmao He, Chenhao Lu, Kaizhe Hu, Yang Gao, Huazhe Xu. ICLR 2024,
arXiv:2311.03351.

Stages of one program:

1. critics    Q and V of the data, as in IQL (`jaxrl.agents.iql`).
2. clones     an ensemble of policies by behaviour cloning, held apart by
              -α KL(π_i || π_j), j being the policy of the highest likelihood of the row's action.
3. dynamics   an ensemble of networks that model the environment (`jaxrl.dynamics`).
4. offline    each clone improves by PPO, from states of the data with actions of its behaviour
              policy, which begins as the clone, and advantages min Q - V. Every `gate_every` steps
              the policy is valued by AM-Q, the mean of Q along rollouts of its mean action in the
              model; if the value has increased, the policy becomes the behaviour policy.
5. online     PPO in the environment (`jaxrl.agents.ppo`) from the behaviour policy of the highest
              AM-Q, with V of stage 1 as its value network; if `finetune_steps` is not 0.

Deviations from the authors' code:
- The diversity term is the paper's. In the code's default the maximum over j is detached and
  multiplied by no parameter of π_i, so that its gradient only scales that of cloning.
- Networks are those of PPO: a normal distribution with a state-independent std, clipped to the box.
- V has the architecture of PPO's value network, so that the last stage can go on with it.
- Steps of the model are drawn from elites, and rollouts end at predicted terminations.
- Imagined values use the minimum of twin Q.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl import dynamics, nets
from jaxrl.agents import ppo
from jaxrl.algorithm import Algorithm
from jaxrl.cloning import diverse_clones
from jaxrl.dynamics import Ensemble
from jaxrl.errors import UserError, at_least
from jaxrl.evaluate import evaluator
from jaxrl.heads import box_head
from jaxrl.losses import critic_loss, expectile_loss, scaled_rewards, td_target
from jaxrl.objectives.advantages import batch_normalised
from jaxrl.ope.imagined import imagined_q
from jaxrl.optim import Trainable, linear, minimise, polyak
from jaxrl.program import Program, Stage
from jaxrl.ranges import bounded
from jaxrl.rollout import rollout
from jaxrl.sources import expand, uniform
from jaxrl.spaces import box_scale
from jaxrl.types import Agent, Array, Env, EnvSpec, Learner, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Static configuration: a new value compiles a new program."""

    updates: int = 10_000
    """steps of offline PPO"""
    critic_updates: int = 1_000_000
    """gradient steps of the critics"""
    clone_updates: int = 400_000
    """gradient steps of behaviour cloning"""
    batch_size: int = 256
    """transitions per gradient step, of all offline stages"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the Q-functions' hidden layers"""
    actor: tuple[int, ...] = (256, 256)
    """widths of the policies' hidden layers"""
    critic: tuple[int, ...] = (256, 256)
    """widths of the value network's hidden layers"""
    policies: int = 4
    """policies in the ensemble"""
    gate: Literal["ope", "none"] = "ope"
    """when the behaviour policy is replaced: if AM-Q has increased, or at every check"""
    gate_every: int = 100
    """steps of offline PPO between checks"""
    gate_starts: int = 128
    """states of the data from which rollouts in the model start"""
    gate_steps: int = 1000
    """steps of a rollout in the model"""
    models: int = 7
    """networks in the model's ensemble"""
    elites: int = 5
    """networks with the lowest validation errors, used for imagined steps"""
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """widths of the model's hidden layers"""
    model_epochs: int = bounded(2_000, least=0)
    """maximum passes over the dataset in training the model"""
    share_dynamics: bool = True
    """train one model for all members; otherwise one per member"""
    finetune_steps: int = 0
    """environment steps of online PPO after offline training; 0 turns it off"""
    num_envs: int = 1
    """parallel environments N of fine-tuning"""
    num_steps: int = 2048
    """steps T per environment and rollout of fine-tuning"""
    minibatches: int = 32
    """minibatches per epoch of fine-tuning; divides N * T"""
    epochs: int = 10
    """passes over each rollout of fine-tuning"""
    clip_value: bool = False
    """clip value predictions to value_clip around the rollout's in fine-tuning"""

    def ppo(self) -> ppo.Config:
        """The configuration of online PPO, and of all networks but the Q-functions."""
        return ppo.Config(
            total_steps=max(self.finetune_steps, self.num_envs * self.num_steps),
            num_envs=self.num_envs,
            num_steps=self.num_steps,
            minibatches=self.minibatches,
            epochs=self.epochs,
            actor=self.actor,
            critic=self.critic,
            clip_value=self.clip_value,
        )

    def ensemble(self) -> Ensemble:
        """The configuration of the model."""
        return Ensemble(members=self.models, elites=self.elites, hidden=self.model_hidden)


@struct.dataclass
class Hypers(ppo.Hypers):
    """Traced hyperparameters: members of one run may differ in each. Those of `ppo.Hypers`, but for
    gamma, are of fine-tuning."""

    tau: Any = bounded(0.005, least=0, most=1)
    """Polyak step size of the target critics"""
    expectile: Any = bounded(0.7, above=0, below=1)
    """expectile τ of the value loss"""
    critic_lr: Any = bounded(1e-4, least=0)
    """learning rate of the critics' Adam"""
    clone_lr: Any = bounded(1e-4, least=0)
    """learning rate of behaviour cloning"""
    diversity: Any = bounded(0.1, least=0)
    """weight α of the KL divergence that holds clones apart"""
    model_lr: Any = bounded(1e-3, least=0)
    """learning rate of the model"""
    offline_lr: Any = bounded(1e-4, least=0)
    """learning rate of offline PPO"""
    offline_clip: Any = bounded(0.25, above=0, finite=False)
    """initial clipping range of offline PPO's probability ratio, which decays linearly to 0"""
    reward_scale: Any = bounded(1.0)
    """factor on rewards of the data"""
    reward_shift: Any = bounded(0.0)
    """constant added to rewards of the data after scaling"""


def networks(cfg: Config, spec: EnvSpec) -> ppo.Networks:
    """PPO's networks; small ones with their parameters as one vector."""
    model = ppo.networks(cfg.ppo(), spec)
    return ppo.Networks(nets.packed(model.actor), nets.packed(model.critic))


# --- critics --------------------------------------------------------------------------


class Critics(NamedTuple):
    value: PyTree  # PPO's value network
    critic: PyTree  # twin critics, leaves [2, ...]
    target: PyTree  # target critics
    opt: tuple[optax.OptState, optax.OptState]


def critics(cfg: Config, spec: EnvSpec) -> Learner:
    """IQL's critics: V is an expectile of the target critics, Q has the target r + γ V(s')."""
    head, model = box_head(cfg.hidden, spec), networks(cfg, spec)

    def init(key, hp, inputs):
        key_value, key_critic = jax.random.split(key)
        value = model.critic.init(key_value)
        critic = nets.init_stack(head.critic.init, key_critic)
        adam = optax.adam(hp.critic_lr)
        return Critics(value, critic, critic, (adam.init(value), adam.init(critic)))

    def update(state, hp, batch, key, step):
        t = scaled_rewards(batch.transitions, hp)
        q_target = jnp.min(head.twins(state.target, t.obs, t.action), 0)

        def of_value(value: PyTree) -> tuple[Array, None]:
            return expectile_loss(q_target - model.value(value, t.obs), hp.expectile), None

        at = Trainable(state.value, state.opt[0])
        (value, opt_value), loss_v, _ = minimise(of_value, at, hp.critic_lr)
        y = td_target(t, hp.gamma, model.value(value, t.next_obs))

        def of_critic(critic: PyTree) -> tuple[Array, Array]:
            q = head.twins(critic, t.obs, t.action)
            return critic_loss(q, y), q

        at = Trainable(state.critic, state.opt[1])
        (critic, opt_critic), loss_q, q = minimise(of_critic, at, hp.critic_lr)
        target = polyak(state.target, critic, hp.tau)
        seen = {"value_loss": loss_v, "critic_loss": loss_q, "q": jnp.mean(q)}
        seen["td_error"] = jnp.mean(jnp.abs(q - y[None]))
        return Critics(value, critic, target, (opt_value, opt_critic)), seen

    return Learner(init=init, update=update)


# --- offline PPO ---------------------------------------------------------------------------------


class Offline(NamedTuple):
    actor: PyTree  # [P, ...] policies in training
    behaviour: PyTree  # [P, ...] policies that passed the gate
    score: Array  # [P] AM-Q of the behaviour policies; -inf before the first check
    critics: tuple[PyTree, PyTree]  # value network and twin critics, constant
    model: Any  # what imagination needs of the model's ensemble, constant
    starts: Array  # [gate_starts, *obs]
    opt: optax.OptState


def make(cfg: Config, spec: EnvSpec) -> Agent:
    """The agent of stage 4, which acts by the behaviour policy of the highest AM-Q.

    Raises:
      UserError: the action space is not a bounded box of one axis, or sizes do not fit together.
    """
    check(cfg, spec)
    head, model = box_head(cfg.hidden, spec), networks(cfg, spec)
    space, own = box_scale("uni_o4", spec), ppo.acting(model, spec)
    world = dynamics.model(cfg.ensemble(), spec, "model")
    boxed = lambda sample: space.scaled(jnp.clip(sample, -1.0, 1.0))

    def init(key, hp, inputs):
        actor, learned = inputs["clones"].actor, inputs["critics"]
        kept: dynamics.State = inputs["dynamics"]
        # Only what `dynamics.model` reads: other parts have the size of the data.
        light = kept._replace(nets=(), opt=(), order=())
        obs = expand(inputs["data"]).obs
        rows = jax.random.randint(key, (cfg.gate_starts,), 0, obs.shape[0])
        score = jnp.full(cfg.policies, -jnp.inf, jnp.float32)
        opt = jax.vmap(optax.adam(hp.offline_lr).init)(actor)
        pair = (learned.value, learned.critic)
        return Offline(actor, actor, score, pair, light, obs[rows], opt)

    def update(state, hp, batch, key, step):
        value, critic = state.critics
        obs = batch.transitions.obs
        v = model.value(value, obs)
        clip = hp.offline_clip * linear(step / cfg.updates, 1.0, jnp.float32(0))

        def improve(at: Trainable, behaviour: PyTree, key: Array) -> tuple[Trainable, Array]:
            """A step of PPO of one policy."""
            old = model.actor.apply(behaviour, obs)
            sample = old.sample(old.noise(key, old.mean.shape))
            q = jnp.min(head.twins(critic, obs, boxed(sample)), 0)
            advantage = batch_normalised(q - v)

            def loss(actor: PyTree) -> tuple[Array, None]:
                ratio = jnp.exp(model.actor.apply(actor, obs).log_prob(sample) - log_prob)
                return -jnp.mean(ppo.clipped_gain(ratio, advantage, clip)), None

            log_prob = old.log_prob(sample)
            at, found, _ = minimise(loss, at, hp.offline_lr, hp.max_grad_norm)
            return at, found

        keys = jax.random.split(key, cfg.policies)
        at = Trainable(state.actor, state.opt)
        (actor, opt), losses = jax.vmap(improve)(at, state.behaviour, keys)

        def check_values() -> tuple[PyTree, Array]:
            def value_of(actor: PyTree) -> Array:
                return imagined_q(
                    world,
                    {"model": state.model},
                    lambda obs: boxed(model.actor.apply(actor, obs).mode),
                    lambda obs, action: jnp.min(head.twins(critic, obs, action), 0),
                    state.starts,
                    jax.random.key(0),  # the same noise at all checks, so that values compare
                    cfg.gate_steps,
                )

            found = jax.lax.map(value_of, actor)
            better = (found > state.score) | (cfg.gate == "none")
            keep = lambda new, old: jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)
            return jax.tree.map(keep, (actor, found), (state.behaviour, state.score))

        wait = lambda: (state.behaviour, state.score)
        behaviour, score = jax.lax.cond(step % cfg.gate_every == 0, check_values, wait)
        state = state._replace(actor=actor, behaviour=behaviour, score=score, opt=opt)
        seen = {"policy_loss": jnp.mean(losses), "am_q": jnp.mean(score)}
        return state, seen | {"am_q_best": jnp.max(score)}

    def act(state, hp, obs, start, memory, noise, explore):
        params = {"actor": best_policy(state), "critic": state.critics[0]}
        action, memory, _ = own.act(ppo.State(params, ()), hp, obs, start, memory, noise, explore)
        return action, memory, {}

    return Agent(init=init, update=update, act=act, noise=own.noise, hypers=Hypers())


def best_policy(state: Offline) -> PyTree:
    """Parameters of the behaviour policy of the highest AM-Q."""
    return nets.pick(state.behaviour, jnp.argmax(state.score))


# --- online --------------------------------------------------------------------------------------


def online_agent(cfg: Config, spec: EnvSpec) -> Agent:
    """PPO from the best behaviour policy and the value network of the critics."""
    agent, model = ppo.make(cfg.ppo(), spec), ppo.networks(cfg.ppo(), spec)

    def init(key, hp, inputs):
        found: Offline = inputs["offline"]
        actor = nets.unpacked(model.actor, best_policy(found))
        params = {"actor": actor, "critic": nets.unpacked(model.critic, found.critics[0])}
        adam = ppo.optimiser(hp.lr, hp.max_grad_norm)
        return ppo.State(params, adam.init(ravel_pytree(params)[0]))

    return dataclasses.replace(agent, init=init, views=False, hypers=Hypers())


def check(cfg: Config, spec: EnvSpec) -> None:
    """Raises UserError if sizes are too small or do not fit together."""
    at_least(
        1,
        updates=cfg.updates,
        critic_updates=cfg.critic_updates,
        clone_updates=cfg.clone_updates,
        batch_size=cfg.batch_size,
        policies=cfg.policies,
        gate_every=cfg.gate_every,
        gate_starts=cfg.gate_starts,
        gate_steps=cfg.gate_steps,
        hidden=cfg.hidden,
        actor=cfg.actor,
        critic=cfg.critic,
    )
    window = cfg.num_envs * cfg.num_steps
    if cfg.finetune_steps and cfg.finetune_steps < window:
        raise UserError(
            f"finetune_steps={cfg.finetune_steps} is less than one rollout of {window} steps"
        )
    if cfg.finetune_steps:
        ppo.check(cfg.ppo(), spec)


def program(cfg: Config, env: Env, *, evals: int = 20, episodes: int = 128) -> Program:
    """The stages; those of the policies have `evals` evaluations of `episodes` episodes."""
    spec, agent = env.spec, make(cfg, env.spec)
    policy = networks(cfg, spec).actor
    cloned = diverse_clones(policy, box_scale("uni_o4", spec), cfg.policies)

    def learning(name: str, learner: Learner, updates: int) -> Stage:
        source = uniform(cfg.batch_size)
        return Stage(name=name, learner=learner, source=source, updates=updates, evals=evals)

    modelling = dynamics.stage(
        cfg.ensemble(),
        spec,
        epochs=cfg.model_epochs,
        evals=evals,
        shared=cfg.share_dynamics,
        unshared="pass --agent.no-share-dynamics",
    )
    offline = learning("offline", agent, cfg.updates)
    stages = (
        learning("critics", critics(cfg, spec), cfg.critic_updates),
        learning("clones", cloned, cfg.clone_updates),
        modelling,
        dataclasses.replace(offline, evaluate=evaluator(env, agent, episodes)),
    )
    if not cfg.finetune_steps:
        return Program(stages)
    tuned = online_agent(cfg, spec)
    online = Stage(
        name="online",
        learner=tuned,
        source=rollout(env, tuned, cfg.num_envs, cfg.num_steps),
        updates=cfg.ppo().updates,
        evals=evals,
        evaluate=evaluator(env, tuned, episodes),
    )
    return Program((*stages, online))


ALGORITHM = Algorithm(Config, Hypers, make, program, offline=True, extras=("next_known",))
