"""What the compilation of a run's programs consists of, and whether threads make it faster.

    python profiling/compile_parts.py [--runs pqn iql hopper] [--json FILE]
    python profiling/compile_parts.py --threads [--runs pqn iql] [--rounds 3] [--json FILE]

The first form prints CPU seconds of tracing, of lowering and of XLA for each program. XLA compiles
at LLVM's optimisation levels 0 and 3 and at the chosen one (`jaxrl.compiling`): what remains at
level 0 are the passes over the HLO and the generation of unoptimised code. It also attributes the
instructions of the optimised programs to what they come from. The second form compiles initialise,
advance and evaluate, lowered already, one after the other and in three threads, in turn. There is
no cache of compiled programs. Rows of FILE that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import operations
from compile_table import PROGRAMS, STARTS, random_data

from jaxrl import drive
from jaxrl.compiling import compiler_options, equations
from jaxrl.experiments import jax_setup, train
from jaxrl.population import lift
from jaxrl.runs import files, provenance

LEVEL = "xla_backend_optimization_level"
RANDOM = re.compile(r"threefry|random_bits|_uniform|_normal|randint|shuffle|permutation|fold_in")
FILES = {  # part of a file's path -> what it belongs to
    "optax/": "optimiser",
    "jaxrl/optim.py": "optimiser",
    "jaxrl/envs/": "environment",
    "gymnax/": "environment",
    "brax/": "environment",
    "jaxrl/rollout.py": "environment",
    "flax/": "networks and losses",
    "jaxrl/": "networks and losses",
}
BOOKKEEPING = ("jaxrl/population.py", "jaxrl/program.py", "jaxrl/sums.py", "jaxrl/contract.py")
SOURCES = ("random numbers", "networks and losses", "optimiser", "environment", "the rest")


class Lowered(NamedTuple):
    program: Any
    options: dict[str, Any]
    equations: int
    trace_s: float
    lower_s: float


class Ended(Exception):  # noqa: N818
    """All programs are lowered."""


def programs(name: str) -> dict[str, Lowered]:
    """Each program of a run of `compile_table.STARTS`; only `initialise` is run."""
    agent, options, own = STARTS[name]
    if agent in ("iql", "td3bc"):
        options = options | {"data": random_data(options["env"])}
    found: dict[str, Lowered] = {}
    build = drive._Run.build

    def built(run: Any, index: int, what: str, fn: Any, args: Any) -> Any:
        donate = (0,) if what == "advance" else ()
        lifted = lift(run.plan)(fn, run.program.stages[index])
        begin = time.process_time()
        traced = jax.jit(lifted, donate_argnums=donate).trace(*args)
        middle = time.process_time()
        lowered = traced.lower()
        seconds = middle - begin, time.process_time() - middle
        chosen = {LEVEL: 3} | compiler_options(traced, run.plan.platform)
        size = len(list(equations(traced.jaxpr.jaxpr)))
        found[what] = Lowered(lowered, chosen, size, *seconds)
        if len(found) == len(PROGRAMS):
            raise Ended
        return build(run, index, what, fn, args) if what == "initialise" else None

    drive._Run.build = built
    try:
        with tempfile.TemporaryDirectory() as folder:
            few = {"evals": 1, "eval_episodes": 32, "out": Path(folder) / "run"}
            train.run(agent, **options, **few, agent=own)
    except Ended:
        pass
    finally:
        drive._Run.build = build
    return found


def parts(name: str, lowered: Lowered) -> dict[str, Any]:
    """CPU seconds of the parts of a compilation, and the size of the optimised program."""
    chosen = lowered.options[LEVEL]
    xla, text = {}, ""
    for level in sorted({0, chosen, 3}):
        begin = time.process_time()
        executable = lowered.program.compile({LEVEL: level})
        xla[str(level)] = time.process_time() - begin
        if level == chosen:
            text = executable.as_text()
    found = lowered._asdict()
    del found["program"], found["options"]
    return {"program": name, "level": chosen, "xla_s": xla} | found | {"sources": sources(text)}


def sources(text: str) -> dict[str, int]:
    """Instructions of an optimised program by what they come from."""
    paths = dict(re.findall(r'^(\d+) "([^"]+)"$', _section(text, "FileNames"), re.M))
    places = dict(re.findall(r"^(\d+) \{file_name_id=(\d+)", _section(text, "FileLocations"), re.M))
    frames = dict(
        re.findall(r"^(\d+) \{file_location_id=(\d+)", _section(text, "StackFrames"), re.M)
    )
    found: Counter[str] = Counter()
    for body in operations.parse(text)[0].values():
        for each in body.values():
            if each.opcode in operations.FREE:
                continue
            name = re.search(r'op_name="([^"]*)"', each.rest)
            frame = re.search(r"stack_frame_id=(\d+)", each.rest)
            path = paths.get(places.get(frames.get(frame[1], ""), ""), "") if frame else ""
            found[source(name[1] if name else "", path)] += 1
    return {name: found[name] for name in SOURCES}


def source(name: str, path: str) -> str:
    """What an instruction of this name, made in this file, comes from."""
    if RANDOM.search(name):
        return "random numbers"
    if path.endswith(BOOKKEEPING):
        return "the rest"
    return next((what for part, what in FILES.items() if part in path), "the rest")


def _section(text: str, title: str) -> str:
    """The lines between a title and the next empty line."""
    found = re.search(rf"^{title}\n(.*?)\n\n", text, re.M | re.S)
    return found[1] if found else ""


def one_by_one(found: dict[str, Lowered]) -> None:
    for each in found.values():
        each.program.compile(each.options)


def in_threads(found: dict[str, Lowered]) -> None:
    with ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(lambda each: each.program.compile(each.options), found.values()))


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def threads(found: dict[str, Lowered], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each round, of both ways."""
    ways = {"one by one": one_by_one, "in threads": in_threads}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            jax.clear_caches()  # of executables for lowered programs
            taken[way].append(timed(lambda run=run: run(found)))
    return taken


def line(row: dict[str, Any]) -> str:
    """A program as a row of a Markdown table."""
    level, xla = str(row["level"]), row["xla_s"]
    numbers = [row["trace_s"], row["lower_s"], xla["0"], xla[level] - xla["0"], xla["3"]]
    total = sum(row["sources"].values())
    random = row["sources"]["random numbers"]
    told = f"{' | '.join(f'{x:.1f}' for x in numbers)} | {total:,} | {random / total:.0%}"
    return f"| {row['run']} | {row['keys']} | `{row['program']}` | {told} |"


def thread_lines(row: dict[str, Any]) -> str:
    """The two ways of a run as rows of a Markdown table."""
    lines = []
    for way, taken in row["seconds"].items():
        columns = zip(*taken, strict=True)
        told = (f"{statistics.median(x):.1f} ({min(x):.1f}, {max(x):.1f})" for x in columns)
        lines.append(f"| {row['run']} | {way} | {' | '.join(told)} |")
    return "\n".join(lines)


def tables(rows: list[dict[str, Any]]) -> str:
    """The Markdown tables of a file, which may have rows of both forms."""
    parts = [row for row in rows if "program" in row]
    timed = [row for row in rows if "seconds" in row]
    found = [(HEAD, map(line, parts))] if parts else []
    found += [(THREADS_HEAD, map(thread_lines, timed))] if timed else []
    return "\n\n".join("\n".join([head, *lines]) for head, lines in found)


THREADS_HEAD = "| run | compiled | wall s | CPU s |\n" + "|---" * 4 + "|"
HEAD = (
    "| run | keys | program | trace | lower | XLA at level 0 | more at the chosen level | "
    "XLA at level 3 | instructions | of random numbers |\n" + "|---" * 10 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Parts of compilation")
    parser.add_argument("--runs", nargs="+", choices=STARTS, default=["pqn", "iql"])
    parser.add_argument("--threads", action="store_true", help="compile in parallel threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", default="threefry2x32", help="other implementation of keys: rbg")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of a file")
    args = parser.parse_args()
    if args.table:
        print(tables(json.loads(args.table.read_text())["rows"]))
        return
    jax_setup.start()
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_default_prng_impl", args.keys)
    rows = []
    if args.json and args.json.exists():  # of other runs and keys
        measured = [(name, args.keys) for name in args.runs]
        rows = json.loads(args.json.read_text())["rows"]
        rows = [row for row in rows if (row["run"], row["keys"]) not in measured]
    for name in args.runs:
        found = programs(name)
        if args.threads:
            spent = threads(found, args.rounds)
            rows.append({"run": name, "keys": args.keys, "seconds": spent})
            print(thread_lines(rows[-1]), flush=True)
        else:
            for what in PROGRAMS:
                rows.append({"run": name, "keys": args.keys} | parts(what, found[what]))
                print(line(rows[-1]), flush=True)
        if args.json:
            about = {"versions": provenance.versions(), "cores": len(os.sched_getaffinity(0))}
            files.write_json(args.json, about | {"rows": rows})


if __name__ == "__main__":
    main()
