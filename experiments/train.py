"""Training: from settings to a finished run directory, continuing where a killed run stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jaxrl.envs import draw
from jaxrl.experiments import compare_bases, tracking, train_loop, trust
from jaxrl.experiments.console import device_kind, plural, print_line, short_path, size
from jaxrl.experiments.options import PlanOptions
from jaxrl.experiments.plan import Plan, place
from jaxrl.experiments.progress import Display
from jaxrl.experiments.report import draw_run
from jaxrl.experiments.requests import Request, from_call
from jaxrl.experiments.restore import digests_of, prepare, settle
from jaxrl.experiments.run_folders import check_processes, open_together, width_of
from jaxrl.experiments.settings import Settings, identity
from jaxrl.experiments.sizes import abstract_states, batch_bytes, state_bytes
from jaxrl.experiments.summary import context, result, speed, summarise
from jaxrl.experiments.tables import print_words
from jaxrl.experiments.values import take
from jaxrl.runs import device_memory, files, records, shards
from jaxrl.runs.figures import compact
from jaxrl.runs.processes import Processes, join

_NEXT = {
    "report": "table and learning curves",
    "eval": "fresh episodes",
    "render": "an episode as a GIF",
    "export": "a policy without jaxrl",
}
ON_HOST = "a resumed run starts new episodes there, so its bits differ from those of a whole run"


def run(agent: Any, /, *, env: str, **options: Any) -> dict[str, Any]:
    """Python interface of `jaxrl train`. Every option of the command line is a keyword.

        run("pqn", env="CartPole-v1", seeds=8, agent={"lr": 3e-4}, out="runs/x")

    Args:
      agent: its name, its module, or its `Algorithm` record.
      env: the environment's name.
      options: `agent` is a mapping of agent settings, `env_options` a mapping of environment
        settings. `dry_run=True` only prints the plan.

    Returns:
      The contents of summary.json; {} for a dry run.

    Raises:
      UserError: invalid request; raised before anything is compiled or written.
    """
    return requested(from_call(agent, {"env": env, **options}))


def requested(request: Request, *, hint: bool = False) -> dict[str, Any]:
    """Trains as `train` does, or prints the plan of a dry run and returns {}."""
    how, rest = take(PlanOptions, request.options)
    settings = settle(request.agent, rest)
    if not how.dry_run:
        return train(settings, hint=hint)
    ready = prepare(settings)
    member_bytes = state_bytes(ready, abstract_states(ready))
    own = identity(settings, digests_of(settings.options))
    for line in describe(ready, member_bytes, _folder(settings, own)):
        print_words(line)
    return {}


def _folder(settings: Settings, own: dict[str, Any]) -> Path:
    """The folder of a run with the identity `own`."""
    name = records.default_name(settings.agent, settings.options.env, own)
    return settings.options.out or Path("runs") / name


def train(settings: Settings, *, hint: bool = False) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint if there is one, and returns the summary.

    A finished run is reported and not repeated. `jaxrl.runs.records` describes the files. All
    processes of a cluster call this function; the leader prints, and writes the results.

    Args:
      hint: print at the end which commands show the run.
    """
    options, own = settings.options, identity(settings, digests_of(settings.options))
    processes = join(options.coordinator, options.processes, options.process_id, options.heartbeat)
    path = _folder(settings, own)
    check_processes(processes, "run", path, options.overwrite, own)
    # A finished run is reported before the environment is made, which may take seconds.
    if not options.overwrite and (summary := _finished(processes, path, own)):
        return summary
    ready = prepare(settings, processes)
    states = abstract_states(ready)
    member_bytes = state_bytes(ready, states)
    first, last = ready.ranges[processes.index]
    free = device_memory.available(ready.layout.mesh.devices.flat[0])
    device_memory.check(member_bytes, last - first, ready.layout, free)
    device_memory.check_temporary("a batch", batch_bytes(ready, states), ready.layout)
    with contextlib.ExitStack() as stack:
        opened = records.open_run(path, own, context(ready), options.overwrite)
        run = open_together(processes, path, "run", lambda: stack.enter_context(opened))
        run = run or records.RunDir(path.resolve()).as_found()
        summary = _train(placed(ready, processes, width_of(run)), run, processes, member_bytes)
    if hint and processes.leads:
        for line in next_commands(short_path(path), ready):
            print_line(line)
    return summary


def next_commands(path: Path, ready: Plan) -> list[str]:
    """Lines with the commands that show a finished run; names of own code need `--trust`."""
    listed = trust.are_listed(ready.settings.agent, ready.settings.options.env)
    needs = {} if listed else {"eval": " --trust", "export": " --trust"}
    drawn = ready.env.render or ready.env.host or draw.is_drawn(ready.env.spec.name)
    shown = {name: what for name, what in _NEXT.items() if drawn or name != "render"}
    lines = [f"  jaxrl {command:6} {path}{needs.get(command, '')}" for command in shown]
    width = max(map(len, lines)) + 3
    return ["next:", *(f"{x:{width}}{y}" for x, y in zip(lines, shown.values(), strict=True))]


def _finished(processes: Processes, path: Path, own: dict[str, Any]) -> dict[str, Any] | None:
    """Reports a run that is finished and has all of its results; None for any other run."""
    run = open_together(processes, path, "run", lambda: records.find_run(path, own))
    summary = run and run.finished and run.summary()
    complete = bool(run and summary and run.has_members(summary["members"]))
    if not processes.broadcast_int(int(complete)):
        return None
    summary = records.RunDir(path.resolve()).summary() or {}
    if processes.leads:
        kept = shards.indices(path / "checkpoints") or "failure" in summary
        lost = "" if kept else "; its checkpoints are missing"
        print_line(
            f"{short_path(path)} is finished: {result(summary)}{lost}; --overwrite starts again"
        )
    return summary


def placed(ready: Plan, processes: Processes, width: int) -> Plan:
    """The plan with the tile width of the run as it was started: another one changes the bits."""
    options = ready.settings.options
    layout, ranges = place(ready.members, options.width or width, options, processes)
    processes.check_same({"width": layout.width, "members of each process": ranges})
    return ready._replace(layout=layout, ranges=ranges)


def _train(
    ready: Plan, run: records.RunDir, processes: Processes, member_bytes: int
) -> dict[str, Any]:
    """Trains and writes the results; of a finished run, only missing results are written."""
    display = Display(ready.total * ready.members, silent=not processes.leads, unit=ready.unit)
    for line in describe(ready, member_bytes, run.path):
        display.say(line)
    before = run.summary(display.say if processes.leads else None) if run.resumed else None
    before = before if run.finished else None
    target = tracking.target(ready.settings.options, processes.leads and before is None)
    with tracking.live(run, target) as tracked:
        if before is not None:
            times = {name: before[name] for name in ("wall_s", "compile_s")}
        else:
            times = train_loop.run(ready, run, processes, display, written=tracked.update)
        if processes.leads:
            _write_results(ready, run, display, times, before)
    processes.all_true(True)  # waits until the leader has written
    return run.summary() or {}


def _write_results(
    ready: Plan,
    run: records.RunDir,
    display: Display,
    times: dict[str, float],
    before: dict[str, Any] | None,
) -> None:
    """Writes and prints the results of a run; `before` is the summary of a finished one."""
    summary = files.plain(summarise(ready, run, say=display.say, **times))  # as in the file
    summary = before or summary  # only members.csv was missing
    draw_run(run)
    run.write_summary(summary)
    told = compare_bases.table(summary["bases"]) if "bases" in summary else result(summary)
    display.say(f"{told}\n{speed(summary, ready.unit)}; {short_path(run.path)}")


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
        f"{plural(layout.mesh.size, f'{device_kind()} device')}, tiles of "
        f"{plural(layout.width, 'member')}, {size(member_bytes)} of state a member; "
        f"{short_path(path)}",
        *rounding(ready),
        *([f"environments run on the host; {ON_HOST}"] if ready.on_host else []),
    ]


def rounding(ready: Plan) -> list[str]:
    """A line if a run has fewer environment steps than requested, since rollouts are whole."""
    cfg = ready.settings.cfg
    asked, made = getattr(cfg, "total_steps", None), ready.env_steps(*ready.end)
    if asked is None or made == asked:
        return []
    one = max(ready.steps)  # of the stage that acts; others have no steps
    return [f"total_steps {asked:,} is rounded down to {made:,}, whole rollouts of {one:,} steps"]
