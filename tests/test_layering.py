"""Imports go one way, experiments → agents → jaxrl ← envs, and the wheel holds all of it."""

from __future__ import annotations

import ast
import fnmatch
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxrl.envs import names

ROOT = Path(__file__).parent.parent
FOLDERS = ("jaxrl", "agents", "envs", "experiments")
MAY_IMPORT = {
    "jaxrl": {"jaxrl"},
    "runs": {"jaxrl", "runs"},
    "agents": {"agents", "jaxrl"},
    "envs": {"envs", "jaxrl", "runs"},
    "experiments": {*FOLDERS, "runs"},
}
# An agent imports another one only where it is a variant of it: agent -> what it varies.
VARIANTS = {
    "calql": {"cql"},
    "cql": {"sac"},
    "ailboost": {"dac"},
    "dac": {"sac"},
    "edac": {"sac"},
    "famo2o": {"iql"},
    "mdpo": {"ppo"},
    "mdpo_offpolicy": {"sac"},
    "ofql": {"dql"},
    "pgd_iql": {"pgd", "iql"},
    "pgd_ofql": {"pgd", "ofql"},
    "pgd_td3bc": {"pgd", "td3bc"},
    "pqn_rnn": {"pqn"},
    "pqn_vdn": {"pqn"},
    "pqn_vdn_rnn": {"pqn", "pqn_rnn"},
    "prdc": {"td3bc"},
    "props": {"ppo"},
    "ravl": {"edac"},
    "rebrac": {"td3bc"},
    "rlif": {"sac"},
    "rlpd": {"sac"},
    "td3": {"td3bc"},
    "uni_o4": {"ppo"},
    "trpo": {"ppo"},
}
SIMULATORS = {"gymnax", *names.SUITES, *names.SUITES.values()}


def modules(folder: str) -> list[Path]:
    """Every Python file of a folder, the links inside jaxrl/ left out."""
    links = [path for path in (ROOT / folder).iterdir() if path.is_symlink()]
    files = sorted((ROOT / folder).rglob("*.py"))
    return [path for path in files if not any(link in path.parents for link in links)]


def imports(tree: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether in a function or for types alone) of all that a module imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno} imports relatively"
            yield from ((f"{node.module}.{alias.name}", late) for alias in node.names)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports(node, late or function or typing)


def layer(name: str) -> str | None:
    """The folder that an import reaches into; None for other people's packages."""
    first, *rest = name.split(".")
    if first != "jaxrl":
        return None
    return rest[0] if rest and rest[0] in MAY_IMPORT else "jaxrl"


def violations(source: str, path: str) -> list[str]:
    """What a module at `path`, such as "agents/pqn.py", may not import and does."""
    folder, found = "runs" if path.startswith("jaxrl/runs/") else path.split("/")[0], []
    for name, late in imports(ast.parse(source)):
        if name.split(".")[0] in {"agents", "envs", "experiments", "tests"}:
            found.append(name)  # only its name below jaxrl gives the one module object
        if folder in ("jaxrl", "runs", "agents") and name.split(".")[0] in SIMULATORS:
            found.append(name)
        to = layer(name)
        if path == "jaxrl/__init__.py" and late and to in ("experiments", "envs"):
            continue
        if folder == to == "agents":
            other = name.removeprefix("jaxrl.agents.").split(".")[0]
            if other not in VARIANTS.get(Path(path).stem, set()):
                found.append(name)
        if to is not None and to not in MAY_IMPORT[folder]:
            found.append(name)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    paths = modules(folder)
    assert paths
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        assert not violations(path.read_text(), name), name


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jaxrl/program.py", "from jaxrl.agents import pqn"),
        ("jaxrl/program.py", "from jaxrl import envs"),
        ("jaxrl/program.py", "def f():\n    import jaxrl.experiments.cli"),
        ("jaxrl/__init__.py", "import jaxrl.experiments"),
        ("jaxrl/__init__.py", "def f():\n    from jaxrl.agents import pqn"),
        ("jaxrl/drive.py", "from jaxrl.runs import records"),
        ("jaxrl/drive.py", "def f():\n    from jaxrl.runs.stats import iqm"),
        ("jaxrl/runs/records.py", "from jaxrl.experiments import cli"),
        ("jaxrl/runs/records.py", "from jaxrl.envs import names"),
        ("agents/pqn.py", "from jaxrl.runs import stats"),
        ("jaxrl/nets.py", "if True:\n    from brax import envs"),
        ("agents/pqn.py", "from jaxrl.envs import probes"),
        ("agents/pqn.py", "from jaxrl.agents import dqn"),
        ("agents/pqn.py", "from jaxrl.agents.dqn import State"),
        ("agents/ofql.py", "def f():\n    from jaxrl.agents import iql"),
        ("agents/pqn.py", "import gymnax.wrappers"),
        ("agents/pqn.py", "from agents import sac"),
        ("envs/probes.py", "from jaxrl import agents"),
        ("envs/probes.py", "from jaxrl.experiments.cli import main"),
        ("experiments/cli.py", "import envs"),
    ],
)
def test_the_check_sees(path: str, source: str) -> None:
    assert violations(source, path)
    allowed = "import brax_tools\nfrom jaxrl.types import Env\nimport numpy.random"
    assert not violations(allowed, path)
    assert not violations("def f():\n    from jaxrl.experiments import train", "jaxrl/__init__.py")


def imported(path: Path) -> set[str]:
    """The modules of experiments that a file of it imports, also inside functions.

    A package is imported with each of its modules, but by its own.
    """
    package, found = "jaxrl.experiments.", set()
    own = path.relative_to(ROOT / "experiments").parts[:-1]
    for name, _ in imports(ast.parse(path.read_text())):
        parts = name.removeprefix(package).split(".") if name.startswith(package) else []
        for count in range(len(parts), 0, -1):
            file = ROOT / "experiments" / "/".join(parts[:count])
            if file.with_suffix(".py").is_file():
                found.add("/".join(parts[:count]))
            elif (file / "__init__.py").is_file() and tuple(parts[:count]) != own:
                found.add("/".join([*parts[:count], "__init__"]))
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """What imports itself by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = set(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo |= graph.get(name, set())
        return seen

    return [name for name in graph if name in reached(name)]


def test_no_circle_inside_experiments() -> None:
    """Imports inside functions count: they must not hide one."""
    paths = modules("experiments")
    name = lambda path: path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
    graph = {name(path): imported(path) for path in paths}
    assert "settings" in graph["plan"] and "search/__init__" in graph["cli"]
    assert not circles(graph)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_only_the_command_line_imports_late_inside_experiments() -> None:
    """Help must not wait for JAX, nor signals for imports; elsewhere it would hide a circle."""
    for path in modules("experiments"):
        own = [name for name, late in imports(ast.parse(path.read_text())) if late]
        own = [name for name in own if name.startswith("jaxrl.")]
        assert not own or path.name in ("cli.py", "main.py"), (path, own)


def test_only_command_lines_configure_jax() -> None:
    callers = {path for path in modules("experiments") if "jax_setup.start()" in path.read_text()}
    studies = set((ROOT / "experiments/studies").glob("*.py"))
    assert callers - studies == {ROOT / "experiments/cli.py"}


def test_agents_load_no_simulator(tmp_path: Path) -> None:
    loaded = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys\nfrom jaxrl.agents import pqn\nprint({loaded} & {SIMULATORS})"
    env = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (out.returncode, out.stdout) == (0, "set()\n"), out.stderr


@pytest.mark.parametrize("folder", ["agents", "envs", "experiments"])
def test_links(folder: str) -> None:
    """Relative, or they would point elsewhere in another checkout."""
    assert os.readlink(ROOT / "jaxrl" / folder) == os.path.join("..", folder)


def test_every_folder_with_modules_is_a_listed_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for each in FOLDERS for path in modules(each)}
    places = {name: Path(listed["package-dir"].get(name, "?")) for name in listed["packages"]}
    assert folders == set(places.values())
    for name, place in places.items():
        assert name.split(".")[-1] == place.name
        assert (ROOT / place / "__init__.py").exists()


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    """Built from a copy, since setuptools leaves folders behind and packs what it finds in them."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for folder in FOLDERS for path in modules(folder)]
    files += [*(ROOT / "experiments/presets").glob("*.yaml"), ROOT / "jaxrl/py.typed"]
    files += [ROOT / "experiments/report_page.html"]
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert held == {name if name.startswith("jaxrl/") else f"jaxrl/{name}" for name in names}
    assert {"jaxrl/py.typed", "jaxrl/agents/pqn.py", "jaxrl/program.py"} <= held
    assert not fnmatch.filter(held, "jaxrl/*/presets/*.py")
