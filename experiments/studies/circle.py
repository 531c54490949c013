"""Study: the corrections of CDSA on a circle in the plane.

    python -m jaxrl.experiments.studies.circle --out DIR

A point moves by 0.1 times its action. In the data it runs round the unit circle. The base policy
does so too, but also steers outwards by 0.25, so without correction it spirals away. One score
model, trained on the data, is used by all rows of the table:

    error   mean |radius - 1| of 256 episodes of 150 steps, from step 50 on
    p95     95th percentile of |radius - 1|
    laps    laps per episode: the return

DIR/circle.json has the table, DIR/circle.png shows episodes of three corrections.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxrl import scores
from jaxrl.agents import cdsa
from jaxrl.experiments import jax_setup
from jaxrl.policies import Trained
from jaxrl.program import Program, Stage, train
from jaxrl.rollout import rollout
from jaxrl.runs import files
from jaxrl.sources import held_out
from jaxrl.spaces import box_scale
from jaxrl.types import Array, Box, Env, EnvSpec, HyperParams, Policy, PyTree, TimeStep, Transition

STEPS, EPISODES, SETTLED = 150, 256, 50
SPEED, OUTWARDS = 0.8, 0.25
SPEC = EnvSpec("circle", (2,), Box((-1.0, -1.0), (1.0, 1.0), (2,)), STEPS)
CONFIG = cdsa.Config(updates=20_000, hidden=(128, 128, 128))


class Row(NamedTuple):
    """One correction: entries of `cdsa.Config` (static) and of `cdsa.Hypers` (traced)."""

    name: str
    static: dict[str, Any]
    traced: dict[str, float]


def one(sigma: float, steps: int) -> dict[str, Any]:
    """Settings of the action correction with a single noise level."""
    return {"correction": "action", "ladder": (sigma,), "ladder_steps": steps}


ROWS = (
    Row("none", {"correction": "action"}, {"alpha": 0.0}),
    Row("(i) σ .3, α 1, once", one(0.3, 1), {"alpha": 1.0}),
    Row("(i) σ .1, α 1, once", one(0.1, 1), {"alpha": 1.0}),
    Row("(i) σ .1, α 1, 10 times", one(0.1, 10), {"alpha": 1.0}),
    Row("(i) ladder, α .5, 3 times each", {"correction": "action"}, {}),
    Row("(ii) σ .1", {"correction": "next"}, {"sigma": 0.1}),
    Row("(ii) σ .3", {"correction": "next"}, {}),
    Row("(iii) σ .3, w 1", {"correction": "current"}, {}),
    Row("(iii) σ .3, w .3", {"correction": "current"}, {"w": 0.3}),
    Row("(ii) σ .1, then (i)", {"correction": "both"}, {"sigma": 0.1}),
)


def make() -> Env:
    """The environment: starts near the circle; the reward is the angle of a step in laps."""

    def reset(key: Array, params: PyTree) -> tuple[PyTree, Array]:
        key_angle, key_radius = jax.random.split(key)
        angle = jax.random.uniform(key_angle, maxval=2 * np.pi)
        radius = 1 + 0.02 * jax.random.normal(key_radius)
        place = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return (place, jnp.int32(0)), place

    def step(key: Array, state: PyTree, action: Array, params: PyTree) -> tuple[PyTree, TimeStep]:
        (x, y), t = state
        place = state[0] + 0.1 * jnp.clip(action, -1.0, 1.0)
        turned = jnp.arctan2(x * place[1] - y * place[0], x * place[0] + y * place[1])
        ts = TimeStep(place, turned / (2 * np.pi), jnp.bool_(False), t + 1 >= STEPS)
        return (place, t + 1), ts

    return Env(SPEC, {}, reset, step)


def steer(inwards: float, outwards: float, spread: float) -> Policy:
    """A policy that runs along the circle.

    Args:
      inwards: gain of the radial action towards the circle, times the distance from it.
      outwards: constant radial action away from the centre.
      spread: standard deviation of the action noise.
    """

    def act(state, hp, obs, start, memory, noise, explore):
        radius = jnp.linalg.norm(obs, axis=-1, keepdims=True)
        normal = obs / radius
        tangent = jnp.stack([-normal[:, 1], normal[:, 0]], -1)
        action = SPEED * tangent + (outwards - inwards * (radius - 1)) * normal
        return jnp.clip(action + spread * noise, -1.0, 1.0), memory, {}

    return Policy(act=act, noise=lambda key, n: jax.random.normal(key, (n, 2)))


BEHAVIOUR = steer(inwards=2.0, outwards=0.0, spread=0.1)
BASE = steer(inwards=0.0, outwards=OUTWARDS, spread=0.0)


def play(policy: Policy, state: PyTree, hp: PyTree, key: Array, episodes: int) -> Transition:
    """Complete episodes [150, episodes, ...]."""
    source = rollout(make(), policy, episodes, STEPS, resets=1)
    key_begin, key_steps = jax.random.split(key)
    begin = source.init(key_begin, state, HyperParams(hp), {})
    return source.next(begin, state, HyperParams(hp), {}, key_steps, jnp.int32(0))[1].transitions


def data(key: Array) -> Transition:
    """Dataset of 134 episodes (20,100 rows) of the behaviour policy."""
    t = play(BEHAVIOUR, (), (), key, 134)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), t)


def learn(cfg: cdsa.Config, rows: Transition, key: Array) -> scores.ScoreModel:
    """The networks of all corrections, trained on `rows`."""
    cfg = dataclasses.replace(cfg, correction="both")
    stage = Stage(
        name="model",
        learner=cdsa.modeller(cfg, SPEC),
        source=held_out(cfg.batch_size),
        updates=cfg.updates,
    )
    hp = HyperParams(jax.tree.map(jnp.float32, cdsa.Hypers()))
    state = jax.jit(train(Program((stage,))))(key, hp, rows).states["model"]
    return scores.trained(cdsa.networks(cfg, SPEC, box_scale("circle", SPEC)), state)


def corrected(cfg: cdsa.Config, row: Row, model: scores.ScoreModel, key: Array) -> Transition:
    """Episodes [150, EPISODES, ...] of the base policy with the correction `row`."""
    policy = cdsa.corrected_policy(BASE, dataclasses.replace(cfg, **row.static), SPEC)
    hp = jax.tree.map(jnp.float32, cdsa.Hypers(**row.traced))
    state = cdsa.CorrectedState(Trained((), ()), model)
    return jax.jit(lambda *args: play(policy, *args, episodes=EPISODES))(state, hp, key)


def measure(t: Transition) -> dict[str, float]:
    """`error`, `p95` and `laps` of episodes [150, N, ...]."""
    off = np.abs(np.linalg.norm(np.asarray(t.next_obs[SETTLED:]), axis=-1) - 1)
    laps = np.asarray(t.reward).sum(0).mean()
    return {"error": float(off.mean()), "p95": float(np.quantile(off, 0.95)), "laps": float(laps)}


def draw(path: Path, rows: Transition, shown: dict[str, Transition]) -> None:
    """Plots ten episodes of each correction in front of the data, as a PNG."""
    figure = Figure(figsize=(4 * len(shown), 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for i, (name, t) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), i + 1)
        axes.plot(*np.asarray(rows.obs[::10]).T, ".", color="0.75", markersize=2, label="data")
        axes.plot(*np.moveaxis(np.asarray(t.obs[:, :10]), -1, 0), color="#0072B2", linewidth=0.7)
        axes.set(title=name, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
        axes.legend(loc="upper right", frameon=False)
    files.atomic_write(path, lambda file: figure.savefig(file, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description="CDSA's corrections on a circle")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=CONFIG.updates)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jax_setup.start()
    cfg = dataclasses.replace(CONFIG, updates=args.updates)
    key_data, key_learn, key_play = jax.random.split(jax.random.key(args.seed), 3)
    rows = jax.jit(data)(key_data)
    model = learn(cfg, rows, key_learn)
    found, shown = {}, {}
    print(f"{'correction':<32} {'error':>7} {'p95':>7} {'laps':>6}")
    for row in ROWS:
        t = corrected(cfg, row, model, key_play)
        found[row.name], shown[row.name] = measure(t), t
        numbers = found[row.name]
        print(
            f"{row.name:<32} {numbers['error']:>7.3f} {numbers['p95']:>7.3f} "
            f"{numbers['laps']:>6.2f}",
            flush=True,
        )
    files.write_json(args.out / "circle.json", {"settings": cfg, "rows": found})
    some = ("none", "(i) ladder, α .5, 3 times each", "(ii) σ .3")
    draw(args.out / "circle.png", rows, {name: shown[name] for name in some})


if __name__ == "__main__":
    main()
