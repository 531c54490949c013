"""What a request comes to before anything is compiled: members, layout, hyperparameters."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, population
from jaxrl.envs import datasets
from jaxrl.envs.dmsd import with_states
from jaxrl.errors import UserError
from jaxrl.experiments import agents, bases, reuse
from jaxrl.experiments.bases import Bases
from jaxrl.experiments.options import Settings, dataset, env_options
from jaxrl.program import Program, check_shared
from jaxrl.runs import device_memory
from jaxrl.runs.processes import ALONE, Processes
from jaxrl.runs.shards import Range
from jaxrl.snapshot import abstract_state
from jaxrl.types import Array, Env, HyperParams, PyTree

LEAST = {
    "seeds": 1, "seed": 0, "evals": 1, "eval_episodes": 1, "keep": 1, "checkpoint_seconds": 0
}  # fmt: skip


class Plan(NamedTuple):
    """A run made ready; nothing is compiled or written yet.

    Its P members are points x seeds, point by point.
    """

    settings: Settings
    module: ModuleType
    env: Env
    program: Program
    layout: population.Layout  # of this process's members
    ranges: list[Range]  # the members of each process
    hp: HyperParams  # leaves [P, ...]
    key: Array
    seeds: np.ndarray  # [P]
    steps: list[int]  # environment steps of one update of each stage and member
    # On the host, what all members share: {"data": Transition [D, ...], "base": `Bases.trained`}.
    inputs: dict[str, PyTree]
    meta: dict[str, Any]  # what is known of the data, see `Dataset`

    @property
    def members(self) -> int:
        return len(self.seeds)

    def env_steps(self, stage: int, step: int) -> int:
        """Environment steps of one member after `step` updates of `stage`."""
        before = [s.updates * n for s, n in zip(self.program.stages, self.steps, strict=True)]
        return sum(before[:stage]) + step * self.steps[stage]

    @property
    def unit(self) -> str:
        """What `env_steps` counts: "steps" of the environment, or "updates" where none are made."""
        return "steps" if any(s.source.env_steps for s in self.program.stages) else "updates"

    @property
    def total_steps(self) -> int:
        return self.env_steps(len(self.program.stages) - 1, self.program.stages[-1].updates)


def make_plan(settings: Settings, processes: Processes = ALONE) -> Plan:
    """Everything that can be wrong with a request shows here, before any compile.

    Raises:
      UserError: in one line, what cannot be met.
    """
    options = settings.options
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}")
    if options.seed + options.seeds > 2**31:
        raise UserError(f"--seed and --seeds must stay below 2^31, got seed {options.seed}")
    module = agents.load(settings.agent)
    env = envs.make(options.env, **env_options(options.env_options))
    inputs, meta = read_inputs(settings, module, env)
    built_on = read_bases(settings, module, meta)
    if built_on is not None:
        inputs["base"] = built_on.trained
    program = module.program(
        settings.cfg,
        env,
        evals=options.evals,
        episodes=options.eval_episodes,
        **({} if built_on is None else {"bases": built_on.policies}),
    )
    devices = jax.local_devices()
    if options.devices is not None and not 1 <= options.devices <= len(devices):
        raise UserError(f"--devices must be between 1 and {len(devices)}, those there are")
    points = len(settings.points)
    count = points * options.seeds
    seeds = np.tile(np.arange(options.seed, options.seed + options.seeds, dtype=np.int32), points)
    values = swept_values(settings) | ({} if built_on is None else {"agent.member": seeds})
    if options.width is not None and not 1 <= options.width <= count:
        raise UserError(f"--width must be between 1 and {count}, the members there are")
    hp = hyper_table(HyperParams(settings.hp, env.params), count, values)
    if hasattr(module, "check_request"):
        module.check_request(settings.cfg, hp.agent, inputs)
    check_shared(program, hp.agent)
    if options.from_run is not None:
        program, states = reuse.reuse(options.from_run, program, options.env, hp, inputs)
        inputs[reuse.INPUT] = states
    steps = [stage.source.env_steps for stage in program.stages]
    total = sum(devices_of(options.devices, processes))
    width = options.width or population.tile_width(count, total, devices[0].platform, any(steps))
    return Plan(
        settings,
        module,
        env,
        program,
        *place(count, width, options.devices, processes),
        hp,
        # One key per seed: a member's random numbers depend on its own seed only, so that points
        # are compared on the same ones.
        jax.random.key(0),
        seeds,
        [n or 1 for n in steps],
        inputs,
        meta,
    )


def read_inputs(
    settings: Settings, module: ModuleType, env: Env
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """The data of an offline agent, which have to be those of the environment, and what is known of
    them; else {} and {}.

    Of what datasets have beside transitions, only the agent's `EXTRAS` go along.
    """
    offline, path = getattr(module, "OFFLINE", False), settings.options.data
    if env.host is not None and not offline:
        raise UserError(f"{settings.agent} learns by acting; {env.spec.name} runs on the host only")
    if offline and path is None:
        raise UserError(f"{settings.agent} learns from data; which? As in: --data FILE")
    if not offline and path is not None:
        raise UserError(f"{settings.agent} learns by acting and takes no --data")
    if path is None:
        return {}, {}
    data = dataset(path)
    datasets.check(data, env.spec)
    wanted = getattr(module, "EXTRAS", ())
    rows = with_states(env.spec.name, data.transitions) if "state" in wanted else data.transitions
    extras = {name: x for name, x in rows.extras.items() if name in wanted}
    return {"data": rows._replace(extras=extras)}, data.meta


def read_bases(settings: Settings, module: ModuleType, meta: dict[str, Any]) -> Bases | None:
    """The runs that an agent builds on, None for one that does not; each has to be a point."""
    if not hasattr(module, "base_points"):
        return None
    count = len(settings.options.base)
    if not count:
        raise UserError(f"{settings.agent} builds on trained runs; which? As in: --base runs/NAME")
    if {point.get("agent.run", settings.hp.run) for point in settings.points} != set(range(count)):
        numbers = ",".join(map(str, range(count)))
        raise UserError(f"with several --base a sweep takes them by --sweep agent.run={numbers}")
    return bases.read(settings.options, meta["sha256"])


def place(
    members: int, width: int, devices: int | None, processes: Processes
) -> tuple[population.Layout, list[Range]]:
    """The layout of this process's members, and the members of every process.

    `devices` limits those of each process.
    """
    ranges = population.spread(members, width, devices_of(devices, processes))
    first, last = ranges[processes.index]
    here = jax.local_devices()[:devices]
    return population.layout(max(last - first, 1), here, width), ranges


def devices_of(limit: int | None, processes: Processes) -> list[int]:
    """How many devices each process uses, of which it takes `limit` at most."""
    if processes.count == 1:
        return [len(jax.local_devices()[:limit])]
    each = np.bincount([x.process_index for x in jax.devices()], minlength=processes.count)
    return [min(int(n), limit or int(n)) for n in each]


def swept_values(settings: Settings) -> dict[str, np.ndarray]:
    """What differs between members beside their seeds: [P] values under each dotted name."""
    return {
        name: np.repeat([point[name] for point in settings.points], settings.options.seeds)
        for name in settings.swept
    }


def hyper_table(
    hp: HyperParams, members: int, swept: dict[str, np.ndarray] | None = None
) -> HyperParams:
    """Hyperparameters of P members: leaves [P, ...], numbers as float32.

    Args:
      hp: what all members have: records or dicts of numbers.
      swept: dotted name -> [P], what they have instead, as {"agent.lr": ...}.
    """

    def rows(x: Any) -> Array:
        x = jnp.asarray(x, jnp.float32 if isinstance(x, float | int) else None)
        return jnp.broadcast_to(x, (members, *x.shape))

    found = jax.tree.map(rows, hp)
    for path, values in (swept or {}).items():
        part, _, name = path.partition(".")
        record = getattr(found, part)
        old = record[name] if isinstance(record, dict) else getattr(record, name)
        change = {name: jnp.asarray(values, old.dtype)}
        new = record | change if isinstance(record, dict) else dataclasses.replace(record, **change)
        found = found._replace(**{part: new})
    return found


def state_bytes(ready: Plan) -> int:
    """Size of one member's state, in the stage where it is largest; what earlier stages left for it
    counts too. Tracing it also shows what cannot even start."""
    size = device_memory.tree_bytes
    own = {stage.name for stage in ready.program.stages if not stage.shared}
    found = []
    for index, stage in enumerate(ready.program.stages):
        state = abstract_state(ready.program, ready.hp, ready.inputs, index)
        here = size(state.member) // (ready.members if stage.name in own else 1)
        left = size([x for name, x in state.results.items() if name in own])
        found.append(here + left // ready.members)
    return max(found)
