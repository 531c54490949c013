"""Off-policy temporal differences: the study's recursion, its margin, and what diverges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.experiments.studies import baird
from jaxrl.experiments.studies.baird import GAMMA, Method, Task


def gradient(task: Task, w: np.ndarray, l2: float) -> np.ndarray:
    """Of a linear network with output weights w [F, 1], by the agent's rule for gradients."""
    net = baird.value_net(Method("linear", hidden=()), task.obs.shape[1])
    params = {"Dense_0": {"kernel": jnp.float32(w), "bias": jnp.zeros(1)}}
    grads = jax.grad(lambda params: baird.td_loss(net, params, task, l2))(params)
    return np.asarray(grads["Dense_0"]["kernel"])


@pytest.mark.parametrize("task", baird.TASKS)
def test_linear_updates_are_those_of_the_matrix(task: str) -> None:
    """-∇ = (E[f (γ f' - f)ᵀ] - η I) w."""
    made = baird.TASKS[task]()
    w = np.random.default_rng(0).normal(size=(made.obs.shape[1], 1))
    matrix = np.zeros((len(w), len(w)))
    for f, ahead in zip(made.obs, made.next_obs, strict=True):
        matrix += np.outer(f, GAMMA * ahead - f) / len(made.obs)
    expected = matrix @ w - 0.3 * w
    np.testing.assert_allclose(-gradient(made, w, 0.3), expected, rtol=1e-5, atol=1e-6)


def test_linear_values_diverge_in_both_tasks_without_the_penalty() -> None:
    """Eigenvalues of the expected update: 2 γ - 1 in `double`, known to be positive in `baird`."""
    for name, make in baird.TASKS.items():
        task = make()
        matrix = task.obs.T @ (GAMMA * task.next_obs - task.obs) / len(task.obs)
        growth = np.linalg.eigvals(matrix).real.max()
        if name == "double":
            np.testing.assert_allclose(growth, 2 * GAMMA - 1, rtol=1e-6)
        assert growth > 0.1
        shrunk = matrix - (baird.margin(task.obs, task.next_obs, 0.0) + 0.01) * np.eye(len(matrix))
        assert np.linalg.eigvals(shrunk).real.max() < 0


def test_the_margin_is_bounded_by_the_length_of_features() -> None:
    """(γ/2)² max ‖f'‖² - η, whatever the features; the bound is nearly reached in `double`."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        here, ahead = rng.normal(size=(2, rng.integers(1, 9), 4)) * rng.uniform(0.1, 3, (2, 1, 1))
        bound = (GAMMA / 2) ** 2 * np.max(np.sum(ahead**2, -1)) - 0.2
        assert baird.margin(here, ahead, 0.2) <= bound + 1e-12
    task = baird.double()
    np.testing.assert_allclose(baird.margin(task.obs, task.next_obs, 0.0), 0.98, rtol=1e-6)
    assert (GAMMA / 2) ** 2 * 4 == pytest.approx(0.98, abs=1e-3)


def test_layernorm_bounds_the_features() -> None:
    """‖f‖² of one normalised layer is at most its width, for inputs of any size."""
    net = baird.nets.from_linen(baird.nets.Torso((8,), norm=True), (3,))
    x = jnp.float32(np.random.default_rng(0).normal(size=(50, 3)) * 1e6)
    features = net.apply(net.init(jax.random.key(0)), x)
    assert 0 < jnp.max(jnp.sum(features**2, -1)) <= 8 + 1e-4


@pytest.mark.parametrize(
    ("task", "plain"),
    [("baird", Method("linear", hidden=())), ("double", Method("network"))],
    ids=["baird", "double"],
)
def test_values_diverge_without_layernorm_and_l2_only(task: str, plain: Method) -> None:
    made, sizes = baird.TASKS[task](), []
    for method in (plain, Method("both", norm=True, l2=0.1)):
        run = jax.jit(lambda key, method=method: baird.learn(method, made, 4_000, 0.02, key))
        sizes.append(np.asarray(run(jax.random.key(0))))
    diverged, both = sizes
    assert not diverged[-1] < 1e3 * diverged[0], diverged[[0, 50, 100, -1]]  # or NaN
    assert np.max(both) < 100  # the penalty acts with a delay
    assert both[-1] < 0.05 * both[0], both[[0, 50, 100, -1]]
