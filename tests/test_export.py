"""Exported policies: each is loaded in a process without this project and acts alike."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl import exporting, nets, numpy_source
from jaxrl.agents import pqn, pqn_rnn
from jaxrl.api import TrainedPolicy
from jaxrl.errors import UserError
from jaxrl.experiments import export
from jaxrl.experiments.model_card import model_card
from jaxrl.types import Box, Discrete, EnvSpec, Policy

OBS = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


def member(module: Any, **settings: Any) -> TrainedPolicy:
    agent = module.make(
        module.Config(hidden=(8,), normalise_obs=True, **settings), tiny.walk().spec
    )
    hp = module.Hypers()
    state = agent.init(jax.random.key(3), hp, {})
    seen = state.obs._replace(mean=jnp.array([0.5, -0.25]), var=jnp.array([4.0, 0.1]))
    return TrainedPolicy(agent, state._replace(obs=seen), hp)


def elsewhere(folder: Path, code: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `code`, which sets `outputs` from `given`, in a process without jaxrl."""
    np.savez(folder / "inputs.npz", *inputs.values())
    lines = [
        "import pathlib, sys, numpy as np",
        "given = list(np.load('inputs.npz').values())",
        code,
        "np.savez('outputs.npz', *map(np.asarray, outputs))",
        "assert not {'jaxrl', 'flax'} & set(sys.modules), sorted(sys.modules)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(np.load(folder / "outputs.npz").values())


def written(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


IN_JAX = """import jax
data = bytearray(pathlib.Path('policy.jax').read_bytes())
outputs = jax.export.deserialize(data).call(*given)"""


def test_numpy(tmp_path: Path) -> None:
    """The same actions from numpy alone; the file has exactly the weights that are read."""
    own = member(pqn)
    found = exporting.greedy(own, tiny.walk().spec)
    files = export.policy_files(found, "safetensors")
    written(tmp_path, files)
    code = "import policy; outputs = policy.act(*given); assert 'jax' not in sys.modules"
    (actions,) = elsewhere(tmp_path, code, {"obs": OBS})
    np.testing.assert_array_equal(actions, own(jnp.asarray(OBS)))
    assert actions.dtype == np.int32 and len(set(actions.tolist())) > 1
    code = "import policy; outputs = policy.act(given[0][0])"
    with pytest.raises(AssertionError, match=r"has the shape \(2,\); it must be \(n, 2\)"):
        elsewhere(tmp_path, code, {"obs": OBS})
    size = int.from_bytes(files["policy.safetensors"][:8], "little")
    header = json.loads(files["policy.safetensors"][8 : 8 + size])
    names = {name.rpartition(".")[2] for name in header}
    assert names == {"__metadata__", "kernel", "bias", "scale", "mean", "var"}
    assert "state.obs.mean" in header and (8 + size) % 8 == 0
    if importlib.util.find_spec("safetensors"):
        from safetensors.numpy import load  # type: ignore[import-not-found]

        assert load(files["policy.safetensors"]).keys() == header.keys() - {"__metadata__"}


def test_jax_with_a_memory(tmp_path: Path) -> None:
    """Memory goes in and out; `start` begins anew; the number of rows is free."""
    pytest.importorskip("flatbuffers")
    own = member(pqn_rnn, memory=3, num_envs=4, minibatches=1)
    found = exporting.greedy(own, tiny.walk().spec)
    assert [port.name for port in found.inputs[:2]] == ["obs", "start"]
    written(tmp_path, {"policy.jax": exporting.to_jax(found)})
    before, start = own.policy.memory(6), np.array([True, False] * 3)
    given = [OBS, start, *(np.asarray(x) + 0.5 for x in jax.tree.leaves(before))]
    inputs = {port.name: x for port, x in zip(found.inputs, given, strict=True)}
    outputs = elsewhere(tmp_path, IN_JAX, inputs)
    memory = jax.tree.unflatten(jax.tree.structure(before), given[2:])
    action, after = own.step(jnp.asarray(OBS), jnp.asarray(start), memory)
    for ours, theirs in zip([action, *jax.tree.leaves(after)], outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("jax2onnx")
    own = member(pqn)
    found = exporting.greedy(own, tiny.walk().spec)
    written(tmp_path, export.policy_files(found, "onnx"))
    code = "import onnxruntime\nsession = onnxruntime.InferenceSession('policy.onnx')\n"
    code += "outputs = session.run(None, {'obs': given[0]})"
    np.testing.assert_array_equal(elsewhere(tmp_path, code, {"obs": OBS})[0], own(jnp.asarray(OBS)))


def test_bytes(tmp_path: Path) -> None:
    """Images of bytes are divided by 255, as in training; weights of bytes stay bytes."""
    spec = EnvSpec("bright", (2, 2, 1), Discrete(2), obs_dtype="uint8")
    # Values (0.28, 0.06) and (-0.46, -0.1); without the division the first action is best in both.
    image = np.array([200, 10, 0, 40, 10, 200, 100, 0], np.uint8).reshape(2, 2, 2, 1)

    def act(state: Any, hp: Any, obs: Any, start: Any, memory: Any, noise: Any, explore: bool):
        rows = nets.as_floats(obs).reshape(obs.shape[0], 4)
        values = rows @ state.astype(jnp.float32) - 0.5 * hp[None]
        return jnp.argmax(values, -1).astype(jnp.int32), memory, {}

    weights = jnp.array([[1, 0], [0, 0], [0, 0], [0, 1]], jnp.uint8)
    own = TrainedPolicy(Policy(act=act), weights, jnp.array([1.0, 0.2]))
    found = exporting.greedy(own, spec)
    assert found.inputs == (exporting.Port("obs", (2, 2, 1), "uint8"),)
    written(tmp_path, export.policy_files(found, "safetensors"))
    code = "import policy; outputs = (*policy.act(*given), policy.weights['state'])"
    actions, state = elsewhere(tmp_path, code, {"obs": image})
    np.testing.assert_array_equal(actions, [0, 1])
    np.testing.assert_array_equal(actions, own(jnp.asarray(image)))
    np.testing.assert_array_equal(state, weights)
    about = {"agent": "pqn", "env": "bright", "run": "x", "member": 0, "results": {}}
    about |= {"inputs": [port._asdict() for port in found.inputs], "outputs": []}
    card = model_card(about | {"action": {"discrete": 2}}, [], hub=False)
    assert "| [n, 2, 2, 1] | uint8 |" in card and "divides by 255" in card


def run_in_numpy(fn: Any, weights: Any, *inputs: np.ndarray) -> tuple[Any, ...]:
    names = [f"x{i}" for i in range(len(inputs))]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    translated = numpy_source.translate(fn, weights, names, shapes)
    body = "".join(f"    {line}\n" for line in translated.body)
    space: dict[str, Any] = {"np": np, "weights": translated.weights}
    exec(f"def act({', '.join(names)}):\n{body}", space)
    return space["act"](*inputs)


def test_other_files_are_kept(tmp_path: Path) -> None:
    export.check_folder(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        export.check_folder(tmp_path)
    (tmp_path / "policy.json").write_text("{}")
    export.check_folder(tmp_path)


def test_operations_in_numpy() -> None:
    """Reductions, loops, selections, slices and products give what JAX gives."""
    kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2)

    def fn(weights: Any, x: Any) -> tuple[Any, ...]:
        state, _ = weights
        step = lambda carry, row: (0.5 * carry + row, jnp.tanh(carry))
        last, rows = jax.lax.scan(step, jnp.zeros(2), x, reverse=True)
        product = jnp.einsum("nd,dek->nek", x, state["kernel"])
        parts = jnp.concatenate([x[1:], -x[:1]]) ** 3
        chosen = jnp.where(x > 0, jnp.inf, jax.nn.sigmoid(x))
        low, high = jnp.split(product, [1], 1)
        spread = (
            jax.nn.softmax(product, -1).cumsum(1) + low.min(0, keepdims=True) + high.std(1)[:, None]
        )
        return last, rows, parts, chosen, spread, jnp.argmax(x, 1), jnp.clip(x, -0.1, 0.2)

    weights = ({"kernel": jnp.asarray(kernel)}, ())
    got = run_in_numpy(fn, weights, OBS)
    for ours, theirs in zip(fn(weights, jnp.asarray(OBS)), got, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert theirs.dtype == ours.dtype


def test_what_numpy_cannot_do_is_refused_if_needed() -> None:
    draw = lambda weights, x: (x + jax.random.normal(jax.random.key(0), x.shape),)
    with pytest.raises(UserError, match="has no translation to numpy: use --to jax"):
        run_in_numpy(draw, ((), ()), OBS)
    unused = lambda weights, x: (x + 0 * x, draw(weights, x))[0:1]
    np.testing.assert_array_equal(run_in_numpy(unused, ((), ()), OBS)[0], OBS)


def test_model_card_and_what_is_missing() -> None:
    box = EnvSpec("odd", (3,), Box((-1.0, 0.0), (1.0, 2.0), (2,)))
    act = lambda state, hp, obs, start, memory, noise, explore: (obs[:, :2], memory, {})
    found = exporting.greedy(TrainedPolicy(Policy(act=act), (), ()), box)
    ports = lambda some: [port._asdict() for port in some]
    about = {"agent": "sac", "env": "odd", "run": "x", "member": 2, "results": {"seed": 2}}
    about |= {"inputs": ports(found.inputs), "outputs": ports(found.outputs)}
    about |= {"action": {"low": [-1.0, 0.0], "high": [1.0, 2.0]}}
    card = model_card(about, ["policy.jax"], hub=True)
    assert card.startswith('---\ntags:\n- "reinforcement-learning"\n') and "[n, 3]" in card
    assert "jax.export.deserialize" in card and "import policy" not in card
    assert "from the middle" not in card
    told = {"unfinished": "training is not finished: 2 of 8 updates"}
    assert "of a run: training is not finished: 2 of 8 updates." in model_card(
        about | told, [], False
    )
    with pytest.raises(UserError, match="--to onnx needs nowhere2onnx: pip install nowhere2onnx"):
        export._need("nowhere2onnx", "onnx", "pip install nowhere2onnx")
