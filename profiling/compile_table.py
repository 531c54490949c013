"""CPU seconds of a run by what they are spent on: of its start, and of a whole run.

    python profiling/compile_table.py [--runs pqn iql] [--json FILE]
    python profiling/compile_table.py --shares [--runs readme offline] [--json FILE]

Each run is a process of its own, first with an empty and then with a full cache of compiled
programs. The first form makes a few updates and prints a Markdown table of the start: imports,
planning (environment, data, shapes), tracing and lowering of all programs, their compilation or
reading from the cache, and all CPU seconds to the end of the first launch. The second form makes
the whole run and prints the fraction of each activity. The host waits for every launch, so that
CPU seconds of all threads belong to one activity.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Agent, options, and the agent's options; offline agents learn from random rows.
STARTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pqn": ("pqn", {"env": "CartPole-v1"}, {"total_steps": 40_960}),
    "pqn-m8": ("pqn", {"env": "CartPole-v1", "seeds": 8}, {"total_steps": 40_960}),
    "breakout": ("pqn", {"env": "Breakout-MinAtar"}, {"total_steps": 8_192}),
    "ppo": ("ppo", {"env": "CartPole-v1"}, {"total_steps": 8_192}),
    "dqn": ("dqn", {"env": "CartPole-v1"}, {"total_steps": 2_000}),
    "sac": ("sac", {"env": "Pendulum-v1"}, {"total_steps": 100}),
    "iql": ("iql", {"env": "Pendulum-v1"}, {"updates": 100}),
    "td3bc": ("td3bc", {"env": "Pendulum-v1"}, {"updates": 100}),
    "hopper": ("ppo", {"env": "brax:hopper"}, {"total_steps": 65_536}),
}
SHARES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "readme": ("pqn", {"env": "CartPole-v1", "seeds": 8}, {}),
    "offline": ("iql", {"env": "Pendulum-v1"}, {"updates": 20_000}),
}
PROGRAMS = ("initialise", "advance", "evaluate")


class Account:
    """CPU seconds of this process by activity; inner activities do not count for outer ones."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.inside = ["imports"]
        self.since = 0.0

    def switch(self, activity: str = "") -> None:
        """Counts the time since the last switch, for the current activity by default."""
        now = time.process_time()
        self.spent[activity or self.inside[-1]] += now - self.since
        self.since = now

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        self.switch()
        self.inside.append(activity)
        yield
        self.switch()
        self.inside.pop()

    def counted(self, activity: str, fn: Callable[..., Any], wait: Any = None) -> Any:
        """`fn`, counted as `activity`; `wait` is called with its result."""

        def run(*args: Any, **options: Any) -> Any:
            with self.on(activity):
                found = fn(*args, **options)
                return found if wait is None else wait(found)

        return run


def account(agent: str, options: dict[str, Any], own: dict[str, Any]) -> Any:
    """CPU seconds of a run by activity, and "first": those to the end of the first launch."""
    spent = Account()
    import jax

    from jaxrl import drive
    from jaxrl.experiments import jax_setup, train
    from jaxrl.runs import records, shards

    jax_setup.start()
    run = drive._Run
    build, advance = run.build, spent.counted("training", run.advance, jax.block_until_ready)

    def built(self: Any, index: int, what: str, *args: Any) -> Any:
        with spent.on(f"compile {what}"):
            return build(self, index, what, *args)

    def lowered(event: str, _: float, **__: Any) -> None:
        """Up to the end of lowering, the time within `build` is tracing."""
        activity = spent.inside[-1]
        if event.endswith("jaxpr_to_mlir_module_duration") and activity.startswith("compile"):
            spent.switch(activity.replace("compile", "trace"))

    jax.monitoring.register_event_duration_secs_listener(lowered)

    def advanced(*args: Any, **more: Any) -> Any:
        found = advance(*args, **more)
        spent.spent.setdefault("first", time.process_time())
        return found

    run.build, run.advance = built, advanced
    run.evaluate = spent.counted("evaluation", run.evaluate, jax.block_until_ready)
    run.snapshot = spent.counted("checkpoints", run.snapshot)
    shards.Shards.save = spent.counted("checkpoints", shards.Shards.save)
    records.RunDir.write_part = spent.counted("records", records.RunDir.write_part)
    train.summarise = spent.counted("summary", train.summarise)
    train.draw_run = spent.counted("plots", train.draw_run)
    with spent.on("planning and the rest"):
        train.run(agent, **options, agent=own)
    spent.switch()
    return spent.spent


def random_data(env: str) -> str:
    """A file with random rows of the sizes of an environment."""
    from stages import random_rows

    from jaxrl import envs
    from jaxrl.envs import datasets

    spec = envs.make(env).spec
    rows = random_rows(spec.obs_shape[0], spec.action.shape[0])
    file = Path(tempfile.gettempdir()) / f"random-{env}-{os.getpid()}.npz"
    datasets.save(file, datasets.Dataset(rows, {"env": env, "reference": {}}))
    return str(file)


def child(name: str, shares: bool, data: str | None) -> None:
    agent, options, own = (SHARES if shares else STARTS)[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        few = {} if shares else {"evals": 1, "eval_episodes": 8}
        rows = {"data": data} if data else {}
        found = account(agent, {**options, **few, **rows, "out": out}, own)
    print(json.dumps(found))


def measure(name: str, shares: bool) -> dict[str, dict[str, float]]:
    """{"cold": ..., "warm": ...} of processes with an empty and a full cache."""
    found = {}
    agent, options, _ = (SHARES if shares else STARTS)[name]
    data = ["--data", random_data(options["env"])] if agent in ("iql", "td3bc") else []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            words = [sys.executable, __file__, "--child", name, *data, *["--shares"] * shares]
            env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            done = subprocess.run(words, env=env, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            found[state] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """The Markdown table of starts."""
    head = [
        "run",
        "cache",
        "imports",
        "planning, rest",
        "tracing",
        *PROGRAMS,
        "to the first launch",
    ]
    lines = [head, ["---"] * len(head)]
    for name, states in rows.items():
        for state, spent in states.items():
            tracing = sum(spent.get(f"trace {what}", 0) for what in PROGRAMS)
            numbers = [spent["imports"], spent["planning and the rest"], tracing]
            numbers += [spent.get(f"compile {what}", 0) for what in PROGRAMS]
            lines.append([name, state, *(f"{x:.1f}" for x in (*numbers, spent["first"]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fractions(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """The Markdown table of whole runs: the fraction of each activity."""
    columns = [(name, state) for name, states in rows.items() for state in states]
    head = ["activity", *(f"{name}, {state} cache" for name, state in columns)]
    lines = [head, ["---"] * len(head)]
    grouped = {column: groups(rows[column[0]][column[1]]) for column in columns}
    for activity in groups(defaultdict(float)):
        values = [grouped[c][activity] / sum(grouped[c].values()) for c in columns]
        lines.append([activity, *(f"{100 * x:.1f} %" for x in values)])
    lines.append(["CPU seconds", *(f"{sum(grouped[c].values()):.1f}" for c in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def groups(spent: dict[str, float]) -> dict[str, float]:
    """CPU seconds of a whole run by activity."""
    total = lambda *names: sum(spent.get(name, 0.0) for name in names)
    return {
        "training": total("training"),
        "evaluation": total("evaluation"),
        "imports": total("imports"),
        "planning and the rest": total("planning and the rest"),
        "tracing": total(*(f"trace {what}" for what in PROGRAMS)),
        "compilation": total(*(f"compile {what}" for what in PROGRAMS)),
        "checkpoints": total("checkpoints"),
        "records, summary and plots": total("records", "summary", "plots"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of starts and of whole runs")
    parser.add_argument("--runs", nargs="+", help=f"of {', '.join([*STARTS, *SHARES])}")
    parser.add_argument("--shares", action="store_true", help="whole runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of a file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.shares, args.data)
        return
    show = fractions if args.shares else starts
    if args.table:
        print(show(json.loads(args.table.read_text())["rows"]))
        return
    rows = {}
    for name in args.runs or (SHARES if args.shares else STARTS):
        rows[name] = measure(name, args.shares)
        if args.json:
            args.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    print(show(rows))


if __name__ == "__main__":
    main()
