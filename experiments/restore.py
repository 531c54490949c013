"""Earlier runs: their settings and trained states, for evaluation and for runs that build on them.

Only this file reads checkpoints of other runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxrl import drive, envs, population
from jaxrl.api import TrainedPolicy
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.experiments import agents
from jaxrl.experiments.console import plural, print_line, short_path
from jaxrl.experiments.options import Options
from jaxrl.experiments.plan import (
    Bases,
    Earlier,
    Plan,
    base_inputs,
    check_request,
    hypers_of,
    make_plan,
    program_of,
)
from jaxrl.experiments.requests import of_run
from jaxrl.experiments.reuse import Reused
from jaxrl.experiments.run_folders import (
    count_members,
    first_seed,
    open_run_folder,
    settings_digest,
    state_digest,
    width_of,
)
from jaxrl.experiments.settings import Settings, resolve
from jaxrl.experiments.trust import NOBODY, Trust, check_same, trusting
from jaxrl.experiments.trust import check as check_names
from jaxrl.policies import Trained, one_of
from jaxrl.program import MemberState, Program
from jaxrl.runs import files, records, shards, stats
from jaxrl.runs.checkpoint import SKIP
from jaxrl.runs.folders import AGAIN
from jaxrl.runs.processes import ALONE, Processes
from jaxrl.runs.shards import Range
from jaxrl.snapshot import RunState, abstract_learner, abstract_state, assemble
from jaxrl.types import Agent, Discrete, EnvSpec, HyperParams, Policy, PyTree, Transition

# --- inputs from earlier runs --------------------------------------------------------------------


def settle(agent: str, options: Mapping[str, Any]) -> Settings:
    """`resolve`; without `seeds`, as many as the shortest base run has from `seed` on.

    Raises:
      UserError: see `resolve`; also a `--base` folder without a run.
    """
    settings = resolve(agent, options)
    if not settings.options.base or "seeds" in settings.given:
        return settings
    end = min(first_seed(path) + count_members(path) for path in settings.options.base)
    seeds = max(1, end - settings.options.seed)
    return dataclasses.replace(settings, options=dataclasses.replace(settings.options, seeds=seeds))


def prepare(settings: Settings, processes: Processes = ALONE) -> Plan:
    """The plan of a run, with its inputs from datasets and earlier runs."""
    return make_plan(settings, processes, read_earlier(settings))


def read_earlier(settings: Settings) -> Earlier:
    """Inputs of a run from datasets and earlier runs.

    Raises:
      UserError: an input is missing, or belongs to another environment or dataset.
    """
    options = settings.options
    check_request(settings, agents.load(settings.agent))
    digests = digests_of(options)
    data = dataset(options.data) if options.data is not None else None
    trust = trust_of(settings)
    needed = digests.get("data") if agents.load(settings.agent).base_data else None
    bases = read_bases(options, needed, trust) if options.base else None
    reused = None
    if options.from_run is not None:
        reused = _reused(options.from_run, options.env, digests.get("data"), trust)
    return Earlier(digests, data, bases, reused)


def digests_of(options: Options) -> dict[str, Any]:
    """Hashes of the contents of the dataset and of the earlier runs that a run reads."""
    found: dict[str, Any] = {}
    if options.data is not None:
        found["data"] = dataset(options.data).meta["sha256"]
    if options.base:
        found["base"] = [state_digest(path) for path in options.base]
    if options.from_run is not None:
        found["from"] = settings_digest(options.from_run)
    return found


def dataset(path: Path) -> datasets.Dataset:
    """A dataset, read again only after its files change: its hash is part of the run's name."""
    parts = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [part.stat() for part in parts if part.exists()]
    return _dataset(path, tuple((x.st_mtime_ns, x.st_size, x.st_ino) for x in found))


@functools.lru_cache(maxsize=2)
def _dataset(path: Path, stamp: tuple[Any, ...]) -> datasets.Dataset:
    return datasets.load(path)


def trust_of(settings: Settings) -> Trust:
    """Trust in what earlier runs name: the names of the run that builds on them are checked."""
    options = settings.options
    return trusting(settings.agent, options.env, everything=options.trust)


def read_bases(options: Options, data: str | None, trust: Trust) -> Bases:
    """Policies and states of the runs of `--base`; for `data` see `_base`."""
    found = [_base(path, options, data, trust) for path in options.base]
    return Bases(one_of([policy for policy, _ in found]), tuple(state for _, state in found))


def _base(path: Path, options: Options, data: str | None, trust: Trust) -> tuple[Policy, Trained]:
    """The policy of a base run, and the states [seeds, ...] of the members with the run's seeds.

    Args:
      data: hash of the dataset that the run must have been trained on; None allows any.
    """
    run = open_run_folder(path)
    config = run.config()["config"]
    own = options.env, files.plain(options.env_options)
    if (config["env"], config.get("env_options")) != own:
        raise UserError(f"{path} was trained in another environment: {config['env']}")
    if data is not None and config.get("data") != data:
        raise UserError(f"{path} was not trained on {options.data}")
    first, count = options.seed - config["seed"], count_members(path)
    if first < 0 or first + options.seeds > count:
        raise UserError(
            f"{path} has the seeds --seed {config['seed']} --seeds {count}, which do not contain "
            f"--seed {options.seed} --seeds {options.seeds}: pass seeds of the base run"
        )
    found = read_policies(run, (first, first + options.seeds), trust)
    return found.policy, found.trained


def _reused(path: Path, env: str, data: str | None, trust: Trust) -> Reused:
    """The finished stages of a run that its members share (`--from RUN`).

    Args:
      data: the digest of the dataset.
    """
    run = open_run_folder(path)
    config = run.config()["config"]
    if config["env"] != env:
        raise UserError(f"{path} was trained in another environment, not {env}")
    if config.get("data") != data:
        raise UserError(f"{path} was trained on other data: pass its dataset, or leave out --from")
    ready = prepare(settings_of(run, trust))
    check_unchanged(run, ready.digests)
    found = read_state(ready, run, (0, 1)).results
    shared = {stage.name for stage in ready.program.stages if stage.shared}
    return Reused(path, {name: state for name, state in found.items() if name in shared})


# --- trained members -----------------------------------------------------------------------------


def confirmed(path: Path, agent: str | None, env: str | None, everything: bool) -> Trust:
    """Trust in the code that a run names, from `--agent`, `--env` and `--trust`.

    Raises:
      UserError: the run has another agent or environment.
    """
    check_same(str(path), open_run_folder(path).config()["config"], agent, env)
    return trusting(agent, env, everything=everything)


def settings_of(run: records.RunDir, trust: Trust = NOBODY) -> Settings:
    """The settings of a run, from its config.json.

    Raises:
      UserError: an agent or environment that is neither listed nor trusted; also see `resolve`.
    """
    request = of_run(run.config(), str(run.path / "config.json"))
    check_names(str(short_path(run.path)), request.agent, [request.options.get("env")], trust)
    return resolve(request.agent, request.options | {"trust": trust.everything})


def read_state(
    ready: Plan, run: records.RunDir, members: Range | None = None, index: int | None = None
) -> RunState:
    """The newest checkpoint of all members, or of a range; the run may be in progress.

    Args:
      index: the checkpoint to read, of `shards.indices`, instead of the newest.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    first, last = members or (0, ready.members)

    def target(meta: dict[str, Any], part: Range) -> RunState:
        hp, own = jax.tree.map(lambda x: x[slice(*part)], (ready.hp, ready.own))
        return abstract_state(ready.program, hp, ready.inputs, meta["stage"], own)

    if index is None:
        found = _newest(run, (first, last), target)
    else:
        own = run.config()["config"]
        found = shards.read(run.checkpoints, own, index, (first, last), target, print_line)
        if found is None:
            raise UserError(f"checkpoint {index} of {short_path(run.path)} is damaged")
    stage, step = found.meta["stage"], found.meta["step"]
    return assemble(ready.program, stage, step, found.parts, (first, last))


def load(path: str | Path, member: int = 0, *, trust: bool = False) -> TrainedPolicy:
    """The policy of one member of a run, from its newest checkpoint; the dataset is not read.

    Args:
      trust: import a custom agent or environment that the run names; this runs its code.

    Raises:
      UserError: there is no such run or member, or the run has not trained its policy yet.
    """
    return load_member(Path(path), member, trusting(everything=trust))


def load_member(path: Path, member: int, trust: Trust) -> TrainedPolicy:
    """`load` with the names that the user trusts."""
    return read_member(path, member, trust)[0]


def read_member(path: Path, member: int, trust: Trust) -> tuple[TrainedPolicy, str]:
    """The policy of one member, and its run's `unfinished`."""
    run = open_run_folder(path)
    count = count_members(run.path)
    if not 0 <= member < count:
        raise UserError(f"member {member}: the run has members 0 to {count - 1}")
    found = read_policies(run, (member, member + 1), trust)
    own = jax.tree.map(lambda x: jnp.asarray(x[0]), found.trained)
    return TrainedPolicy(found.policy, own.state, own.hp), found.unfinished


class Policies(NamedTuple):
    """The policy of a run and the trained states of its members [M]; see `unfinished`."""

    policy: Agent
    trained: Trained
    unfinished: str


def unfinished(run: records.RunDir, program: Program, stage: int, step: int) -> str:
    """ "training is not finished: 512 of 1,024 updates" of a checkpoint; "" of a finished run."""
    total = sum(each.updates for each in program.stages)
    made = sum(each.updates for each in program.stages[:stage]) + step
    if made >= total or run.as_found().finished:  # a run whose members all failed stops early
        return ""
    return f"training is not finished: {made:,} of {plural(total, 'update')}"


def read_policies(run: records.RunDir, members: Range, trust: Trust = NOBODY) -> Policies:
    """The policies of a run's members, from the newest checkpoint.

    Datasets, replay buffers and states of earlier stages and of base runs are not read.

    Raises:
      UserError: see `load`; also a base run that has changed since.
    """
    program, shapes = _shapes(run, trust)

    def target(meta: dict[str, Any], part: Range) -> RunState:
        own = shapes(meta["stage"], part)
        member = MemberState(own.state, SKIP, HyperParams(own.hp, SKIP), SKIP, SKIP)  # type: ignore[arg-type]
        return RunState(member, SKIP, meta["stage"], 0)  # type: ignore[arg-type]

    policy, found = _newest_policy(run, program, members, target)
    rows = []
    for (first, _), state in found.parts:
        some = slice(max(members[0] - first, 0), max(members[1] - first, 0))
        own = Trained(state.member.learner, state.member.hp.agent)
        rows.append(jax.tree.map(lambda x: x[some], own))  # noqa: B023
    whole = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    told = unfinished(run, program, found.meta["stage"], found.meta["step"])
    return Policies(policy, whole, told)


def _newest(
    run: records.RunDir, members: Range, target: Callable[[dict[str, Any], Range], Any]
) -> shards.Found:
    """The newest checkpoint of a run; for `target` see `shards.newest`."""
    found = shards.newest(run.checkpoints, run.config()["config"], members, target, print_line)
    if found is not None:
        return found
    if run.as_found().finished:
        raise UserError(
            f"{short_path(run.checkpoints)} has no undamaged checkpoint of all members: restore "
            f"the folder, or {AGAIN}"
        )
    raise UserError(f"{short_path(run.path)} has no checkpoint yet")


def _newest_policy(
    run: records.RunDir,
    program: Program,
    members: Range,
    target: Callable[[dict[str, Any], Range], PyTree],
) -> tuple[Agent, shards.Found]:
    """The policy of a run in the stage of its newest checkpoint, and this checkpoint."""
    found = _newest(run, members, target)
    policy = program.stages[found.meta["stage"]].learner
    if not isinstance(policy, Agent):
        raise UserError(f"{short_path(run.path)} has not trained its policy yet")
    return policy, found


def _shapes(run: records.RunDir, trust: Trust) -> tuple[Program, Callable[[int, Range], Trained]]:
    """The program of a run, and (stage, members) -> shapes and dtypes of their trained states."""
    settings = settings_of(run, trust)
    options, bases, own = settings.options, None, {}
    env = envs.make(options.env, **options.env_options)
    inputs: dict[str, PyTree] = {} if options.data is None else {"data": abstract_rows(env.spec)}
    if options.base:
        check_unchanged(run, {"base": [state_digest(path) for path in options.base]})
        bases = _abstract_bases(options, trust_of(settings))
        own = jax.eval_shape(functools.partial(base_inputs, settings), bases.trained)
    program = program_of(settings, env, bases)
    hp = hypers_of(settings, env)

    def shapes(stage: int, members: Range) -> Trained:
        rows = lambda tree: jax.tree.map(lambda x: x[slice(*members)], tree)
        some = jax.eval_shape(rows, (hp, own))
        return Trained(abstract_learner(program, some[0], inputs, stage, some[1]), some[0].agent)

    return program, shapes


def _abstract_bases(options: Options, trust: Trust) -> Bases:
    """Shapes and dtypes of `read_bases`; no array of the base runs is read."""
    policies, trained = [], []
    for run in map(open_run_folder, options.base):
        first = options.seed - first_seed(run.path)
        members = (first, first + options.seeds)
        program, shapes = _shapes(run, trust)
        policy, found = _newest_policy(run, program, members, lambda meta, part: SKIP)
        policies.append(policy)
        trained.append(shapes(found.meta["stage"], members))
    return Bases(one_of(policies), tuple(trained))


def check_unchanged(run: records.RunDir, digests: Mapping[str, Any]) -> None:
    """Raises UserError if the contents of a dataset or an earlier run differ from the run's.

    Args:
      digests: the present hashes, see `digests_of`.
    """
    names = {"data": "its dataset", "base": "one of its base runs", "from": "the run of --from"}
    stored = run.config()["config"]
    for name, digest in digests.items():
        if stored.get(name) != digest:
            raise UserError(
                f"{names[name]} has changed since {short_path(run.path)} was made: restore the "
                "old version, or train again"
            )


def abstract_rows(spec: EnvSpec) -> Transition:
    """Shapes and dtypes of two rows of a dataset for `spec`."""
    box = not isinstance(spec.action, Discrete)

    def row(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((2, *shape), dtype)

    obs, flag = row(jnp.float32, *spec.obs_shape), row(jnp.bool_)
    action = row(jnp.float32 if box else jnp.int32, *spec.action.shape)
    return Transition(obs, action, row(jnp.float32), obs, flag, flag, flag)


class Evaluated(NamedTuple):
    """The plan of a run, `Episodes` [P, episodes] of its members, and `unfinished`."""

    ready: Plan
    episodes: Any
    unfinished: str


def evaluate(
    path: Path,
    episodes: int,
    seed: int,
    eval_steps: int | None = None,
    explore: bool = False,
    trust: Trust = NOBODY,
) -> Evaluated:
    """Evaluates every member on fresh episodes.

    `eval_steps` replaces the agent's setting of this name. Equal seeds give equal episodes.
    `explore` acts as in training; a run with --eval-explore is always evaluated like that.

    Raises:
      UserError: the agent has no such setting, or no checkpoint yet.
    """
    run = open_run_folder(path)
    settings = settings_of(run, trust)
    if eval_steps is not None:
        if not hasattr(settings.cfg, "eval_steps"):
            raise UserError(f"{settings.agent} has no setting eval_steps, so no --eval-steps")
        cfg = dataclasses.replace(settings.cfg, eval_steps=eval_steps)
        settings = dataclasses.replace(settings, cfg=cfg)
    explore = explore or settings.options.eval_explore
    options = dataclasses.replace(
        settings.options,
        eval_episodes=episodes,
        interim_episodes=episodes,  # the run may have stopped before its end
        eval_explore=explore,
        ope_updates=0,  # only the episodes are returned
    )
    ready = prepare(dataclasses.replace(settings, options=options))
    check_unchanged(run, ready.digests)
    state = read_state(ready, run)
    if ready.program.stages[state.stage].evaluate is None:
        raise UserError(
            f"{short_path(path)} has not trained its policy yet, only "
            f"{ready.program.stages[state.stage].name!r}: continue the run first"
        )
    layout = population.Layout(ready.layout.mesh, width_of(run))
    key = jax.random.fold_in(jax.random.key(1), seed)
    found = drive.evaluate(
        ready.program, layout, state, key, ready.inputs, own=ready.own, ids=ready.seeds
    )
    told = unfinished(run, ready.program, state.stage, state.step)
    return Evaluated(ready, found, told)


def print_steps(
    path: Path,
    episodes: int,
    seed: int,
    steps: Sequence[int],
    explore: bool = False,
    trust: Trust = NOBODY,
) -> None:
    """Prints one row per number of action-sampling steps; all rows use the same seed."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("eval_steps", "mean", "IQM", "95 % interval"):
        table.add_column(name, justify="right")
    told = ""
    for count in steps:
        made = evaluate(path, episodes, seed, count, explore, trust)
        found, told = stats.summarise(made.episodes.returns), made.unfinished
        low, high = found["ci95"]
        numbers = (f"{found[name]:.4g}" for name in ("mean", "iqm"))
        table.add_row(str(count), *numbers, f"{low:.4g} to {high:.4g}")
    print_line(table)
    if told:
        print_line(told)
