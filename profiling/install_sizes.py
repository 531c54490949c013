"""Packages and megabytes that each extra of suites adds to the default install.

    python profiling/install_sizes.py SITE_PACKAGES [SITE_PACKAGES ...] [--json FILE]

`uv` resolves the newest versions that pyproject.toml allows on Python 3.11; sizes are those of the
installed files, without bytecode, in the given folders, which together have all packages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

EXTRAS = (
    "brax craftax envpool gymnasium jaxmarl jumanji pgx playground xminigrid"  # navix: Python 3.12
).split()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip().lower())


def resolved(*extras: str) -> set[str]:
    """Names of all packages of an install with `extras`."""
    words = ["uv", "pip", "compile", "pyproject.toml", "--python-version", "3.11", "-q"]
    words += ["--no-annotate", "--no-header", *(f"--extra={extra}" for extra in extras)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return {plain(line.partition("==")[0]) for line in lines if "==" in line}


def sizes(folders: Sequence[Path]) -> dict[str, int]:
    """Bytes of each package installed in `folders`."""
    found = {}
    for each in importlib.metadata.distributions(path=[str(folder) for folder in folders]):
        files = [str(each.locate_file(f)) for f in each.files or () if "__pycache__" not in str(f)]
        found[plain(each.metadata["Name"])] = sum(
            map(os.path.getsize, filter(os.path.exists, files))
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, default=Path("profiling/results/install_sizes.json"))
    args = parser.parse_args()
    each, base = sizes(args.folders), resolved()
    table = {"default": base} | {extra: resolved(extra) - base for extra in EXTRAS}
    found = {
        name: {"packages": len(names), "mb": round(sum(each[name] for name in names) / 1e6)}
        for name, names in table.items()
    }
    args.json.write_text(json.dumps(found, indent=2) + "\n")
    print(args.json.read_text())


if __name__ == "__main__":
    main()
