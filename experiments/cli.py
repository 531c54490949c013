"""The command line: jaxrl train, sweep, search, eval, report, ope, merge, export and so on.

Checking names and printing help need no import of JAX, so both take no time.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from jaxrl.envs import names as env_names
from jaxrl.errors import Stopped, UserError, nearest
from jaxrl.experiments import agents, interrupts, streams
from jaxrl.experiments.commands import (
    EvalOptions,
    ExportOptions,
    MergeOptions,
    OpeOptions,
    PeakOptions,
    RenderOptions,
    ReportOptions,
    ReproduceOptions,
    TrackOptions,
    asked_help,
)
from jaxrl.experiments.requests import Request, read, tokenise
from jaxrl.experiments.values import fields_of, fill

T = TypeVar("T")

CONTINUES = "; the same command continues from the last checkpoint"

USAGE = """jaxrl: reinforcement learning compiled end to end

  jaxrl train AGENT --env ENV [options]   train seeds; continue a stopped run
  jaxrl sweep AGENT --env ENV --sweep agent.lr=1e-4,3e-4 [options]
                                          all combinations of values x seeds
  jaxrl search AGENT --env ENV --trials 256 --range agent.lr=log:1e-5:1e-2
                                          hyperparameters by Optuna, in batches
  jaxrl eval RUN [--episodes K]           evaluate members on fresh episodes
  jaxrl report PATH [PATH ...]            tables and plots, during training too
  jaxrl ope RUN [RUN ...] --data FILE     estimate values from a dataset
  jaxrl merge RUN_A RUN_B                 evaluate means of the weights of two
  jaxrl peak RUN --out FOLDER             policies at the peak of Q, offline
  jaxrl render RUN [--member M]           an episode of a member as a GIF
  jaxrl export RUN [--to jax]             a policy that loads without jaxrl
  jaxrl track RUN --to TRACKER            send a run to tensorboard, wandb,
                                          trackio, mlflow or a tracker of yours
  jaxrl data make ENV --level medium      make a dataset; also: info, convert,
                                          retrieve, make --from-diffusion
  jaxrl reproduce NAME [--full]           the experiment of a paper's claim
  jaxrl list agents | envs | reproductions
                                          what is available
  jaxrl --version                         the installed version

  jaxrl COMMAND --help                    options of a command, with an example
  jaxrl train AGENT --help                every option of an agent
  jaxrl data --help                       formats and levels of datasets
  jaxrl train | sweep | search FILE.yaml [options]
                                          settings of a file; options override
  jaxrl train runs/NAME/config.json       repeat a recorded run

sweep values:   1,2,3   [64,64],[256,256] or 64x64,256x256
                log:1e-5:1e-2:4   lin:0:1:5
search ranges:  the same; also log:1e-5:1e-2   lin:0:1

example: jaxrl train pqn --env CartPole-v1 --seeds 8
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    0 on success, 2 after a UserError, 74 if the disk is full, 128 + n after signal n, and 1 after
    any other error, also if all members of a run or sweep failed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    hint = CONTINUES if words[:1] and words[0] in ("train", "sweep", "search") else ""
    if argv is None:  # the process is that of the command
        interrupts.leave_at_once()
        interrupts.watch(hint)
        if hint or words[:2] == ["data", "make"]:  # the result matters without its output
            streams.outlast_readers()
    try:
        return _run(words)
    except UserError as error:
        # One line, even if the message quotes a multi-line error of a library.
        _complain(streams.printable(" ".join(str(error).split())))
        return 2
    except BrokenPipeError:  # the reader closed the pipe, as in `jaxrl list envs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stop:
        _complain(f"{stop}; the same command continues from there")
        return 128 + stop.number
    except KeyboardInterrupt:
        _complain(f"interrupted{hint}")
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return _fail(1)
        _complain(
            "the disk is full; with space freed, the same command continues from the last "
            "checkpoint"
        )
        return _fail(74)  # EX_IOERR
    except Exception:
        traceback.print_exc()
        return _fail(1)


def _run(words: list[str]) -> int:
    """Prints what was asked for, or runs the command; returns its exit code."""
    page = asked_help(words)
    if page is not None:
        print(streams.filled(page, streams.terminal_width()))
        return 0
    asked = not words or words[0] == "help" or {"-h", "--help"} & set(words[:2])
    if asked and words[:1] != ["data"]:
        print(USAGE, end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"jaxrl {metadata.version('jaxrl')}")
        return 0
    if words[0] not in COMMANDS:
        raise UserError(
            f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}; "
            "`jaxrl --help` lists the commands"
        )
    return COMMANDS[words[0]](words[1:]) or 0


def _complain(message: str) -> None:
    """Prints the last line of a command on stderr, broken between words in a terminal."""
    interrupts.conclude()
    print(streams.wrapped(f"jaxrl: {message}", streams.terminal_width(sys.stderr)), file=sys.stderr)


def _fail(code: int) -> int:
    """Exits at once in a distributed run: a failed process must not wait for the others."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _train(words: list[str]) -> int:
    request = _request("train", words)
    if request.sweep:
        raise UserError("sweeps are run by `jaxrl sweep`, which takes the same options")

    from jaxrl.experiments import jax_setup, train

    jax_setup.start()
    summary = train.requested(request, hint=True)
    return int("failure" in summary)


def _sweep(words: list[str]) -> int:
    request = _request("sweep", words)

    from jaxrl.experiments import jax_setup, sweep

    jax_setup.start()
    summary = sweep.run(request)
    return int("best" in summary and not summary["best"])


def _search(words: list[str]) -> int:
    request = _request("search", words)

    from jaxrl.experiments import jax_setup
    from jaxrl.experiments.search import loop

    jax_setup.start()
    summary = loop.run(request)
    return int("best" in summary and not summary["best"])


def _request(command: str, words: list[str]) -> Request:
    """Parses a request and checks the names of its agent and environments."""
    wants_help = bool({"-h", "--help"} & set(words))
    request = read(command, [word for word in words if word not in ("-h", "--help")])
    agents.check_name(request.agent)
    for env in [request.env, *request.sweep.get("env", [])]:
        if env:
            env_names.check_name(env)
    if wants_help:
        print(streams.filled(_help(command, request), streams.terminal_width()))
        raise SystemExit(0)
    return request


def _help(command: str, request: Request) -> str:
    """Help for the options of an agent; with --env, the preset gives the defaults."""
    from jaxrl.experiments import options, settings
    from jaxrl.experiments.help import agent_help
    from jaxrl.experiments.search.options import Options as SearchOptions

    module = agents.load(request.agent)
    extra = SearchOptions if command == "search" else options.PlanOptions
    preset = settings.preset_values(request.agent, module, request.env or "", "auto")
    return agent_help(command, request.agent, module, extra, preset)


def _eval(words: list[str]) -> None:
    paths, own = _simple(EvalOptions, words)
    if len(paths) != 1:
        raise UserError("eval needs one run: jaxrl eval runs/NAME --episodes 128")
    if own.eval_steps and min(own.eval_steps) < 1:
        raise UserError(f"--eval-steps must be at least 1, not {min(own.eval_steps)}")
    if own.eval_steps and (own.member is not None or own.csv is not None):
        raise UserError("--eval-steps prints a table over all members: omit --member and --csv")

    from jaxrl.experiments import episodes, jax_setup, restore
    from jaxrl.experiments.plan import swept_values
    from jaxrl.experiments.run_folders import count_members
    from jaxrl.runs.files import check_writable

    (path,) = paths
    check_writable(own.csv)
    count = count_members(path)
    if own.member is not None and own.member >= count:
        raise UserError(f"member {own.member}: the run has members 0 to {count - 1}")
    how = {
        "explore": own.eval_explore,
        "trust": restore.confirmed(path, own.agent, own.env, own.trust),
    }
    jax_setup.start()
    if own.eval_steps:
        restore.print_steps(path, own.episodes, own.seed, own.eval_steps, **how)
        return
    ready, outcome, unfinished = restore.evaluate(path, own.episodes, own.seed, **how)
    columns = swept_values(ready.settings) | {"seed": ready.seeds}
    episodes.show(columns, outcome, own.member, own.csv, unfinished)


def _render(words: list[str]) -> None:
    paths, own = _simple(RenderOptions, words)
    if len(paths) != 1:
        raise UserError("render needs one run: jaxrl render runs/NAME --member 0")

    from jaxrl.experiments import jax_setup, render, restore
    from jaxrl.runs.files import check_writable

    render.check_suffix(own.out)
    check_writable(own.out)
    trust = restore.confirmed(paths[0], own.agent, own.env, own.trust)
    jax_setup.start()
    render.render(paths[0], own.member, own.seed, own.out, trust)


def _export(words: list[str]) -> None:
    paths, own = _simple(ExportOptions, words)
    if len(paths) != 1:
        raise UserError("export needs one run: jaxrl export runs/NAME --member 0 --to jax")

    from jaxrl.experiments import export, jax_setup, restore

    trust = restore.confirmed(paths[0], own.agent, own.env, own.trust)
    jax_setup.start()
    export.export(paths[0], own.member, own.to, own.out, trust)


def _track(words: list[str]) -> None:
    paths, own = _simple(TrackOptions, words)
    if len(paths) != 1:
        raise UserError("track needs one run: jaxrl track runs/NAME --to wandb")

    from jaxrl.experiments import tracking

    tracking.track(paths[0], own.to)


def _report(words: list[str]) -> None:
    paths, own = _simple(ReportOptions, words)
    if not paths:
        raise UserError("report needs a run, a sweep or a folder of runs: jaxrl report runs/NAME")
    if any((path / "search.json").is_file() for path in paths):
        if len(paths) > 1 or own != ReportOptions():
            raise UserError("a search is reported by itself, without --over, --csv and --out")

        from jaxrl.experiments.search import report as search_report

        gc.enable()
        search_report.report(paths[0])
        return

    from jaxrl.experiments import report

    gc.enable()
    report.report(paths, own.out, own.over, own.csv, own.html, own.target)


def _ope(words: list[str]) -> None:
    paths, own = _simple(OpeOptions, words)
    if not paths:
        raise UserError("ope needs a run: jaxrl ope runs/NAME --data FILE")

    from jaxrl.experiments import jax_setup, ope

    jax_setup.start()
    ope.run(paths, own)


def _merge(words: list[str]) -> None:
    paths, own = _simple(MergeOptions, words)
    if len(paths) != 2:
        raise UserError("merge needs two runs: jaxrl merge runs/A runs/B --alpha 0,0.5,1")

    from jaxrl.experiments import jax_setup, merge

    jax_setup.start()
    merge.run(paths[0], paths[1], own)


def _peak(words: list[str]) -> None:
    paths, own = _simple(PeakOptions, words)
    if len(paths) != 1:
        raise UserError("peak needs one run: jaxrl peak runs/NAME --out runs/NAME-peak")

    from jaxrl.experiments import jax_setup, peak

    jax_setup.start()
    peak.run(paths[0], own)


def _data(words: list[str]) -> None:
    from jaxrl.experiments import jax_setup
    from jaxrl.experiments.data import cli

    jax_setup.start()
    cli.main(words)


def _reproduce(words: list[str]) -> int:
    names, given = tokenise(words, single=fields_of(ReproduceOptions))
    own = fill(ReproduceOptions, given)
    if len(names) != 1:
        raise UserError("reproduce needs one name: jaxrl reproduce NAME --dry-run")

    from jaxrl.experiments import reproduce

    return reproduce.reproduce(names[0], own.full, own.dry_run, own.out)


def _list(words: list[str]) -> None:
    if words == ["reproductions"]:
        from jaxrl.experiments import reproduce

        print(reproduce.listing())
        return
    tables = {"agents": agents.AGENTS, "envs": dict(env_names.names())}
    if len(words) != 1 or words[0] not in tables:
        raise UserError("list needs agents, envs or reproductions: jaxrl list agents")
    width, columns = max(map(len, tables[words[0]])) + 2, streams.terminal_width() or 1000
    for name, note in tables[words[0]].items():
        line = f"{name:{width}}{note}"
        print("\n".join(textwrap.wrap(line, columns, subsequent_indent=" " * width)))
    if words[0] != "envs":
        return
    hosted = [f"{name:14}{note}" for name, note in env_names.on_host()]
    for title, lines in (("on the host", hosted), ("not installed", env_names.missing())):
        if lines:
            print(f"\n{title}:\n" + "\n".join(f"  {line}" for line in lines))


def _simple(record: type[T], words: list[str]) -> tuple[list[Path], T]:
    """Splits `words` into paths and options; the options fill an instance of `record`."""
    paths, given = tokenise(words, single=fields_of(record))
    return [Path(path) for path in paths], fill(record, given)


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": _train,
    "sweep": _sweep,
    "search": _search,
    "eval": _eval,
    "report": _report,
    "ope": _ope,
    "merge": _merge,
    "peak": _peak,
    "render": _render,
    "export": _export,
    "track": _track,
    "data": _data,
    "reproduce": _reproduce,
    "list": _list,
}

if __name__ == "__main__":
    raise SystemExit(main())
