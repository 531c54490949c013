"""README.md: its programs run, its commands are those of the command line and of .ci/run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl.experiments import agents, cli
from jaxrl.experiments.requests import tokenise
from jaxrl.experiments.settings import resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = [
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e . "
    "&& jaxrl train pqn --env CartPole-v1 --seeds 8",
    'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[test]" && pytest',
]
LINES = {"my_seeds.py": 10, "my_env.py": 20, "my_loop.py": 25, "my_policy.py": 5}
SMALL = ["--seeds=4", "--agent.total-steps=512", "--agent.num-envs=4", "--agent.num-steps=16"]
SMALL += ["--agent.hidden", "8", "--evals=1", "--eval-episodes=2"]

SHORT = "total_steps=512, num_envs=4, num_steps=32, hidden=(8,)"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def programs() -> dict[str, str]:
    """The python blocks, each under the file name in its first line."""
    return {re.match(r"# (\w+\.py)\n", text)[1]: text for text in blocks("python")}  # type: ignore[index]


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def in_backticks() -> list[str]:
    return [text for text in re.findall(r"`([^`\n]+)`", README) if text.startswith("jaxrl ")]


def python(folder: Path, *words: str) -> str:
    """Runs a fresh interpreter in `folder`, which compiles quickly and touches no user's cache."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the programs, of which the long one is shortened."""
    for name, text in programs().items():
        text, count = re.subn(r"total_steps=[\d_]+, hidden=\(64, 64\)", SHORT, text)
        assert count == (name in ("my_loop.py", "my_seeds.py"))
        (tmp_path / name).write_text(text)
    return tmp_path


def test_length() -> None:
    assert len(README.splitlines()) <= 220


def test_programs_are_as_short_as_is_said() -> None:
    sizes = {name: len(re.findall(r"^.*\S", text, re.M)) for name, text in programs().items()}
    assert sizes.keys() == LINES.keys()
    assert {name: size for name, size in sizes.items() if size > LINES[name]} == {}


def test_seeds_as_one_program(folder: Path) -> None:
    """The first program: one return per seed, and a policy."""
    code = "from my_seeds import *; print(act(result.returns[:5, 0, :4] * 0))"
    *returns, actions = python(folder, "-c", code).splitlines()
    assert len(" ".join(returns).strip("[]").split()) == 8
    assert re.fullmatch(r"\[([01] ){4}[01]\]", actions)


def test_own_loop(folder: Path) -> None:
    """One return per learning rate; no simulator, no command line."""
    code = "import sys, my_loop; print(*{m.split('.')[0] for m in sys.modules}, *sys.modules)"
    out, modules = python(folder, "-c", code).splitlines()
    assert len(out.strip("[]").split()) == 4
    assert not {"gymnax", "brax", "jaxrl.experiments", "jaxrl.envs"} & set(modules.split())


def test_own_environment_and_trained_agent(folder: Path) -> None:
    """The command trains in the environment, and the program reads the run that it leaves."""
    (command,) = [line for line in commands() if "my_env:make" in line]
    words = shlex.split(command)
    assert words[0] == "jaxrl"
    out = python(folder, "-m", "jaxrl.experiments.cli", *words[1:], *SMALL)
    assert "\nreturn " in out
    after = out.partition("\nnext:\n")[2].splitlines()
    assert [" ".join(line.split()[:4]) for line in after] == [
        "jaxrl report runs/gusts table",
        "jaxrl eval runs/gusts --trust",
        "jaxrl export runs/gusts --trust",
    ]
    shown = python(folder, "-c", "from my_policy import *; print(action, action.dtype)")
    assert re.fullmatch(r"\[([012] ){4}[012]\] int32\n", shown)
    files = {path.name for path in (folder / "runs/gusts").glob("[!.]*")}
    table = README.partition("It contains:")[2].split("\n\n")[1]
    told = re.findall(r"`([\w.-]+)[/`]", table)
    assert set(told) == files


def test_commands_exist() -> None:
    """Each names a command, and those that train take the options they are given."""
    given = [text for text in (*commands(), *in_backticks()) if text.startswith("jaxrl ")]
    given += [line.partition("&& jaxrl ")[2] for line in SETUP[:1]]
    assert len(given) > 6
    for text in given:
        words = shlex.split(text.removeprefix("jaxrl "))
        assert words[0] in cli.COMMANDS, text
        if words[0] == "train" and "ENV" not in words and "--help" not in words:
            resolve(words[1], tokenise(words[2:])[1])
    for name in cli.COMMANDS:
        assert f"`jaxrl {name} " in README


def test_every_agent_has_a_row() -> None:
    for name in agents.AGENTS:
        assert f"\n| [`{name}`](agents/{name}.py) |" in README, name


def test_links_and_folders() -> None:
    for target in re.findall(r"\]\((?!https:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`([\w/.]+\.py|\w+/)`", README):
        assert name == "plots/" or name == "checkpoints/" or (ROOT / name).exists(), name


# --- .ci/run -------------------------------------------------------------------------------------


def ci_list(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", root / ".ci/run", "--list"], cwd="/", capture_output=True, text=True
    )


def test_ci_runs_the_commands_of_the_readme() -> None:
    assert [line for line in commands() if line.startswith("python3 ")] == SETUP
    out = ci_list(ROOT).stdout.splitlines()
    assert out[:2] == SETUP
    checks = ["ruff check", "ruff format --check", "pyright", "sphinx-build -W -q docs build/docs"]
    assert [line.partition(" && ")[2] for line in out[2:]] == checks


def test_ci_takes_them_from_the_readme(tmp_path: Path) -> None:
    """Not from a copy of its own: another README gives other commands, one without gives none."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    (tmp_path / "README.md").write_text(README.replace("--seeds 8\n", "--seeds 9\n"))
    assert ci_list(tmp_path).stdout.splitlines()[0] == SETUP[0].replace("8", "9")
    # Inline, in a block of another language, or behind a prompt it is no command.
    line = SETUP[0]
    fenced = f"```\n{line}\n```\n```python\n{line}\n```\n```sh\n$ {line}\n```\n"
    (tmp_path / "README.md").write_text(f"{line}\n{fenced}")
    done = ci_list(tmp_path)
    assert done.returncode == 2 and "found 0" in done.stderr
