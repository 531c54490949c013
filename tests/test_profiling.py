"""The arithmetic of the speed measurements, see docs/speed.md; the scripts are run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.experiments.reproductions import REPRODUCTIONS


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend("profiling")


def test_products_are_counted_with_the_lengths_of_loops():
    from floors import products

    def update(w, x):
        def step(w, _):
            return w - jnp.sum(x @ w) * w, None

        w, _ = jax.lax.scan(step, w, None, length=5)
        batched = jax.vmap(jnp.matmul)(jnp.ones((2, 7, 3)), jnp.ones((2, 3, 4)))
        return x @ w, batched

    found = products(jax.make_jaxpr(update)(jnp.ones((3, 4)), jnp.ones((6, 3))).jaxpr)
    assert {(p.left, p.right): (n, p.flops) for p, n in found.items()} == {
        ((6, 3), (3, 4)): (6, 2 * 6 * 3 * 4),
        ((2, 7, 3), (2, 3, 4)): (1, 2 * 2 * 7 * 3 * 4),
    }


def test_inner_activities_do_not_count_for_outer_ones(monkeypatch):
    import compile_table

    clock = iter([1.0, 3.0, 4.0, 4.5, 6.0, 10.0, 10.5])
    monkeypatch.setattr(compile_table.time, "process_time", lambda: next(clock))
    spent = compile_table.Account()
    with spent.on("planning and the rest"):  # from 1
        with spent.on("compile advance"):  # from 3
            spent.switch("trace advance")  # to 4
        spent.counted("training", lambda: None)()  # 6 to 10
    assert spent.spent == {
        "imports": 1.0,
        "planning and the rest": 2.0 + 1.5 + 0.5,
        "trace advance": 1.0,
        "compile advance": 0.5,
        "training": 4.0,
    }


def test_shares_are_of_all_seconds():
    from compile_table import fractions, groups, starts

    spent = {"imports": 1.0, "planning and the rest": 1.0, "training": 6.0, "first": 5.0}
    spent |= {"trace advance": 0.5, "compile advance": 1.5}
    assert sum(groups(spent).values()) == 10.0
    lines = fractions({"x": {"cold": spent}}).splitlines()
    assert "| training | 60.0 % |" in lines and "| CPU seconds | 10.0 |" in lines
    row = "| x | cold | 1.0 | 1.0 | 0.5 | 0.0 | 1.5 | 0.0 | 5.0 |"
    assert starts({"x": {"cold": spent}}).splitlines()[-1] == row


def test_a_file_of_compiled_parts_may_have_both_forms():
    """`--threads` writes other rows than the parts of programs."""
    from compile_parts import tables

    seconds = {"one by one": [[3.0, 4.0], [1.0, 2.0], [2.0, 3.0]], "in threads": [[1.5, 3.5]]}
    ways = {"run": "pqn", "keys": "rbg", "seconds": seconds}
    program = {"run": "iql", "keys": "rbg", "program": "advance", "level": 1}
    program |= {"trace_s": 1.0, "lower_s": 0.5, "xla_s": {"0": 2.0, "1": 2.5, "3": 4.0}}
    program |= {"sources": {"random numbers": 1, "the rest": 3}}
    of_ways = [
        "| pqn | one by one | 2.0 (1.0, 3.0) | 3.0 (2.0, 4.0) |",
        "| pqn | in threads | 1.5 (1.5, 1.5) | 3.5 (3.5, 3.5) |",
    ]
    of_program = "| iql | rbg | `advance` | 1.0 | 0.5 | 2.0 | 0.5 | 4.0 | 4 | 25% |"
    assert tables([ways]).splitlines()[2:] == of_ways
    assert tables([program]).splitlines()[2:] == [of_program]
    both = tables([ways, program]).splitlines()
    assert both[2] == of_program and both[-2:] == of_ways


def test_exponents_are_slopes_of_logarithms():
    from scaling import exponent

    sizes = np.array([2.0, 4.0, 32.0])
    assert exponent(sizes, 3 * sizes**1.5) == pytest.approx(1.5)


def test_the_table_of_a_duel():
    from duel import table

    ours = {"row": "iql", "side": "jaxrl", "rate": 1234.56, "compile_s": 3.21, "ratio": 1.0}
    peer = ours | {"side": "peer", "rate": 1118.2, "ratio": 1.104}
    lines = table([ours, peer, peer, ours | {"row": "bc"}]).splitlines()
    assert lines[2:] == ["| `iql` | peer | 1,235 | 1,118 | 1.10 | 3.2, 3.2 |"] * 2


def test_operations_are_counted_in_the_text_of_a_program():
    """A loop of known length, one whose length is given, and an element-wise fusion by hand."""
    from operations import counts

    def known(w, x):
        step = lambda w, _: (jnp.tanh(x @ w).T @ x, None)
        return jax.lax.scan(step, w, None, length=5)[0]

    def unknown(w, x, n):
        return jax.lax.fori_loop(0, n, lambda i, w: jnp.tanh(x @ w).T @ x, w)

    w, x = jnp.ones((3, 3)), jnp.ones((6, 3))
    each = (2 * 6 * 3 * 3 + 2 * 3 * 6 * 3) / 1e9  # both products of one step
    text = lambda fn, *args: jax.jit(fn).lower(*args).compile().as_text()
    found = counts(text(known, w, x))
    assert found.products == 10 and found.gflop == pytest.approx(5 * each)
    for rounds, times in (((), 1), ((7,), 7)):
        found = counts(text(unknown, w, x, 4), rounds)
        assert found.products == 2 * times and found.gflop == pytest.approx(times * each)
    fused = counts(text(lambda x: jnp.tanh(x + 1) * x, jnp.ones(1024)))
    assert fused == (0, 0, 1, 1024 * 4 / 1e6)


@pytest.mark.parametrize("every", [1_000, 10])
def test_updates_and_refreshes_are_told_apart(every):
    """Few refreshes are separated; frequent ones are part of the updates."""
    from short_runs import SHORT_BLOCK, fitted

    launch = lambda n: 0.01 * n + 0.5 * -(-n // every)
    update, refresh = fitted(launch, 100_000, every, 2.0)
    each = update if every <= SHORT_BLOCK else update + refresh / every
    assert each == pytest.approx(0.01 + 0.5 / every, rel=0.1)


def test_launches_have_a_fixed_part():
    """A launch grows until its updates take long enough; the fixed part is not theirs."""
    from short_runs import fitted

    longest = []
    launch = lambda n: longest.append(n) or 3 + 0.001 * n
    assert fitted(launch, 1_000_000, 1, 2.0) == pytest.approx((0.001, 3.0))
    assert 2_000 <= max(longest) < 5_000
    assert fitted(lambda n: 3.0 * n, 100_000, 1, 2.0) == (3.0, 0.0)
    assert fitted(lambda n: 0.1 * n, 1, 1, 2.0) == (0.1, 0.0)


def test_rates_and_counts_of_a_planned_run():
    """All updates, launches and evaluations of a run are counted, and each stage has rates."""
    from reproductions import plans_of
    from short_runs import Counts, Rates, counts_of, rates_of

    line = "jaxrl train pqn --env CartPole-v1 --seeds 2 --out x --agent.hidden 8 --evals 3 "
    (plan,) = plans_of(line + "--eval-episodes 64 --agent.total-steps 40960")
    (stage,) = plan.program.stages
    quick, slow = Rates(1.0, 0.01, 0.0, 4.0), Rates(1.0, 7.0, 1.5, 4.0)
    # The last evaluation has 2 x 32 episodes.
    assert counts_of(stage, quick) == Counts(stage.updates, 3, 4)
    assert counts_of(stage, slow) == Counts(stage.updates, 2 * stage.updates, 4)
    (found,) = rates_of(plan, 0.0)
    assert found.compile > 0 and found.update > 0 and found.evaluation > 0
    assert Counts(10, 2, 3).seconds(Rates(1.0, 2.0, 3.0, 4.0)) == 1 + 20 + 6 + 12


def test_rates_are_shared_by_runs_that_differ_in_length_or_data():
    from reproductions import kind_of

    line = "jaxrl train iql --env dmsd --data {} --out {} --agent.total-steps {} --seeds {}"
    assert kind_of(line.format("a", "b", 1, 5)) == kind_of(line.format("c", "d", 2, 5))
    assert kind_of(line.format("a", "b", 1, 5)) != kind_of(line.format("a", "b", 1, 6))


def test_rates_of_an_interrupted_measurement_are_known():
    """By kind of command, for each stage of each program."""
    from reproductions import known_rates
    from short_runs import Rates

    one, two, three = (Rates(x, 1.0, 2.0, 3.0) for x in (0.0, 5.0, 6.0))
    stages = [
        {"program": program, "cpu_seconds": rates._asdict()}
        for program, rates in ((0, one), (0, two), (1, three))
    ]
    commands = [{"command": "jaxrl train x --out y", "stages": stages}, {"command": "3 studies"}]
    assert known_rates([{"commands": commands}]) == {"jaxrl train x": [[one, two], [three]]}


def test_studies_have_short_forms():
    """Of all full settings with studies; a line goes through its two sizes."""
    from studies_short import STUDIES, linear

    for name, each in REPRODUCTIONS.items():
        studies = any(line.startswith("python ") for line in each.full)
        assert (name in STUDIES) == (studies and each.full != each.small), name
    low, high = linear("x --updates {}", (10, 30), 400, 2)
    assert low.command.endswith("studies.x --updates 10") and high.command.endswith(" 30")
    assert low.weight * (5 + 10 * 0.1) + high.weight * (5 + 30 * 0.1) == pytest.approx(2 * 45)
