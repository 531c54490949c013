"""Study: values at the edge of reach of model rollouts (Sims et al. 2024, arXiv:2402.12527).

    python -m jaxrl.experiments.studies.edge_of_reach --seeds 10 --out DIR
    python -m jaxrl.experiments.studies.edge_of_reach --grid --seeds 5 --out DIR

In `jaxrl.envs.reach`, rollouts of ten steps start where episodes do, in [-2, 2]², and the dynamics
model is the environment itself. Values at 11 < |s|∞ ≤ 12, the edge of reach, are bootstrapped from
and never updated; values just inside are updated on very few steps. Methods:

    base     SAC with two critics in the true dynamics: MBPO with a perfect model
    oracle   base, where a step into the edge of reach has the additional reward γ V*(s') and
             terminates; V* is the optimal value, known in closed form
    sac_n    base with ten critics
    ravl     ten critics with EDAC's diversity term, η 1
    mild     ravl with η .001: squared TD errors scale with the square of rewards and the diversity
             term does not, so rewards of at most 1 need a smaller η

Values that grow with the distance diverge at the published discount γ .99: for walks of k steps
they diverge if γ > (2k - 1) / (2k + 2), see docs/agents/ravl.md. The time of divergence depends on
the Polyak step size τ: the published .005 over 3,000,000 updates moves the targets further than
.03 over the 8,000 updates of this study.

Means over seeds ± standard deviations are printed; DIR/edge_of_reach.json has all values:

    return   of the final policy, 100 episodes of 30 steps per seed
    |Q|      largest |Q| during training, in units of 1 / (1 - γ), the bound of all returns
    edge     fraction of model steps that end in the edge of reach, in the last fifth of training
    within   mean of min_i Q_i(s, mode(s)) - V*(s) at the states of rollouts of the final policy
             from which steps are taken, in the same units
    end      the same at the last states of these rollouts
    std      standard deviation over critics at the last states of rollouts, relative to that at
             other successors

DIR/edge_of_reach.png shows min_i Q_i(s, mode(s)) of the first seed over the plane. Methods with
results in DIR are not run again.

With --grid the methods are all combinations of N critics, factors on the rewards and η divided by
the square of the factor, which tell whether the diversity term or the size of the ensemble prevents
divergence. Values and the initial temperature are relative to the factor.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxrl.agents import edac, ravl
from jaxrl.envs import reach
from jaxrl.evaluate import evaluator
from jaxrl.experiments import jax_setup
from jaxrl.imagination import Model, Outcome, true_model
from jaxrl.program import Program, Result, train
from jaxrl.runs import files, provenance
from jaxrl.types import Array, Env, HyperParams, PyTree, Transition, mean_where

STEPS, STARTS, EPISODES, EVALS = 10, 4096, 100, 5
COMMON: dict[str, Any] = {
    "batch_size": 128,
    "hidden": (64, 64),
    "dynamics": "true",
    "rollout_steps": STEPS,
    "rollout_starts": 100,
    "rollout_every": 100,
    "retain": 80,  # large, so that almost no state outside the edge is forgotten
    "real_share": 0.0,
}
HYPERS = ravl.Hypers(tau=0.03, temperature=0.1)
EXTENT = 14.0  # figures cover [-EXTENT, EXTENT]²


class Method(NamedTuple):
    """One method: entries of `ravl.Config`, whether the model is patched, η, and the factor on
    rewards."""

    name: str
    static: dict[str, Any]
    patch: bool = False
    eta: float = 1.0
    scale: float = 1.0


METHODS = (
    Method("base", {"critics": 2, "diversity": False}),
    Method("oracle", {"critics": 2, "diversity": False}, patch=True),
    Method("sac_n", {"critics": 10, "diversity": False}),
    Method("ravl", {"critics": 10}),
    Method("mild", {"critics": 10}, eta=1e-3),
)


CRITICS, SCALES, RATIOS = (2, 10, 50), (1.0, 5.0, 31.6), (0.0, 0.001, 0.03, 1.0)


def combinations() -> tuple[Method, ...]:
    """The methods of --grid; without the diversity term N critics are SAC-N."""
    return tuple(
        Method(
            f"n{count}-r{scale:g}-eta{ratio:g}",
            {"critics": count, "diversity": ratio > 0},
            eta=ratio * scale**2,
            scale=scale,
        )
        for count, scale, ratio in itertools.product(CRITICS, SCALES, RATIOS)
    )


def starts(env: Env, key: Array) -> Transition:
    """Dataset of STARTS initial states, the only data that rollouts use."""
    state, obs = jax.vmap(env.reset, (0, None))(jax.random.split(key, STARTS), env.params)
    none = jnp.zeros(STARTS, bool)
    action, reward = jnp.zeros((STARTS, 2)), jnp.ones(STARTS)  # the largest possible reward
    extras: Any = {"state": tuple(jax.tree.leaves(state))}
    return Transition(obs, action, reward, obs, none, none, ~none, extras)


def patched(model: Model) -> Model:
    """`model` whose steps into the edge of reach have additional reward γ V* and terminate."""

    def step(
        inputs: PyTree, hp: HyperParams, world: PyTree, obs: Array, action: Array, key: Array
    ) -> tuple[PyTree, Outcome]:
        world, out = model.step(inputs, hp, world, obs, action, key)
        edge, gamma = reach.edge_of_reach(out.next_obs, STEPS), hp.agent.gamma
        value = reach.optimal_value(out.next_obs, hp.env["goal"], gamma)
        reward = out.reward + jnp.where(edge, gamma * value, 0.0)
        return world, out._replace(reward=reward, terminated=out.terminated | edge)

    return Model(start=model.start, step=step)


def run(method: Method, env: Env, updates: int, keys: Array, data: Transition) -> Result:
    """Trains one member per key [P]; `data` is shared."""
    cfg = ravl.Config(**COMMON, **method.static, updates=updates)
    world = true_model(env)
    stage = ravl.learning(cfg, env, patched(world) if method.patch else world, EVALS, EPISODES)
    stage = dataclasses.replace(
        stage, learner=counting(stage.learner), evaluate=judged(cfg, env, stage.learner)
    )
    run = jax.vmap(train(Program((stage,))), (0, None, None))
    warmth = HYPERS.temperature * method.scale
    own = dataclasses.replace(HYPERS, eta=method.eta, reward_scale=method.scale, temperature=warmth)
    hp = jax.tree.map(jnp.float32, HyperParams(own, env.params))
    return jax.block_until_ready(jax.jit(run)(keys, hp, data))


class Judged(NamedTuple):
    """Result of one evaluation of one member."""

    returns: Any  # [EPISODES]
    within: Any  # [] mean min_i Q_i - V* at states from which steps are taken
    end: Any  # [] the same at the last states of rollouts


def judged(cfg: ravl.Config, env: Env, agent: Any) -> Callable[..., Judged]:
    """Evaluation of returns, and of critics against the true values V*."""
    play, head = evaluator(env, agent, EPISODES), edac.head_of(cfg, env.spec)

    def evaluate(state: edac.State, hp: HyperParams, inputs: PyTree, key: Array) -> Judged:
        def go(position: Array, _: None) -> tuple[Array, Array]:
            mode = jnp.tanh(head.policy(state.actor, position).mode)
            ahead = position + mode
            true = reach.optimal_value(position, hp.env["goal"], hp.agent.gamma)
            value = least(head, state, position) / hp.agent.reward_scale
            return ahead, jnp.mean(value - true)

        begin = inputs["data"].obs[:EPISODES]
        _, wrong = jax.lax.scan(go, begin, None, STEPS + 1)
        returns = play(state, hp, inputs, key).returns
        return Judged(returns, jnp.mean(wrong[:-1]), wrong[-1])

    return evaluate


def least(head: Any, state: edac.State, position: Array) -> Array:
    """min_i Q_i(s, mode(s)) [n] at positions [n, 2]."""
    mode = head.policy(state.actor, position).mode
    return jnp.min(
        jax.vmap(lambda critic: head.values(critic, position, mode)[:, 0])(state.critic), 0
    )


def counting(learner: Any) -> Any:
    """`learner` with the additional metric "edge": fraction of steps into the edge of reach."""

    def update(state, hp, batch, key, step):
        state, metrics = learner.update(state, hp, batch, key, step)
        edge = reach.edge_of_reach(batch.transitions.next_obs, STEPS).astype(jnp.float32)
        return state, metrics | {"edge": mean_where(edge, jnp.ones(edge.shape, bool))}

    return dataclasses.replace(learner, update=update)


def summarise(result: Result, gamma: float, scale: float) -> dict[str, list[float]]:
    """The numbers of the table by name, one per seed [P]; `scale` is the factor on rewards."""
    means = {name: np.asarray(m.value)[:, -1] for name, m in result.metrics["agent"].items()}
    last = Judged(*(np.asarray(x)[:, -1] for x in result.evals["agent"]))
    return {
        "return": last.returns.mean(-1).tolist(),
        "|Q|": (np.asarray(result.states["agent"].largest) * (1 - gamma) / scale).tolist(),
        "edge": means["edge"].tolist(),
        "within": (last.within * (1 - gamma)).tolist(),
        "end": (last.end * (1 - gamma)).tolist(),
        "std": (means["q_std_edge"] / means["q_std"]).tolist(),
    }


def history(result: Result, gamma: float) -> dict[str, list[list[float]]]:
    """Mean returns and value errors of each seed at each evaluation, [P, evaluations]."""
    found: Judged = result.evals["agent"]
    return {
        "return": np.asarray(found.returns).mean(-1).tolist(),
        "within": (np.asarray(found.within) * (1 - gamma)).tolist(),
        "end": (np.asarray(found.end) * (1 - gamma)).tolist(),
    }


# --- figures -------------------------------------------------------------------------------------


def values(method: Method, env: Env, state: edac.State) -> np.ndarray:
    """min_i Q_i(s, mode(s)) [H, W] of one member over the plane."""
    cfg = ravl.Config(**COMMON, **method.static)
    head = edac.head_of(cfg, env.spec)
    value = least(head, state, jnp.asarray(grid().reshape(-1, 2)))
    return np.asarray(value).reshape(grid().shape[:2])


def grid() -> np.ndarray:
    """Positions [H, W, 2]; the first coordinate varies along the second axis."""
    side = np.linspace(-EXTENT, EXTENT, 113, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), -1)


def draw(path: Path, panels: dict[str, np.ndarray], goal: tuple[float, ...]) -> None:
    """Plots one panel per method, each with its own colour scale.

    Squares show the start region and the inner and outer border of the edge of reach.
    """
    figure = Figure((4.2 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, value) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        image = axes.imshow(value, origin="lower", extent=(-EXTENT, EXTENT, -EXTENT, EXTENT))
        figure.colorbar(image, ax=axes, shrink=0.8)
        for half in (reach.START, reach.START + STEPS - 1, reach.START + STEPS):
            axes.add_patch(
                Rectangle((-half, -half), 2 * half, 2 * half, fill=False, edgecolor="white")
            )
        axes.plot(*goal, "r*", markersize=10)
        axes.set_title(title)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Values at the edge of what rollouts reach")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=8_000)
    parser.add_argument("--methods", nargs="+", help="names of methods; by default all")
    parser.add_argument("--grid", action="store_true", help="all combinations of the grid")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax_setup.start()
    args.out.mkdir(parents=True, exist_ok=True)
    env = reach.make()
    key_data, key_runs = jax.random.split(jax.random.key(0))
    data, keys = starts(env, key_data), jax.random.split(key_runs, args.seeds)
    best = float(jnp.mean(reach.optimal_value(data.obs, env.params["goal"], 1.0, 30)))
    print(f"optimal return {best:.1f}; {args.seeds} seeds, {args.updates} updates")
    methods = combinations() if args.grid else METHODS
    for method in methods:
        file = args.out / f"{method.name}.json"
        if (args.methods is None or method.name in args.methods) and not file.exists():
            result = run(method, env, args.updates, keys, data)
            first = jax.tree.map(lambda x: x[0], result.states["agent"])
            np.save(file.with_suffix(".npy"), values(method, env, first))
            found = summarise(result, HYPERS.gamma, method.scale)
            settings = method.static | {"eta": method.eta, "scale": method.scale}
            told = {"method": method.name, "updates": args.updates} | settings | found
            files.write_json(file, told | {"history": history(result, HYPERS.gamma)})
    report(args.out, methods, best, env)


def report(out: Path, methods: Sequence[Method], best: float, env: Env) -> None:
    """Prints, writes and plots the results in `out` of `methods`; more than ten are not plotted."""
    panels, rows = {"optimal": np.asarray(optimal(env))}, []
    for name in [m.name for m in methods if (out / f"{m.name}.json").exists()]:
        row = json.loads((out / f"{name}.json").read_text())
        rows.append(row)
        panels[name] = np.load(out / f"{name}.npy")
        told = [
            f"{k} {np.mean(v):.3g} ± {np.std(v):.2g}" for k, v in row.items() if isinstance(v, list)
        ]
        print(f"{name:<8}", "   ".join(told), flush=True)
    if len(methods) <= 10:
        draw(out / "edge_of_reach.png", panels, reach.GOAL)
    told = {"versions": provenance.versions(), "optimal": best, "rows": rows}
    files.write_json(out / "edge_of_reach.json", told)


def optimal(env: Env) -> Array:
    """Optimal values [H, W] over the plane."""
    value: Callable[..., Array] = reach.optimal_value
    return value(jnp.asarray(grid()), env.params["goal"], HYPERS.gamma)


if __name__ == "__main__":
    main()
