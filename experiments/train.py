"""Training: from settings to a finished run directory, continuing where a killed run stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jaxrl.experiments import compare_bases, train_loop
from jaxrl.experiments.console import device_kind, plural, short_path, size
from jaxrl.experiments.plan import Plan, place, state_bytes
from jaxrl.experiments.progress import Display
from jaxrl.experiments.report import draw_run
from jaxrl.experiments.requests import from_call
from jaxrl.experiments.restore import digests_of, prepare, settle
from jaxrl.experiments.run_folders import open_together
from jaxrl.experiments.settings import Settings, identity
from jaxrl.experiments.summary import context, result, speed, summarise
from jaxrl.runs import device_memory, files, records
from jaxrl.runs.plots import compact
from jaxrl.runs.processes import Processes, join


def run(agent: Any, /, *, env: str, **options: Any) -> dict[str, Any]:
    """Python interface of `jaxrl train`. Every option of the command line is a keyword.

        run("pqn", env="CartPole-v1", seeds=8, agent={"lr": 3e-4}, out="runs/x")

    Args:
      agent: its name, its module, or its `Algorithm` record.
      env: the environment's name.
      options: `agent` is a mapping of agent settings, `env_options` a mapping of environment
        settings.

    Returns:
      The contents of summary.json.

    Raises:
      UserError: invalid request; raised before anything is compiled or written.
    """
    request = from_call(agent, {"env": env, **options})
    return train(settle(request.agent, request.options))


def train(settings: Settings) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint if there is one, and returns the summary.

    A finished run is reported and not repeated. `jaxrl.runs.records` describes the files. All
    processes of a cluster call this function; the leader prints, and writes the results.
    """
    options, own = settings.options, identity(settings, digests_of(settings.options))
    processes = join(options.coordinator, options.processes, options.process_id, options.heartbeat)
    name = records.default_name(settings.agent, options.env, own)
    path = options.out or Path("runs") / name
    if not options.overwrite and processes.broadcast_int(int((path / "summary.json").is_file())):
        # Reported before the environment is made, which may take seconds.
        run = _open(processes, path, own)
        if run.finished:
            summary = run.summary() or {}
            if processes.leads:
                print(
                    f"{short_path(path)} is finished: {result(summary)}; --overwrite starts again"
                )
            return summary
    ready = prepare(settings, processes)
    member_bytes = state_bytes(ready)
    first, last = ready.ranges[processes.index]
    free = device_memory.available(ready.layout.mesh.devices.flat[0])
    device_memory.check(member_bytes, last - first, ready.layout, free)
    run = _open(processes, path, own, context(ready), options.overwrite)
    # A continued run keeps its first tile width, since another width changes the bits.
    width = options.width or run.config()["context"]["width"]
    layout, ranges = place(ready.members, width, options.devices, processes)
    ready = ready._replace(layout=layout, ranges=ranges)
    display = Display(ready.total * ready.members, silent=not processes.leads, unit=ready.unit)
    for line in describe(ready, member_bytes, path):
        display.say(line)
    with run.lock() if processes.leads else contextlib.nullcontext():
        times = train_loop.run(ready, run, processes, display)
        if processes.leads:
            summary = files.plain(summarise(ready, run, **times))  # as read from the file
            draw_run(run)
            run.write_summary(summary)
            told = compare_bases.table(summary["bases"]) if "bases" in summary else result(summary)
            display.say(f"{told}\n{speed(summary, ready.unit)}; {short_path(path)}")
    processes.all_true(True)  # waits until the leader has written
    return run.summary() or {}


def _open(processes: Processes, path: Path, *args: Any) -> records.RunDir:
    """The folder of the run, created or opened by the leader; see `records.open_run`."""
    run = open_together(processes, path, "run", lambda: records.open_run(path, *args))
    return run or records.RunDir(path.resolve()).as_found()


def describe(ready: Plan, member_bytes: int, path: Path) -> list[str]:
    """Lines that describe the run."""
    settings, layout = ready.settings, ready.layout
    updates = sum(stage.updates for stage in ready.program.stages)
    steps = ready.env_steps(*ready.end) * ready.members
    told = f" = {compact(steps)} environment steps" if steps else ""
    of_each = f"{plural(len(settings.points), 'point')} x {plural(settings.options.seeds, 'seed')}"
    return [
        f"{settings.agent} on {settings.options.env}: {plural(ready.members, 'member')}"
        f"{f' ({of_each})' if settings.swept else ''} x "
        f"{plural(updates, 'update')}{told}",
        f"{plural(layout.devices, f'{device_kind()} device')}, tiles of "
        f"{plural(layout.width, 'member')}, {size(member_bytes)} of state a member; "
        f"{short_path(path)}",
        *rounding(ready),
    ]


def rounding(ready: Plan) -> list[str]:
    """A line if a run has fewer environment steps than requested, since rollouts are whole."""
    cfg = ready.settings.cfg
    asked, made = getattr(cfg, "total_steps", None), ready.env_steps(*ready.end)
    if asked is None or made == asked:
        return []
    one = made // max(1, sum(stage.updates for stage in ready.program.stages))
    return [f"total_steps {asked:,} is rounded down to {made:,}, whole rollouts of {one:,} steps"]
