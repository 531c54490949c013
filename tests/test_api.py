"""The Python interface: listed names, lazy imports, a run as a function, a policy of a result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxrl
from jaxrl import population
from jaxrl.agents import bc, pqn, pqn_rnn
from jaxrl.drive import drive
from jaxrl.types import HyperParams

ROOT = Path(__file__).parent.parent
CFG = pqn.Config(total_steps=64, num_envs=4, num_steps=4, minibatches=2, hidden=(4,))


def python(folder: Path, code: str) -> str:
    """What a fresh interpreter prints; it compiles quickly and touches no user's cache."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_loads_nothing_and_all_names_resolve(tmp_path: Path) -> None:
    code = "import sys, jaxrl; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert python(tmp_path, code) == "[]\n"
    assert set(jaxrl.__all__) <= set(dir(jaxrl))
    for name in jaxrl.__all__:
        assert getattr(jaxrl, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxrl.trian  # noqa: B018  # pyright: ignore


def test_the_tour_runs(tmp_path: Path) -> None:
    """The blocks of docs/tour.md in order, in a process where JAX was used before."""
    text = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    code = "import jax\nassert jax.devices()\n" + "".join(blocks)
    assert "(3, 2, 4, 8)\n" in python(tmp_path, code)


@pytest.fixture(scope="module")
def results() -> Any:
    """Of two members, and of each by itself."""
    train = jax.jit(jaxrl.train(pqn.program(CFG, tiny.walk(), evals=2, episodes=3)))
    keys = jax.random.split(jax.random.key(0))
    together = jax.jit(jax.vmap(train, (0, None)))(keys, pqn.Hypers(lr=1e-2))
    return together, [train(key, pqn.Hypers(lr=1e-2)) for key in keys], train


def test_result(results: Any) -> None:
    together, alone, _ = results
    assert together.returns.shape == (2, 2, 3) and alone[0].returns.shape == (2, 3)
    assert jax.tree.structure(together.state) == jax.tree.structure(together.states["agent"])
    np.testing.assert_array_equal(together.hp.agent.lr, np.float32([1e-2, 1e-2]))


@pytest.mark.slow
def test_hypers_by_default_and_with_parameters_of_the_environment(results: Any) -> None:
    _, _, train = results
    key = jax.random.key(5)
    plain = jax.tree.leaves(train(key).states)  # constants in the program, so up to rounding
    given = jax.tree.leaves(train(key, pqn.Hypers()).states)
    env = tiny.walk()
    with_noise = lambda noise: train(key, HyperParams(pqn.Hypers(), {"noise": noise}))
    whole, calm = with_noise(env.params["noise"]), with_noise(jnp.float32(0))
    for a, b, c in zip(plain, given, jax.tree.leaves(whole.states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(b, c)
    assert not np.array_equal(calm.returns, whole.returns)


def test_policy_of_a_member(results: Any) -> None:
    together, alone, _ = results
    obs = jax.random.normal(jax.random.key(1), (6, 2))
    for member, result in enumerate(alone):
        act, other = jaxrl.policy(together, member), jaxrl.policy(result)
        np.testing.assert_array_equal(act(obs), other(obs))
        q = act.policy.act(act.state, act.hp, obs, jnp.ones(6, bool), (), jax.random.key(0), False)
        np.testing.assert_array_equal(act(obs), q[0])
        np.testing.assert_array_equal(act(obs.tolist()), q[0])
    random = jaxrl.policy(together)(jnp.zeros((64, 2)), jax.random.key(2), explore=True)
    assert len(set(np.asarray(random).tolist())) > 1  # ε is not 0 yet
    with pytest.raises(jaxrl.UserError, match="members 0 to 1"):
        jaxrl.policy(together, 2)
    with pytest.raises(jaxrl.UserError, match="members 0 to 0"):
        jaxrl.policy(alone[0], 1)
    with pytest.raises(jaxrl.UserError, match="random key"):
        jaxrl.policy(together)(obs, explore=True)
    for wrong in (obs[:, :1], obs[0]):  # another shape; no axis of environments
        with pytest.raises(jaxrl.UserError, match="one row per environment"):
            jaxrl.policy(together)(wrong)


@pytest.mark.slow
def test_policy_with_a_memory() -> None:
    sizes = {"total_steps": 16, "num_envs": 2, "num_steps": 4, "minibatches": 1, "hidden": (4,)}
    cfg = pqn_rnn.Config(**sizes, memory=3)
    train = jaxrl.train(pqn_rnn.program(cfg, tiny.walk(), evals=1, episodes=2))
    act = jaxrl.policy(jax.jit(train)(jax.random.key(0)))
    obs, start = jnp.ones((3, 2)), jnp.ones(3, bool)
    with pytest.raises(jaxrl.UserError, match="memory"):
        act(obs)
    action, memory = act.step(obs, start, act.policy.memory(3))
    assert action.shape == (3,) and np.any(jax.tree.leaves(memory)[0] != 0)


def test_a_wrong_record_of_hypers_is_refused() -> None:
    train = jaxrl.train(pqn.program(CFG, tiny.walk(), evals=1, episodes=2))
    with pytest.raises(jaxrl.UserError, match="pqn.Hypers"):
        jax.eval_shape(train, jax.random.key(0), bc.Hypers())


@pytest.mark.slow
def test_bits_of_a_member_of_a_run() -> None:
    """Member s of a population of one begins from fold_in(key(0), s), as `--seed s` does."""
    program = pqn.program(CFG, tiny.walk(), evals=2, episodes=3)
    env = tiny.walk()
    hp = jax.tree.map(lambda x: jnp.full(1, x, jnp.float32), HyperParams(pqn.Hypers(), env.params))
    plan = population.layout(1, jax.devices()[:1])
    *_, last = drive(program, plan, jax.random.key(0), hp, {}, ids=np.array([7], np.int32))
    key = jax.random.fold_in(jax.random.key(0), 7)
    result = jax.jit(jaxrl.train(program))(key, pqn.Hypers())
    assert last.snapshot is not None
    for a, b in zip(
        jax.tree.leaves(last.snapshot.member.learner), jax.tree.leaves(result.state), strict=True
    ):
        np.testing.assert_array_equal(a[0], b)


def test_compilation_cache(tmp_path: Path) -> None:
    """In the folder of the commands; a folder that is set already stays."""
    code = "import jax, jaxrl; {} jaxrl.enable_compilation_cache(); "
    code += "print(jax.config.values['jax_compilation_cache_dir'])"
    own = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""}
    for before, folder in (
        ("", tmp_path / "jaxrl/xla"),
        ('jax.config.update("jax_compilation_cache_dir", "/kept");', "/kept"),
    ):
        words = [sys.executable, "-c", code.format(before)]
        done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True)
        assert done.stdout.strip() == str(folder), done.stderr
