"""`jaxrl train AGENT --data FILE`: identity of a run, refused input, and loading the policy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest

import jaxrl
from jaxrl import envs
from jaxrl.envs import datasets
from jaxrl.errors import UserError
from jaxrl.experiments import cli, jax_setup
from jaxrl.experiments.requests import tokenise
from jaxrl.experiments.restore import prepare
from jaxrl.experiments.settings import resolve
from jaxrl.runs import arrays

AIM = envs.make("probe:aim").spec
TRAIN = ["train", "bc", "--env", "probe:aim", "--agent.updates", "2", "--agent.hidden", "4"]
TRAIN += ["--agent.batch-size", "4", "--evals", "1", "--eval-episodes", "2"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of `probe:aim` in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "start", lambda: None)
    return write(tmp_path / "aim.npz", seed=0)


def write(path: Path, seed: int) -> Path:
    data = logged.rows(AIM, 12, seed)
    ends = np.ones(12, bool)
    data = data._replace(terminated=ends, truncated=~ends, start=ends)
    datasets.save(path, datasets.Dataset(data, {"env": "probe:aim"}))
    return path


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize(
    ("agent", "env", "data", "told"),
    [
        ("bc", "probe:aim", "", "jaxrl: bc needs a dataset: pass --data FILE\n"),
        ("pqn", "probe:match", "aim.npz", "jaxrl: pqn does not learn from a dataset: remove"),
        ("bc", "probe:aim", "none.npz", "jaxrl: none.npz cannot be read: No such file"),
        ("bc", "Pendulum-v1", "aim.npz", "jaxrl: aim.npz: obs"),
    ],
)
def test_refused_in_one_line(
    file: Path, capsys: Any, agent: str, env: str, data: str, told: str
) -> None:
    words = ["train", agent, "--env", env, *(["--data", data] if data else [])]
    code, _, err = run(capsys, *words)
    assert code == 2 and err.count("\n") == 1 and err.startswith(told), err
    assert not Path("runs").exists()


def test_models_are_not_learned_from_unknown_successors(file: Path, capsys: Any) -> None:
    """As in a D4RL file in which every row is terminal."""
    data = datasets.load(file)
    extras = {"next_known": np.arange(12) < 1}
    data = data._replace(transitions=data.transitions._replace(extras=extras))
    datasets.save(file.with_name("terminal.npz"), data)
    code, _, err = run(capsys, "train", "ravl", "--env", "probe:aim", "--data", "terminal.npz")
    assert code == 2 and err.count("\n") == 1
    assert "next_obs: 1 rows have a known successor, ravl needs at least 2" in err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_bytes_train_as_floats(file: Path, capsys: Any) -> None:
    found = datasets.load(file)
    t: Any = found.transitions
    policies = []
    for name, dtype in (("bytes", np.uint8), ("floats", np.float32)):
        obs, next_obs = (np.round(np.abs(x) * 50).astype(dtype) for x in (t.obs, t.next_obs))
        data = found._replace(transitions=t._replace(obs=obs, next_obs=next_obs))
        datasets.save(file.with_name(f"{name}.npz"), data)
        assert run(capsys, *TRAIN, "--data", f"{name}.npz", "--out", name)[0] == 0
        policies.append(jaxrl.load(name)(jnp.arange(3.0)[:, None]))
    np.testing.assert_array_equal(*policies)


@pytest.mark.parametrize(
    ("agent", "option", "told"),
    [
        ("bc", "normalise_obs=true", "(--agent.normalise-obs does): remove it from --env-options"),
        ("iql", "normalize_obs=true", "iql learns from a dataset, which normalise_obs does not"),
        ("iql", "normalise_reward=0.9", "which normalise_reward does not normalise: remove it"),
    ],
)
def test_running_statistics_do_not_reach_a_dataset(
    file: Path, capsys: Any, agent: str, option: str, told: str
) -> None:
    words = ["train", agent, "--env", "probe:aim", "--data", "aim.npz", "--env-options", option]
    code, _, err = run(capsys, *words)
    assert code == 2 and told in err and err.count("\n") == 1, err
    assert not Path("runs").exists()
    off = resolve("bc", {"env": "probe:aim", "data": file, "env_options": {"normalise_obs": False}})
    assert prepare(off).members == 1


def test_rewards_are_scaled_by_the_range_of_returns(file: Path, capsys: Any) -> None:
    """By 1000 / (highest - lowest return), times the given factor; each episode is one row."""
    reward = datasets.load(file).transitions.reward
    options = {"env": "probe:aim", "data": file, "normalise_returns": True}
    ready = prepare(resolve("iql", options | {"agent": {"reward_scale": 0.5}}))
    expected = 0.5 * 1000 / (reward.max() - reward.min())
    np.testing.assert_allclose(ready.hp.agent.reward_scale, expected, rtol=1e-6)
    assert ready.identity["normalise_returns"] is True
    plain = prepare(resolve("iql", options | {"normalise_returns": False}))
    assert "normalise_returns" not in plain.identity and plain.hp.agent.reward_scale[0] == 1

    words = ["--env", "probe:aim", "--normalise-returns", "--out", "run"]
    _, out, err = run(capsys, "train", "bc", *words, "--data", file.name)
    assert err == "jaxrl: bc has no reward_scale: remove --normalise-returns\n", err
    _, out, err = run(capsys, "train", "pqn", *words)
    assert "pqn does not learn from a dataset: remove --normalise-returns" in err
    sweep = ["--sweep", "agent.reward_scale=1,2", "--data", file.name]
    _, out, err = run(capsys, "sweep", "iql", *words, *sweep)
    assert "--normalise-returns sets agent.reward_scale: remove one of the two" in err


def test_equal_returns_have_no_range(file: Path) -> None:
    data = datasets.load(file)
    same = data.transitions._replace(reward=np.ones(12, np.float32))
    assert datasets.return_factor(same) is None
    datasets.save(file.with_name("same.npz"), data._replace(transitions=same))
    options = {"env": "probe:aim", "data": file.with_name("same.npz"), "normalise_returns": True}
    with pytest.raises(UserError, match="all episodes have the same return"):
        prepare(resolve("iql", options))


@pytest.mark.parametrize(
    ("agent", "env", "others"),
    [
        ("pqn", "probe:aim", "pqn_continuous, ppo, trpo, props, mdpo, mdpo_offpolicy, sac, td3"),
        (
            "pqn_continuous",
            "probe:match",
            "pqn, pqn_rnn, ppo, trpo, props, mdpo, mdpo_offpolicy, sac, token_pg, dqn",
        ),
    ],
)
def test_other_agents_are_named(file: Path, capsys: Any, agent: str, env: str, others: str) -> None:
    code, _, err = run(capsys, "train", agent, "--env", env)
    assert code == 2 and err.endswith(f"; agents for it: {others}\n"), err


@pytest.mark.parametrize(("agent", "leaves"), [("bc", 0), ("ravl", 4)])
def test_agents_get_only_the_extras_they_name(agent: str, leaves: int) -> None:
    """Only RAVL names the simulator states, which DMSD's observations determine."""
    fixture = Path(__file__).parent / "data" / "DMSD-high-1000-val.npz"
    words = ["--env", "dmsd", "--data", str(fixture)]
    ready = prepare(resolve(agent, tokenise(words)[1]))
    found = ready.inputs["data"].extras
    assert len(found.get("state", ())) == leaves
    assert "expert" in ready.meta["reference"]


def test_data_contents_identify_the_run(file: Path, capsys: Any) -> None:
    """A copy of the dataset continues the run and another dataset is refused; the policy loads
    although the run stored a relative path of the data."""
    code, out, err = run(capsys, *TRAIN, "--data", file.name, "--out", "run")
    assert code == 0, err
    elsewhere = shutil.copy(file, file.with_name("copy.npz"))
    code, out, _ = run(capsys, *TRAIN, "--data", str(elsewhere), "--out", "run")
    assert code == 0 and "is finished" in out
    other = write(file.with_name("other.npz"), seed=1)
    code, _, err = run(capsys, *TRAIN, "--data", str(other), "--out", "run")
    assert code == 2 and "data" in err, err
    policy, state, hp = jaxrl.load("run")
    action = policy.act(
        state, hp, jnp.ones((3, 1)), jnp.ones(3, bool), (), jax.random.key(0), False
    )
    assert action[0].shape == (3, 1)


def test_a_trained_policy_needs_no_dataset(
    file: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy acts the same without its dataset or with a changed one, which `eval` refuses."""
    assert run(capsys, *TRAIN, "--data", "aim.npz", "--out", "it")[0] == 0
    obs = jnp.zeros((2, *AIM.obs_shape))
    before = jaxrl.load("it")(obs)
    read, names = arrays.read, []
    monkeypatch.setattr(arrays, "read", lambda *args: (names.append(args[1]), read(*args))[1])
    loaded = jaxrl.load("it")
    counters = 2  # stage and step
    assert len(names) == len(jax.tree.leaves((loaded.state, loaded.hp))) + counters
    write(file, seed=1)
    np.testing.assert_array_equal(jaxrl.load("it")(obs), before)
    code, _, err = run(capsys, "eval", "it", "--episodes", "2")
    assert code == 2
    assert (
        err.startswith("jaxrl: its dataset has changed since it was made") and err.count("\n") == 1
    )
    file.unlink()
    np.testing.assert_array_equal(jaxrl.load("it")(obs), before)
    write(file, seed=0)
    assert run(capsys, "eval", "it", "--episodes", "2")[0] == 0


def test_load_beside_other_orbax_checkpoints(file: Path, capsys: Any) -> None:
    """A loaded policy and orbax's manager serve one process, in any order."""
    import orbax.checkpoint as ocp  # takes a second

    assert run(capsys, *TRAIN, "--data", "aim.npz", "--out", "it")[0] == 0
    state = {"x": np.arange(3.0)}
    obs = jnp.ones((2, *AIM.obs_shape))
    with ocp.CheckpointManager(file.parent / "own") as manager:
        assert manager.save(1, args=ocp.args.StandardSave(state))
        before = jaxrl.load("it")(obs)
        assert manager.save(2, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        found = manager.restore(2, args=ocp.args.StandardRestore(state))
        np.testing.assert_array_equal(found["x"], state["x"])
        np.testing.assert_array_equal(jaxrl.load("it")(obs), before)
