"""The protocol between `profiling/duel.py` and its workers; imports neither JAX nor jaxrl.

A worker is a process. It prints one JSON line when its program is compiled, then one line per
launch. A launch is asked for by a line on its standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import operations


class Job(NamedTuple):
    """A compiled program.

    Attributes:
      run: launches the program and waits for its results.
      units: environment steps, or gradient steps, of one launch.
      compile_s: CPU seconds of tracing and compilation.
      executed: operations per unit, see `executed`; empty where they are not counted.
    """

    run: Callable[[], Any]
    units: float
    compile_s: float
    executed: dict[str, float] = {}  # noqa: RUF012


def compiled(lower: Callable[[], Any], args: tuple[Any, ...], wait: Callable[[Any], Any]) -> Any:
    """(function without arguments, CPU seconds, text) of a lowered program for `args`."""
    start = time.process_time()
    program = lower().compile()
    seconds = time.process_time() - start
    return lambda: wait(program(*args)), seconds, program.as_text


def executed(text: str, rounds: Sequence[int], units: float) -> dict[str, float]:
    """Operations of the optimised program `text` per unit; `rounds` as for `operations.counts`."""
    return operations.counts(text, rounds).times(1 / units)._asdict()


def serve(build: Callable[[dict[str, Any]], Job]) -> None:
    """Builds the job that the command line describes and launches it once per line of input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", type=json.loads)
    with _quiet():
        job = build(parser.parse_args().sizes)
        job.run()  # the first launch is slower
    _tell(units=job.units, compile_s=job.compile_s, executed=job.executed)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        with _quiet():
            job.run()
        _tell(cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall)


def module_of(path: Path, absent: dict[str, str] | None = None) -> Any:
    """The module in the file `path`, whose folder it may import from.

    Args:
      absent: packages that the file imports and the launch does not need, such as those for
        logging, each with the names imported from it. Stand-ins take their places.
    """
    for name, imported in (absent or {}).items():
        module = sys.modules.setdefault(name, types.ModuleType(name))
        for attribute in imported.split():
            setattr(module, attribute, lambda *_, **__: lambda function: function)
    sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def _tell(**numbers: Any) -> None:
    print(json.dumps(numbers), flush=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Output of libraries goes to standard error; standard output is for the protocol."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
