"""Test settings: eight virtual CPU devices, a quick compiler, warnings are errors."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# Shells start background processes with SIGINT ignored, which children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile far more than they compute. Those about bits or speed are marked `optimised`.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Full optimisation in tests marked `optimised`."""
    quick = request.node.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
