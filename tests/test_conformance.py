"""What every agent has to do, whatever it learns. A new agent is one line in `AGENTS`.

Compiling is nearly all of the time here, so checks that share programs share a test, and the
compiler does not try hard; `test_engine.py` compares bits at full optimisation.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from logged import rows as logged_rows

from jaxrl import population
from jaxrl.agents import (
    ailboost,
    awac,
    bc,
    calql,
    cdsa,
    cql,
    dac,
    dagger,
    dql,
    dqn,
    edac,
    famo2o,
    fql,
    hnpg,
    iql,
    mdpo,
    mdpo_offpolicy,
    ofql,
    pgd_iql,
    ppo,
    pqn,
    pqn_continuous,
    pqn_rnn,
    pqn_vdn,
    pqn_vdn_rnn,
    prdc,
    props,
    ravl,
    rebrac,
    resfit,
    rlif,
    rlpd,
    sac,
    td3,
    td3bc,
    token_pg,
    trpo,
    uni_o4,
)
from jaxrl.drive import Built, Hooks, drive
from jaxrl.envs import tokens
from jaxrl.envs.wrappers import absorbing
from jaxrl.experiments.restore import abstract_rows
from jaxrl.objectives.table import OBJECTIVES
from jaxrl.policies import Switch, Trained, one_of
from jaxrl.program import Program, Result, Stage, train
from jaxrl.snapshot import abstract_learner, abstract_state
from jaxrl.sources import uniform
from jaxrl.types import Agent, Discrete, Env, EnvSpec, HyperParams, Mean, PyTree

WIDTH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An agent in a program of a few updates, sized so that every hyperparameter matters.

    The agent is trained by the last stage; `inputs` are what `program.train` takes.
    """

    program: Program
    agent: Agent
    spec: EnvSpec
    hp: HyperParams
    plain: PyTree  # the agent's Hypers as Python numbers
    unread: frozenset[str] = frozenset()  # hyperparameters of other settings of the agent
    inputs: dict[str, PyTree] = dataclasses.field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        return self.program.stages[-1]


def _case(module: Any, cfg: Any, env: Env, **hypers: float) -> Case:
    """A case of an agent with `Config`, `Hypers`, `make` and `program`."""
    plain = module.Hypers(**hypers)
    offline = module.ALGORITHM.offline
    return Case(
        program=module.program(cfg, env, evals=2, episodes=3),
        agent=module.make(cfg, env.spec),
        spec=env.spec,
        hp=HyperParams(jax.tree.map(jnp.float32, plain), env.params),
        plain=plain,
        inputs={"data": jax.tree.map(jnp.asarray, logged_rows(env.spec, 12))} if offline else {},
    )


# Windows of four steps in episodes of up to five, five updates of two epochs of two minibatches.
SIZES: dict[str, Any] = {
    "total_steps": 40,
    "num_envs": 2,
    "num_steps": 4,
    "minibatches": 2,
    "epochs": 2,
}


def _pqn() -> Case:
    cfg = pqn.Config(**SIZES, hidden=(4,))
    return _case(pqn, cfg, tiny.walk(), lr=0.01, lr_end=0.1, max_grad_norm=0.1, eps_decay=0.7)


def _pqn_rnn() -> Case:
    cfg = pqn_rnn.Config(**SIZES, hidden=(4,), memory=3, memory_window=1, norm_input="batch_renorm")
    return _case(pqn_rnn, cfg, tiny.walk(), lr=0.01, lr_end=0.1, max_grad_norm=0.1, eps_decay=0.7)


def _pqn_vdn() -> Case:
    cfg = pqn_vdn.Config(**SIZES, hidden=(4,))
    return _case(pqn_vdn, cfg, tiny.pair(), lr=0.01, lr_end=0.1, max_grad_norm=0.1, eps_decay=0.7)


def _pqn_vdn_rnn() -> Case:
    cfg = pqn_vdn_rnn.Config(**SIZES, hidden=(4,), memory=3, memory_window=1)
    hypers = {"lr": 0.01, "lr_end": 0.1, "max_grad_norm": 0.1, "eps_decay": 0.7}
    return _case(pqn_vdn_rnn, cfg, tiny.pair(), **hypers)


def _pqn_continuous() -> Case:
    cfg = pqn_continuous.Config(**SIZES, actor=(4,), critic=(4,), critics=2, normalise_reward=True)
    return _case(pqn_continuous, cfg, tiny.glide(), lr=0.05, max_grad_norm=0.1, threshold=0.002)


def _ppo() -> Case:
    cfg = ppo.Config(**SIZES, actor=(4,), critic=(4,), clip_value=True, normalise_reward=True)
    hypers = {"lr": 0.05, "clip": 0.05, "value_clip": 0.02, "max_grad_norm": 0.1}
    return _case(ppo, cfg, tiny.walk(), **hypers)


def _trpo() -> Case:
    cfg = trpo.Config(**SIZES, actor=(4,), critic=(4,), clip_value=True, normalise_obs=True)
    return _case(trpo, cfg, tiny.glide(), value_lr=0.05, value_clip=0.02, max_grad_norm=0.1)


def _mdpo() -> Case:
    cfg = mdpo.Config(**SIZES, actor=(4,), critic=(4,), clip_value=True, normalise_obs=True)
    hypers = {"lr": 0.05, "value_lr": 0.05, "value_clip": 0.02, "max_grad_norm": 0.1}
    return _case(mdpo, cfg, tiny.glide(), **hypers)


def _props() -> Case:
    """Ten windows of two steps, five updates of the target policy."""
    cfg = props.Config(
        **SIZES,
        actor=(4,),
        critic=(4,),
        clip_value=True,
        batches=2,
        sampling_every=2,
        sampling_epochs=3,
        sampling_minibatches=2,
        error_steps=2,
    )
    hypers = {"lr": 0.05, "clip": 0.05, "value_clip": 0.02, "max_grad_norm": 0.1}
    hypers |= {"target_kl": 1e-3, "sampling_lr": 0.1, "sampling_clip": 0.05, "sampling_kl": 0.01}
    return _case(props, cfg, tiny.walk(), **hypers)


# Windows of two steps, eight updates of two gradient steps on four rows; the ring wraps around.
REPLAYED: dict[str, Any] = {
    "total_steps": 32,
    "num_envs": 2,
    "num_steps": 2,
    "gradient_steps": 2,
    "batch_size": 4,
    "capacity": 20,
    "warmup": 6,
    "n_step": 2,
    "hidden": (4,),
}


def _dqn() -> Case:
    cfg = dqn.Config(**REPLAYED, target_every=2)
    hypers = {"lr": 0.01, "tau": 0.5, "huber": 0.1, "max_grad_norm": 0.05, "eps_decay": 0.7}
    return _case(dqn, cfg, tiny.walk(), **hypers)


def _sac() -> Case:
    return _case(sac, sac.Config(**REPLAYED), tiny.glide(), lr=0.01, tau=0.2)


def _mdpo_offpolicy() -> Case:
    cfg = mdpo_offpolicy.Config(**REPLAYED, refresh=8)
    return _case(mdpo_offpolicy, cfg, tiny.glide(), lr=0.01, tau=0.2, entropic_index=1.5)


def _td3() -> Case:
    cfg = td3.Config(**{k: v for k, v in REPLAYED.items() if k != "n_step"})
    hypers = {"lr": 0.01, "tau": 0.2, "policy_noise": 0.5, "exploration": 0.5}
    return _case(td3, cfg, tiny.glide(), **hypers)


def _rlpd() -> Case:
    cfg = rlpd.Config(**REPLAYED, critics=3, policy_every=2)
    return _case(rlpd, cfg, tiny.glide(), lr=0.01, tau=0.2)


# Eight updates on four rows of twelve.
LOGGED: dict[str, Any] = {"updates": 8, "batch_size": 4, "hidden": (4,)}


def _bc() -> Case:
    return _case(bc, bc.Config(**LOGGED), tiny.glide(), lr=0.01)


TUNED: dict[str, Any] = {"finetune_steps": 8, "finetune_gradient_steps": 2, "num_envs": 2}


def _last(case: Case) -> Case:
    """`case` with the agent of its last stage, whose updates may differ from those of `make`."""
    agent = case.stage.learner
    assert isinstance(agent, Agent)
    return dataclasses.replace(case, agent=agent)


def _td3bc() -> Case:
    hypers = {"lr": 0.01, "tau": 0.2, "policy_noise": 0.5}
    cfg = td3bc.Config(**LOGGED, **TUNED, capacity=4)
    return _last(_case(td3bc, cfg, tiny.glide(), **hypers))


def _rebrac() -> Case:
    hypers = {"lr": 0.01, "tau": 0.2, "policy_noise": 0.5, "critic_penalty": 0.5}
    return _case(rebrac, rebrac.Config(**LOGGED), tiny.glide(), **hypers)


def _prdc() -> Case:
    hypers = {"lr": 0.01, "tau": 0.2, "policy_noise": 0.5, "beta": 1.0}
    return _case(prdc, prdc.Config(**LOGGED, chunk=5), tiny.glide(), **hypers)


def _cql() -> Case:
    cfg = cql.Config(**LOGGED, samples=2, correction="vib", normalise_obs=True)
    return _case(cql, cfg, tiny.glide(), lr=0.01, actor_lr=0.01, tau=0.2)


def _calql() -> Case:
    cfg = calql.Config(**LOGGED, **TUNED, samples=2, capacity=4)
    case = _last(_case(calql, cfg, tiny.glide(), lr=0.01, actor_lr=0.01, tau=0.2))
    return dataclasses.replace(case, unread=frozenset({"strength"}))  # of CQL's corrections


def _awac() -> Case:
    cfg = awac.Config(**LOGGED, finetune_steps=8, num_envs=2, capacity=4)
    return _case(awac, cfg, tiny.walk(), lr=0.01, tau=0.2, max_weight=1.5)


def _iql() -> Case:
    cfg = iql.Config(**LOGGED, finetune_steps=8, num_envs=2, capacity=4)
    return _case(iql, cfg, tiny.walk(), lr=0.01, tau=0.2, max_weight=1.0)


def _famo2o() -> Case:
    cfg = famo2o.Config(**LOGGED, finetune_steps=8, num_envs=2, capacity=4)
    return _case(famo2o, cfg, tiny.glide(), lr=0.01, tau=0.2, max_weight=1.0)


GENERATED: dict[str, Any] = {
    "backup_actions": 2,
    "ema_every": 2,
    "ema_start": 2,
    "candidates": 3,
    "embedding": 4,
}
# Large steps, clipped, that end small; evaluations tell candidates apart.
STEEP = {"lr": 0.03, "actor_lr": 0.03, "lr_end": 0.2, "max_grad_norm": 0.2, "tau": 0.2}


def _dql() -> Case:
    cfg = dql.Config(**LOGGED, **GENERATED, steps=2)
    return _case(dql, cfg, tiny.glide(), **STEEP, policy_tau=0.5, temperature=0.5)


def _fql() -> Case:
    cfg = fql.Config(**LOGGED, **TUNED, flow_steps=2, capacity=4, normalise_obs=True)
    return _last(_case(fql, cfg, tiny.glide(), lr=0.01, tau=0.2))


def _ofql() -> Case:
    cfg = ofql.Config(**LOGGED, **GENERATED, eval_steps=2, diagnose_every=3)
    hypers = {"policy_tau": 0.5, "temperature": 0.5, "corner": 0.4, "selection": 10.0}
    return _case(ofql, cfg, tiny.glide(), **STEEP, **hypers)


def _edac() -> Case:
    return _case(edac, edac.Config(**LOGGED, critics=3), tiny.glide(), lr=0.01, tau=0.2)


def _ravl() -> Case:
    cfg = ravl.Config(
        **LOGGED,
        critics=3,
        share_dynamics=False,
        models=3,
        elites=2,
        model_hidden=(4,),
        model_epochs=2,
        rollout_steps=2,
        rollout_starts=3,
        rollout_every=2,
        retain=2,
        real_share=0.5,
    )
    case = _case(ravl, cfg, tiny.glide(), lr=0.01, tau=0.2, penalty=0.1)
    learner = case.program.stages[0].learner
    dynamics = jax.jit(learner.init)(jax.random.key(0), case.hp.agent, case.inputs)
    return dataclasses.replace(case, inputs=case.inputs | {"dynamics": dynamics})


def _pgd_iql() -> Case:
    cfg = pgd_iql.Config(
        **LOGGED,
        real_share=0.25,
        generate_every=4,
        trajectories=6,
        sample_batch=3,
        horizon=2,
        stride=1,
        share_model=False,
        model_updates=4,
        model_batch=4,
        model_features=8,
        model_blocks=1,
        model_ema_every=2,
        sampler_steps=4,
    )
    hypers = {"lr": 0.01, "tau": 0.2, "max_weight": 1.0, "model_lr": 0.01, "model_ema": 0.5}
    hypers |= {"guidance": 1.0}
    return _case(pgd_iql, cfg, tiny.glide(), **hypers)


def _cdsa() -> Case:
    """Either of two base runs; here each member of the case has its own networks."""
    env = tiny.glide()
    data = jax.tree.map(jnp.asarray, logged_rows(env.spec, 12))
    key, policies, trained = jax.random.key(0), [], []
    for module in (bc, td3bc):
        agent = module.make(module.Config(**LOGGED), env.spec)
        hp = jax.tree.map(jnp.float32, module.Hypers())
        policies.append(agent)
        trained.append(Trained(agent.init(key, hp, {"data": data}), hp))
    base, chosen = one_of(policies), Trained(Switch(jnp.int32(1), tuple(trained)), ())
    cfg = cdsa.Config(**LOGGED, ladder=(0.5, 0.1), ladder_steps=1, embedding=4)
    plain = cdsa.Hypers(lr=0.03, tau=0.5, beta=0.5)
    modelling, playing = cdsa.program(cfg, env, evals=2, episodes=3, base=base).stages
    hp = jax.tree.map(jnp.float32, plain)
    begin = modelling.learner.init(key, hp, {"data": data})
    # Corrected policies learn nothing; here they are given updates that change nothing.
    agent = dataclasses.replace(
        cdsa.make(cfg, env.spec, base), update=lambda state, hp, batch, key, step: (state, {})
    )
    playing = dataclasses.replace(
        playing, learner=agent, source=uniform(cfg.batch_size), updates=2, evals=2
    )
    return Case(
        program=Program((dataclasses.replace(modelling, shared=False), playing)),
        agent=agent,
        spec=env.spec,
        hp=HyperParams(hp, env.params),
        plain=plain,
        inputs={"data": data, "base": chosen, "model": begin},
    )


def _cloned(env: Env) -> tuple[Agent, dict[str, PyTree]]:
    """A base policy, and the inputs of agents that build on it."""
    data = jax.tree.map(jnp.asarray, logged_rows(env.spec, 12))
    base, plain = bc.make(bc.Config(**LOGGED), env.spec), jax.tree.map(jnp.float32, bc.Hypers())
    trained = Trained(base.init(jax.random.key(0), plain, {"data": data}), plain)
    return base, {"data": data, "base": trained}


def _resfit() -> Case:
    """A residual on a cloned policy."""
    env = tiny.glide()
    base, inputs = _cloned(env)
    cfg = resfit.Config(**REPLAYED, critics=3, policy_every=2, critic_warmup=2)
    hypers = resfit.Hypers(
        lr=0.01, actor_lr=0.01, tau=0.2, exploration=0.3, policy_noise=0.3, max_grad_norm=0.5
    )
    return Case(
        program=resfit.program(cfg, env, evals=2, episodes=3, base=base),
        agent=resfit.make(cfg, env.spec, base),
        spec=env.spec,
        hp=HyperParams(jax.tree.map(jnp.float32, hypers), env.params),
        plain=hypers,
        inputs=inputs,
    )


def _rlif() -> Case:
    """A cloned policy intervenes by a Q-function that the last stage gets as it begins."""
    cfg = rlif.Config(**REPLAYED, critics=3, reference_updates=8, reference_batch=4)
    return _watched(rlif, cfg, rlif.Hypers(lr=0.01, tau=0.2, slip=0.5))


def _dagger() -> Case:
    """The same for a clone that learns from the steps of the expert."""
    sizes = {name: x for name, x in REPLAYED.items() if name != "n_step"}
    own = {"labels": "interventions", "reference_updates": 8, "reference_batch": 4}
    return _watched(dagger, dagger.Config(**sizes | own), dagger.Hypers(lr=0.01, tau=0.2, slip=0.5))


def _watched(module: Any, cfg: Any, hypers: Any) -> Case:
    """A learner with an expert that intervenes by value."""
    env = tiny.glide()
    base, inputs = _cloned(env)
    hp = HyperParams(jax.tree.map(jnp.float32, hypers), env.params)
    program = module.program(cfg, env, evals=2, episodes=3, base=base)
    begin = program.stages[0].learner.init(jax.random.key(0), hp.agent, inputs)
    return Case(
        program=program,
        agent=module.make(cfg, env.spec, base),
        spec=env.spec,
        hp=hp,
        plain=hypers,
        unread=frozenset({"probability"}),
        inputs=inputs | {"reference": begin},
    )


def _hnpg() -> Case:
    """Episodes of five steps, two from the policy and two of the data's, per iteration."""
    sizes: dict[str, Any] = {"num_envs": 2, "total_steps": 40, "critic_steps": 2}
    cfg = hnpg.Config(horizon=tiny.LIMIT, value_samples=2, actor=(3,), critic=(3,), **sizes)
    return _case(hnpg, cfg, absorbing(tiny.glide()), critic_lr=0.05, max_kl=0.1, lam=0.5)


IMITATED: dict[str, Any] = REPLAYED | {"n_step": 1, "discriminator": (4,)}


def _dac() -> Case:
    cfg = dac.Config(**IMITATED)
    return _case(dac, cfg, tiny.glide(), lr=0.01, tau=0.2, discriminator_lr=0.03)


def _ailboost() -> Case:
    """Eight updates in four rounds."""
    cfg = ailboost.Config(**IMITATED, discriminator_every=2, round_steps=8)
    hypers = {"lr": 0.01, "tau": 0.2, "discriminator_lr": 0.03, "alpha": 0.5}
    return _case(ailboost, cfg, tiny.glide(), **hypers)


def _uni_o4() -> Case:
    """Five stages, of which the last one is online; its agent is PPO."""
    cfg = uni_o4.Config(
        updates=8,
        critic_updates=8,
        clone_updates=8,
        batch_size=4,
        hidden=(4,),
        actor=(4,),
        critic=(4,),
        policies=2,
        gate_every=2,
        gate_starts=3,
        gate_steps=2,
        models=2,
        elites=1,
        model_hidden=(4,),
        model_epochs=2,
        share_dynamics=False,
        finetune_steps=16,
        num_envs=2,
        num_steps=4,
        minibatches=2,
        epochs=2,
        clip_value=True,
    )
    hypers = {"lr": 0.05, "clip": 0.05, "value_clip": 0.02, "max_grad_norm": 0.1, "tau": 0.2}
    hypers |= {"critic_lr": 0.01, "clone_lr": 0.01, "offline_lr": 0.01, "offline_clip": 0.01}
    case = _case(uni_o4, cfg, tiny.glide(), **hypers)
    inputs = case.inputs
    for stage in case.program.stages[:-1]:
        init = jax.jit(stage.learner.init)
        inputs = inputs | {stage.name: init(jax.random.key(0), case.hp.agent, inputs)}
    return _last(dataclasses.replace(case, inputs=inputs))


def _token_pg() -> Case:
    """An objective with rollouts and expert traces; hyperparameters of others change nothing."""
    env = tokens.make("modsum", 2, digits=1, length=2)
    cfg = token_pg.Config(
        objective="chord",
        updates=5,
        prompts=2,
        group=4,
        staleness=1,
        epochs=2,
        minibatches=2,
        embedding=4,
        memory=4,
    )
    hypers = {"lr": 0.1, "clip_low": 0.05, "clip_high": 0.05, "dual_clip": 1.1}
    case = _case(token_pg, cfg, env, **hypers, max_grad_norm=0.1)
    read = {*token_pg.GENERAL, *OBJECTIVES[cfg.objective].uses}
    names = {field.name for field in dataclasses.fields(token_pg.Hypers)}
    return dataclasses.replace(case, unread=frozenset(names - read))


AGENTS: dict[str, Callable[[], Case]] = {
    "pqn": functools.cache(_pqn),
    "pqn_rnn": functools.cache(_pqn_rnn),
    "pqn_vdn": functools.cache(_pqn_vdn),
    "pqn_vdn_rnn": functools.cache(_pqn_vdn_rnn),
    "pqn_continuous": functools.cache(_pqn_continuous),
    "ppo": functools.cache(_ppo),
    "trpo": functools.cache(_trpo),
    "mdpo": functools.cache(_mdpo),
    "props": functools.cache(_props),
    "dqn": functools.cache(_dqn),
    "sac": functools.cache(_sac),
    "mdpo_offpolicy": functools.cache(_mdpo_offpolicy),
    "td3": functools.cache(_td3),
    "rlpd": functools.cache(_rlpd),
    "bc": functools.cache(_bc),
    "td3bc": functools.cache(_td3bc),
    "rebrac": functools.cache(_rebrac),
    "prdc": functools.cache(_prdc),
    "cql": functools.cache(_cql),
    "calql": functools.cache(_calql),
    "awac": functools.cache(_awac),
    "iql": functools.cache(_iql),
    "famo2o": functools.cache(_famo2o),
    "edac": functools.cache(_edac),
    "ravl": functools.cache(_ravl),
    "cdsa": functools.cache(_cdsa),
    "resfit": functools.cache(_resfit),
    "rlif": functools.cache(_rlif),
    "dagger": functools.cache(_dagger),
    "dql": functools.cache(_dql),
    "ofql": functools.cache(_ofql),
    "fql": functools.cache(_fql),
    "pgd_iql": functools.cache(_pgd_iql),
    "hnpg": functools.cache(_hnpg),
    "uni_o4": functools.cache(_uni_o4),
    "dac": functools.cache(_dac),
    "ailboost": functools.cache(_ailboost),
    "token_pg": functools.cache(_token_pg),
}

# By default only what takes no compiling: relatives of other agents, and long compilations.
RELATIVES = (
    *("bc", "cql", "dql", "edac", "mdpo_offpolicy", "prdc", "rebrac", "td3bc"),
    *(
        "pqn_rnn",
        "pqn_vdn",
        "pqn_vdn_rnn",
        "trpo",
        "famo2o",
        "props",
        "hnpg",
        "dac",
        "ailboost",
        "uni_o4",
    ),
    *("awac", "calql", "dagger", "resfit", "rlif", "rlpd", "td3", "mdpo"),
    "token_pg",
    *("pqn_continuous", "pgd_iql", "ravl", "ofql", "cdsa", "fql"),
)

every_agent = pytest.mark.parametrize("name", AGENTS)


def by_default(names: Iterable[str]) -> pytest.MarkDecorator:
    """Tests these agents by default, the others under `slow`."""
    slow = lambda name: pytest.param(name, marks=pytest.mark.slow)
    return pytest.mark.parametrize("name", [n if n in names else slow(n) for n in AGENTS])


each_kind = by_default([name for name in AGENTS if name not in RELATIVES])
one_of_each_shape = by_default(["pqn", "dqn", "iql", "pgd_iql"])  # of programs


# --- one agent -----------------------------------------------------------------------------------


@every_agent
def test_argument_names_and_order(name: str) -> None:
    agent = AGENTS[name]().agent
    expected = {
        "init": "key hp inputs",
        "update": "state hp batch key step",
        "act": "state hp obs start memory noise explore",
        "memory": "n",
        "noise": "key n",
    }
    for function, arguments in expected.items():
        signature = inspect.signature(getattr(agent, function))
        assert list(signature.parameters) == arguments.split(), function
        assert all(p.default is p.empty for p in signature.parameters.values()), function


class Type(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    weak: bool


def types(tree: PyTree) -> list[tuple[str, Type]]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    keystr = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return [(keystr(path), Type(x.shape, x.dtype, x.weak_type)) for path, x in paths]


def one_update(case: Case, hp: HyperParams, inputs: dict[str, PyTree]) -> PyTree:
    """(state, src) before and after one update, its batch and its metrics."""
    step, key = jnp.int32(0), jax.random.key(0)
    state = case.agent.init(key, hp.agent, inputs)
    src = case.stage.source.init(key, state, hp, inputs)
    new_src, batch, _ = case.stage.source.next(src, state, hp, inputs, key, step)
    new_state, metrics = case.agent.update(state, hp.agent, batch, key, step)
    return (state, src), (new_state, new_src), batch, metrics


@every_agent
@pytest.mark.parametrize("kind", ["arrays", "numbers", "constants"])
def test_update_returns_the_type_it_took(name: str, kind: str) -> None:
    """Structure, shape, dtype and weak type, so that a loop carries the state as it is."""
    case = AGENTS[name]()
    hp = case.hp if kind == "arrays" else case.hp._replace(agent=case.plain)
    if kind == "constants":  # not traced at all
        shapes = jax.eval_shape(lambda inputs: one_update(case, hp, inputs), case.inputs)
    else:
        shapes = jax.eval_shape(functools.partial(one_update, case), hp, case.inputs)
    before, after, _, metrics = shapes
    assert jax.tree.structure(before) == jax.tree.structure(after)
    pairs = zip(types(before), types(after), strict=True)
    assert not [(old, new) for old, new in pairs if old != new]
    assert not any(x.weak_type for x in jax.tree.leaves(after)) or kind != "arrays"
    assert metrics or name == "cdsa"  # corrected policies learn nothing
    assert all(x.shape == () for x in jax.tree.leaves(metrics))


@each_kind
def test_act(name: str) -> None:
    """Shapes and dtypes of actions and memory; without exploration the noise changes nothing."""
    case, n = AGENTS[name](), 32
    agent, space = case.agent, case.spec.action
    state = jax.jit(agent.init)(jax.random.key(0), case.hp.agent, case.inputs)
    obs = jax.random.normal(jax.random.key(1), (n, *case.spec.obs_shape))
    act = jax.jit(agent.act, static_argnames="explore")

    def run(seed: int, explore: bool) -> PyTree:
        noise, start = agent.noise(jax.random.key(seed), n), jnp.ones(n, bool)
        return act(state, case.hp.agent, obs, start, agent.memory(n), noise=noise, explore=explore)

    for explore in (False, True):
        action, memory, extras = run(0, explore)
        assert action.shape == (n, *space.shape)
        assert action.dtype == (jnp.int32 if isinstance(space, Discrete) else jnp.float32)
        assert types(memory) == types(jax.eval_shape(lambda: agent.memory(n)))
        assert all(x.shape[0] == n for x in jax.tree.leaves(extras))
    assert bits(run(0, False)) == bits(run(1, False))


@one_of_each_shape
def test_a_whole_run_traces_update_once(name: str) -> None:
    """One trace serves a run alone and under vmap, another one a population on a mesh."""
    case, traces = AGENTS[name](), 0

    def update(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return case.stage.learner.update(*args)

    learner = dataclasses.replace(case.stage.learner, update=update)
    stage = dataclasses.replace(case.stage, learner=learner)
    program = Program((*case.program.stages[:-1], stage))
    key, ids = jax.random.key(0), jnp.arange(4)
    hp = jax.tree.map(lambda x: jnp.broadcast_to(x, (4, *x.shape)), case.hp)

    alone = jax.eval_shape(train(program), key, case.hp, None, case.inputs)
    assert traces == 1
    many = jax.vmap(train(program), (0, 0, None, None))
    spread = jax.eval_shape(many, jax.random.split(key, 4), hp, None, case.inputs)
    assert traces == 1
    plan = population.layout(4, jax.devices()[:1], WIDTH)
    jax.eval_shape(population.train(program, plan), key, ids, hp, case.inputs)
    assert traces == 2
    for one, each in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        assert (each.shape, each.dtype) == ((4, *one.shape), one.dtype)


@every_agent
def test_a_policy_is_restored_without_data(name: str) -> None:
    """Its state has the same shapes from two abstract rows as in the checkpoint of the run."""
    case, count = AGENTS[name](), 3
    hp = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), case.hp)
    last = len(case.program.stages) - 1
    whole = abstract_state(case.program, hp, case.inputs, last).member.learner
    abstract = {"data": abstract_rows(case.spec)} if "data" in case.inputs else {}
    light = abstract_learner(case.program, hp, case.inputs | abstract, last)
    assert jax.tree.structure(light) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(light), jax.tree.leaves(whole), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@each_kind
def test_a_whole_run_exports(name: str) -> None:
    """One lowering for CPUs, GPUs and TPUs, without calls back into Python."""
    case = AGENTS[name]()
    run = jax.jit(train(case.program))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(
        jax.random.key(0), case.hp, None, case.inputs
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "callback" not in exported.mlir_module()


# --- runs ----------------------------------------------------------------------------------------


def bits(tree: PyTree) -> list[bytes]:
    def raw(x: Any) -> bytes:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x).tobytes()

    return [raw(x) for x in jax.tree.leaves(tree)]


def leaves(tree: PyTree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def means(metrics: PyTree) -> PyTree:
    """Means of metrics, NaN without values."""

    def divide(mean: Mean) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray(mean.total) / np.asarray(mean.weight)

    return jax.tree.map(divide, metrics, is_leaf=lambda x: isinstance(x, Mean))


def row(tree: PyTree, member: int) -> PyTree:
    return jax.tree.map(lambda x: x[member], tree)


def changed(x: jax.Array) -> jax.Array:
    """Another value of a hyperparameter, well inside the range of rates, shares and scales."""
    return x + 1 if jnp.issubdtype(x.dtype, jnp.integer) else 0.6 * x + 0.05


class Run(NamedTuple):
    """Results by stage: final states, metrics (NaN without values) and evaluations by chunk."""

    states: PyTree
    metrics: PyTree
    evals: PyTree


class Population:
    """Members of which member i + 1 has the i-th hyperparameter changed; the last has none.

    They are trained on two devices, in chunks, by programs that are compiled once.
    """

    def __init__(self, case: Case) -> None:
        flat, tree = jax.tree.flatten(case.hp)
        paths = jax.tree_util.tree_flatten_with_path(case.hp)[0]
        self.names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        self.count = len(flat) + 2
        members = jnp.arange(self.count)
        columns = [
            jnp.where(members == i + 1, changed(x), x).astype(x.dtype) for i, x in enumerate(flat)
        ]
        self.case, self.hp = case, jax.tree.unflatten(tree, columns)
        self.built: Built = {}
        self.layout = population.layout(self.count, jax.devices()[:2], WIDTH)

    def __call__(self, ids: np.ndarray, hp: PyTree = None, seed: int = 3) -> Run:
        """Results of `count` members, the member axis in front."""
        key, hp = jax.random.key(seed), self.hp if hp is None else hp
        program, inputs, hooks = self.case.program, self.case.inputs, Hooks(built=self.built)
        reports = list(drive(program, self.layout, key, hp, inputs, ids=ids, hooks=hooks))
        last = reports[-1].snapshot
        assert last is not None
        states = last.results | {reports[-1].stage: last.member.learner}
        metrics, evals = {}, {}
        for stage in program.stages:
            own = [r for r in reports if r.stage == stage.name]
            assert len(own) == len(stage.chunks) > 1
            chunks = lambda *x: np.stack(x, 1)
            metrics[stage.name] = jax.tree.map(chunks, *[r.metrics for r in own])
            evals[stage.name] = jax.tree.map(chunks, *[r.evals for r in own])
        return Run(states, metrics, evals)


@each_kind
def test_runs(name: str) -> None:
    """Everything that takes whole runs, by the few programs that they share."""
    runs = Population(AGENTS[name]())
    result = runs(np.arange(runs.count))
    check_finite(result)
    check_keys(runs, result)
    check_order(runs, result)
    check_neighbour(runs, result)
    check_hypers(runs)


@pytest.mark.slow
@every_agent
def test_a_run_as_one_program(name: str) -> None:
    """The bits of the chunks from the host, on one device, and one member by itself."""
    runs = Population(AGENTS[name]())
    plan = population.layout(runs.count, jax.devices()[:1], WIDTH)
    ids, hp = plan.pad((jnp.arange(runs.count), runs.hp), runs.count)
    train = jax.jit(population.train(runs.case.program, plan))
    whole = train(jax.random.key(3), ids, hp, runs.case.inputs)
    members = lambda tree: jax.tree.map(lambda x: x[: runs.count], tree)
    forward = lambda tree: members(jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tree))
    driven = runs(np.arange(runs.count))
    assert bits(driven.states) == bits(members(whole.states))
    assert bits(driven.evals) == bits(forward(whole.evals))
    for a, b in zip(leaves(driven.metrics), leaves(means(forward(whole.metrics))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    check_alone(runs, driven)


SOMETIMES = ("episode_", "q_std_edge", "model_loss_held")  # metrics that may have no value, NaN


def check_finite(result: Run) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path((result.states, result.evals)):
        assert np.isfinite(x).all(), f"{jax.tree_util.keystr(path)} is not finite"
    for stage in result.metrics.values():
        for name, x in stage.items():
            bad = np.isinf(x) if name.startswith(SOMETIMES) else ~np.isfinite(x)
            assert not bad.any(), f"{name} is not finite"


def check_keys(runs: Population, result: Run) -> None:
    members = np.arange(runs.count)
    assert bits(runs(members)) == bits(result), "same keys, other bits"
    alike = jax.tree.map(lambda x: x[np.zeros_like(members)], runs.hp)
    states = [runs(members, alike, seed).states for seed in (3, 4)]
    kinds = {tuple(bits(row(state, i))) for state in states for i in range(runs.count)}
    assert len(kinds) == 2 * runs.count, "other keys, the same bits"


def check_order(runs: Population, result: Run) -> None:
    order = np.random.default_rng(0).permutation(runs.count)
    shuffled = runs(order, jax.tree.map(lambda x: x[order], runs.hp))
    assert bits(shuffled) == bits(jax.tree.map(lambda x: x[order], result))


def check_neighbour(runs: Population, result: Run) -> None:
    """A member that is all NaN leaves its neighbours in the tile as they are."""
    bad = 3
    hp = jax.tree.map(
        lambda x: x.at[bad].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, runs.hp
    )
    got = runs(np.arange(runs.count), hp)
    for member in range(runs.count):
        assert (bits(row(got, member)) == bits(row(result, member))) == (member != bad), member


def check_hypers(runs: Population) -> None:
    """Members of one key: only what differs in hyperparameters can differ in results."""
    result = runs(np.zeros(runs.count, int))
    base = bits(row(result, 0))
    assert bits(row(result, runs.count - 1)) == base
    dead = [name for i, name in enumerate(runs.names) if bits(row(result, i + 1)) == base]
    unread = {f"agent.{name}" for name in runs.case.unread}
    assert set(dead) == unread, f"changing {dead} changes nothing"


def check_alone(runs: Population, result: Run) -> None:
    """One member by `program.train`, up to rounding, since the width differs; traced once."""
    traces, whole = 0, train(runs.case.program)

    @jax.jit
    def alone(*args: PyTree) -> Result:
        nonlocal traces
        traces += 1
        return whole(*args)

    keys = population.member_keys(jax.random.key(3), jnp.arange(runs.count))
    for member in (1, runs.count - 1):
        got = alone(keys[member], row(runs.hp, member), None, runs.case.inputs)
        got = leaves((got.states, means(got.metrics), got.evals))
        for a, b in zip(got, leaves(row(tuple(result), member)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert traces == 1
