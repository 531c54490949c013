"""Loading of users' own environments and agents by name.

A name is `module`, `package.module` or `file.py`, optionally followed by `:attribute`. Modules are
also looked for in the current directory. Importing this file does not import JAX.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrl.errors import UserError, nearest


def load_attribute(text: str, default: str | None = "make") -> Any:
    """The object that `text` names, as in "my_module:my_env" or "my_agent.py".

    Args:
      text: `module`, `package.module` or `file.py`, optionally followed by `:attribute`. An
        attribute of a package may also be one of its modules.
      default: the attribute if `text` has none; None for the module itself.

    Raises:
      UserError: no such file, module or attribute, or the import failed.
    """
    name, attribute = split(text)
    reason = missing(name)
    if reason:
        raise UserError(f"{text}: {reason}")
    module = _import(text, name)
    attribute = attribute or default or ""
    if not attribute:
        return module
    if not hasattr(module, attribute) and _is_package_with(module, attribute):
        return _import(text, f"{name}.{attribute}")
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise UserError(
            f"{text}: {name} has no attribute {attribute!r}{nearest(attribute, public)}"
        )
    return getattr(module, attribute)


def split(text: str) -> tuple[str, str]:
    """(module or file, attribute) of `text`; the attribute is "" if `text` has none."""
    module, _, attribute = text.partition(":")
    return module, attribute


def missing(module: str) -> str | None:
    """Why a module or file cannot be found, or None if it can. Imports nothing.

    Of `package.module`, only the package is looked for.
    """
    if module.endswith(".py"):
        return None if Path(module).is_file() else f"no file {module!r} in {os.getcwd()}"
    add_current_directory()
    top = module.partition(".")[0]
    found = top in sys.modules or (top.isidentifier() and importlib.util.find_spec(top))
    where = f"in {os.getcwd()} or among the installed packages"
    return None if found else f"no module {top!r} {where}"


def load_module(module: str) -> ModuleType:
    """The module or file, imported once. Exceptions of its code are not caught."""
    if not module.endswith(".py"):
        add_current_directory()
        return importlib.import_module(module)
    file = Path(module).resolve()
    name = file.stem
    if name in sys.modules and not _is_from(sys.modules[name], file):
        name = str(file)  # the stem is the name of another module
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is not a Python file")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look up the types of their fields there
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[name]
        raise
    return found


def add_current_directory() -> None:
    """Puts the current directory on `sys.path`, as `python -m` does."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
        importlib.invalidate_caches()


def _import(text: str, module: str) -> ModuleType:
    """`load_module`, with any failure as a UserError."""
    try:
        return load_module(module)
    except Exception as error:
        raise UserError(f"{text}: importing {module} failed: {error!r}") from error


def _is_from(module: ModuleType, file: Path) -> bool:
    """Whether `module` was imported from `file`."""
    return Path(getattr(module, "__file__", None) or ".").resolve() == file


def _is_package_with(module: ModuleType, name: str) -> bool:
    """Whether `module` is a package that contains a module `name`."""
    is_package = hasattr(module, "__path__") and name.isidentifier()
    return is_package and importlib.util.find_spec(f"{module.__name__}.{name}") is not None
