"""Study: one-step mean flows on a mixture of eight Gaussians, also against a wrong critic.

    python -m jaxrl.experiments.studies.ring [--updates N] [--seeds N] [--out DIR]

The data are eight Gaussians with standard deviation 0.1 on a circle of radius 0.8. The first table
compares samples of several models and samplers:

    inside     fraction of samples within three standard deviations of a mode
    modes      number of modes with more than 2 % of the samples
    least      smallest fraction of the samples in one mode (0.125 if uniform)
    most       largest fraction
    distance   mean distance from the nearest mode

Neighbouring modes are six standard deviations apart, so points spread uniformly over the circle
count as inside; their mean distance is 0.157, that of the data 0.125. Numbers are means over seeds
(lowest to highest); DIR/ring.png shows the samples of the first seed.

The second table shows when the mean-flow loss keeps a policy on the data against a wrong critic,
Q = 1 + x, whose optimal actions lie outside all modes. It varies the weight η of Q, with and
without a fraction of the times of the loss at (r, t) = (0, 1), the only point at which the Q term
acts. Training has half as many updates; actions are clipped to ±1.2 before Q, as in OFQL.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from jaxrl import flow, nets
from jaxrl.agents.dql import normalised_q
from jaxrl.experiments import jax_setup
from jaxrl.experiments.console import print_line
from jaxrl.runs.figures import COLOURS
from jaxrl.runs.files import atomic_write
from jaxrl.types import Array

MODES, RADIUS, STD = 8, 0.8, 0.1
SAMPLES, BATCH = 4096, 256
LIMIT = 1.2  # actions are clipped to [-LIMIT, LIMIT] before Q
ETAS, CORNERS = (0.0, 0.001, 0.01, 0.1, 0.5, 3.0), (0.0, 0.25)
ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = (RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)).astype(np.float32)


class Setting(NamedTuple):
    """Traced settings of one training; [P] in a population."""

    scale: Array | float = 1.0  # factor of r and t before the network
    eta: Array | float = 0.0  # weight of the normalised Q
    corner: Array | float = 0.0  # fraction of times at (r, t) = (0, 1)
    seed: Array | int = 0


class Fit(NamedTuple):
    """Quality of samples [n, 2]; see the module docstring."""

    inside: float
    modes: int
    least: float
    most: float
    distance: float


def ring(key: Array, count: int) -> Array:
    """Samples [count, 2] of the data."""
    key_mode, key_noise = jax.random.split(key)
    mode = jax.random.randint(key_mode, (count,), 0, MODES)
    return jnp.asarray(CENTRES)[mode] + STD * jax.random.normal(key_noise, (count, 2))


@functools.cache  # not a constant, since its construction starts JAX's backend
def network() -> nets.Net:
    """(z [n, 2], constant context 1, r, t) -> average velocity [n, 2]."""
    net = nets.ConditionalMLP((96, 96, 96), 2, embedding=16)
    return nets.flat(nets.from_linen(net, (2,), (1,), (), ()))


def field(params: Array, scale: Array | float) -> flow.Field:
    """u(z, r, t) of the network, with times multiplied by `scale`."""
    return lambda z, r, t: network().apply(params, z, jnp.ones((1, 1)), scale * r, scale * t)


def wrong(action: Array) -> Array:
    """Q = 1 + x [n] of actions [n, 2], which is largest outside the data."""
    return 1 + action[:, 0]


def loss(params: Array, setting: Setting, key: Array, same: int, guided: bool) -> Array:
    """The mean-flow loss [], with r = t in `same` rows.

    If `guided`, minus η mean Q / mean |Q| of one-step samples.
    """
    key_data, key_noise, key_times, key_act = jax.random.split(key, 4)
    u = field(params, setting.scale)
    r, t = flow.pair_times(key_times, BATCH, same, corner=setting.corner)
    noise = jax.random.normal(key_noise, (BATCH, 2))
    held = flow.mean_flow_loss(u, ring(key_data, BATCH), noise, r, t, same=same)
    if not guided:
        return held
    action = flow.one_step(u, jax.random.normal(key_act, (BATCH, 2)))
    q = wrong(jnp.clip(action, -LIMIT, LIMIT))
    return held - setting.eta * normalised_q(q, q)


@functools.partial(jax.jit, static_argnames=("same", "guided"))
def trained(settings: Setting, updates: Array, same: int, guided: bool = False) -> Array:
    """Trained parameters [P, size] for settings [P], by Adam with learning rate 1e-3."""
    optimiser = optax.adam(1e-3)

    def train(setting: Setting) -> Array:
        key_init, key = jax.random.split(jax.random.key(setting.seed))
        params = network().init(key_init)

        def update(step: Array, carry: tuple) -> tuple:
            params, opt = carry
            grads = jax.grad(loss)(params, setting, jax.random.fold_in(key, step), same, guided)
            change, opt = optimiser.update(grads, opt)
            return optax.apply_updates(params, change), opt

        return jax.lax.fori_loop(0, updates, update, (params, optimiser.init(params)))[0]

    return jax.vmap(train)(settings)


def measure(x: np.ndarray) -> Fit:
    """The `Fit` of samples [n, 2] to the modes."""
    far = np.linalg.norm(x[:, None] - CENTRES[None], axis=-1)
    inside = far.min(1) < 3 * STD
    mass = np.bincount(far.argmin(1)[inside], minlength=MODES) / len(x)
    return Fit(
        inside=float(inside.mean()),
        modes=int((mass > 0.02).sum()),
        least=float(mass.min()),
        most=float(mass.max()),
        distance=float(far.min(1).mean()),
    )


def one_step_samples(updates: int, seeds: int) -> dict[str, np.ndarray]:
    """Samples [seeds, SAMPLES, 2] by model and sampler."""
    noise = jax.random.normal(jax.random.key(1), (SAMPLES, 2))

    def fitted(same: int, scale: float = 1.0) -> Array:
        zeros = jnp.zeros(seeds)
        each = Setting(zeros + scale, eta=zeros, corner=zeros, seed=jnp.arange(seeds))
        return trained(each, updates, same)

    def drawn(params: Array, how: Callable[[flow.Field], Array], scale: float = 1.0) -> np.ndarray:
        return np.asarray(jax.jit(jax.vmap(lambda one: how(field(one, scale))))(params))

    one_step = lambda u: flow.one_step(u, noise)
    mean = fitted(BATCH // 2)
    return {
        "mean flow, one step": drawn(mean, one_step),
        "flow matching alone (r = t), one step": drawn(fitted(BATCH), one_step),
        "velocity, one Euler step": drawn(mean, lambda u: flow.euler(u, noise, 1)),
        "velocity, 20 Euler steps": drawn(mean, lambda u: flow.euler(u, noise, 20)),
        "times x 1000, one step": drawn(fitted(BATCH // 2, 1000.0), one_step, 1000.0),
    }


def against_a_wrong_critic(updates: int) -> list[tuple[float, float, Fit, float]]:
    """(η, corner, `Fit`, mean Q) of each setting, trained against the wrong critic."""
    grid = np.array([(eta, corner) for corner in CORNERS for eta in ETAS], np.float32)
    eta, corner = jnp.asarray(grid.T)
    settings = Setting(jnp.ones(len(grid)), eta, corner, jnp.zeros(len(grid), jnp.int32))
    params = trained(settings, updates, BATCH // 2, guided=True)
    noise = jax.random.normal(jax.random.key(1), (SAMPLES, 2))
    sample = jax.jit(jax.vmap(lambda params: flow.one_step(field(params, 1.0), noise)))
    rows = []
    for (eta, corner), x in zip(grid.tolist(), sample(params), strict=True):
        x = jnp.clip(x, -LIMIT, LIMIT)
        rows.append((eta, corner, measure(np.asarray(x)), float(jnp.mean(wrong(x)))))
    return rows


def draw(file: Path, found: Mapping[str, np.ndarray]) -> None:
    """Plots a panel per entry of samples [n, 2], as a PNG.

    Circles show three standard deviations around the modes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(found), 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    turn = np.linspace(0, 2 * np.pi, 100)
    circle = 3 * STD * np.stack([np.cos(turn), np.sin(turn)])
    for i, (name, x) in enumerate(found.items()):
        axes = figure.add_subplot(1, len(found), i + 1)
        axes.plot(*x.T, ".", color=COLOURS[0], ms=1.5, alpha=0.4)
        for centre in CENTRES:
            axes.plot(*(circle + centre[:, None]), color="0.6", lw=0.7)
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
        axes.set_title(name, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color="0.6", labelsize=8)
    atomic_write(file, lambda to: figure.savefig(to, format="png"))


def table(*columns: str) -> tuple[Table, Callable[..., None]]:
    """An empty table, and a function that adds a row of texts and numbers."""
    out = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        out.add_column(name, justify="right")
    text = lambda x: f"{x:.3f}" if isinstance(x, float) else str(x)
    return out, lambda *row: out.add_row(*map(text, row))


def over_seeds(fits: Sequence[Fit]) -> list[str]:
    """Each field of `Fit` as "mean (lowest-highest)" over `fits`."""
    columns = zip(*fits, strict=True)
    return [f"{np.mean(x):.3g} ({min(x):.3g}-{max(x):.3g})" for x in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description="Mean flows on a ring of eight modes")
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the first table")
    parser.add_argument("--out", type=Path, default=Path("runs/ring"), help="folder for ring.png")
    args = parser.parse_args()
    jax_setup.start()
    found = one_step_samples(args.updates, args.seeds)
    shown, add = table("samples", *Fit._fields)
    add("the data", *measure(np.asarray(ring(jax.random.key(2), SAMPLES))))
    for name, x in found.items():
        add(name, *over_seeds([measure(each) for each in x]))
    print_line(shown)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "ring.png", {name: x[0] for name, x in found.items()})
    print_line(f"{args.out / 'ring.png'}\n")
    shown, add = table("eta", "corner", "inside", "mean Q", "distance")
    for eta, corner, fit, q in against_a_wrong_critic(max(args.updates // 2, 1)):
        add(f"{eta:g}", f"{corner:g}", fit.inside, q, fit.distance)
    print_line(shown)


if __name__ == "__main__":
    main()
