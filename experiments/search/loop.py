"""Hyperparameter search: Optuna proposes a batch of trials, which is trained as one population.

    search.json      search space and options; written first
    journal.log      the Optuna study; optuna-dashboard can open it
    000-.../  ...    the slots: ordinary run folders
    confirm/         runs of the best trials with fresh seeds
    trials.csv       one row per trial
    summary.json     {"trials", "wall_s", "compiles", "best", "command", ...}
    plots/           slices, parallel coordinates

Trials of a slot have the same static values, so a batch of `programs` slots compiles at most
`programs` programs. All slots have the same number of members, so that later batches reuse the
compiled programs. The same command continues a killed search, also with more `--trials`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.experiments.console import plural, print_line
from jaxrl.experiments.requests import Request, from_call
from jaxrl.experiments.restore import settle
from jaxrl.experiments.run_folders import check_processes, open_record, open_together, width_in
from jaxrl.experiments.search import (
    command,
    confirm,
    halving,
    journal,
    pbt,
    report,
    samplers,
    slots,
    study,
)
from jaxrl.experiments.search.objective import objective
from jaxrl.experiments.search.options import PHASES, Options
from jaxrl.experiments.search.slots import Engine, Outcome
from jaxrl.experiments.search.space import Space, label, read_space
from jaxrl.experiments.search.study import Slot
from jaxrl.experiments.settings import identity
from jaxrl.experiments.sweep_plan import full_names
from jaxrl.experiments.values import take
from jaxrl.runs import files, records
from jaxrl.runs.processes import join

if TYPE_CHECKING:
    from optuna import Study

SHARE = 0.25  # fraction of the trials of a slot replaced at each exchange of PBT


def search(agent: Any, /, *, range: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Python interface of `jaxrl search`. Every option of the command line is a keyword.

        search("pqn", env="CartPole-v1", seeds=4, trials=64, out="runs/x",
               range={"agent.lr": "log:1e-5:1e-2", "agent.num_steps": [16, 32]})

    Returns:
      The contents of summary.json.
    """
    return run(from_call(agent, given | {"range": range}, "range"))


def run(request: Request) -> dict[str, Any]:
    """Trains all remaining trials, then reports; returns the summary.

    Raises:
      UserError: invalid request; raised before anything is compiled or written.
    """
    own, rest = take(Options, request.options)
    goal = objective(own)
    request = full_names(request._replace(options=rest))
    its = settle(request.agent, rest).options
    if its.eval_first:
        raise UserError("a search compares trained policies: remove --eval-first")
    if its.overwrite:
        raise UserError("a search is not overwritten: remove its folder, or pass another --out")
    processes = join(its.coordinator, its.processes, its.process_id, its.heartbeat)
    space = read_space(request, processes)
    samplers.check(own.sampler, space)
    if own.sampler == "grid":
        size = int(np.prod([len(each.choices) for each in space.ranges.values()]))
        own = dataclasses.replace(own, trials=min(own.trials, size))
    config = _config(request.agent, own, space)
    path = its.out or Path("runs") / records.default_name(
        f"search-{request.agent}", its.env, config
    )
    sizes = slots.sizes(own.trials, own.batch, len(space.programs), own.programs)
    width = slots.check(Engine(goal, processes, {}, its.width), space.programs[0], sizes[0])
    check_processes(processes, "search", path, its.overwrite, config)
    with contextlib.ExitStack() as stack:
        record = open_record(path / "search.json", "search", config, {"width": width})
        known = open_together(processes, path, "search", lambda: stack.enter_context(record))
        width = processes.broadcast_int(width_in(path / "search.json", known) if known else width)
        engine = Engine(goal, processes, {}, width)
        book = _train(own, space, engine, path, sizes)
        return _finish(own, space, engine, path, book)


# --- training ------------------------------------------------------------------------------------


def _train(
    own: Options, space: Space, engine: Engine, path: Path, sizes: tuple[int, int]
) -> Study | None:
    """Trains all remaining trials, batch by batch; returns the study, in the leader."""
    processes, book, queue = engine.processes, None, []
    together = contextlib.nullcontext
    if processes.leads:
        if damage := journal.repair(path / study.JOURNAL):
            print_line(damage)
        book, stored = study.open_study(path, own.minimise)
        together = stored.together
        queue = study.unfinished(book)
        if own.eval_budget:  # whose policies have been removed
            queue += study.without_run(book, path)
        print_line(
            f"{path}: {plural(own.trials, 'trial')} x "
            f"{plural(space.programs[0].options.seeds, 'seed')}, slots of {sizes[0]}; "
            f"{len(study.current(book))} there",
        )
    while True:
        if book is not None and not queue:
            with together():
                queue = _ask(book, space, own, sizes)
        batch = [Slot(*each) for each in json.loads(processes.broadcast(json.dumps(queue)))]
        queue = []
        if not batch:
            return book
        for slot in batch:
            clock, compiles = time.perf_counter(), engine.compiles
            if processes.leads:
                told = label(slot.static)
                print_line(
                    f"\n{slot.run}: {plural(len(slot.trials), 'trial')}{told and ', '}{told}"
                )
            outcome = _slot(own, space, engine, path, slot, sizes[0])
            if book is not None:
                spent = {
                    "wall_s": time.perf_counter() - clock,
                    "compiles": engine.compiles - compiles,
                    "env_steps": outcome.env_steps,
                }
                with together():
                    _tell(book, slot, outcome)
                    _spend(book, spent)


def _ask(book: Study, space: Space, own: Options, sizes: tuple[int, int]) -> list[Slot]:
    """The next batch of trials, in slots; [] if all trials are there."""
    (size, count), seed = sizes, space.programs[0].options.seed
    left = own.trials - len(study.current(book))
    each = [min(size, left - i * size) for i in range(count) if left > i * size]
    return study.ask(book, space, own.sampler, seed, each) if each else []


def _slot(own: Options, space: Space, engine: Engine, path: Path, slot: Slot, size: int) -> Outcome:
    settings = space.settings(slot.static, slot.points)
    size = max(size, len(slot.points))
    if own.halving:
        return halving.halve(engine, settings, path / slot.run, size, own.eta)
    if own.pbt:
        return pbt.evolve(engine, settings, path / slot.run, space.traced, SHARE)
    return slots.train(engine, settings, path / slot.run, size)


def _tell(book: Study, slot: Slot, outcome: Outcome) -> None:
    for row, number in enumerate(slot.trials):
        if slot.waiting[row]:
            final = outcome.final[row] if outcome.final is not None else None
            stopped = int(outcome.stopped[row]) or None
            study.tell(
                book, number, float(outcome.values[row]), outcome.members[row], stopped, final
            )


def _spend(book: Study, spent: Mapping[str, float]) -> None:
    """Adds to the recorded cost of the study."""
    before = book.user_attrs.get("spent", {})
    book.set_user_attr("spent", {name: before.get(name, 0) + x for name, x in spent.items()})


# --- the end -------------------------------------------------------------------------------------


def _finish(
    own: Options, space: Space, engine: Engine, path: Path, book: Study | None
) -> dict[str, Any]:
    """Confirms the best trials, selects a policy, writes summary.json and reports."""
    processes = engine.processes
    chosen = study.best(book, own.confirm) if book is not None else []
    points = json.loads(processes.broadcast(json.dumps([trial.params for trial in chosen])))
    confirmed = confirm.confirm(own, space, path, points)
    summary: dict[str, Any] = {}
    if book is not None:
        for trial, result in zip(chosen, confirmed, strict=True):
            result["trial"] = trial.number
        summary = report.summary(book) | {
            "agent": space.programs[0].agent,
            "env": space.programs[0].options.env,
            "confirmed": confirmed,
        }
        if own.eval_budget:
            summary["bandit"] = confirm.choose(own, space, book, path)
        if summary["best"] and not own.pbt:  # whose settings change during training
            summary["command"] = _command(space, summary["best"]["values"])
        summary = files.plain(summary)
        files.write_json(path / "summary.json", summary)
        report.report(path)
    processes.all_true(True)
    return json.loads((path / "summary.json").read_text(encoding="utf-8"))


def _command(space: Space, values: Mapping[str, Any]) -> str:
    static = {name: values[name] for name in space.static}
    traced = {name: values[name] for name in space.traced}
    return command.train_command(space.settings(static, [{}]), traced)


# --- the folder ----------------------------------------------------------------------------------


def _config(agent: str, own: Options, space: Space) -> dict[str, Any]:
    """All settings that determine the trials and their results; their hash names the folder."""
    how = {k: v for k, v in dataclasses.asdict(own).items() if k not in PHASES}
    its = identity(dataclasses.replace(space.programs[0], points=({},)), space.digests)
    searched = {name: each.plain() for name, each in space.ranges.items()}
    return files.plain({"agent": agent, "range": searched, "search": how, "settings": its})
