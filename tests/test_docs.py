"""Pages of docs/: their programs are what they say, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import jax
import pytest
import tiny
import yaml

import jaxrl
from jaxrl.errors import install_extra
from jaxrl.experiments import cli
from jaxrl.experiments.requests import from_mapping, tokenise
from jaxrl.experiments.settings import resolve
from jaxrl.runs import trackers

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("agents/*.md")])


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def module(tmp_path: Path, page: str) -> ModuleType:
    """The first program of a page, imported from a file of the name in its first line."""
    text = blocks(page, "python")[0]
    name = re.match(r"# (\w+)\.py\n", text)[1]  # type: ignore[index]
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = found  # where dataclasses look up their types
    spec.loader.exec_module(found)
    return found


def test_own_agent(tmp_path: Path) -> None:
    """The whole agent: a training run of it can be traced, with the shapes of a run."""
    own = module(tmp_path, "your-agent.md")
    cfg = own.Config(total_steps=64, num_envs=4, num_steps=4, hidden=(4,))
    train = jaxrl.train(own.program(cfg, tiny.walk(), evals=2, episodes=3))
    result = jax.eval_shape(train, jax.random.key(0), own.Hypers())
    assert result.returns.shape == (2, 3)
    with pytest.raises(jaxrl.UserError, match="discrete actions"):
        own.make(cfg, tiny.glide().spec)


@pytest.mark.slow
@pytest.mark.optimised
def test_own_agent_learns(tmp_path: Path) -> None:
    own = module(tmp_path, "your-agent.md")
    train = jaxrl.train(own.program(own.Config(), jaxrl.make("CartPole-v1"), episodes=16))
    keys = jax.random.split(jax.random.key(0), 3)
    returns = jax.jit(jax.vmap(train, (0, None)))(keys, own.Hypers()).returns
    assert returns[:, -1].mean() > 150, returns.mean(-1)


def test_own_environment_is_that_of_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert blocks("your-environment.md", "python")[0] in readme


def test_own_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = [x for x in blocks("after-training.md", "python") if "MyTracker" in x]
    space: dict[str, type] = {}
    exec(text, space)
    own = space["MyTracker"](trackers.TrackedRun("x", tmp_path, {}))
    own.log(3, {"return/median": 0.5})
    own.close([])
    assert capsys.readouterr().out == "x 3 0.5\n[]\n"


def test_extras_are_installed_from_the_clone() -> None:
    """jaxrl is not on PyPI: messages and pages say `pip install -e ".[brax]"`, of a known extra."""
    root = DOCS.parent
    known = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert install_extra("brax") == 'pip install -e ".[brax]"'
    sources = [
        file
        for part in ("agents", "envs", "experiments", "jaxrl")
        for file in (root / part).glob("**/*.py")
    ]
    for file in [*sources, *PAGES, root / "README.md", root / "CONTRIBUTING.md"]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"pip install \S?jaxrl", text), file
        assert set(re.findall(r'-e "\.\[(\w+)\]"', text)) <= set(known), file


def test_yaml_is_a_request() -> None:
    (text,) = blocks("settings.md", "yaml")
    request = from_mapping(yaml.safe_load(text), "cartpole.yaml", "sweep")
    settings = resolve(request.agent, request.options)
    assert settings.options.seeds == 8 and settings.cfg.hidden == (64, 64)
    for text in blocks("cluster-jobs.md", "yaml"):
        assert all(part["kind"] for part in yaml.safe_load_all(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_links(page: Path) -> None:
    """Commands exist, those that train take their options, and files that are linked exist."""
    name = page.relative_to(DOCS).as_posix()
    for line in "".join(blocks(name, "sh")).replace("\\\n", " ").splitlines():
        line = re.sub(r"^srun |  #.*$|\s*\|.*$", "", line)
        if not line.startswith("jaxrl ") or "..." in line:
            continue
        words = shlex.split(line)
        assert words[1] in cli.COMMANDS, line
        if words[1] in ("train", "sweep") and "/" not in words[2] and words[2].islower():
            if words[2].endswith((".py", ".yaml")) or "ENV" in words:
                continue
            options = tokenise(words[3:])[1]
            ours = {k: v for k, v in options.items() if k not in ("sweep", "dry_run")}
            if "my_env:make" not in line:
                resolve(words[2], ours)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
