"""`jaxrl export`: a member's greedy policy as files that load without this project."""

from __future__ import annotations

import dataclasses
import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrl import envs, exporting, numpy_source
from jaxrl.errors import UserError
from jaxrl.experiments.console import print_line, short_path, size
from jaxrl.experiments.model_card import model_card
from jaxrl.experiments.restore import read_member, settings_of
from jaxrl.experiments.run_folders import open_run_folder
from jaxrl.experiments.settings import Settings
from jaxrl.experiments.trust import NOBODY, Trust
from jaxrl.exporting import Greedy
from jaxrl.runs import records
from jaxrl.runs.files import atomic_write, plain, write_json
from jaxrl.runs.provenance import versions
from jaxrl.types import Discrete, EnvSpec

FORMATS = ("jax", "safetensors", "onnx", "hub")


def export(
    path: Path, member: int = 0, to: str = "jax", out: Path | None = None, trust: Trust = NOBODY
) -> Path:
    """Writes the policy of one member of a run, with a model card, and returns the folder.

    Files: policy.jax, or policy.safetensors and policy.py, or policy.onnx; policy.json with the
    inputs and outputs; README.md. "hub" has policy.jax, the numpy form where there is one, and
    metadata of a model repository in README.md.

    Raises:
      UserError: no such format or member, no checkpoint, an operation without a translation, or a
        package that is missing.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: the formats are {', '.join(FORMATS)}")
    if to in ("jax", "hub"):
        _need("flatbuffers", to, "pip install flatbuffers")  # absent in old environments
    if to == "onnx":
        _need("jax2onnx", to, "pip install --no-deps jax2onnx onnx onnx-ir onnxscript")
    run = open_run_folder(path)
    settings = settings_of(run, trust)
    env = envs.make(settings.options.env, **settings.options.env_options)
    if settings.options.env_options.get("normalise_obs"):
        raise UserError(
            f"{short_path(run.path)} was trained with --env-options normalise_obs=true, whose "
            "statistics belong to the environments, not to the policy: use an agent with a setting "
            "normalise_obs"
        )
    policy, unfinished = read_member(path, member, trust)
    found = exporting.greedy(policy, env.spec)
    folder = out or run.path / "exports" / f"member-{member}-{to}"
    check_folder(folder)
    files, about = policy_files(found, to), _about(settings, run, member, env.spec, found)
    about |= {"unfinished": unfinished} if unfinished else {}
    try:
        for name, data in files.items():
            atomic_write(folder / name, data)
        write_json(folder / "policy.json", about)
        atomic_write(folder / "README.md", model_card(about, files, to == "hub").encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; pass --out") from error
    total = sum(len(data) for data in files.values())
    print_line(
        f"{short_path(folder)}: member {member} of {about['run']}, {', '.join(files)} "
        f"({size(total)}); README.md shows how to load the policy{unfinished and f'; {unfinished}'}"
    )
    return folder


def check_folder(folder: Path) -> None:
    """Raises UserError if a folder has files and none of them is that of an exported policy."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "policy.json").is_file():
        raise UserError(f"{folder} holds other files: choose another folder with --out")


def _need(package: str, to: str, remedy: str) -> None:
    """Raises UserError if a package that this format needs is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"--to {to} needs {package}: {remedy}")


def policy_files(found: Greedy, to: str) -> dict[str, bytes]:
    """The files of a policy in one format, by name."""
    if to == "onnx":
        return {"policy.onnx": to_onnx(found)}
    files = {} if to == "safetensors" else {"policy.jax": exporting.to_jax(found)}
    if to in ("safetensors", "hub"):
        try:
            files |= to_numpy(found)
        except UserError:
            if to == "safetensors":
                raise
    return files


def to_numpy(found: Greedy) -> dict[str, bytes]:
    """policy.safetensors with the weights, and policy.py, which needs numpy alone."""
    names = [port.name for port in found.inputs]
    shapes = exporting.shapes(found.inputs)
    translated = numpy_source.translate(found.act, found.weights, names, shapes)
    source = _PROGRAM.format(
        inputs=", ".join(names),
        outputs=", ".join(port.name for port in found.outputs),
        shape=tuple(found.inputs[0].shape),
        row=f"({', '.join(['n', *map(str, found.inputs[0].shape)])})",
        body=textwrap.indent("\n".join(translated.body), "    "),
    )
    weights = numpy_source.safetensors(translated.weights, {"format": "np"})
    return {"policy.safetensors": weights, "policy.py": source.encode()}


def to_onnx(found: Greedy) -> bytes:
    """The policy as an ONNX model, by jax2onnx; axis 0 of inputs and outputs is symbolic."""
    import jax2onnx  # type: ignore[import-not-found]  # late: an optional package

    inputs: list[Any] = exporting.shapes(found.inputs)
    act: Callable[..., Any] = lambda *args: found.act(found.weights, *args)
    try:
        model: Any = jax2onnx.to_onnx(
            act,
            inputs,
            model_name="policy",
            input_names=[port.name for port in found.inputs],
            output_names=[port.name for port in found.outputs],
        )
    except Exception as error:  # whatever a converter raises for an operation that it lacks
        raise UserError(f"jax2onnx cannot convert this policy ({error}): use --to jax") from error
    return model.SerializeToString()


def _about(
    settings: Settings, run: records.RunDir, member: int, spec: EnvSpec, found: Greedy
) -> dict[str, Any]:
    """The contents of policy.json."""
    members = run.members()
    known = {name: x[member].item() for name, x in members.items() if len(x) > member}
    space = spec.action
    action = (
        {"discrete": space.n}
        if isinstance(space, Discrete)
        else {"low": space.low, "high": space.high}
    )
    ports = lambda some: [port._asdict() for port in some]
    return plain(
        {
            "agent": settings.agent,
            "env": settings.options.env,
            "env_options": settings.options.env_options,
            "run": run.path.name,
            "member": member,
            "results": known,
            "action": action,
            "inputs": ports(found.inputs),
            "outputs": ports(found.outputs),
            "settings": dataclasses.asdict(settings.cfg),
            "versions": versions(),
        }
    )


_PROGRAM = '''"""A trained policy in numpy; the weights are in policy.safetensors beside it."""

import json
import pathlib

import numpy as np


def load(file):
    """The arrays of a .safetensors file by name."""
    data = pathlib.Path(file).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    kinds = {{"F32": np.float32, "I32": np.int32, "U32": np.uint32, "U8": np.uint8}}
    kinds["BOOL"] = np.bool_
    found = {{}}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = (8 + size + x for x in entry["data_offsets"])
            array = np.frombuffer(data[first:last], kinds[entry["dtype"]])
            found[name] = array.reshape(entry["shape"])
    return found


weights = load(pathlib.Path(__file__).with_name("policy.safetensors"))


def act({inputs}):
    """The tuple ({outputs},) for n observations."""
    n = obs.shape[0]
    if obs.shape[1:] != {shape}:
        raise ValueError(f"obs has the shape {{obs.shape}}; it must be {row}")
{body}
'''
