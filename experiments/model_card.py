"""The model card of an exported policy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from jaxrl.agents import AGENTS

_PAGES = "https://huggingface.co/docs/hub/models-uploading"


def model_card(about: dict[str, Any], files: Iterable[str], hub: bool) -> str:
    """README.md of an exported policy; with `hub`, it begins with metadata for a model hub."""
    env, agent = about["env"], about["agent"]
    results = about["results"].items()
    shown = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in results)
    head = ""
    if hub:
        tags = ("reinforcement-learning", "jax", agent, env.replace(":", "-"))
        head = (
            "---\n" + "".join(["tags:\n", *(f"- {json.dumps(tag)}\n" for tag in tags)]) + "---\n\n"
        )
    rows = [
        f"| {kind} | `{p['name']}` | {_shape(p)} | {p['dtype']} |"
        for kind, ports in (("input", about["inputs"]), ("output", about["outputs"]))
        for p in ports
    ]
    action = about["action"]
    space = (
        f"0 to {action['discrete'] - 1}"
        if "discrete" in action
        else f"from {list(action['low'])} to {list(action['high'])}"
    )
    told = about.get("unfinished", "")
    summary = AGENTS.get(agent, "a custom agent")
    parts = [
        f"{head}# {agent} on {env}\n",
        f"A policy trained by jaxrl: agent `{agent}`, {summary}; environment `{env}`, run "
        f"`{about['run']}`, member {about['member']}. It acts greedily, without the exploration of "
        "training.",
        f"This checkpoint is from the middle of a run: {told}." if told else "",
        f"Results of this member in its training run: {shown or 'none recorded'}.\n",
        "| | name | shape | dtype |\n|---|---|---|---|\n" + "\n".join(rows) + "\n",
        f"n is any number of observations. Actions: {space}. Observations are those of the "
        "environment; where training normalised them, the statistics are inside.",
        _bytes_note(about["inputs"]),
        _memory_note(about["inputs"]),
        *(_usage(_USAGE[name], about) for name in files if name in _USAGE),
        f"To publish this folder, see {_PAGES}.\n" if hub else "",
        "A policy is trained for one environment and its settings, given in `policy.json`; nothing "
        "is known of its behaviour elsewhere.\n",
    ]
    return "\n".join(part for part in parts if part)


def _bytes_note(inputs: list[dict[str, Any]]) -> str:
    if not any(port["name"] == "obs" and port["dtype"] == "uint8" for port in inputs):
        return ""
    return "\nObservations are images of bytes, 0 to 255, which the policy divides by 255."


def _memory_note(inputs: list[dict[str, Any]]) -> str:
    if not any(port["name"] == "start" for port in inputs):
        return ""
    return (
        "\nThe policy has a memory: `start` is true where an observation is the first of its "
        "episode; pass zeros as memory there, and the memory of the last call afterwards."
    )


def _shape(port: dict[str, Any]) -> str:
    return f"[{', '.join(['n', *map(str, port['shape'])])}]"


def _usage(text: str, about: dict[str, Any]) -> str:
    """`text` with the names of the policy's inputs and outputs."""
    inputs, outputs = (
        ", ".join(port["name"] for port in about[kind]) for kind in ("inputs", "outputs")
    )
    if len(about["outputs"]) == 1:
        outputs = f"({outputs},)"
    return text.replace("{inputs}", inputs).replace("{outputs}", outputs)


_USAGE = {
    "policy.jax": """
With JAX alone (`pip install jax flatbuffers`), on CPU, CUDA or TPU:

```python
import pathlib
import jax

data = bytearray(pathlib.Path("policy.jax").read_bytes())
act = jax.jit(jax.export.deserialize(data).call)
{outputs} = act({inputs})
```
""",
    "policy.py": """
With numpy alone (the weights are in `policy.safetensors`):

```python
import policy

{outputs} = policy.act({inputs})  # numpy arrays
```
""",
    "policy.onnx": """
With ONNX Runtime:

```python
import onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
outputs = session.run(None, {"obs": obs})
```
""",
}
