"""Users' own environments and agents: `module`, `package.module` or `file.py`, then `:attribute`.

Modules are looked for in the current directory too. Importing this file does not import JAX.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType


def split(name: str) -> tuple[str, str]:
    """(module or file, attribute) of "file.py:make"; the attribute may be ""."""
    module, _, attribute = name.partition(":")
    return module, attribute


def exists(module: str) -> bool:
    """Whether there is such a file, or the top-level package of such a module; imports nothing."""
    if module.endswith(".py"):
        return Path(module).is_file()
    add_current_directory()
    top = module.partition(".")[0]
    if not top.isidentifier():
        return False
    return top in sys.modules or importlib.util.find_spec(top) is not None


def load(module: str) -> ModuleType:
    """The module, imported once; whatever its code raises passes through."""
    if not module.endswith(".py"):
        add_current_directory()
        return importlib.import_module(module)
    file = Path(module).resolve()
    known = sys.modules.get(file.stem)
    if known is not None and Path(getattr(known, "__file__", None) or ".").resolve() == file:
        return known
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is not a file of Python")
    found = importlib.util.module_from_spec(spec)
    before = sys.modules.get(file.stem)
    sys.modules[file.stem] = found  # where dataclasses look up the types of their fields
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[file.stem]
        if before is not None:
            sys.modules[file.stem] = before
        raise
    return found


def add_current_directory() -> None:
    """Lets users' modules in the current directory be imported, as `python -m` does."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
        importlib.invalidate_caches()
