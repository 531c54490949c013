"""Training: from settings to a finished run directory, continuing where a killed run stopped."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import memory, records, stats
from jaxrl.errors import UserError
from jaxrl.experiments import running, session
from jaxrl.experiments.options import Settings
from jaxrl.experiments.planning import Plan, place, plan, state_bytes, swept_values
from jaxrl.experiments.progress import Display, clock, rate, size
from jaxrl.experiments.report import draw_run
from jaxrl.hosts import Hosts
from jaxrl.hosts import start as join
from jaxrl.plots import compact


def train(settings: Settings) -> dict[str, Any]:
    """Runs to the end, or goes on from the last checkpoint, and returns the summary.

    A finished run is told of and left alone. What it writes is described in `jaxrl.records`. All
    processes of a cluster call it; the leader prints and writes what concerns the whole run.
    """
    session.start()
    options, identity = settings.options, settings.identity()
    hosts = join(options.coordinator, options.processes, options.process_id, options.heartbeat)
    name = records.default_name(settings.agent, options.env, identity)
    path = options.out or Path("runs") / name
    if not options.overwrite and hosts.agree(int((path / "summary.json").is_file())):
        # Told at once: making the environment may take seconds.
        run = _open(hosts, path, identity)
        if run.finished:
            summary = run.summary() or {}
            if hosts.leads:
                print(f"{shorten(path)} is finished: {result(summary)}; --overwrite starts again")
            return summary
    ready = plan(settings, hosts)
    member_bytes = state_bytes(ready)
    first, last = ready.ranges[hosts.index]
    free = memory.available(ready.layout.mesh.devices.flat[0])
    memory.check(member_bytes, last - first, ready.layout, free)
    context = {
        "versions": records.versions(),
        "device": describe_device(),
        "git": records.git_hash(),
        "command": sys.argv,
        "width": ready.layout.width,
        **({"data": options.data.resolve()} if options.data else {}),
    }
    run = _open(hosts, path, identity, context, options.overwrite)
    # A continued run keeps the tile width it began with, since another one changes the bits.
    width = options.width or run.config()["context"]["width"]
    layout, ranges = place(ready.members, width, options.devices, hosts)
    ready = ready._replace(layout=layout, ranges=ranges)
    display = Display(ready.total_steps * ready.members, silent=not hosts.leads, unit=ready.unit)
    for line in describe(ready, member_bytes, path):
        display.say(line)
    with run.lock() if hosts.leads else contextlib.nullcontext():
        times = running.run(ready, run, hosts, display)
        if hosts.leads:
            summary = records.plain(_summary(ready, run, **times))  # as it is read back
            draw_run(run)
            run.write_summary(summary)
            display.say(f"{result(summary)}\n{speed(summary, ready.unit)}; {shorten(path)}")
    hosts.all(True)  # until the leader has written
    return run.summary() or {}


def _open(hosts: Hosts, path: Path, *args: Any) -> records.RunDir:
    """The leader opens the folder, or all fail alike."""
    run, error = records.RunDir(path.resolve()), ""
    if hosts.leads:
        try:
            run = records.open_run(path, *args)
        except OSError as problem:  # a file in its place, no permission
            error = f"{path} cannot be the folder of a run: {problem.strerror}"
        except UserError as problem:
            error = str(problem)
    if error := hosts.say(error):
        raise UserError(error)
    return run if hosts.leads else run.as_found()


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
            **swept_values(settings),
            "seed": ready.seeds,
            "final_return": final,
            "best_return": np.where(np.isfinite(best), best, np.nan),
            "failed": failed,
        }
    )
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
        "return": outcome(final) | {"episodes": settings.options.eval_episodes},
        "failed_members": np.flatnonzero(failed),
        **({"points": by_point(ready, final, failed)} if settings.swept else {}),
        "versions": records.versions(),
        "device": describe_device(),
    }


def outcome(scores: np.ndarray) -> dict[str, Any]:
    """What members with these returns [P] came to."""
    found = stats.summarise(scores)
    return {name: found[name] for name in ("iqm", "ci95", "mean", "std", "min", "max")}


def by_point(ready: Plan, final: np.ndarray, failed: np.ndarray) -> list[dict[str, Any]]:
    """The results of each point, from those [P] of its members."""
    groups = np.split(np.arange(ready.members), len(ready.settings.points))
    return [
        {"values": values, "return": outcome(final[rows]), "failed": failed[rows].sum()}
        for values, rows in zip(ready.settings.points, groups, strict=True)
    ]


def describe(ready: Plan, member_bytes: int, path: Path) -> list[str]:
    """What is about to run."""
    settings, layout = ready.settings, ready.layout
    updates = sum(stage.updates for stage in ready.program.stages)
    steps = compact(ready.total_steps * ready.members)
    told = f" = {steps} environment steps" if ready.unit == "steps" else ""
    points = f" ({len(settings.points)} points x {several(settings.options.seeds, 'seed')})"
    return [
        f"{settings.agent} on {settings.options.env}: {several(ready.members, 'member')}"
        f"{points if settings.swept else ''} x "
        f"{several(updates, 'update')}{told}",
        f"{several(layout.devices, f'{describe_device()} device')}, tiles of "
        f"{several(layout.width, 'member')}, {size(member_bytes)} of state a member; "
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


def speed(summary: dict[str, Any], unit: str) -> str:
    wall, compiling = clock(summary["wall_s"]), clock(summary["compile_s"])
    return f"{rate(summary['steps_per_s'])} {unit}/s, {wall} of which {compiling} compiling"


def several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def describe_device() -> str:
    return jax.devices()[0].device_kind


def shorten(path: Path) -> Path:
    """A path as a person would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
