"""Sweeps: all combinations of swept values, each with every seed, in as few programs as possible.

Traced values (an agent's `Hypers`, parameters of the environment) are members of one program. Each
combination of static values (an agent's `Config`, other options of the environment, the environment
itself) is a separate program: an ordinary run in a subfolder of the sweep, which `jaxrl eval`,
`report` and `render` read like any other.

    sweep.json               swept values and folders of the programs; written first
    000-num_steps=32/  ...   the runs, see `jaxrl.runs.records`
    summary.json             results of all points, when every run is complete
    plots/                   learning curves, and the return against each swept value

Members of equal seeds draw the same random numbers at all points (common random numbers).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxrl.errors import UserError
from jaxrl.experiments import report, train
from jaxrl.experiments.console import (
    device_kind,
    interval,
    label,
    plural,
    print_line,
    short_path,
    shown,
    size,
)
from jaxrl.experiments.options import PlanOptions
from jaxrl.experiments.requests import Request, from_call
from jaxrl.experiments.restore import settle
from jaxrl.experiments.run_folders import (
    check_processes,
    check_record,
    open_record,
    open_together,
    read_sweep,
)
from jaxrl.experiments.sizes import abstract_states, state_bytes
from jaxrl.experiments.sweep_plan import Program, full_names, programs
from jaxrl.experiments.values import take
from jaxrl.runs import files, folders, records
from jaxrl.runs.figures import compact
from jaxrl.runs.processes import ALONE, Processes, join


def sweep(agent: Any, /, *, sweep: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Python interface of `jaxrl sweep`. Every option of the command line is a keyword.

        sweep("pqn", env="CartPole-v1", seeds=8, agent={"hidden": (64, 64)}, out="runs/x",
              sweep={"agent.lr": "log:1e-5:1e-2:4", "agent.num_steps": [32, 64]})

    Args:
      agent: its name, its module, or its `Algorithm` record.
      sweep: dotted name -> values, or a text as on the command line.
      given: options; `agent` and `env_options` are mappings. `dry_run=True` only prints the plan.

    Returns:
      The contents of summary.json; {} for a dry run.
    """
    return run(from_call(agent, given | {"sweep": sweep}))


def run(request: Request) -> dict[str, Any]:
    """Trains every incomplete program, writes the report and returns the summary.

    Raises:
      UserError: invalid request; raised before anything is compiled or written.
    """
    how, rest = take(PlanOptions, request.options)
    request = full_names(request._replace(options=rest))
    processes = _join(request)
    found = programs(request, processes)
    own = found[0].plan.settings.options
    config = _config(request, found)
    tasks = "+".join(dict.fromkeys(p.plan.settings.options.env for p in found))
    path = own.out or Path("runs") / records.default_name(f"sweep-{request.agent}", tasks, config)
    if how.dry_run:
        show(found, path, processes)
        return {}
    check_processes(processes, "sweep", path, own.overwrite, config)
    if not own.overwrite and (done := _finished(processes, path, config)):
        return done
    with contextlib.ExitStack() as stack:
        make = lambda: stack.enter_context(_open(path, config, own.overwrite))
        open_together(processes, path, "sweep", make)
        show(found, path, processes)
        return _train(found, path, processes)


def _train(found: Sequence[Program], path: Path, processes: Processes) -> dict[str, Any]:
    """Trains every program that is not complete yet, and reports on all; returns the summary."""
    for index, program in enumerate(found):
        told = f": {label(program.static)}" if program.static else ""
        if processes.leads:
            print_line(f"\nprogram {index + 1} of {len(found)}{told}")
        settings = program.plan.settings
        its = dataclasses.replace(settings.options, out=path / program.folder, overwrite=False)
        train.train(dataclasses.replace(settings, options=its))
    summary = files.plain(_summary(found, path))
    if processes.leads:
        print()
        report.report([path])
        files.write_json(path / "summary.json", summary)
        print_line("\n".join(told_best(summary)))
    processes.all_true(True)  # waits until the leader has written
    return summary


def _join(request: Request) -> Processes:
    """Joins the other processes of a cluster, before the first computation."""
    envs = request.sweep.get("env")
    own = settle(request.agent, request.options | ({"env": envs[0]} if envs else {})).options
    return join(own.coordinator, own.processes, own.process_id, own.heartbeat)


# --- the plan ------------------------------------------------------------------------------------


def show(found: Sequence[Program], path: Path, processes: Processes = ALONE) -> None:
    """Prints the plan of the sweep."""
    if not processes.leads:
        return
    plans = [program.plan for program in found]
    members = sum(plan.members for plan in plans)
    unit = plans[0].unit
    steps = compact(sum(plan.total * plan.members for plan in plans))
    counted = "environment steps" if unit == "steps" else "updates"
    tasks = ", ".join(dict.fromkeys(plan.settings.options.env for plan in plans))
    print_line(
        f"{plans[0].settings.agent} on {tasks}: {plural(members, 'member')} in "
        f"{plural(len(found), 'program')} = {steps} {counted}; {short_path(path)}"
    )
    every = [point for plan in plans for point in plan.settings.points]
    for name in dict.fromkeys(name for point in every for name in point):
        values = dict.fromkeys(point[name] for point in every if name in point)
        print_line(f"members of one program: {name} = {', '.join(map(shown, values))}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    numbers = ("members", "updates", "state per member", "total", "tile width", "devices")
    static = dict.fromkeys(name for program in found for name in program.static)
    for name in ("program", *static):
        table.add_column(name)
    for name in (*numbers, *(["steps"] if unit == "steps" else [])):
        table.add_column(name, justify="right")
    for program in found:
        plan, each = program.plan, state_bytes(program.plan, abstract_states(program.plan))
        table.add_row(
            program.folder.partition("-")[0],
            *(shown(program.static.get(name, "-")) for name in static),
            f"{plan.members:,}",
            f"{sum(stage.updates for stage in plan.program.stages):,}",
            size(each),
            size(each * plan.members),
            str(plan.layout.width),
            f"{plan.layout.mesh.size} {device_kind()}",
            *([compact(plan.total * plan.members)] if unit == "steps" else []),
        )
    print_line(table)


# --- its folder ----------------------------------------------------------------------------------


def _config(request: Request, found: Sequence[Program]) -> dict[str, Any]:
    """Everything that determines the results of a sweep, and hence its name."""
    swept = {name: {} for name in request.sweep}
    for program in found:
        for point in program.plan.settings.points:
            for name, value in (program.static | point).items():
                swept[name][json.dumps(value)] = value  # in order, each once
    runs = [{"folder": p.folder, "values": p.static, "config": p.plan.identity} for p in found]
    swept = {name: list(values.values()) for name, values in swept.items()}
    return files.plain({"agent": request.agent, "sweep": swept, "programs": runs})


_RESULTS = ("members", "best", "points")  # entries of summary.json that are read again


def _finished(processes: Processes, path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Reports a sweep that is finished; None for any other folder. Writes nothing."""

    def read() -> dict[str, Any] | None:
        file = path / "sweep.json"
        if not file.is_file():
            return None
        check_record(file, "sweep", folders.read_json(file), config)
        return records.read_summary(path / "summary.json", _RESULTS, print)

    done = open_together(processes, path, "sweep", read)
    if done is not None:
        print_line(f"{path} is finished: {'; '.join(told_best(done))}; --overwrite starts again")
    return json.loads(processes.broadcast(json.dumps(done)))


@contextlib.contextmanager
def _open(path: Path, config: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Context in which this process is the only writer of a sweep and, while files are removed, of
    all its runs."""
    clear = (lambda: _clear(path)) if overwrite else None
    with open_record(path / "sweep.json", "sweep", config, {}, clear):
        yield


def _clear(path: Path) -> None:
    """Removes what an earlier sweep wrote, unless one of its runs is being trained."""
    try:
        names = [program["folder"] for program in read_sweep(path)["programs"]]
    except UserError:  # damaged, or of another version
        names = [x.parent.name for x in path.glob("[0-9][0-9][0-9]*/config.json")]
    runs = [path / name for name in names if (path / name).is_dir()]
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(folders.lock(run))
        (path / "summary.json").unlink(missing_ok=True)
        files.sync_folder(path)
        for run in runs:
            shutil.rmtree(run)
    files.sync_folder(path)


def _summary(found: Sequence[Program], path: Path) -> dict[str, Any]:
    runs = [records.RunDir(path / program.folder).summary() or {} for program in found]
    total = lambda name: sum(run[name] for run in runs)
    points = []
    for program, run in zip(found, runs, strict=True):
        for point in records.points_of(run):
            values = program.static | point["values"]
            points.append({"program": program.folder, "env": run["env"], **point, "values": values})
    best = {}
    for point in points:
        iqm, env = point["return"]["iqm"], point["env"]
        if iqm is not None and (env not in best or iqm > best[env]["return"]["iqm"]):
            best[env] = point
    return {
        "finished": True,
        "agent": runs[0]["agent"],
        "members": total("members"),
        "programs": len(runs),
        "env_steps": total("env_steps"),
        "wall_s": total("wall_s"),
        "compile_s": total("compile_s"),
        "steps_per_s": total("env_steps") / (total("wall_s") - total("compile_s")),
        "failed": sum(point["failed"] for point in points),
        "best": best,  # in each environment
        "points": points,
    }


def told_best(summary: Mapping[str, Any]) -> list[str]:
    """One line per environment: its best point."""
    lines = []
    for env, point in summary["best"].items():
        found = point["return"]
        lines.append(
            f"best on {env}: {label(point['values'])}: return {found['iqm']:.4g} "
            f"(IQM, {interval(found)})"
        )
    return lines or ["no point has a return"]
