"""Real processes that train one small run together, as on several hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.experiments import restore
from jaxrl.runs import records

# Eight members in tiles of two: what two and four devices compute is the same to the last bit.
TINY = [
    "pqn", "--env", "probe:match", "--seeds", "8", "--width", "2", "--evals", "2",
    "--eval-episodes", "4", "--checkpoint-seconds", "0", "--heartbeat", "10",
    "--agent.num-envs", "4", "--agent.num-steps", "4", "--agent.total-steps", "6400",
    "--agent.hidden", "8", "--agent.minibatches", "2", "--agent.epochs", "1",
]  # fmt: skip

# Launches of some milliseconds, each followed by a rest in which something can happen.
SLOW = """
import time
from jaxrl.experiments import train_loop
train_loop.PACE_S, metrics_of = 0.01, train_loop.metrics_of
train_loop.metrics_of = lambda report: (time.sleep(0.1), metrics_of(report))[1]
"""


class Ended(NamedTuple):
    code: int
    text: str  # standard output and error


def start(
    out: Path,
    processes: int = 1,
    devices: int = 2,
    *,
    inject: Sequence[str] = (),
    more: Sequence[str] = (),
    last: Sequence[str] = (),
    command: str = "train",
) -> list[subprocess.Popen[str]]:
    """Starts the run in `processes` processes that share `devices` devices evenly.

    `inject[i]` is code that process i runs first; the last one serves those beyond. `last` are
    words for the last process only.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices // processes),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": "",
    }
    started = []
    for i in range(processes):
        code = inject[min(i, len(inject) - 1)] if inject else ""
        words = [command, *TINY, "--out", str(out), *more]
        if processes > 1:
            words += ["--coordinator", f"127.0.0.1:{port}"]
            words += ["--processes", str(processes), "--process-id", str(i)]
        if i == processes - 1:
            words += last
        program = f"{code}\nimport sys\nfrom jaxrl.experiments.cli import main\nsys.exit(main())"
        line = [sys.executable, "-c", program, *words]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(line, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env)
        )
    return started


def finish(processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> list[Ended]:
    """Waits for all; those that do not end in time are killed and fail the test."""
    end = time.monotonic() + seconds
    ended = []
    try:
        for process in processes:
            text, _ = process.communicate(timeout=max(end - time.monotonic(), 0.1))
            ended.append(Ended(process.returncode, text))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ended


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def saved(out: Path) -> list[Path]:
    """Complete checkpoints."""
    return [x for x in out.glob("checkpoints/*-*/[0-9]*") if x.name.isdecimal()]


def outcome(
    out: Path, members: tuple[int, int] = (0, 8)
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The final state of some members, leaf by leaf, and all metrics."""
    run = records.RunDir(out.resolve())
    state = restore.read_state(restore.prepare(restore.settings_of(run)), run, members)
    assert state.step == 400
    leaves = [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves((state.member, state.results))
    ]
    return leaves, records.read_metrics(run)


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit."""
    (a, metrics), (b, others) = outcome(one), outcome(other)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert metrics.keys() == others.keys()
    for name in metrics:
        np.testing.assert_array_equal(metrics[name], others[name], err_msg=name)
