"""Training: from settings to a finished run directory, continuing where a killed run stopped."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, fit, population, records, stats
from jaxrl.checkpoint import Checkpoints
from jaxrl.drive import Report, abstract_state, drive
from jaxrl.errors import UserError
from jaxrl.experiments import agents, session
from jaxrl.experiments.options import Settings, env_options
from jaxrl.experiments.progress import Display, clock, rate
from jaxrl.experiments.report import draw_run
from jaxrl.plots import compact
from jaxrl.tensorboard import TensorBoard
from jaxrl.types import Array, Env, PyTree

LEAST = {
    "seeds": 1, "seed": 0, "evals": 1, "eval_episodes": 1, "keep": 1, "checkpoint_seconds": 0
}  # fmt: skip


class Plan(NamedTuple):
    """A run made ready; nothing is compiled or written yet."""

    settings: Settings
    module: ModuleType
    env: Env
    program: fit.Program
    layout: population.Layout
    hp: dict[str, PyTree]  # leaves [P, ...]
    key: Array
    seeds: np.ndarray  # [P]
    steps: list[int]  # environment steps of one update of each stage and member

    @property
    def members(self) -> int:
        return len(self.seeds)

    def env_steps(self, stage: int, step: int) -> int:
        """Environment steps of one member after `step` updates of `stage`."""
        before = [s.updates * n for s, n in zip(self.program.stages, self.steps, strict=True)]
        return sum(before[:stage]) + step * self.steps[stage]

    @property
    def total_steps(self) -> int:
        last = len(self.program.stages) - 1
        return self.env_steps(last, self.program.stages[last].updates)


def plan(settings: Settings) -> Plan:
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
    program = module.program(settings.cfg, env, evals=options.evals, episodes=options.eval_episodes)
    devices = jax.devices()
    if options.devices is not None and not 1 <= options.devices <= len(devices):
        raise UserError(f"--devices must be between 1 and {len(devices)}, those there are")
    count = options.seeds
    if options.width is not None and not 1 <= options.width <= count:
        raise UserError(f"--width must be between 1 and {count}, the members there are")
    return Plan(
        settings,
        module,
        env,
        program,
        population.layout(count, devices[: options.devices], options.width),
        table({"agent": settings.hp, "env": env.params}, count),
        # One key per seed: a member's numbers depend on its own seed only.
        jax.random.key(0),
        np.arange(options.seed, options.seed + count, dtype=np.int32),
        [stage.source.env_steps or 1 for stage in program.stages],
    )


def table(hp: dict[str, PyTree], members: int) -> dict[str, PyTree]:
    """The same hyperparameters for each of P members: leaves [P, ...], numbers as float32."""

    def rows(x: Any) -> Array:
        x = jnp.asarray(x, jnp.float32 if isinstance(x, float | int) else None)
        return jnp.broadcast_to(x, (members, *x.shape))

    return jax.tree.map(rows, hp)


def train(settings: Settings) -> dict[str, Any]:
    """Runs to the end, or goes on from the last checkpoint, and returns the summary.

    A finished run is told of and left alone. What it writes is described in `jaxrl.records`.
    """
    session.start()
    options, identity = settings.options, settings.identity()
    name = records.default_name(settings.agent, options.env, identity)
    path = options.out or Path("runs") / name
    if (path / "summary.json").is_file() and not options.overwrite:
        # Told at once: making the environment may take seconds.
        run = _open(path, identity)
        if run.finished:
            summary = run.summary() or {}
            print(f"{shorten(run.path)} is finished: {result(summary)}; --overwrite starts again")
            return summary
    ready = plan(settings)
    size = state_bytes(ready)
    context = {
        "versions": records.versions(),
        "device": describe_device(),
        "git": records.git_hash(),
        "command": sys.argv,
        "width": ready.layout.width,
    }
    run = _open(path, identity, context, options.overwrite)
    # A continued run keeps the tile width it began with, since another one changes the bits.
    width = options.width or run.config()["context"]["width"]
    ready = ready._replace(layout=population.Layout(ready.layout.mesh, width))
    display = Display(ready.total_steps * ready.members)
    for line in describe(ready, size, run.path):
        display.say(line)
    with Checkpoints(run.checkpoints, options.keep, say=display.say) as checkpoints:
        wall_s, compile_s = _run(ready, run, checkpoints, display)
        checkpoints.wait()
    summary = records.plain(_summary(ready, run, wall_s, compile_s))  # as it is read back
    draw_run(run)
    run.write_summary(summary)
    display.say(f"{result(summary)}\n{speed(summary)}; {shorten(run.path)}")
    return summary


def _open(path: Path, *args: Any) -> records.RunDir:
    try:
        return records.open_run(path, *args)
    except OSError as error:  # a file in its place, no permission
        raise UserError(f"{path} cannot be the folder of a run: {error.strerror}") from error


def _run(
    ready: Plan, run: records.RunDir, checkpoints: Checkpoints, display: Display
) -> tuple[float, float]:
    """Trains to the end from wherever the run is; returns wall and compile seconds, all told."""
    options, start = ready.settings.options, time.perf_counter()
    found = checkpoints.restore(
        lambda meta: abstract_state(ready.program, ready.hp, {}, meta["stage"])
    )
    spent, resume = {"wall_s": 0.0, "compile_s": 0.0}, None
    if found is not None:
        spent = found.meta
        resume = found.tree._replace(stage=found.meta["stage"], step=found.meta["step"])
        display.begin_at(ready.env_steps(resume.stage, resume.step) * ready.members)
        display.say(f"continuing from update {resume.step} of stage {resume.stage + 1}")
    writer = (
        TensorBoard(run.tensorboard, display.done // ready.members) if options.tensorboard else None
    )
    saved = time.perf_counter()

    def times() -> dict[str, float]:
        wall = time.perf_counter() - start
        compile_s = spent["compile_s"] + display.compile_s
        return {"wall_s": spent["wall_s"] + wall, "compile_s": compile_s}

    def due(stage: int, step: int, last: bool) -> bool:
        return last or time.perf_counter() - saved >= options.checkpoint_seconds

    with display, writer or contextlib.nullcontext():
        for report in drive(
            ready.program,
            ready.layout,
            ready.key,
            ready.hp,
            {},
            ids=ready.seeds,
            resume=resume,
            snapshot=due,
            compiling=display.compiling,
            compiled=lambda program: display.compiled(program.what, program.seconds),
        ):
            stage = [s.name for s in ready.program.stages].index(report.stage)
            steps = ready.env_steps(stage, report.step)
            columns = metrics_of(report)
            index = {"stage": report.stage, "member": np.arange(ready.members)}
            index |= {"update": report.step, "env_steps": steps}
            run.write_part(f"{stage:02d}-{report.step:010d}", index | columns)
            if writer is not None:
                writer.write(steps, columns)
            if report.snapshot is not None:
                order = sum(s.updates for s in ready.program.stages[:stage]) + report.step
                meta = {"stage": stage, "step": report.step, **times()}
                checkpoints.save(order, report.snapshot, meta)
                saved = time.perf_counter()
            display.advance(steps * ready.members, shown(columns))
    return times()["wall_s"], times()["compile_s"]


def metrics_of(report: Report) -> dict[str, np.ndarray]:
    """One column [P] per metric; evaluations add the mean return and length of their episodes."""
    columns = dict(report.metrics)
    if report.evals is not None:
        # A network of NaN still acts, somehow; that is no result.
        sound = columns["finite"] == 1
        columns["return"] = np.where(sound, report.evals.returns.mean(1), np.nan)
        columns["length"] = np.where(sound, report.evals.lengths.mean(1), np.nan)
    return columns


def shown(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """What the progress line shows: the return over members that have one."""
    for name in ("return", "episode_return"):
        values = columns.get(name, np.array([]))
        values = values[np.isfinite(values)]
        if values.size:
            return {"return": stats.iqm(values)}
    return {}


def _summary(ready: Plan, run: records.RunDir, wall_s: float, compile_s: float) -> dict[str, Any]:
    """The run's results, from its metrics; writes members.csv on the way."""
    settings, stages, count = ready.settings, ready.program.stages, ready.members
    history = records.read_metrics(run, stages[-1].name)
    by_chunk = {k: v.reshape(-1, count) for k, v in history.items() if k != "stage"}  # [C, P]
    failed = by_chunk["finite"][-1] < 1
    returns = by_chunk["return"]
    final = returns[-1]
    best = np.max(np.where(np.isfinite(returns), returns, -np.inf), 0)
    run.write_members(
        {
            "id": np.arange(count),
            "seed": ready.seeds,
            "final_return": final,
            "best_return": np.where(np.isfinite(best), best, np.nan),
            "failed": failed,
        }
    )
    outcome = stats.summarise(final)
    outcome = {k: outcome[k] for k in ("iqm", "ci95", "mean", "std", "min", "max")}
    env_steps = ready.total_steps * count
    return {
        "finished": True,
        "agent": settings.agent,
        "env": settings.options.env,
        "members": count,
        "updates": sum(stage.updates for stage in stages),
        "env_steps": env_steps,
        "wall_s": wall_s,
        "compile_s": compile_s,
        "steps_per_s": env_steps / (wall_s - compile_s),
        "return": outcome | {"episodes": settings.options.eval_episodes},
        "failed_members": np.flatnonzero(failed),
        "versions": records.versions(),
        "device": describe_device(),
    }


def state_bytes(ready: Plan) -> int:
    """Size of one member's state. Tracing it also shows what cannot even start."""
    state = abstract_state(ready.program, ready.hp, {}, 0).member
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if hasattr(x, "size"))
    return size // ready.members


def describe(ready: Plan, member_bytes: int, path: Path) -> list[str]:
    """What is about to run."""
    settings, layout = ready.settings, ready.layout
    updates = sum(stage.updates for stage in ready.program.stages)
    steps = compact(ready.total_steps * ready.members)
    return [
        f"{settings.agent} on {settings.options.env}: {several(ready.members, 'member')} x "
        f"{several(updates, 'update')} = {steps} environment steps",
        f"{several(layout.devices, f'{describe_device()} device')}, tiles of "
        f"{several(layout.width, 'member')}, {member_bytes / 1024:.0f} KiB of state a member; "
        f"{shorten(path)}",
    ]


def result(summary: dict[str, Any]) -> str:
    """The result in one line."""
    found, failed = summary["return"], list(summary["failed_members"])
    low, high = found["ci95"]
    line = (
        f"return {found['iqm']:.4g} (IQM, 95 % interval {low:.4g} to {high:.4g}; "
        f"lowest member {found['min']:.4g})"
        if found["iqm"] is not None
        else "no return"
    )
    some = ", ".join(map(str, failed[:8])) + (", ..." if len(failed) > 8 else "")
    names = f"; {len(failed)} failed: {some}" if failed else ""
    return f"{line}, {several(summary['members'], 'member')}{names}"


def speed(summary: dict[str, Any]) -> str:
    wall, compiling = clock(summary["wall_s"]), clock(summary["compile_s"])
    return f"{rate(summary['steps_per_s'])} steps/s, {wall} of which {compiling} compiling"


def several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def describe_device() -> str:
    return jax.devices()[0].device_kind


def shorten(path: Path) -> Path:
    """A path as a person would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
