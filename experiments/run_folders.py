"""The folders of runs, sweeps and searches: opening them, their JSON files, members and hashes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxrl.errors import UserError
from jaxrl.runs import files, provenance, records, shards
from jaxrl.runs.processes import Processes

T = TypeVar("T")


def open_run_folder(path: Path) -> records.RunDir:
    """The run in a folder, or the only run of a sweep; raises UserError if there is none."""
    if (path / "sweep.json").is_file():
        folders = [program["folder"] for program in read_sweep(path)["programs"]]
        if len(folders) > 1:
            raise UserError(
                f"{path} is a sweep of {len(folders)} runs: choose {path / folders[0]} "
                "or another one of them"
            )
        path = path / folders[0]
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not the folder of a run: it has no config.json")
    run = records.RunDir(path.resolve())
    known = read_json(path / "config.json")
    records.check_format(path, known)
    if not known.get("config") or not known.get("context"):
        raise UserError(f"{path / 'config.json'} is not the config.json of a run")
    return run


def read_sweep(path: Path) -> dict[str, Any]:
    """The contents of the sweep.json of a folder."""
    known = read_json(path / "sweep.json")
    records.check_format(path, known)
    if not {"agent", "sweep", "programs"} <= set(known):
        raise UserError(f"{path / 'sweep.json'} is not the sweep.json of a sweep")
    return known


def read_json(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return known if isinstance(known, dict) else {}


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
            error = f"{path} cannot be the folder of a {what}: {problem.strerror}"
        except UserError as problem:
            error = str(problem)
    if error := processes.broadcast(error):
        raise UserError(error)
    return made


def open_record(
    file: Path,
    what: str,
    config: dict[str, Any],
    context: Mapping[str, Any],
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """The contents of sweep.json or search.json; without the file, writes one and returns None.

    `overwrite` writes the file in any case.

    Raises:
      UserError: the folder holds other files, or another `config`.
    """
    path = file.parent
    if file.is_file() and not overwrite:
        known = read_json(file)
        records.check_format(path, known)
        there = {name: known.get(name, "absent") for name in config}
        records.check_same(path, what, there, files.plain(config))
        return known
    if not file.is_file() and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"{path} holds files but no {file.name}: this is not the folder of a {what}"
        )
    whole = {
        "versions": provenance.versions(),
        "git": provenance.git_hash(),
        "command": sys.argv,
        **context,
    }
    files.write_json(file, {"format": records.FORMAT, **config, "context": whole})
    return None


def count_members(path: Path) -> int:
    """Number of members of a run."""
    config = open_run_folder(path).config()["config"]
    return len(config.get("points", [{}])) * config["seeds"]


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
