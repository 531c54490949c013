"""One definition, two drivers: the same bits however a program is run.

The table: each row of `toys.ROWS` as one pure function, from the host in chunks, and resumed from a
snapshot of each stage, on 1, 2 and 8 devices.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toys
from jax.sharding import PartitionSpec

from jaxrl import population
from jaxrl.agents import bc, pqn
from jaxrl.drive import Built, Hooks, Report, drive
from jaxrl.drive import evaluate as evaluate_again
from jaxrl.errors import UserError
from jaxrl.program import Program, Result, Stage, check_shared, train
from jaxrl.rollout import rollout
from jaxrl.snapshot import RunState, abstract_state
from jaxrl.sources import uniform
from jaxrl.types import Box, EnvSpec, Learner, Transition

MEMBERS, WIDTH = 16, 2


def bits(tree: Any) -> list[bytes]:
    def raw(x: Any) -> bytes:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x).tobytes()

    return [raw(x) for x in jax.tree.leaves(tree) if not isinstance(x, int)]


def plan(devices: int) -> population.Layout:
    return population.layout(MEMBERS, jax.devices()[:devices], WIDTH)


@functools.cache
def built(row: str, devices: int) -> Built:
    """Programs compiled so far for a row."""
    return {}


def run(
    row: str,
    devices: int,
    resume: RunState | None = None,
    hp: Any = None,
    pace: float | None = None,
) -> list[Report]:
    reports = drive(
        toys.ROWS[row](),
        plan(devices),
        jax.random.key(3),
        hp or toys.hypers(MEMBERS),
        toys.inputs(),
        resume=resume,
        hooks=Hooks(pace=pace, snapshot=lambda stage, step, last: True, built=built(row, devices)),
    )
    return list(reports)


def pure(row: str, devices: int) -> Result:
    train = jax.jit(population.train(toys.ROWS[row](), plan(devices)))
    ids = jnp.arange(MEMBERS)
    return train(jax.random.key(3), ids, toys.hypers(MEMBERS), toys.inputs())


def first_snapshots(reports: list[Report]) -> list[RunState]:
    """The first snapshot of each stage, which is inside it."""
    firsts = {r.stage: r.snapshot for r in reversed(reports)}
    return [taken for taken in firsts.values() if taken is not None]


def check_chunked_equals_pure(reports: list[Report], whole: Result) -> None:
    last = reports[-1].snapshot
    assert last is not None
    assert bits(whole.states) == bits(last.results | {reports[-1].stage: last.member.learner})
    for stage in whole.metrics:
        own = [r for r in reports if r.stage == stage]
        for name, mean in whole.metrics[stage].items():
            expected = np.asarray(mean.total / mean.weight)
            got = np.stack([r.metrics[name] for r in own])
            if expected.ndim == 1:  # one for all members
                expected = np.broadcast_to(expected[:, None], got.shape)
            np.testing.assert_allclose(got, expected, rtol=1e-6)
        if own[0].evals is not None:
            stacked = jax.tree.map(lambda *x: np.stack(x), *[r.evals for r in own])
            assert bits(whole.evals[stage]) == bits(stacked)


# One test per row rather than one per property: they share the compiled programs.


WRAPPED = "policy wrapped by a policy"  # takes long to compile


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=pytest.mark.slow) if r == WRAPPED else r for r in toys.ROWS]
)
def test_row(row: str) -> None:
    """Pure on one device; in chunks on two, also resumed in each stage."""
    reports = run(row, 2)
    check_chunked_equals_pure(reports, pure(row, 1))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    for taken in first_snapshots(reports):
        target = abstract_state(toys.ROWS[row](), toys.hypers(MEMBERS), toys.inputs(), taken.stage)
        assert shapes(taken[:2]) == shapes(target[:2])
        resumed = run(row, 2, resume=taken)
        assert 0 < len(resumed) < len(reports)
        assert bits(resumed[-1].snapshot) == bits(reports[-1].snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("row", toys.ROWS)
def test_row_in_every_cell(row: str) -> None:
    """{pure, chunked, resumed in each stage} x {1, 2, 8 devices}; and resumed on others."""
    first = pure(row, 1)
    for devices in (1, 2, 8):
        assert bits(first) == bits(pure(row, devices)), devices
        reports = run(row, devices)
        check_chunked_equals_pure(reports, first)
        for taken in first_snapshots(reports):
            resumed = run(row, devices, resume=taken)
            assert bits(resumed[-1].snapshot) == bits(reports[-1].snapshot), devices
            elsewhere = run(row, 16 // devices if devices > 1 else 2, resume=taken)
            assert bits(elsewhere[-1].snapshot) == bits(reports[-1].snapshot), devices


@pytest.mark.slow
@pytest.mark.optimised
def test_bits_of_an_agent_on_devices_at_full_optimisation() -> None:
    """PQN: two and four devices give equal bits, and one device is equal up to rounding."""
    env = tiny.walk()
    cfg = pqn.Config(total_steps=128, num_envs=4, num_steps=8, minibatches=2, epochs=1, hidden=(8,))
    agent = pqn.make(cfg, env.spec)
    source = rollout(env, agent, 4, 8)
    program = Program((Stage(name="agent", learner=agent, source=source, updates=cfg.updates),))

    def trained(devices: int) -> tuple[Any, Any]:
        plan = population.layout(8, jax.devices()[:devices], WIDTH)
        hp = jax.tree.map(lambda x: jnp.full(8, x, jnp.float32), pqn.Hypers(lr=1e-2))
        run = jax.jit(population.train(program, plan))
        result = run(jax.random.key(0), plan.split(jnp.arange(8)), plan.split(hp), {})
        return jax.device_get((result.state, result.metrics))

    one, two, four = (trained(devices) for devices in (1, 2, 4))
    assert bits(two) == bits(four)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.optimised
def test_bits_of_large_networks_in_any_population() -> None:
    """Parameters as trees (`nets.packed`): a member of BC, alone and in populations on devices."""
    rng = np.random.default_rng(0)
    number = lambda *shape: jnp.asarray(rng.uniform(-1, 1, (256, *shape)), jnp.float32)
    never = jnp.zeros(256, bool)
    data = Transition(number(11), number(3), number(), number(11), never, never, never)
    spec = EnvSpec("rows", (11,), Box((-1.0,) * 3, (1.0,) * 3, (3,)), 100)
    cfg = bc.Config(updates=20, hidden=(256, 256), batch_size=64)
    stage = Stage(name="agent", learner=bc.make(cfg, spec), source=uniform(64), updates=20)

    def first(members: int, devices: int) -> Any:
        plan = population.layout(members, jax.devices()[:devices], 1)
        hp = jax.tree.map(lambda x: jnp.full(members, x, jnp.float32), bc.Hypers())
        args = (plan.split(jnp.arange(members)), plan.split(hp), {"data": plan.share(data)})
        result = jax.jit(population.train(Program((stage,)), plan))(jax.random.key(0), *args)
        return jax.device_get(jax.tree.map(lambda x: x[0], result.state))

    alone = first(1, 1)
    assert isinstance(alone.actor, dict)
    for members, devices in ((3, 1), (4, 2)):
        assert bits(first(members, devices)) == bits(alone)


@pytest.mark.parametrize("row", ["rollout", "uniform data"])
def test_a_member_is_the_same_alone(row: str) -> None:
    """program.train of one member against the population, up to rounding: the width differs."""
    hp, member = toys.hypers(MEMBERS), 5
    states = run(row, 1)[-1].snapshot.member.learner  # type: ignore[union-attr]
    key = population.member_keys(jax.random.key(3), jnp.arange(MEMBERS))[member]
    own = jax.tree.map(lambda x: x[member], hp)
    program = toys.ROWS[row]()
    alone = jax.jit(train(program))(key, own, None, toys.inputs()).states[program.stages[-1].name]
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(a, b[member], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("row", ["rollout", "refreshed source"])
def test_launches_of_any_length_give_the_same_bits(row: str) -> None:
    """Also of the metrics, and resumed in the middle of a chunk."""
    whole, paced = run(row, 2), run(row, 2, pace=1e-9)
    ends = [r for r in paced if r.metrics is not None]
    assert len(paced) > len(ends) == len(whole)
    for a, b in zip(whole, ends, strict=True):
        assert bits((a.metrics, a.evals, a.snapshot)) == bits((b.metrics, b.evals, b.snapshot))
    inside = next(r for r in paced if r.metrics is None).snapshot
    resumed = run(row, 2, resume=inside)
    assert bits((resumed[0].metrics, resumed[-1].snapshot)) == bits(
        (whole[0].metrics, whole[-1].snapshot)
    )


def test_a_member_of_nan_leaves_the_others_untouched() -> None:
    hp = toys.hypers(MEMBERS)
    broken = hp._replace(agent=hp.agent._replace(lr=hp.agent.lr.at[5].set(jnp.inf)))
    one, other = (run("rollout", 2, hp=x)[-1] for x in (hp, broken))
    assert one.metrics is not None and other.metrics is not None
    np.testing.assert_array_equal(one.metrics["finite"], 1)
    np.testing.assert_array_equal(other.metrics["finite"], np.arange(MEMBERS) != 5)
    learners = [report.snapshot.member.learner for report in (one, other)]  # type: ignore[union-attr]
    rest = [jax.tree.map(lambda x: np.delete(x, 5, 0), learner) for learner in learners]
    assert bits(rest[0]) == bits(rest[1])


def test_members_learn_a_shared_model_alike() -> None:
    """What it reads is equal in all of them; what it does not read may differ."""
    program = toys.ROWS["shared model"]()
    check_shared(program, toys.hypers(MEMBERS).agent)
    agent = toys.hypers(MEMBERS).agent
    with pytest.raises(UserError, match="model_lr differs between members, but they share their"):
        check_shared(program, agent._replace(model_lr=agent.model_lr.at[3].set(0.5)))
    apart = [dataclasses.replace(stage, shared=False) for stage in program.stages]
    check_shared(Program(tuple(apart)), agent._replace(model_lr=agent.lr))


def test_a_short_stage_has_as_many_evaluations_as_fit() -> None:
    _, stage = toys.ROWS["refreshed source"]().stages  # refreshed every 2 of 11 updates
    assert len(dataclasses.replace(stage, evals=7).chunks) == 6


@pytest.mark.parametrize(
    "name", ["data", "validation", "base", "reused", "source", "windows", "shapes"]
)
def test_no_stage_has_the_name_of_another_input(name: str) -> None:
    (stage,) = toys.ROWS["uniform data"]().stages
    with pytest.raises(ValueError, match=f"a stage cannot be called '{name}'"):
        dataclasses.replace(stage, name=name)


def test_a_stage_of_no_updates_is_evaluated_once() -> None:
    """In both drivers; a run that is resumed from its end has nothing left to do."""
    (trained,) = toys.ROWS["uniform data"]().stages
    doubled = Learner(init=lambda key, hp, inputs: jax.tree.map(lambda x: 2 * x, inputs["agent"]))
    still = Stage(name="still", learner=doubled, updates=0, evaluate=trained.evaluate)
    program = Program((dataclasses.replace(trained, evaluate=None), still))
    args = (jax.random.key(3), toys.hypers(MEMBERS), toys.inputs())
    every = Hooks(snapshot=lambda stage, step, last: True, built={})
    *_, before, last = drive(program, plan(2), *args, hooks=every)
    assert before.snapshot is not None and last.snapshot is not None and last.metrics is not None
    assert (last.stage, last.step, [*last.metrics]) == ("still", 0, ["finite"])
    pure = jax.jit(population.train(program, plan(1)))
    whole = pure(args[0], jnp.arange(MEMBERS), *args[1:])
    assert bits(whole.evals["still"]) == bits(jax.tree.map(lambda x: x[None], last.evals))
    twice = jax.tree.map(lambda x: 2 * x, before.snapshot.member.learner)
    assert bits(last.snapshot.member.learner) == bits(twice) == bits(whole.states["still"])
    again = lambda taken: [*drive(program, plan(2), *args, resume=taken, hooks=every)]
    assert bits(again(before.snapshot)[-1].evals) == bits(last.evals)
    assert not again(last.snapshot)


def test_every_member_has_inputs_of_its_own() -> None:
    """In both drivers, resumed in the middle, in fewer tiles, and when evaluated again."""
    (trained,) = toys.ROWS["uniform data"]().stages
    begin, judge = trained.learner.init, trained.evaluate
    assert judge is not None

    def init(key: Any, hp: Any, inputs: Any) -> Any:
        state = begin(key, hp, inputs)
        return state | {"w": state["w"] + inputs["shift"]}

    def evaluate(state: Any, hp: Any, inputs: Any, key: Any) -> Any:
        return judge(state, hp, inputs, key), inputs["shift"]

    learner = dataclasses.replace(trained.learner, init=init)
    program = Program((dataclasses.replace(trained, learner=learner, evaluate=evaluate),))
    key, hp, inputs = jax.random.key(3), toys.hypers(MEMBERS), toys.inputs()
    shift = np.random.default_rng(0).permutation(MEMBERS).astype(np.float32)
    own = {"shift": shift}
    every = Hooks(snapshot=lambda stage, step, last: True, built={})
    reports = list(drive(program, plan(2), key, hp, inputs, own=own, hooks=every))
    middle, last = reports[0].snapshot, reports[-1].snapshot
    assert middle is not None and last is not None
    for report in reports:
        np.testing.assert_array_equal(report.evals[1], shift)
    whole = jax.jit(population.train(program, plan(1)))(key, jnp.arange(MEMBERS), hp, inputs, own)
    assert bits(whole.states) == bits({"agent": last.member.learner})
    target = abstract_state(program, hp, inputs, 0, own)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(middle[:2]) == shapes(target[:2])
    again = list(drive(program, plan(2), key, hp, inputs, own=own, resume=middle, hooks=every))
    assert bits([(r.evals, r.snapshot) for r in again]) == bits(
        [(r.evals, r.snapshot) for r in reports[1:]]
    )
    some = np.array([2, 9, 13])
    fewer = every._replace(members=some)
    *_, less = drive(program, plan(2), key, hp, inputs, own=own, resume=middle, hooks=fewer)
    row = lambda tree: jax.tree.map(lambda x: x[some], tree)
    assert bits(row(less.evals)) == bits(row(reports[-1].evals))
    fresh = evaluate_again(program, plan(2), last, jax.random.key(5), inputs, own=own)
    np.testing.assert_array_equal(fresh[1], shift)


COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)")


def test_programs_hold_no_collective() -> None:
    train = jax.jit(population.train(toys.ROWS["refreshed source"](), plan(8)))
    args = (jax.random.key(3), jnp.arange(MEMBERS), toys.hypers(MEMBERS), toys.inputs())
    assert not COLLECTIVE.search(train.lower(*args).compile().as_text())
    # What would be found if members met:
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, population.AXIS),
        mesh=plan(8).mesh,
        in_specs=PartitionSpec(population.AXIS),
        out_specs=PartitionSpec(),
    )
    assert COLLECTIVE.search(jax.jit(summed).lower(jnp.zeros(8)).compile().as_text())
