"""`jaxrl reproduce NAME`: runs the experiment of one claim and puts its results beside it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError, nearest
from jaxrl.experiments.reproductions import REPRODUCTIONS, Reproduction
from jaxrl.runs import provenance
from jaxrl.runs.files import write_json
from jaxrl.runs.records import RESULTS, points_of, read_summary

_WIDTH = 96
_TRAINS = ("train", "sweep")
_UNKNOWN = "not measured"
_RECORDS = Path("reproductions")
_ABOUT = (
    "small: measured on one CPU core. The small setting may be too short to decide the claim; the "
    "agents' pages say what was run. full: `--full`, larger sizes up to the paper's; expected on "
    "one CPU core, from short pieces of its runs. `jaxrl reproduce NAME --dry-run` shows the "
    "published result and the commands."
)
_GPU = "GPU: measured by the runs whose records are in reproductions/."
_NO_GPU = (
    "No time on a GPU is recorded in reproductions/: `jaxrl reproduce NAME --full` on a machine "
    "with a GPU records its minutes and device there."
)


def listing(folder: Path = _RECORDS) -> str:
    """The text of `jaxrl list reproductions`: names, times, claims."""
    columns = min(_WIDTH, shutil.get_terminal_size().columns)
    head, *rows = times(folder)
    widths = [max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)]
    padded = lambda row: "".join(f"{x:{n}}" for x, n in zip(row, widths, strict=True))
    lines = [f"{padded(head)}claim"]
    for row, each in zip(rows, REPRODUCTIONS.values(), strict=True):
        start = padded(row)
        lines += textwrap.wrap(
            each.claim, columns, initial_indent=start, subsequent_indent=" " * len(start)
        )
    for text in (_ABOUT, _GPU if "GPU" in head else _NO_GPU):
        lines += ["", *textwrap.wrap(text, columns)]
    return "\n".join(lines)


def times(folder: Path) -> list[tuple[str, ...]]:
    """The head and the rows of the table of times; with records of GPUs in `folder` also theirs."""
    rows = [
        (name, duration(each.minutes), duration(each.full_minutes))
        for name, each in REPRODUCTIONS.items()
    ]
    measured = [_on_gpu(folder, name) for name in REPRODUCTIONS]
    if not any(measured):
        return [("", "small", "full"), *rows]
    return [
        ("", "small", "full", "GPU"),
        *((*row, gpu) for row, gpu in zip(rows, measured, strict=True)),
    ]


def _on_gpu(folder: Path, name: str) -> str:
    """Times of whole reproductions on a GPU, such as "full 12 min"; "" without a record."""
    found = []
    for size in ("small", "full"):
        file = folder / f"{name}-{size}.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if record.get("whole") and record["device"]["platform"] == "gpu":
            found.append(f"{size} {duration(record['wall_minutes'])}")
    return ", ".join(found)


def duration(minutes: float | None) -> str:
    """A time with two digits, such as 2.8 min, 14 h, 3.5 days."""
    if minutes is None:
        return _UNKNOWN
    for unit, size in (("days", 48 * 60), ("h", 100)):
        if minutes >= size:
            value = minutes / (24 * 60 if unit == "days" else 60)
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.2g} min"


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
    minutes = each.full_minutes if full else each.minutes
    if minutes is None:
        return f"time {_UNKNOWN}"
    return f"{'expected' if full else 'about'} {duration(minutes)} on one CPU core"


def reproduce(name: str, full: bool = False, dry_run: bool = False, out: Path | None = None) -> int:
    """Runs the commands of a record one after another, and writes and prints their results.

    Runs that are finished are not repeated. Returns the exit code of the first command that fails,
    which ends the reproduction, or 0.
    """
    each = find(name)
    print(describe(each, full), flush=True)
    if dry_run:
        return 0
    commands, tables, before = _commands(each, full), {}, _cpu_seconds()
    whole, clock = not any(path.exists() for path in _outputs(commands)), time.perf_counter()
    for i, command in enumerate(commands):
        if _is_made(command):
            print(f"\n[{i + 1} of {len(commands)}] there already: {command}", flush=True)
            continue
        print(f"\n[{i + 1} of {len(commands)}] {command}", flush=True)
        code, printed = _run(command)
        if code:
            print(f"jaxrl: the command failed ({code}); the same `jaxrl reproduce` continues there")
            return code
        if printed:
            tables[command] = after_training(printed)
    found = list(results(commands))
    file = out or _RECORDS / f"{name}-{'full' if full else 'small'}.json"
    record = {"name": name, "claim": each.claim, "published": each.published, "full": full}
    record |= {"commands": commands, "runs": found, "tables": tables}
    # Times are those of the commands that this call ran: all of them if the record is `whole`.
    spent = {"cpu_minutes": _cpu_seconds() - before, "wall_minutes": time.perf_counter() - clock}
    context = {name: round(seconds / 60, 2) for name, seconds in spent.items()}
    context |= {"whole": whole, "device": _device(), "versions": provenance.versions()}
    write_json(file, record | context)
    print(f"\n{beside(each, found)}\n{file}")
    return 0


def _outputs(commands: Sequence[str]) -> list[Path]:
    """What the commands write."""
    parts = map(shlex.split, commands)
    return [Path(words[words.index("--out") + 1]) for words in parts if "--out" in words]


def _device() -> dict[str, Any]:
    """The devices that the commands used; JAX takes their memory, so this follows the commands."""
    import jax

    found = jax.devices()
    return {"platform": found[0].platform, "kind": found[0].device_kind, "count": len(found)}


def _run(command: str) -> tuple[int, list[str]]:
    """Runs a command; returns its exit code and the lines that a study prints.

    Other commands keep the terminal for their progress; their results are in summaries.
    """
    if shlex.split(command)[0] == "jaxrl":
        return subprocess.run(words(command), check=False).returncode, []
    lines = []
    with subprocess.Popen(words(command), stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return process.returncode, lines


def after_training(lines: list[str]) -> list[str]:
    """The lines of a study below those of the sweeps that the study runs."""
    ends = [i for i, line in enumerate(lines) if line.startswith("best on ")]
    return lines[ends[-1] + 1 :] if ends else lines


def _cpu_seconds() -> float:
    """CPU time of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


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
            for point in points_of(summary):
                row = {"run": str(file.parent), "agent": summary["agent"], "env": summary["env"]}
                scores = {"score": summary["score"]} if "score" in summary else {}
                yield row | {"values": point["values"], "return": point["return"]} | scores


def beside(each: Reproduction, found: Sequence[dict[str, Any]]) -> str:
    """The results of the runs, with the claim and the published result below them."""
    lines = [f"{_name(row)}: {_result(row)}" for row in found]
    return "\n".join([*lines, f"claim: {each.claim}", f"published: {each.published}"])


def _name(row: dict[str, Any]) -> str:
    values = ",".join(f"{k}={v}" for k, v in row["values"].items())
    return f"{row['run']} {values}".strip()


def _row(row: dict[str, Any]) -> str:
    """A row of a table in Markdown."""
    found, shown = row["return"], [f"`{row['run'].removeprefix('runs/')}`"]
    shown.append(", ".join(f"{k.removeprefix('agent.')} {v}" for k, v in row["values"].items()))
    if found["iqm"] is None:
        shown += ["no return", ""]
    else:
        shown += [f"{found['iqm']:.4g}", "{:.4g} to {:.4g}".format(*found["ci95"])]
    return _cells([*shown, str(found["members"])])


def _result(row: dict[str, Any]) -> str:
    """Return of a row with its interval, and the normalised score if there is one."""
    found = row["return"]
    if found["iqm"] is None:
        return "no return"
    low, high = found["ci95"]
    score = row.get("score", {}).get("iqm")
    more = "" if score is None else f", normalised {score:.1f}"
    return f"return {found['iqm']:.4g} ({low:.4g} to {high:.4g}), n = {found['members']}{more}"


def page(folder: Path) -> str:
    """Markdown with each claim, its published result, and the results of the files in `folder`."""
    lines = [
        "# Reproductions",
        "",
        "`jaxrl reproduce NAME` runs the small setting of a claim, `--full` larger sizes. "
        "Results are interquartile means of the last return with 95 % intervals, or the table that "
        "a study prints. Verdicts are on the [pages of the agents](../agents.md).",
        "",
        "Times: the small setting as measured on one CPU core, the full one as expected there from "
        "short pieces of its runs.",
        "",
    ]
    head, *rows = times(folder)
    lines += [_cells(head), "|---" * len(head) + "|", *map(_cells, rows), ""]
    missing = []
    for name, each in REPRODUCTIONS.items():
        files = [folder / f"{name}-{size}.json" for size in ("small", "full")]
        found = [json.loads(x.read_text(encoding="utf-8")) for x in files if x.is_file()]
        if not found:
            missing.append(f"| `{name}` | {each.claim} | {each.published} |")
            continue
        lines += [f"## {name}", "", each.claim, "", f"Published: {each.published}.", ""]
        for record in found:
            lines += [*_measured(record), ""]
    if missing:
        lines += ["## Not yet recorded", "", "| name | claim | published |", "|---|---|---|"]
    return "\n".join([*lines, *missing, ""])


def _cells(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _measured(record: dict[str, Any]) -> Iterator[str]:
    """The lines of one file that `reproduce` wrote."""
    setting, minutes = "full" if record["full"] else "small", record["cpu_minutes"]
    told, jax = f"{minutes:.2g} minutes of CPU time", record["versions"]["jax"]
    if "device" in record:  # records of earlier versions lack it
        device = record["device"]
        told = (
            f"{record['wall_minutes']:.2g} minutes on {device['count']} x {device['kind']}, {told}"
        )
    yield f"Measured in the {setting} setting, {told}, JAX {jax}:"
    yield ""
    if record["runs"]:
        yield "| run | setting | return (IQM) | 95 % interval | members |"
        yield "|---|---|---|---|---|"
        yield from map(_row, record["runs"])
    for command, printed in record["tables"].items():
        if printed[0].startswith("| "):
            yield from (f"`{command}`", "", *printed)
        else:
            yield from ("```text", f"$ {command}", *printed, "```")
