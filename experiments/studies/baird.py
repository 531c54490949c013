"""Study: off-policy temporal differences with LayerNorm and an ℓ2 penalty (arXiv:2407.04811).

    python -m jaxrl.experiments.studies.baird --seeds 5 --out DIR

Expected TD(0) updates w <- w + α E[(r + γ V(s') - V(s)) ∇V(s)] of fixed transitions, whose states
have another distribution than the target policy's. All rewards are 0, and so are all true values.

    baird   Baird's counterexample (1995, in the form of Sutton and Barto, 2018, example 11.1):
            seven states of eight features; each is updated equally often, and the target policy
            leads from all of them to the seventh
    double  two states of features 1 and 2; only the step from the first to the second is seen, so
            that a linear value grows by 1 + α (2 γ - 1) per update (Tsitsiklis and Van Roy, 1997)

Values are linear, or networks of one ReLU layer as PQN has, with and without LayerNorm, and with
and without the penalty ½ η ‖w‖² of the output weights w. For fixed features f, the expected update
of w has a derivative whose symmetric part is at most (γ/2)² max ‖f‖² - η (`margin`): LayerNorm
bounds ‖f‖, the penalty does the rest.

The table has the median over seeds of the root mean square of all values at the end, relative to
that at the start; inf beyond the range of float32. DIR/baird.json has all seeds, DIR/baird.png the
course.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrl import nets
from jaxrl.experiments import jax_setup
from jaxrl.runs import files
from jaxrl.runs.figures import COLOURS
from jaxrl.types import Array, PyTree

GAMMA, WIDTH, POINTS = 0.99, 32, 200


class Task(NamedTuple):
    """Transitions [S] of a target policy under the states' distribution of other data."""

    obs: np.ndarray  # [S, F]
    next_obs: np.ndarray  # [S, F]
    every: np.ndarray  # [n, F] all states, for the measure


class Method(NamedTuple):
    """A value function: hidden widths, LayerNorm, and η."""

    name: str
    hidden: tuple[int, ...] = (WIDTH,)
    norm: bool = False
    l2: float = 0.0


METHODS = (
    Method("linear", hidden=()),
    Method("network"),
    Method("network, ℓ2", l2=0.1),
    Method("network, LayerNorm", norm=True),
    Method("network, LayerNorm, ℓ2", norm=True, l2=0.1),
)


def baird() -> Task:
    """Features 2 e_i + e_8 of states 1 to 6, and e_7 + 2 e_8 of state 7."""
    obs = np.zeros((7, 8), np.float32)
    obs[:6, :6], obs[:6, 7] = 2 * np.eye(6), 1
    obs[6, 6:] = 1, 2
    return Task(obs, np.tile(obs[6], (7, 1)), obs)


def double() -> Task:
    """Features 1 and 2."""
    states = np.array([[1.0], [2.0]], np.float32)
    return Task(states[:1], states[1:], states)


TASKS = {"baird": baird, "double": double}


def value_net(method: Method, features: int) -> nets.Net:
    """V: [B, features] to [B, 1]; without hidden layers it is linear in the features."""
    return nets.from_linen(nets.MLP(method.hidden, 1, norm=method.norm), (features,))


def td_loss(net: nets.Net, params: PyTree, task: Task, l2: Array | float) -> Array:
    """½ mean (γ V(s') - V(s))² [] with constant targets, and ½ η ‖w‖² of the output weights.

    The output layer has no bias: a constant would be a feature of its own.
    """
    value = lambda params, obs: net.apply(params, jnp.asarray(obs))[:, 0]
    fixed = jax.lax.stop_gradient(params)
    error = GAMMA * value(fixed, task.next_obs) - value(params, task.obs)
    return 0.5 * (jnp.mean(error**2) + l2 * jnp.sum(params["Dense_0"]["kernel"] ** 2))


def learn(method: Method, task: Task, updates: int, lr: float, key: Array) -> Array:
    """Root mean square of all values [POINTS + 1] before, during and after `updates` updates."""
    net = value_net(method, task.obs.shape[1])
    size = lambda params: jnp.sqrt(jnp.mean(net.apply(params, jnp.asarray(task.every)) ** 2))

    def update(params: PyTree, _: None) -> tuple[PyTree, None]:
        grads = jax.grad(lambda params: td_loss(net, params, task, method.l2))(params)
        grads["Dense_0"]["bias"] = jnp.zeros_like(grads["Dense_0"]["bias"])
        return jax.tree.map(lambda x, g: x - lr * g, params, grads), None

    def some(params: PyTree, _: None) -> tuple[PyTree, Array]:
        params, _ = jax.lax.scan(update, params, length=updates // POINTS)
        return params, size(params)

    params = net.init(key)
    sizes = jax.lax.scan(some, params, length=POINTS)[1]
    return jnp.concatenate([size(params)[None], sizes])


def margin(features: np.ndarray, next_features: np.ndarray, l2: float) -> float:
    """Largest eigenvalue of the symmetric part of E[f (γ f' - f)ᵀ] - η I.

    Updates of the output weights converge for small steps if it is negative. It is at most
    (γ/2)² max ‖f'‖² - η, since x (γ y - x) <= (γ y / 2)².

    Args:
      features, next_features: f [S, F] of equally frequent states and of their successors.
    """
    matrix = features.T @ (GAMMA * next_features - features) / len(features)
    return float(np.linalg.eigvalsh((matrix + matrix.T) / 2).max()) - l2


def draw(path: Path, curves: dict[str, dict[str, np.ndarray]], updates: int) -> None:
    """Medians over seeds, with the range of all seeds, one panel per task."""
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    steps = np.linspace(0, updates, POINTS + 1)
    for i, (name, found) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), i + 1)
        for (method, sizes), colour in zip(found.items(), COLOURS, strict=False):
            shown = np.clip(np.nan_to_num(sizes, nan=1e38, posinf=1e38), 1e-12, 1e38)
            low, middle, high = np.quantile(shown, [0, 0.5, 1], 0)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps, middle, color=colour, label=method)
        axes.set(title=name, xlabel="updates", ylabel="RMS of values", yscale="log")
        axes.set_ylim(1e-8, 1e8)
        axes.legend(frameon=False, fontsize=8)
    files.atomic_write(path, lambda file: figure.savefig(file, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description="off-policy TD with LayerNorm and ℓ2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()
    jax_setup.start()
    keys = jax.random.split(jax.random.key(0), args.seeds)
    curves: dict[str, dict[str, np.ndarray]] = {}
    print("task     method                   RMS of values, end to start: median (range)")
    for name, make in TASKS.items():
        curves[name] = {}
        for method in METHODS:
            one = functools.partial(learn, method, make(), args.updates, args.lr)
            run = jax.jit(jax.vmap(one))
            curves[name][method.name] = sizes = np.asarray(run(keys))
            growth = np.where(np.isfinite(sizes[:, -1]), sizes[:, -1] / sizes[:, 0], np.inf)
            print(
                f"{name:<8} {method.name:<24} {np.median(growth):>10.3g} "
                f"({growth.min():.3g} to {growth.max():.3g})",
                flush=True,
            )
    rows = {
        task: {name: np.where(np.isfinite(x), x, 1e38) for name, x in found.items()}
        for task, found in curves.items()
    }
    settings = {"seeds": args.seeds, "updates": args.updates, "lr": args.lr, "gamma": GAMMA}
    files.write_json(args.out / "baird.json", {"settings": settings, "rows": rows})
    draw(args.out / "baird.png", curves, args.updates)


if __name__ == "__main__":
    main()
