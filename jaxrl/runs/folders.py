"""Folders of runs, sweeps and searches: one writer at a time, and one JSON file with the identity.

The file is config.json, sweep.json or search.json, and is written first. Its "context" holds facts
that may differ when the same command continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError
from jaxrl.runs.files import make_folder, write_json

FORMAT = 3  # of all files of a folder; jaxrl 0.1 wrote no number
LOCK = ".lock"
# Remedy for damaged files, also in commands that have no --overwrite, such as `jaxrl report`.
AGAIN = "repeat, with --overwrite, the command that made it"


class ConfigMismatch(UserError):
    """The folder, checkpoint or process has another configuration."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Context in which this process is the only writer of a folder; see `lock_file`."""
    with lock_file(folder / LOCK, folder):
        yield


@contextlib.contextmanager
def lock_file(path: Path, protected: Path) -> Iterator[None]:
    """Context in which this process holds the lock `path`; the lock ends with the process.

    Args:
      protected: what only the holder writes, for messages.

    Raises:
      UserError: another process is writing, or the file system has no locks.
      OSError: the lock file cannot be created.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing {protected}") from error
        except OSError as error:
            raise UserError(
                f"{protected} cannot be locked: {error.strerror}; choose a folder (--out) on "
                "another file system"
            ) from error
        yield


@contextlib.contextmanager
def writing(
    file: Path,
    what: str,
    contents: Mapping[str, Any],
    check: Callable[[dict[str, Any]], None],
    clear: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Context in which this process is the only writer of the folder of a run, sweep or search.

    Nothing is created, removed or written before the lock is held, except the folder and its lock.

    Args:
      file: the JSON file that identifies the folder.
      what: "run", "sweep" or "search", for messages.
      contents: written to a new `file`.
      check: raises UserError if the contents of an existing file differ from the request.
      clear: removes all files of an earlier `what`; None keeps them and calls `check`.

    Yields:
      The contents of the file, as found or as written.

    Raises:
      UserError: the folder holds other files, `check` fails, or another process is writing.
      OSError: the folder cannot be created or written.
    """
    known = _known(file, what, check, clear is not None)
    new = make_folder(file.parent)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(file.parent))
        except (OSError, UserError) as error:
            if new and not isinstance(error.__cause__, BlockingIOError):
                _remove_new(file.parent, new)
            raise
        known = _known(file, what, check, clear is not None)  # now unchanged by others
        remove_leftovers(file.parent)
        if known is None:
            if clear is not None:
                clear()
            known = {"format": FORMAT, **contents}
            write_json(file, known)
        yield known


def _known(
    file: Path, what: str, check: Callable[[dict[str, Any]], None], again: bool
) -> dict[str, Any] | None:
    """The checked contents of the file; None for a folder to be started, `again` if it has one."""
    if file.is_file():
        if again:
            return None
        known = read_json(file)
        check(known)
        return known
    folder = file.parent
    if folder.exists() and any(map(_is_foreign, folder.iterdir())):
        raise UserError(
            f"{folder} holds files but no {file.name}: this is not the folder of a {what}; choose "
            "another folder with --out"
        )
    return None


def _is_foreign(path: Path) -> bool:
    """Whether jaxrl could not have written the file before the file that identifies the folder."""
    return path.name != LOCK and not (path.name.startswith(".") and path.name.endswith(".tmp"))


def _remove_new(folder: Path, new: list[Path]) -> None:
    """Removes folders that were just created, unless they are in use."""
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        for each in reversed(new):
            each.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Removes incomplete files of killed processes; only the holder of the lock may call this."""
    for leftover in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        leftover.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a folder.

    Raises:
      UserError: the file cannot be read, or was written by another version of jaxrl.
    """
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            raise ValueError("no JSON object")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(file, error) from error
    check_format(file.parent, known)
    return known


def damaged(file: Path, reason: object) -> UserError:
    """The error for a damaged config.json, sweep.json or search.json."""
    search = file.name == "search.json"  # is never overwritten
    again = "remove the folder" if search else AGAIN
    return UserError(f"{file} is damaged ({reason}): restore the file, or {again}")


def check_format(path: Path, known: Mapping[str, Any]) -> None:
    """Raises UserError for the JSON of a folder that another version of jaxrl has made.

    JSON of another kind is left to later checks.
    """
    made = known.get("format")
    if made == FORMAT or not {"config", "sweep", "search"} & set(known):
        return
    by = "jaxrl 0.1" if made is None else "another version of jaxrl"
    raise UserError(f"{path} was made by {by} and cannot be read by this version")


# --- comparison of identities --------------------------------------------------------------------


def difference(there: Any, here: Any) -> str:
    """The first difference of two JSON values, such as "lr is 0.1 there and 0.5 here"; or ""."""
    old, new = dict(_fields("", there)), dict(_fields("", here))
    for name in new | old:
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if a != b:
            return f"{name} is {a} there and {b} here"
    return ""


def check_same(path: Path, what: str, there: Any, here: Any, remedy: str = "") -> None:
    """Raises ConfigMismatch if two JSON values of a `what` differ.

    Args:
      remedy: end of the message; by default, to choose another folder or to overwrite this one.
    """
    if found := difference(there, here):
        remedy = remedy or "choose another folder, or replace it with --overwrite"
        raise ConfigMismatch(f"{path} holds another {what}: {found}; {remedy}")


def _fields(name: str, value: Any) -> list[tuple[str, Any]]:
    """Leaves of nested JSON under dotted names; values as text."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {str(index): each for index, each in enumerate(value)}
    if isinstance(value, dict) and value:
        return [x for k, v in value.items() for x in _fields(f"{name}.{k}" if name else k, v)]
    return [(name, json.dumps(value))]
