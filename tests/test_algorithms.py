"""`Algorithm` records: those of jaxrl, and users' own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import logged
import pytest
import tiny

import jaxrl
from jaxrl.agents import AGENTS, pqn
from jaxrl.errors import UserError
from jaxrl.experiments import agents, requests, train

CONTINUOUS = (
    "bc",
    "cql",
    "calql",
    "pqn_continuous",
    "td3",
    "td3bc",
    "rebrac",
    "prdc",
    "edac",
    "ravl",
    "cdsa",
    "resfit",
    "rlif",
    "dagger",
    "dql",
    "ofql",
    "fql",
    "famo2o",
    "hnpg",
    "uni_o4",
)


@pytest.mark.parametrize("name", AGENTS)
def test_records(name: str) -> None:
    algorithm = agents.load(name)
    assert algorithm.module == f"jaxrl.agents.{name}"
    assert requests.agent_name(algorithm) == name
    cfg, hp = algorithm.Config(), algorithm.Hypers()
    static, traced = ({f.name for f in dataclasses.fields(x)} for x in (cfg, hp))
    assert not static & traced
    buttons = name not in CONTINUOUS and not name.startswith("pgd")
    spec = (tiny.walk() if buttons else tiny.glide()).spec
    spec = tiny.pair().spec if name.startswith("pqn_vdn") else spec
    if algorithm.base_points is not None:
        with pytest.raises(UserError, match="--base"):
            algorithm.make(cfg, spec)
        return
    made = algorithm.make(cfg, spec)
    assert isinstance(made, jaxrl.Agent)
    own = {field.name: getattr(hp, field.name) for field in dataclasses.fields(made.hypers)}
    assert own == dataclasses.asdict(made.hypers)
    # PGD's own rates are those of its model, which another stage trains.
    assert name.startswith("pgd") or traced == set(own)


@pytest.mark.parametrize("name", AGENTS)
def test_default_networks_initialise(name: str) -> None:
    """On every kind of task that an agent takes; wide networks are trees, small ones vectors."""
    algorithm, made = agents.load(name), 0
    if algorithm.base_points is not None:
        return
    cfg = algorithm.Config()
    for env in (tiny.walk(), tiny.glide(), tiny.pair()):
        if name == "hnpg":  # whose horizon is the time limit
            env = dataclasses.replace(
                env, spec=dataclasses.replace(env.spec, max_steps=cfg.horizon)
            )
        try:
            program = algorithm.program(cfg, env)
        except UserError:
            continue
        hp = jax.tree.map(jnp.float32, algorithm.Hypers())
        known = {"data": logged.rows(env.spec)} if algorithm.offline else {}
        for stage in program.stages:
            init = lambda inputs: stage.learner.init(jax.random.key(0), hp, inputs)  # noqa: B023
            known |= {stage.name: jax.eval_shape(init, known)}
        made += 1
    assert made


def test_names_load_no_jax() -> None:
    code = "import sys, jaxrl.agents; print('jax' in sys.modules, len(jaxrl.agents.AGENTS))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", str(len(AGENTS))]


OWN = """
from jaxrl import Algorithm
from jaxrl.agents.pqn import Config, Hypers, make
from jaxrl.agents import pqn, td3bc

def program(cfg, env, **options):
    return pqn.program(cfg, env, **options)

ALGORITHM = Algorithm(Config, Hypers, make, program)
OTHER = Algorithm(Config, Hypers, make, program, extras=("state",))

class Plain:
    Config, Hypers, make, program = Config, Hypers, make, program
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `own_algorithm.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "own_algorithm", None)  # forgotten after the test
    monkeypatch.delitem(sys.modules, "own_algorithm")
    (tmp_path / "own_algorithm.py").write_text(OWN)
    return tmp_path


def test_own_agents(own: Path) -> None:
    module = "own_algorithm"
    record = agents.load(module)
    assert record is agents.load(f"{module}.py") is agents.load(f"{module}:ALGORITHM")
    assert record.module == module
    other = agents.load(f"{module}:OTHER")
    assert other.extras == ("state",)
    assert agents.load(f"{module}:td3bc") is agents.load("td3bc")
    plain = agents.load(f"{module}:Plain")
    assert isinstance(plain, jaxrl.Algorithm)
    assert plain.Config is pqn.Config
    assert requests.agent_name(record) == requests.agent_name(sys.modules[module]) == module
    assert requests.agent_name(other) == f"{module}:OTHER"
    with pytest.raises(UserError, match="an agent is a name"):
        requests.agent_name(dataclasses.replace(record))
    with pytest.raises(UserError, match="has no Config"):
        agents.load(f"{module}:program")


def test_runs_of_a_record(own: Path) -> None:
    sizes = {"total_steps": 32, "num_envs": 2, "num_steps": 4, "minibatches": 1, "hidden": (4,)}
    given = {"env": "probe:obs", "evals": 1, "eval_episodes": 2, "out": "run", "agent": sizes}
    train.run(agents.load("own_algorithm"), **given)
    assert json.loads(Path("run/config.json").read_text())["config"]["agent"] == "own_algorithm"
    assert jaxrl.load("run", trust=True) is not None
