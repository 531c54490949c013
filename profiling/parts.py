"""Speed of single parts: decisions, corrections, trajectories, neighbours, products.

    python profiling/parts.py [--parts cdsa ofql] [--quick] [--json FILE]

Results per CPU second (all threads; on accelerators per second of wall time) of one compiled call,
without compilation, medians of repeats in alternation. Observations have 11 elements, actions 3.

    bc, cdsa    actions of a base policy, and with each of CDSA's corrections
    ofql, dql   decisions: 50 candidates, scored by Q, one chosen; DQL with five denoising steps
    pgd         trajectories of 32 steps, guided by IQL or not, networks of 32 features
    nearest     rows of a dataset of 100,000 compared with each of 256 queries in 8 dimensions, in
                chunks and all at once; `nearest-6` with 1,000,000 rows
    shuffle     elements of random permutations, and of those of `jax.random`
    conv        images, for gradients of the Atari network's convolutions in a loop of four batches
                of 32 images; also with flax's layers
    products    gradients of kernels of dense layers in a loop, rows x inputs x outputs, by
                `jaxrl.products` and by x @ kernel
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from duel_rows import OFFLINE
from flax import linen as nn
from stages import random_rows

from jaxrl import nets, scores
from jaxrl.agents import bc, cdsa, dql, iql, ofql, pgd, pgd_iql
from jaxrl.experiments import jax_setup
from jaxrl.minibatch import permutation
from jaxrl.neighbours import nearest
from jaxrl.policies import Trained
from jaxrl.products import product
from jaxrl.runs import files, provenance
from jaxrl.spaces import box_scale
from jaxrl.trajectories import diffuser
from jaxrl.types import Array, Box, EnvSpec, Policy, PyTree

OBS, ACT = OFFLINE["obs"], OFFLINE["act"]
SPEC = EnvSpec("hopper", (OBS,), Box((-1.0,) * ACT, (1.0,) * ACT, (ACT,)), 1000)
KEY = jax.random.key(0)


class Part(NamedTuple):
    """`call(*args)` gives `count` results."""

    name: str
    call: Callable[..., PyTree]
    args: tuple[Any, ...]
    count: int


def acting(name: str, policy: Policy, state: PyTree, hp: Any, batch: int, explore: bool) -> Part:
    """Actions of `batch` observations."""

    def act(state: PyTree, hp: Any, obs: Array) -> Array:
        noise, start = policy.noise(KEY, batch), jnp.zeros(batch, bool)
        return policy.act(state, hp, obs, start, policy.memory(batch), noise, explore)[0]

    obs = jax.random.normal(jax.random.key(1), (batch, OBS))
    return Part(f"{name}, batches of {batch}", act, (state, hp, obs), batch)


def started(module: Any, cfg: Any) -> tuple[Any, PyTree, Any]:
    """(agent, its initial state, hyperparameters)."""
    agent, hp = module.make(cfg, SPEC), jax.tree.map(jnp.float32, module.Hypers())
    return agent, agent.init(KEY, hp, {"data": random_rows(OBS, ACT)}), hp


def corrections(batch: int) -> Iterator[Part]:
    agent, state, own = started(bc, bc.Config())
    base = Trained(state, own)
    yield acting("bc", agent, *base, batch, False)
    for correction in ("action", "next", "current", "both"):
        cfg, hp = cdsa.Config(correction=correction), jax.tree.map(jnp.float32, cdsa.Hypers())
        net = cdsa.networks(cfg, SPEC, box_scale("cdsa", SPEC))
        learnt = cdsa.modeller(cfg, SPEC).init(KEY, hp, {"data": random_rows(OBS, ACT)})
        state = cdsa.CorrectedState(base, scores.trained(net, learnt))
        policy = cdsa.corrected_policy(agent, cfg, SPEC)
        yield acting(f"cdsa {correction}", policy, state, hp, batch, False)


def decisions(module: Any, batch: int) -> Iterator[Part]:
    name = module.__name__.split(".")[-1]
    yield acting(name, *started(module, module.Config(candidates=50)), batch, True)


def trajectories(batch: int) -> Iterator[Part]:
    cfg = pgd_iql.Config(model_features=32, sampler_steps=32, sample_batch=batch)
    hp = jax.tree.map(jnp.float32, pgd_iql.Hypers())
    data = random_rows(OBS, ACT)
    model = diffuser(cfg, SPEC).init(KEY, hp, {"data": data})
    policy = iql.make(cfg, SPEC).init(KEY, hp, {"data": data})
    for kind, log_prob in {"unguided": None, "guided": iql.log_prob(cfg, SPEC)}.items():
        sample = pgd.sampler(cfg, SPEC, log_prob)
        call = lambda model, policy, sample=sample: sample(
            model, policy, hp, KEY, batch, jnp.float32(1)
        )
        yield Part(f"pgd {kind}", call, (model, policy), batch)


def naive(query: Array, points: Array) -> tuple[Array, Array]:
    """`nearest` from the matrix of all distances."""
    inner = jnp.matmul(query, points.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(query**2, -1)[:, None] + jnp.sum(points**2, -1)[None] - 2 * inner
    return jnp.argmin(squared, -1), jnp.min(squared, -1)


def neighbours(rows: int) -> Iterator[Part]:
    query = jax.random.normal(KEY, (256, 8))
    points = jax.random.normal(jax.random.key(1), (rows, 8))
    yield Part(f"nearest, {rows:,} rows, all at once", naive, (query, points), rows)
    for chunk in (256, 1024, 4096):
        call = lambda query, points, chunk=chunk: nearest(query, points, chunk=chunk)
        yield Part(f"nearest, {rows:,} rows, chunks of {chunk}", call, (query, points), rows)


def permutations(sizes: tuple[int, ...]) -> Iterator[Part]:
    for n in sizes:
        yield Part(f"permutation of {n:,}", lambda key, n=n: permutation(key, n), (KEY,), n)
        theirs = lambda key, n=n: jax.random.permutation(key, n)
        yield Part(f"jax.random.permutation of {n:,}", theirs, (KEY,), n)


class Convolutions(nn.Module):
    """The convolutions of the Atari network by a layer (features, side, stride)."""

    layer: Callable[[int, int, int], nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features, side, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(self.layer(features, side, stride)(x))
        return jnp.sum(x**2)


def gradients(count: int) -> Iterator[Part]:
    flax = lambda features, side, stride: nn.Conv(features, (side, side), stride, padding="VALID")
    x = jax.random.uniform(KEY, (4, count, 84, 84, 4))
    for name, layer in (("products of patches", nets.Conv), ("flax's layers", flax)):
        net = Convolutions(layer)
        one = lambda params, net=net: lambda x: jax.grad(net.apply)(params, x)
        call = lambda params, x, one=one: jax.lax.map(one(params), x)
        params = net.init(KEY, x[0])
        yield Part(f"gradients of convolutions, {name}", call, (params, x), 4 * count)


def kernels(times: int) -> Iterator[Part]:
    for rows, inputs, outputs in ((256, 256, 3), (256, 256, 256), (128, 64, 2), (128, 1024, 128)):
        x = jax.random.normal(KEY, (rows, inputs))
        dy = jax.random.normal(jax.random.key(1), (rows, outputs))
        for name, multiply in (("product", product), ("x @ kernel", jnp.matmul)):

            def descend(kernel: Array, x: Array, dy: Array, multiply: Any = multiply) -> Array:
                def step(_: Any, kernel: Array) -> Array:
                    now = dy.at[0, 0].add(kernel[0, 0])  # or XLA moves the product out of the loop
                    return kernel - 1e-6 * jax.vjp(lambda k: multiply(x, k), kernel)[1](now)[0]

                return jax.lax.fori_loop(0, times, step, kernel)

            args = (jnp.zeros((inputs, outputs)), x, dy)
            yield Part(f"kernel {rows} x {inputs} x {outputs}, {name}", descend, args, times)


PARTS: dict[str, Callable[[bool], Iterator[Part]]] = {
    "cdsa": lambda quick: corrections(4 if quick else 1024),
    "cdsa-1": lambda quick: corrections(1),
    "ofql": lambda quick: decisions(ofql, 2 if quick else 50),
    "dql": lambda quick: decisions(dql, 2 if quick else 50),
    "pgd": lambda quick: trajectories(2 if quick else 256),
    "nearest": lambda quick: neighbours(10_000 if quick else 100_000),
    "nearest-6": lambda quick: neighbours(10_000 if quick else 1_000_000),
    "shuffle": lambda quick: permutations((2**6,) if quick else (2**12, 2**14, 2**16, 2**18)),
    "conv": lambda quick: gradients(1 if quick else 32),
    "products": lambda quick: kernels(2 if quick else 1000),
}


def rates(parts: list[Part], repeats: int) -> list[float]:
    """Median rates of parts, which run in turn."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    compiled = [jax.jit(part.call).lower(*part.args).compile() for part in parts]
    taken: list[list[float]] = [[] for _ in parts]
    for _ in range(1 + repeats):
        for part, call, seconds in zip(parts, compiled, taken, strict=True):
            begin = clock()
            jax.block_until_ready(call(*part.args))
            seconds.append(clock() - begin)
    pairs = zip(parts, taken, strict=True)
    return [part.count / statistics.median(seconds[1:]) for part, seconds in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of single parts of agents")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax_setup.start()
    rows = []
    for name in args.parts:
        parts = list(PARTS[name](args.quick))
        for part, rate in zip(parts, rates(parts, 1 if args.quick else args.repeats), strict=True):
            rows.append({"part": part.name, "rate": rate})
            print(f"{part.name:<40} {rate:>14,.1f} per second", flush=True)
        if args.json:
            files.write_json(args.json, {"versions": provenance.versions(), "rows": rows})


if __name__ == "__main__":
    main()
