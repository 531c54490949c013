"""`jaxrl reproduce NAME`: runs the experiment of one claim and puts its results beside it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError, nearest
from jaxrl.experiments.reproductions import REPRODUCTIONS, Reproduction
from jaxrl.runs.files import write_json
from jaxrl.runs.records import RESULTS, read_summary

_WIDTH = 96
_TRAINS = ("train", "sweep")


def listing() -> str:
    """The text of `jaxrl list reproductions`."""
    width, lines = max(map(len, REPRODUCTIONS)) + 2, []
    columns = min(_WIDTH, shutil.get_terminal_size().columns)
    for name, each in REPRODUCTIONS.items():
        text = each.claim if each.minutes is None else f"{each.claim} {_time(each)}"
        lines += textwrap.wrap(
            text, columns, initial_indent=f"{name:{width}}", subsequent_indent=" " * width
        )
    return "\n".join(lines)


def find(name: str) -> Reproduction:
    """The record of this name; raises UserError if there is none."""
    if name not in REPRODUCTIONS:
        raise UserError(
            f"unknown reproduction {name!r}{nearest(name, REPRODUCTIONS)}; "
            "`jaxrl list reproductions` shows them"
        )
    return REPRODUCTIONS[name]


def describe(each: Reproduction, full: bool) -> str:
    """Claim, published result, expected time and commands."""
    lines = [f"claim: {each.claim}", f"published: {each.published}"]
    lines += [f"{'full' if full else 'small'} setting, {_time(each, full)}:"]
    return "\n".join([*lines, *(f"  {command}" for command in _commands(each, full))])


def _commands(each: Reproduction, full: bool) -> tuple[str, ...]:
    return each.full if full else each.small


def _time(each: Reproduction, full: bool = False) -> str:
    if full:
        return "of the paper's sizes; its time was not measured"
    if each.minutes is None:
        return "(time not measured)"
    return f"(about {each.minutes:.3g} minutes on two CPU cores)"


def reproduce(name: str, full: bool = False, dry_run: bool = False, out: Path | None = None) -> int:
    """Runs the commands of a record one after another, and writes and prints their results.

    Runs that are finished are not repeated. Returns the exit code of the first command that fails,
    which ends the reproduction, or 0.
    """
    each = find(name)
    print(describe(each, full), flush=True)
    if dry_run:
        return 0
    commands = _commands(each, full)
    for i, command in enumerate(commands):
        if _is_made(command):
            print(f"\n[{i + 1} of {len(commands)}] there already: {command}", flush=True)
            continue
        print(f"\n[{i + 1} of {len(commands)}] {command}", flush=True)
        code = subprocess.run(words(command), check=False).returncode
        if code:
            print(f"jaxrl: the command failed ({code}); the same `jaxrl reproduce` continues there")
            return code
    found = list(results(commands))
    file = out or Path("reproductions") / f"{name}-{'full' if full else 'small'}.json"
    record = {"name": name, "claim": each.claim, "published": each.published, "full": full}
    write_json(file, {**record, "commands": commands, "runs": found})
    print(f"\n{beside(each, found)}\n{file}")
    return 0


def words(command: str) -> list[str]:
    """The words of a command, with this interpreter in place of `jaxrl` and `python`."""
    first, *rest = shlex.split(command)
    if first == "jaxrl":
        return [sys.executable, "-m", "jaxrl.experiments.cli", *rest]
    return [sys.executable if first == "python" else first, *rest]


def _is_made(command: str) -> bool:
    """Whether a command makes a dataset that exists."""
    parts = shlex.split(command)
    return parts[1:3] == ["data", "make"] and Path(parts[parts.index("--out") + 1]).exists()


def results(commands: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row per run, or hyperparameter point of a run, that the commands have finished."""
    for command in commands:
        parts = shlex.split(command)
        if parts[1] not in _TRAINS or "--out" not in parts:
            continue
        out = Path(parts[parts.index("--out") + 1])
        for file in sorted({out / "summary.json", *out.glob("*/summary.json")}):
            summary = read_summary(file, RESULTS)
            if summary is None or "wall_s" not in summary:
                continue  # of a sweep, whose runs have summaries of their own
            alone = {"values": {}, "return": summary["return"]}
            for point in summary.get("points", [alone]):
                row = {"run": str(file.parent), "agent": summary["agent"], "env": summary["env"]}
                scores = {"score": summary["score"]} if "score" in summary else {}
                yield row | {"values": point["values"], "return": point["return"]} | scores


def beside(each: Reproduction, found: Sequence[dict[str, Any]]) -> str:
    """The results of the runs, with the claim and the published result below them."""
    lines = []
    for row in found:
        low, high = row["return"]["ci95"]
        values = ",".join(f"{k}={v}" for k, v in row["values"].items())
        name = f"{row['run']} {values}".strip()
        if row["return"]["iqm"] is None:
            lines.append(f"{name}: no return")
            continue
        score = row.get("score", {}).get("iqm")
        more = "" if score is None else f", normalised {score:.1f}"
        count = row["return"]["members"]
        numbers = f"{row['return']['iqm']:.4g} ({low:.4g} to {high:.4g}), n = {count}"
        lines.append(f"{name}: return {numbers}{more}")
    return "\n".join([*lines, f"claim: {each.claim}", f"published: {each.published}"])
