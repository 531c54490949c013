"""One member on several devices: the same numbers as on one, up to rounding."""

import jax
import jax.numpy as jnp
import logged
import numpy as np
import pytest
import toys
from jax.sharding import PartitionSpec as Spec

from jaxrl import drive, envs, population
from jaxrl.agents import dqn, iql, ppo, pqn, sac
from jaxrl.errors import UserError
from jaxrl.experiments.plan import hyper_table
from jaxrl.experiments.restore import prepare, settle
from jaxrl.rows import ROWS, split
from jaxrl.types import Batch, HyperParams


def test_rows_are_split_within_a_member_and_gradients_are_summed():
    plan = population.layout(2, jax.devices()[:8], 1, each=4)
    assert plan.devices == 2 and plan.mesh.size == 8 and plan.padded(3) == 4
    sizes = []

    def step(w, x):
        x = split(x[0])
        sizes.append(jax.typeof(x).shape)
        return jax.grad(lambda w: jnp.mean((x @ w[0]) ** 2))(w)

    spec = Spec(population.AXIS)
    mapped = jax.shard_map(
        step, mesh=plan.mesh, in_specs=spec, out_specs=spec, axis_names={population.AXIS}
    )
    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=s).astype(np.float32) for s in ((2, 3), (2, 16, 3)))
    run = jax.jit(mapped).lower(*plan.split((w, x))).compile()
    wanted = [2 * a.T @ (a @ b) / 16 for a, b in zip(x, w, strict=True)]
    np.testing.assert_allclose(run(*plan.split((w, x))), wanted, rtol=1e-5)
    assert "all-reduce" in run.as_text() and sizes == [(16, 3)]


def test_gradient_steps_are_not_split():
    """All arrays of SAC's update are divided along the axis of the 12 rows of a batch."""
    plan = population.layout(1, jax.devices()[:4], 1, each=4)
    env = toys.drift()
    cfg = sac.Config(
        num_envs=8, num_steps=12, gradient_steps=8, policy_every=4, batch_size=12, hidden=(4,)
    )
    agent, hp, key = sac.make(cfg, env.spec), sac.Hypers(), jax.random.key(0)
    batch = Batch(logged.rows(env.spec, 96, 0))

    def update(batch):
        return agent.update(agent.init(key, hp, {}), hp, batch, key, 0)

    with jax.set_mesh(plan.mesh):
        found = list(constraints(jax.make_jaxpr(update)(batch).jaxpr))
    sizes = {shape[spec.index(ROWS)] for shape, spec in found}
    assert found and sizes == {12}


def constraints(jaxpr):
    """(shape, spec) of each sharding constraint."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "sharding_constraint":
            yield eqn.outvars[0].aval.shape, tuple(eqn.params["sharding"].spec)
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from constraints(inner)


def test_without_several_devices_nothing_is_split():
    x = jnp.arange(3)
    assert split(x) is x
    assert population.layout(4, jax.devices()[:2], 1).mesh.axis_names == (population.AXIS,)


def test_sizes_that_cannot_be_shared_are_refused():
    def plan(**options):
        return prepare(settle("pqn", {"env": "probe:match", "preset": "none", **options}))

    assert plan(devices_per_member=4).layout.mesh.size == 4
    for given, words in (
        ({"devices_per_member": 3}, "does not divide 8, the number of devices"),
        ({"devices_per_member": 4, "agent.num_envs": 2}, "does not divide 2, num_envs"),
        ({"devices_per_member": 8, "agent.num_steps": 2}, "4, rows of a minibatch"),
    ):
        with pytest.raises(UserError, match=words):
            plan(**given)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["rollout", "recurrent rollout", "replay", "shared model"])
def test_tiles_of_members_on_pairs_of_devices_equal_single_devices(row):
    """Four members in tiles of two, from start to end."""

    def final(each):
        plan = population.layout(4, jax.devices()[: 2 * each], 2, each=each)
        args = (toys.ROWS[row](), plan, jax.random.key(3), toys.hypers(4), toys.inputs())
        *_, last = drive.drive(*args)
        return last.snapshot.member.learner, last.evals

    for a, b in zip(jax.tree.leaves(final(1)), jax.tree.leaves(final(2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


ON_POLICY = {"total_steps": 256, "num_envs": 8, "num_steps": 16, "minibatches": 4, "epochs": 2}
OFF_POLICY = {"total_steps": 128, "num_envs": 8, "num_steps": 1, "warmup": 64, "capacity": 512}
OFF_POLICY |= {"batch_size": 32, "hidden": (16,)}
CASES = {
    "pqn": (pqn, "CartPole-v1", ON_POLICY | {"hidden": (16,)}),
    "ppo": (ppo, "Pendulum-v1", ON_POLICY | {"actor": (16,), "critic": (16,)}),
    "dqn": (dqn, "CartPole-v1", OFF_POLICY),
    "iql": (iql, "Pendulum-v1", {"updates": 8, "batch_size": 32, "hidden": (16, 16)}),
}


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("name", CASES)
def test_a_member_on_four_devices_equals_one_device_up_to_rounding(name):
    module, env, sizes = CASES[name]
    env = envs.make(env)
    program = module.program(module.Config(**sizes), env, evals=1, episodes=8)
    hp = HyperParams(module.Hypers(), env.params)
    data = {"data": rows_of_pendulum()} if name == "iql" else {}

    def trained(each):
        plan = population.layout(2, jax.devices()[: 2 * each], 1, each=each)
        args = (jax.random.key(0), plan.split(jnp.arange(2)), plan.split(hyper_table(hp, 2)))
        run = jax.jit(population.train(program, plan)).lower(*args, plan.share(data)).compile()
        assert ("all-reduce" in run.as_text()) == (each > 1)
        result = run(*args, plan.share(data))
        return result.state, result.evals["agent"].returns

    for a, b in zip(jax.tree.leaves(trained(1)), jax.tree.leaves(trained(4)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def rows_of_pendulum():
    t = toys.dataset(jax.random.key(1))
    wide = lambda x: jnp.concatenate([x, x[:, :1]], -1)
    return t._replace(obs=wide(t.obs), next_obs=wide(t.next_obs))


@pytest.mark.slow
@pytest.mark.optimised
def test_a_snapshot_continues_on_another_number_of_devices():
    env = envs.make("CartPole-v1")
    program = pqn.program(pqn.Config(**CASES["pqn"][2]), env, evals=2, episodes=8)
    hp = hyper_table(HyperParams(pqn.Hypers(), env.params), 2)

    def run(each, resume=None):
        plan = population.layout(2, jax.devices()[: 2 * each], 1, each=each)
        hooks = drive.Hooks(snapshot=lambda stage, step, last: True)
        return list(
            drive.drive(program, plan, jax.random.key(0), hp, {}, resume=resume, hooks=hooks)
        )

    first, last = run(1)
    for a, b in zip(jax.tree.leaves(run(4, first.snapshot)[-1].snapshot.member.learner),
                    jax.tree.leaves(last.snapshot.member.learner), strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
