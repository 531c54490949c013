"""Plan of a run before compilation: members, layout, hyperparameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, population, validation
from jaxrl.algorithm import Algorithm
from jaxrl.envs import datasets
from jaxrl.envs.dmsd import with_states
from jaxrl.errors import OnHost, UserError
from jaxrl.experiments import agents, reuse, tracking
from jaxrl.experiments.alternatives import acts_in, alternatives
from jaxrl.experiments.options import Options
from jaxrl.experiments.reuse import Reused
from jaxrl.experiments.settings import Settings, identity
from jaxrl.inputs import BASE, DATA, REUSED, VALIDATION
from jaxrl.ope.during import with_fqe
from jaxrl.policies import Switch, Trained
from jaxrl.precision import Precision
from jaxrl.program import Program, check_shared
from jaxrl.runs import device_memory, memory
from jaxrl.runs.processes import ALONE, Processes
from jaxrl.runs.processes import check as check_join
from jaxrl.runs.shards import Range
from jaxrl.types import Array, Env, HyperParams, Policy, PyTree


class Bases(NamedTuple):
    """The base runs of an agent that builds on trained policies."""

    policy: Policy  # `one_of` their policies
    trained: tuple[Trained, ...]  # states of the members with the run's seeds, leaves [seeds, ...]


class Earlier(NamedTuple):
    """Inputs of a run from datasets and earlier runs, read by `restore.read_earlier`.

    Attributes:
      digests: content hashes, see `settings.identity`.
    """

    digests: dict[str, Any]
    data: datasets.Dataset | None = None
    bases: Bases | None = None
    reused: Reused | None = None


NOTHING = Earlier({})
NORMALISERS = ("normalise_obs", "normalise_reward")


class Plan(NamedTuple):
    """A planned run; nothing is compiled or written yet.

    Its P members are points x seeds, point by point.
    """

    settings: Settings
    algorithm: Algorithm
    env: Env
    program: Program
    layout: population.Layout  # of this process's members
    ranges: list[Range]  # the members of each process
    hp: HyperParams  # leaves [P, ...]
    seeds: np.ndarray  # [P]
    steps: list[int]  # environment steps of one update of each stage and member
    inputs: dict[str, PyTree]  # of all members, on the host: {"data": Transition [D, ...]}
    own: dict[str, PyTree]  # inputs of each member, on the host: {"base": Trained [P, ...]}
    meta: dict[str, Any]  # metadata of the dataset, see `Dataset`
    digests: dict[str, Any]  # see `settings.identity`

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the results, and hence the name of the run."""
        return identity(self.settings, self.digests)

    @property
    def key(self) -> Array:
        """The root key. A member's random numbers depend on its seed only, so all points share them
        (common random numbers)."""
        return jax.random.key(0)

    @property
    def members(self) -> int:
        return len(self.seeds)

    def env_steps(self, stage: int, step: int) -> int:
        """Environment steps of one member after `step` updates of `stage`."""
        before = [s.updates * n for s, n in zip(self.program.stages, self.steps, strict=True)]
        return sum(before[:stage]) + step * self.steps[stage]

    @property
    def on_host(self) -> bool:
        """Whether members act in environments of the host."""
        return any(stage.updates and stage.source.host for stage in self.program.stages)

    @property
    def unit(self) -> str:
        """Unit of `progress`: environment "steps" if all stages make steps, otherwise "updates"."""
        stages = zip(self.program.stages, self.steps, strict=True)
        return "steps" if all(steps for stage, steps in stages if stage.updates) else "updates"

    def progress(self, stage: int, step: int) -> int:
        """Progress of one member after `step` updates of `stage`, in `unit`."""
        if self.unit == "steps":
            return self.env_steps(stage, step)
        return sum(each.updates for each in self.program.stages[:stage]) + step

    @property
    def end(self) -> tuple[int, int]:
        """(last stage, its updates)."""
        return len(self.program.stages) - 1, self.program.stages[-1].updates

    @property
    def total(self) -> int:
        """`progress` of one member at the end."""
        return self.progress(*self.end)


def make_plan(settings: Settings, processes: Processes = ALONE, earlier: Earlier = NOTHING) -> Plan:
    """Plans a run and checks the request completely, before any compilation.

    `restore.prepare` reads `earlier` and calls this function.

    Raises:
      UserError: the request is invalid; the message is one line.
    """
    options, algorithm = settings.options, agents.load(settings.agent)
    check_request(settings, algorithm)
    env = envs.make(options.env, **options.env_options)
    inputs, meta = read_inputs(settings, algorithm, env, earlier.data)
    own = {} if earlier.bases is None else base_inputs(settings, earlier.bases.trained)
    program = program_of(settings, env, earlier.bases)
    devices = jax.local_devices()
    if options.devices is not None and not 1 <= options.devices <= len(devices):
        raise UserError(f"--devices must be between 1 and {len(devices)}, the number of devices")
    check_split(settings, env, len(devices[: options.devices]))
    points = len(settings.points)
    count = points * options.seeds
    check_table(settings, env, count)
    check_episodes(settings, env, count)
    seeds = np.tile(np.arange(options.seed, options.seed + options.seeds, dtype=np.int32), points)
    if options.width is not None and not 1 <= options.width <= count:
        raise UserError(f"--width must be between 1 and {count}, the number of members")
    hp = with_factor(hypers_of(settings, env), settings, inputs)
    if algorithm.check_request is not None:
        algorithm.check_request(settings.cfg, hp.agent, inputs)
    check_shared(program, hp.agent)
    check_evals(settings, program)
    if earlier.reused is not None:
        program, states = reuse.reuse(earlier.reused, program, hp, inputs)
        inputs[REUSED] = states
    program = program.with_precision(Precision(options.matmul_precision, options.compute_dtype))
    steps = [stage.source.env_steps for stage in program.stages]
    total = sum(places_of(options, processes))
    width = options.width or population.tile_width(count, total, devices[0].platform, any(steps))
    return Plan(
        settings,
        algorithm,
        env,
        program,
        *place(count, width, options, processes),
        hp,
        seeds,
        steps,
        inputs,
        own,
        meta,
        earlier.digests,
    )


def program_of(settings: Settings, env: Env, bases: Bases | None) -> Program:
    """The program of a run in `env`, with `bases` if the agent builds on trained runs."""
    own = settings.options
    more = {} if bases is None else {"base": bases.policy}
    algorithm = agents.load(settings.agent)
    try:
        program = algorithm.program(
            settings.cfg, env, evals=own.evals, episodes=own.eval_episodes, **more
        )
        program = program.with_interim(own.interim_episodes)
        program = program.exploring() if own.eval_explore else program
        program = program.from_the_start() if own.eval_first else program
        if own.ope_updates:
            program = with_fqe(program, env.spec, own.ope_updates)
        return validation.validated(program) if own.validation_share else program
    except UserError as error:
        fits = acts_in(algorithm, env.spec) and not isinstance(error, OnHost)
        others = "" if fits else alternatives(settings.agent, env, algorithm.offline)
        raise UserError(f"{_with_options(str(error), settings.cfg)}{others}") from None


def _with_options(message: str, cfg: Any) -> str:
    """A message with "agent." before the agent's own settings, which it names as in hidden=0."""
    names = "|".join(field.name for field in dataclasses.fields(cfg))
    if not names:
        return message
    return re.sub(rf"(?<![\w.-])(?<!--env-options )({names})=", r"agent.\1=", message)


def check_request(settings: Settings, algorithm: Algorithm) -> None:
    """Raises UserError for options that do not fit the agent or each other; reads no files."""
    options, agent = settings.options, settings.agent
    if options.seed + options.seeds >= 2**31:  # the last key is that of shared stages
        raise UserError(f"--seed and --seeds must stay below 2^31, got seed {options.seed}")
    tracking.check(options.track)
    check_join(options.coordinator, options.processes, options.process_id)
    offline = algorithm.offline
    if offline and options.data is None:
        raise UserError(f"{agent} needs a dataset: pass --data FILE")
    if offline and (names := normalisers(options.env_options)):
        option = names[0] == "normalise_obs" and hasattr(settings.cfg, names[0])
        own = " (--agent.normalise-obs does)" if option else ""
        raise UserError(
            f"{agent} learns from a dataset, which {names[0]} does not normalise{own}: remove it "
            "from --env-options"
        )
    if not offline and options.data is not None:
        raise UserError(f"{agent} does not learn from a dataset: remove --data")
    for name in ("validation_share", "ope_updates", "normalise_returns"):
        if not offline and getattr(options, name):
            flag = name.replace("_", "-")
            raise UserError(f"{agent} does not learn from a dataset: remove --{flag}")
    if options.normalise_returns:
        if not hasattr(settings.hp, "reward_scale"):
            raise UserError(f"{agent} has no reward_scale: remove --normalise-returns")
        if "agent.reward_scale" in settings.swept:
            raise UserError("--normalise-returns sets agent.reward_scale: remove one of the two")
    if algorithm.base_points is None:
        return
    count = len(options.base)
    if not count:
        raise UserError(f"{agent} builds on trained runs: pass --base runs/NAME")
    if len({path.resolve() for path in options.base}) < count:
        raise UserError("--base names a run twice: pass each run once")
    if set(settings.bases) != set(range(count)):
        numbers = ",".join(map(str, range(count)))
        raise UserError(f"every --base must be used: pass --sweep base={numbers}")


def normalisers(env_options: Mapping[str, Any]) -> list[str]:
    """Options that make an environment normalise observations or rewards by running statistics."""
    return [name for name in NORMALISERS if env_options.get(name) not in (None, False)]


def check_evals(settings: Settings, program: Program) -> None:
    """Raises UserError if a stage has too few updates for the requested `--evals`.

    The default number of evaluations is reduced to what the updates allow.
    """
    asked = settings.options.evals
    if asked == Options.evals:
        return
    for stage in program.stages:
        room = len(stage.chunks) - stage.first
        if stage.evaluate is not None and stage.updates and room < asked:
            raise UserError(
                f"--evals {asked} is more than {stage.updates} updates of stage {stage.name!r} "
                f"allow: pass --evals {room} or fewer"
            )


def read_inputs(
    settings: Settings, algorithm: Algorithm, env: Env, data: datasets.Dataset | None
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """The dataset of an offline agent, checked against the environment, and its metadata;
    {} and {} for other agents.

    Only the dataset extras named in the agent's `extras` are kept.
    """
    if data is None:
        return {}, {}
    datasets.check(data, env.spec)
    wanted = algorithm.extras
    if "next_known" in wanted:
        datasets.check_successors(data, settings.agent)
    rows = with_states(env.spec.name, data.transitions) if "state" in wanted else data.transitions
    extras = {name: x for name, x in rows.extras.items() if name in wanted}
    rows = rows._replace(extras=extras)
    share = settings.options.validation_share
    parts = validation.split(rows, share) if share else (rows,)
    names = (DATA, VALIDATION)
    return dict(zip(names, map(datasets.compact, parts), strict=False)), data.meta


def place(
    members: int, width: int, options: Options, processes: Processes
) -> tuple[population.Layout, list[Range]]:
    """The layout of this process's members, and the members of every process."""
    ranges = population.spread(members, width, places_of(options, processes))
    first, last = ranges[processes.index]
    here, each = jax.local_devices()[: options.devices], options.devices_per_member
    return population.layout(max(last - first, 1), here, width, each=each), ranges


def places_of(options: Options, processes: Processes) -> list[int]:
    """Number of devices, or of groups of devices that share a member, that each process uses."""
    limit, each = options.devices, options.devices_per_member
    if processes.count == 1:
        return [len(jax.local_devices()[:limit]) // each]
    found = np.bincount([x.process_index for x in jax.devices()], minlength=processes.count)
    return [min(int(n), limit or int(n)) // each for n in found]


def check_split(settings: Settings, env: Env, devices: int) -> None:
    """Raises UserError if the devices of a member cannot share its rows equally."""
    each, cfg = settings.options.devices_per_member, settings.cfg
    if each > 1 and env.host is not None:
        raise UserError(f"{env.spec.name} runs on the host: remove --devices-per-member {each}")
    sizes = {"the number of devices": devices}
    sizes |= {name: getattr(cfg, name, 0) for name in ("num_envs", "batch_size")}
    if hasattr(cfg, "minibatches") and hasattr(cfg, "num_envs"):
        sizes["rows of a minibatch"] = cfg.num_envs * cfg.num_steps // cfg.minibatches
    for name, size in sizes.items():
        if size % each:
            raise UserError(f"--devices-per-member {each} does not divide {size}, {name}")


def swept_values(settings: Settings) -> dict[str, np.ndarray]:
    """Values that differ between members, apart from seeds: dotted name -> [P]."""
    return {
        name: np.repeat([point[name] for point in settings.points], settings.options.seeds)
        for name in settings.swept
    }


def hypers_of(settings: Settings, env: Env) -> HyperParams:
    """Hyperparameters of all members of a run, leaves [P, ...]."""
    members = len(settings.points) * settings.options.seeds
    values = {name: x for name, x in swept_values(settings).items() if name != "base"}
    return hyper_table(HyperParams(settings.hp, env.params), members, values)


def with_factor(hp: HyperParams, settings: Settings, inputs: Mapping[str, PyTree]) -> HyperParams:
    """`hp` with reward_scale times the dataset's `return_factor`, if --normalise-returns is set.

    Raises:
      UserError: all episodes of the dataset have the same return.
    """
    if not settings.options.normalise_returns:
        return hp
    factor = datasets.return_factor(inputs["data"])
    if factor is None:
        raise UserError("all episodes have the same return: remove --normalise-returns")
    scale = hp.agent.reward_scale * jnp.float32(factor)
    return hp._replace(agent=dataclasses.replace(hp.agent, reward_scale=scale))


def base_inputs(settings: Settings, trained: tuple[Trained, ...]) -> dict[str, PyTree]:
    """The base policy of each member: {"base": Trained [P, ...]}, the state of `Bases.policy`.

    A point names the base run. A member builds on the member of the base run that has its seed.

    Args:
      trained: see `Bases`; leaves [seeds, ...].
    """
    own = settings.options
    which: Any = np.repeat(np.array(settings.bases, np.int32), own.seeds)
    rows = np.tile(np.arange(own.seeds), len(settings.points))
    each = jax.tree.map(lambda x: x[rows], trained)
    return {BASE: Trained(Switch(which, each), ())}


def hyper_table(
    hp: HyperParams, members: int, swept: dict[str, np.ndarray] | None = None
) -> HyperParams:
    """Hyperparameters of P members: leaves [P, ...], numbers as float32.

    Args:
      hp: the values common to all members, records or dicts of numbers.
      swept: dotted name -> values [P] that replace a common value, as {"agent.lr": ...}.
    """

    def rows(x: Any) -> Array:
        if isinstance(x, Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):  # random keys
            return jnp.broadcast_to(x, (members, *x.shape))
        x = np.asarray(x, np.float32 if isinstance(x, float | int) else None)
        return jnp.asarray(np.broadcast_to(x, (members, *x.shape)))

    found = jax.tree.map(rows, hp)
    for path, values in (swept or {}).items():
        part, _, name = path.partition(".")
        record = getattr(found, part)
        old = record[name] if isinstance(record, dict) else getattr(record, name)
        change = {name: jnp.asarray(values, old.dtype)}
        new = record | change if isinstance(record, dict) else dataclasses.replace(record, **change)
        found = found._replace(**{part: new})
    return found


def check_table(settings: Settings, env: Env, members: int) -> None:
    """Raises UserError if the hyperparameters of all members alone do not fit into memory."""
    row = device_memory.tree_bytes(hyper_table(HyperParams(settings.hp, env.params), 1))
    # Beside the table: a copy on the devices, and at least as much state.
    memory.check_fits(4 * row * members, f"a population of {members:,} members", "pass fewer seeds")


def check_episodes(settings: Settings, env: Env, members: int) -> None:
    """Raises UserError if the environments of an evaluation do not fit into memory."""
    if env.host is not None:
        return
    options = settings.options
    state = jax.eval_shape(lambda: env.reset(jax.random.key(0), env.params))
    together = min(members, options.width or 1) * options.eval_episodes
    size = together * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    what = f"an evaluation with {options.eval_episodes:,} episodes per member"
    memory.check_fits(size, what, "pass fewer episodes")
