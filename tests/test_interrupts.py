"""Signals and closed pipes, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import toys

from jaxrl import population
from jaxrl.drive import Hooks, drive
from jaxrl.experiments import interrupts

# The main thread is inside C code and without the interpreter, as in a compilation.
BUSY = """
import hashlib
from jaxrl.experiments import interrupts
interrupts.watch("; hint")
with interrupts.Signals():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.fixture(autouse=True)
def hang_ups() -> Iterator[None]:
    """Processes started by the tests inherit what is ignored, and `nohup` ignores hang-ups."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(*words: str, code: str = "", **kwargs: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **(pipes | kwargs))  # type: ignore[call-overload]


def test_busy_main_thread_answers_at_once() -> None:
    with start(code=BUSY) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # together with the first
        assert process.stderr.readline().startswith("jaxrl: SIG")
        assert process.poll() is None
        time.sleep(interrupts.SAME_S)
        process.send_signal(signal.SIGHUP)  # a terminal that closes sends several
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert process.stderr.read() == "jaxrl: ended by SIGTERM; hint\n"


def test_nothing_is_announced_after_the_last_line() -> None:
    code = """
        import signal, time
        from jaxrl.experiments import cli, interrupts
        interrupts.watch("")
        with interrupts.Signals():
            signal.raise_signal(signal.SIGINT)
        cli._complain("stopped")
        time.sleep(3 * interrupts.QUIET_S)
    """
    with start(code=textwrap.dedent(code)) as process:
        assert process.communicate(timeout=60) == ("", "jaxrl: stopped\n")


def test_closed_pipe() -> None:
    code = "from jaxrl.experiments import streams; streams.outlast_readers()\n"
    code += "for i in range(9999): print(i)\nprint('end', file=__import__('sys').stderr)"
    with start(code=code) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "end\n" and process.wait(20) == 0


def test_signals_without_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    monkeypatch.setattr(interrupts, "SAME_S", -1)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.Signals(heard.append) as signals:
            signal.raise_signal(signal.SIGHUP)  # stays ignored
            assert not signals.received
            signal.raise_signal(signal.SIGTERM)
            assert signals.received == signal.SIGTERM and heard == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


TRAIN = ["train", "ppo", "--env", "CartPole-v1", "--preset", "none", "--agent.total-steps", "4096"]
TRAIN += ["--evals", "2", "--out"]


@pytest.mark.slow
def test_closed_output_ends_no_training(tmp_path: Path) -> None:
    """`jaxrl train ... | head -1`."""
    small = ["--agent.num-envs", "4", "--agent.num-steps", "8", "--agent.minibatches", "2"]
    small += ["--agent.total-steps", "64", "--agent.actor", "4", "--agent.critic", "4"]
    with start("jaxrl.experiments.main", *TRAIN, "run", *small, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(120) == 0
    assert (tmp_path / "run/summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signal_while_compiling(tmp_path: Path, number: int) -> None:
    """The run ends after the compilation, and before the next one."""
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with start("jaxrl.experiments.main", *TRAIN, "run", cwd=tmp_path, env=env) as process:
        assert process.stdout is not None
        seen = ""
        while "compiling training" not in seen:
            seen += process.stdout.read(1)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "compiling evaluation" not in out and "and saved" in err.splitlines()[-1]


@pytest.mark.slow
def test_interrupt_during_start(tmp_path: Path) -> None:
    for wait in (0.2, 0.4, 0.8, 1.6):
        with start("jaxrl.experiments.main", *TRAIN, "run", cwd=tmp_path) as process:
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        if "frozen site" not in err:  # Python itself was up
            assert process.returncode == 130 and err.splitlines()[-1].startswith("jaxrl: "), err
            assert "Traceback" not in err, err


@pytest.mark.slow
def test_stages_are_reported_before_the_next_one_is_compiled() -> None:
    """An interrupted compilation loses no finished stage."""
    program = toys.row_offline_online()
    events: list[str | tuple[str, int]] = []
    plan = population.layout(2, jax.devices()[:1], 2)
    hooks = Hooks(compiling=lambda what: events.append(f"compiling {what}"))
    args = (program, plan, jax.random.key(0), toys.hypers(2), toys.inputs())
    for report in drive(*args, hooks=hooks):
        events.append((report.stage, report.step))
    first, second = program.stages[:2]
    end = events.index((first.name, first.updates))
    assert str(events[end + 1]).startswith("compiling")
    assert events[-1] == (second.name, second.updates)
