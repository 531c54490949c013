"""The folders of runs, sweeps and searches: opening them, their JSON files, members and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxrl.errors import UserError
from jaxrl.runs import files, folders, provenance, records, shards
from jaxrl.runs.processes import Processes

T = TypeVar("T")


RECORDS = ("config.json", "sweep.json", "search.json")  # one of them is in each folder
_RUN = ("agent", "env", "seed", "seeds")  # entries of a configuration that all readers need


def open_run_folder(path: Path) -> records.RunDir:
    """The run in a folder, or the only run of a sweep; raises UserError if there is none."""
    if (path / "sweep.json").is_file():
        names = [program["folder"] for program in read_sweep(path)["programs"]]
        if len(names) > 1:
            raise UserError(
                f"{path} is a sweep of {len(names)} runs: choose {path / names[0]} "
                "or another one of them"
            )
        path = path / names[0]
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not the folder of a run: {_why_not(path)}")
    run = records.RunDir(path.resolve())
    known = run.config()
    width_of(run)
    for name in _RUN:
        if name not in known["config"]:
            raise UserError(f"{path / 'config.json'} is not the config.json of a run: no {name!r}")
    return run


def distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths of different folders, in order."""
    found: dict[Path, Path] = {}
    for path in paths:
        found.setdefault(path.resolve(), path)
    return list(found.values())


def _why_not(path: Path) -> str:
    """Why a path is not the folder of a run, with the run that it is inside of."""
    if not path.exists():
        return "there is no such folder"
    own = (each for each in path.parents if any((each / name).is_file() for name in RECORDS))
    hint = next((f"; did you mean {each}?" for each in own), "")
    return f"{'it has no config.json' if path.is_dir() else 'it is a file'}{hint}"


def width_of(run: records.RunDir) -> int:
    """The tile width that a run was started with."""
    return width_in(run.path / "config.json", run.config())


def width_in(file: Path, known: Mapping[str, Any]) -> int:
    """The tile width in the contents of config.json or search.json."""
    context = known.get("context")
    width = context.get("width") if isinstance(context, dict) else None
    if not isinstance(width, int) or width < 1:
        raise folders.damaged(file, "no width in its context")
    return width


def read_sweep(path: Path) -> dict[str, Any]:
    """The contents of the sweep.json of a folder."""
    known = folders.read_json(path / "sweep.json")
    programs = known.get("programs")
    if not {"agent", "sweep"} <= set(known) or not isinstance(programs, list) or not programs:
        raise UserError(f"{path / 'sweep.json'} is not the sweep.json of a sweep")
    for program in programs:
        if not isinstance(program, dict) or not {"folder", "values", "config"} <= set(program):
            raise UserError(f"{path / 'sweep.json'} is damaged: a program has no folder or config")
        name = program["folder"]
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            raise UserError(f"{path / 'sweep.json'} is damaged: {name!r} is no folder of a program")
    return known


def check_processes(
    processes: Processes, what: str, path: Path, overwrite: bool, identity: Any
) -> None:
    """Raises UserError in all processes if two of them were started with different requests.

    Args:
      what: "run", "sweep" or "search".
      identity: everything that determines the results.
    """
    if processes.count > 1:
        request = {"command": what, "folder": path, "overwrite": overwrite, "request": identity}
        precision = jax.config.values["jax_default_matmul_precision"]
        request |= {"versions": provenance.versions(), "matmul_precision": precision}
        processes.check_same(files.plain(request))


def open_together(processes: Processes, path: Path, what: str, make: Callable[[], T]) -> T | None:
    """Calls `make`, which creates or opens a folder, in the leader only; None in other processes.

    Raises:
      UserError: `make` failed; raised in all processes.
    """
    made, error = None, ""
    if processes.leads:
        try:
            made = make()
        except OSError as problem:  # the path is a file, or permission is denied
            reason = problem.strerror or problem
            error = f"{path} cannot be the folder of a {what} ({reason}): choose another --out"
        except UserError as problem:
            error = str(problem)
    if error := processes.broadcast(error):
        raise UserError(error)
    return made


def check_record(file: Path, what: str, known: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Raises UserError if the contents of sweep.json or search.json differ from the request's."""
    for name in config:
        if name not in known:
            raise folders.damaged(file, f"no {name!r}")
    there = {name: known[name] for name in config}
    remedy = "choose another folder with --out" if what == "search" else ""
    folders.check_same(file.parent, what, there, files.plain(config), remedy)


@contextlib.contextmanager
def open_record(
    file: Path,
    what: str,
    config: dict[str, Any],
    context: Mapping[str, Any],
    clear: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Context in which this process is the only writer of the folder of a sweep or search.

    Args:
      file: sweep.json or search.json.
      clear: see `folders.writing`.

    Yields:
      The contents of the file.

    Raises:
      UserError: the folder holds other files, or another `config`.
    """
    config = files.plain(config)
    check = lambda known: check_record(file, what, known, config)
    whole = {
        "versions": provenance.versions(),
        "git": provenance.git_hash(),
        "command": sys.argv,
        **context,
    }
    contents = {**config, "context": files.plain(whole)}
    with folders.writing(file, what, contents, check, clear) as known:
        yield known


def count_members(path: Path) -> int:
    """Number of members of a run."""
    config = open_run_folder(path).config()["config"]
    return len(config.get("points", [{}])) * config["seeds"]


def first_seed(path: Path) -> int:
    """The seed of a run's first member."""
    return open_run_folder(path).config()["config"]["seed"]


def state_digest(path: Path) -> str:
    """Hash of the settings of a run and of its newest checkpoint's index."""
    run = open_run_folder(path)
    points = shards.indices(run.checkpoints)
    if not points:
        raise UserError(f"{path} has no checkpoint yet")
    text = json.dumps([run.config()["config"], max(points)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_digest(path: Path) -> str:
    """Hash of all settings of a run, which determine its shared stages."""
    text = json.dumps(open_run_folder(path).config()["config"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
