"""Users' own code by name: modules, packages, files and their attributes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxrl import own_code
from jaxrl.errors import UserError
from jaxrl.own_code import load_attribute

FILES = {
    "own_module.py": "make, other = 1, 2",
    "own_package/__init__.py": "inner = 3",
    "own_package/part.py": "make = 4",
    "below/own_file.py": "import dataclasses\n@dataclasses.dataclass\nclass make:\n    x: int = 5",
    "below/own_broken.py": "1 / 0",
    "below/json.py": "make = 6",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the files above."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


def test_names(folder: Path) -> None:
    assert load_attribute("own_module") == load_attribute("own_module.py") == 1
    assert load_attribute("own_module:other") == load_attribute("own_module.py:other") == 2
    assert load_attribute("own_package:inner") == 3
    assert load_attribute("own_package.part") == load_attribute("own_package/part.py") == 4
    assert load_attribute("below/own_file.py")().x == 5
    assert load_attribute("own_module", default="other") == 2


def test_the_module_itself(folder: Path) -> None:
    module = load_attribute("own_module", default=None)
    assert module.make == 1 and load_attribute("own_module.py", default=None) is module
    assert load_attribute("own_package:part", default=None).make == 4  # a module of a package


def test_a_file_named_as_an_imported_module(folder: Path) -> None:
    for _ in range(2):
        assert load_attribute("below/json.py") == 6
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no_such.py", "no_such.py: no file 'no_such.py' in "),
        ("no_such", "no_such: no module 'no_such' in "),
        ("no_such.part:make", "no_such.part:make: no module 'no_such' in "),
        ("a b", "a b: no module 'a b' in "),
        ("", ": no module '' in "),
        ("own_module:mak", "own_module has no attribute 'mak', did you mean 'make'?"),
        ("own_package", "own_package has no attribute 'make'"),
        ("own_package.other", "importing own_package.other failed: ModuleNotFoundError"),
        ("below/own_broken.py", "importing below/own_broken.py failed: ZeroDivisionError"),
    ],
)
def test_errors(folder: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_attribute(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_failed_import_leaves_no_module(folder: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="division by zero"):
            load_attribute("below/own_broken.py")
    assert "own_broken" not in sys.modules


def test_missing_imports_nothing(folder: Path) -> None:
    assert own_code.missing("own_module") is None
    assert own_code.missing("below/own_broken.py") is None
    assert not {"own_module", "own_broken"} & set(sys.modules)
