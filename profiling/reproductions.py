"""Expected CPU time of the full settings of `jaxrl reproduce`, from short pieces of their runs.

    python profiling/reproductions.py [--names NAME ...] [--small] [--quick] [--json FILE]
    python profiling/reproductions.py --table FILE

A run is planned as its command plans it. Each of its stages is compiled and makes a few updates in
the middle of the stage and one evaluation, with the members of one tile. The expected time is that
of compilation, plus the numbers of updates and evaluations times their times. Evaluations count as
if an episode of each member lasted to the time limit. Studies are run in short forms, see
`studies_short`. Datasets of brax and DMSD have random actions here, which does not change the time;
the time of collecting them includes the training of their policy.

`--small` expects the small settings instead, to compare with the measured times; only those without
studies. Results are merged into the JSON file, whose rates are not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from short_runs import Rates, counts_of, rates_of
from studies_short import STUDIES

from jaxrl import envs
from jaxrl.envs import datasets
from jaxrl.experiments import jax_setup, reproduce, train
from jaxrl.experiments.commands import MakeOptions
from jaxrl.experiments.data import collect
from jaxrl.experiments.plan import Plan
from jaxrl.experiments.reproductions import REPRODUCTIONS, Reproduction
from jaxrl.experiments.reproductions.record import DMSD
from jaxrl.experiments.requests import read, tokenise
from jaxrl.experiments.restore import prepare, settle
from jaxrl.experiments.sweep_plan import full_names, programs
from jaxrl.experiments.values import fields_of, take
from jaxrl.program import Stage
from jaxrl.runs import files, provenance

# Options that change the rates little or not at all; all guided variants of PGD are alike.
ALIKE = ("--out", "--data", "--base", "--level", "--eval-episodes", "--agent.total-steps")
GUIDED = ("--agent.synthetic guided", "--agent.rewards given", "--agent.rare-share 0.25")
SCRIPTED = ("maze:", "reach:")  # datasets of controllers, which are collected in seconds
BRIEF = {"agent.updates": 2, "evals": 1, "eval_episodes": 1}  # of base runs


class Stopwatch:
    """Times of commands, each kind measured once; files are written to the current folder."""

    def __init__(self, seconds: float, rates: dict[str, list[list[Rates]]] | None = None) -> None:
        self.seconds = seconds  # of the timed updates of a stage
        self.rates = {} if rates is None else rates
        self.ran: dict[str, float] = {}
        self.collected: dict[tuple[str, int], tuple[Path, float]] = {}
        self.start = 0.0

    def setting(self, each: Reproduction, full: bool) -> list[dict[str, Any]]:
        """The expected CPU seconds of each command, or of all studies together."""
        commands = each.full if full else each.small
        if full and each.full == each.small:
            return [{"command": "as the small setting", "seconds": 60 * (each.minutes or 0.0)}]
        studies = [line for line in commands if line.startswith("python ")]
        if studies and not full:
            raise SystemExit(f"{each.name}: --small is for settings without studies")
        rows = [self.command(line, commands) for line in commands if line not in studies]
        if studies:
            self.collect("dmsd", Path(DMSD))
            parts = [
                short._asdict() | {"seconds": self.short(short.command)}
                for short in STUDIES[each.name]
            ]
            spent = sum(part["weight"] * part["seconds"] for part in parts)
            rows.append({"command": f"{len(studies)} studies", "seconds": spent, "parts": parts})
        return rows

    def short(self, line: str) -> float:
        """CPU seconds of a short form; those of a command of jaxrl are expected, too."""
        return self.command(line, ())["seconds"] if line.startswith("jaxrl ") else self.run(line)

    def command(self, line: str, commands: Sequence[str]) -> dict[str, Any]:
        """The expected time of a command of jaxrl, with the counts and rates of its stages."""
        verb, *words = shlex.split(line)[1:]
        own, data = 0.0, option(words, "--data")
        if verb == "data":
            if words[1].startswith(SCRIPTED):
                return {"command": line, "seconds": self.run(line)}
            own = self.collect(
                words[1], Path(option(words, "--out")), int(option(words, "--steps"))
            )
        elif data == DMSD:
            self.collect("dmsd", Path(DMSD))
        for other in commands:
            out = option(shlex.split(other), "--out")
            if f"--base {out} " in f"{line} ":
                brief(other, Path(out))
        plans = plans_of(line)
        kind = kind_of(line)
        if kind not in self.rates:
            self.rates[kind] = [rates_of(plan, self.seconds) for plan in plans]
        stages = [
            {"program": i, **described(stage, rates)}
            for i, (plan, found) in enumerate(zip(plans, self.rates[kind], strict=True))
            for stage, rates in zip(plan.program.stages, found, strict=True)
        ]
        spent = self.start + own + sum(stage["seconds"] for stage in stages)
        return {"command": line, "seconds": spent, "members": plans[0].members, "stages": stages}

    def collect(self, env: str, path: Path, rows: int = 100_000) -> float:
        """Makes a dataset of random actions if it does not exist; its CPU seconds."""
        if (env, rows) not in self.collected:
            begin, made = time.process_time(), envs.make(env)
            t = collect.collect(collect.at_random(made), jax.random.key(0), rows)
            about = {"env": env, "reference": {"random": 0.0, "expert": 1.0}}
            about |= datasets.action_bounds(made.spec)
            path.parent.mkdir(exist_ok=True)
            datasets.save(path, datasets.Dataset(t, about))
            self.collected[env, rows] = path, time.process_time() - begin
        source, seconds = self.collected[env, rows]
        if not path.exists():
            shutil.copy(source, path)
        return seconds

    def run(self, command: str) -> float:
        """CPU seconds of a command, which is run once."""
        if command not in self.ran:
            before = os.times()
            with tempfile.TemporaryDirectory() as cache:  # as in a first run
                own = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
                words = reproduce.words(command)
                done = subprocess.run(words, capture_output=True, text=True, env=own)
            if done.returncode:
                raise SystemExit(f"{command} failed:\n{done.stderr[-2000:]}")
            after = os.times()
            user = after.children_user - before.children_user
            self.ran[command] = user + after.children_system - before.children_system
        return self.ran[command]


def described(stage: Stage, rates: Rates) -> dict[str, Any]:
    """Counts, rates and expected time of a stage."""
    counts = counts_of(stage, rates)
    row: dict[str, Any] = {"stage": stage.name, "seconds": counts.seconds(rates)}
    return row | {"counts": counts._asdict(), "cpu_seconds": rates._asdict()}


def overhead() -> float:
    """CPU seconds of a command beside its training: imports, reports, figures."""
    words = "jaxrl train pqn --env CartPole-v1 --agent.total-steps 32768 --evals 1 --out runs/start"
    watch = Stopwatch(0)
    spent = watch.run(words)
    return spent - json.loads(Path("runs/start/summary.json").read_text())["wall_s"]


def plans_of(line: str) -> list[Plan]:
    """The plans of a command that trains, of `data make` that of the policy."""
    verb, *words = shlex.split(line)[1:]
    if verb == "data":
        (_, env), given = tokenise(words, fields_of(MakeOptions))
        own, rest = take(MakeOptions, given)
        return [prepare(collect._settings(env, own.agent, rest))]
    request = read(verb, words)
    if verb == "sweep":
        return [program.plan for program in programs(full_names(request))]
    return [prepare(settle(request.agent, request.options))]


def kind_of(line: str) -> str:
    """The words of a command without those that do not change its rates."""
    for option in ALIKE:
        line = re.sub(rf" {re.escape(option)} \S+", "", line)
    for words in GUIDED:
        line = line.replace(f" {words}", "")
    return line


def known_rates(rows: Sequence[dict[str, Any]]) -> dict[str, list[list[Rates]]]:
    """The rates of each kind of command in the rows of an earlier, interrupted measurement."""
    found: dict[str, list[list[Rates]]] = {}
    for command in [each for row in rows for each in row["commands"] if "stages" in each]:
        programs: list[list[Rates]] = []
        for stage in command["stages"]:
            programs += [[]] * (stage["program"] == len(programs))
            programs[-1] = [*programs[-1], Rates(**stage["cpu_seconds"])]
        found[kind_of(command["command"])] = programs
    return found


def option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words else ""


def brief(line: str, out: Path) -> None:
    """A base run of two updates."""
    if not (out / "summary.json").exists():
        request = read("train", shlex.split(line)[2:])
        with contextlib.redirect_stdout(io.StringIO()):
            train.train(settle(request.agent, request.options | BRIEF))


HEAD = "| name | setting | expected | small, measured | expected / measured |\n" + "|---" * 5 + "|"


def told(row: dict[str, Any]) -> str:
    """A row of the table; the ratio is that of the small setting."""
    measured = REPRODUCTIONS[row["name"]].minutes
    cells = [row["name"], row["setting"], reproduce.duration(row["minutes"])]
    cells.append(reproduce.duration(measured))
    compared = row["setting"] == "small" and measured is not None
    cells.append(f"{row['minutes'] / measured:.2f}" if compared and measured else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Expected time of full reproductions")
    parser.add_argument("--names", nargs="+", choices=REPRODUCTIONS, default=list(REPRODUCTIONS))
    parser.add_argument("--small", action="store_true", help="small settings, to compare")
    parser.add_argument("--quick", action="store_true", help="two updates of each stage")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of a file")
    args = parser.parse_args()
    if args.table:
        rows = json.loads(args.table.read_text())["rows"]
        print("\n".join([HEAD, *map(told, rows)]))
        return
    file = args.json.resolve() if args.json else None
    jax_setup.start()
    jax.config.update("jax_enable_compilation_cache", False)
    setting = "small" if args.small else "full"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        known = json.loads(file.read_text())["rows"] if file and file.exists() else []
        watch = Stopwatch(0.0 if args.quick else 1.5, known_rates(known))
        watch.start = 0.0 if args.quick else overhead()
        print(HEAD, flush=True)
        for name in args.names:
            each = REPRODUCTIONS[name]
            commands = watch.setting(each, not args.small)
            minutes = sum(row["seconds"] for row in commands) / 60
            row: dict[str, Any] = {"name": name, "setting": setting, "minutes": minutes}
            row["commands"] = commands
            print(told(row), flush=True)
            if file:
                merge(file, row)


def merge(file: Path, row: dict[str, Any]) -> None:
    """Adds a row to the JSON file, or replaces the one of the same setting."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    key = lambda row: (row["name"], row["setting"])
    rows = [each for each in rows if key(each) != key(row)] + [row]
    about = {"versions": provenance.versions(), "cores": len(os.sched_getaffinity(0))}
    about["processor"] = processor()
    files.write_json(file, about | {"rows": rows})


def processor() -> str:
    """Name of the processor, where the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
