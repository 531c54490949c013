"""What the adapters of suites share: imports with a clear error, and allowances for their code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError, UnknownEnv, install_hint
from jaxrl.errors import nearest
from jaxrl.types import PyTree


def load(module: str, suite: str) -> Any:
    """A module of a suite, imported without what the suite prints at that.

    Raises:
      EnvError: it cannot be imported.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), allowances():
            return importlib.import_module(module)
    except ImportError as error:
        sys.stdout.write(printed.getvalue())
        raise EnvError(f"{suite} cannot be imported ({error}): {install_hint(suite)}") from error


@contextlib.contextmanager
def allowances() -> Iterator[None]:
    """Allows rank promotion in the suites' own code and ignores its warnings, for which there is no
    remedy here."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under `allowances`."""

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        with allowances():
            return function(*args)

    return called


def check_task(suite: str, task: str, known: Iterable[str]) -> None:
    """Raises UnknownEnv, with the nearest name, if `task` is not one of the suite's."""
    known = list(known)
    if task not in known:
        raise UnknownEnv(f"{suite} has no task {task!r}{nearest(task, known)}")


def each_step(states: PyTree) -> list[PyTree]:
    """The states of an episode, numpy [L + 1, ...], as one pytree of arrays of the device each."""
    count = len(jax.tree.leaves(states)[0])
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), states) for i in range(count)]


def pictures(draw: Callable[[PyTree], Any], states: PyTree) -> np.ndarray:
    """Images [L + 1, H, W, 3] uint8 for `Env.render`; `draw(state)` is an image [H, W, 3 or 4]."""
    with allowances():
        drawn = [np.asarray(draw(state))[..., :3] for state in each_step(states)]
    return np.stack(drawn).astype(np.uint8)


def svg_page(drawings: Iterable[str]) -> str:
    """An HTML page that shows one of several SVG drawings, with a slider and arrow keys."""
    steps = [f"<div>{drawing[drawing.index('<svg') :]}</div>" for drawing in drawings]
    return f"""<!doctype html><meta charset="utf-8">
<style>div {{ display: none }} div.shown {{ display: block }}</style>
<input type="range" min="0" max="{len(steps) - 1}" value="0" autofocus> <output></output>
{"".join(steps)}
<script>
const slider = document.querySelector("input"), steps = document.querySelectorAll("div");
const show = () => {{
  steps.forEach((step, i) => step.classList.toggle("shown", i == slider.value));
  document.querySelector("output").textContent = "step " + slider.value;
}};
slider.oninput = show;
show();
</script>
"""
