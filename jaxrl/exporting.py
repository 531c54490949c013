"""A trained policy as a pure function of arrays that needs nothing of this project.

    greedy(member, spec) -> Greedy, whose `act` takes and returns plain arrays
    to_jax(greedy) -> bytes, for `jax.export.deserialize`

Weights, hyperparameters and statistics of observations are constants of the function. The number n
of observations is symbolic. The memory of a recurrent policy is an input and an output; where
`start` is true, the policy begins with its initial memory, whatever the input is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.interpreters import partial_eval

from jaxrl.api import TrainedPolicy
from jaxrl.masks import Masked
from jaxrl.types import Array, Discrete, EnvSpec, PyTree, as_float

PLATFORMS = ("cpu", "cuda", "tpu")


class Port(NamedTuple):
    """One input or output: an array [n, *shape]."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Greedy(NamedTuple):
    """The best actions of a policy as a function of arrays.

    Attributes:
      act: (weights, *inputs) -> outputs, a tuple.
      weights: leaves of the policy's state and hyperparameters.
      inputs: obs; legal, if there are action masks; start and memory, if the policy has a memory.
      outputs: action, and the memory of the next call.
    """

    act: Callable[..., tuple[Array, ...]]
    weights: PyTree
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def greedy(member: TrainedPolicy, spec: EnvSpec) -> Greedy:
    """`member` without exploration, in environments of `spec`.

    Policies that draw random numbers even then draw those of `jax.random.key(0)` at each call.
    """
    policy = member.policy
    memory, tree = jax.tree.flatten(jax.eval_shape(lambda: policy.memory(1)))
    ports = [Port("obs", spec.obs_shape, spec.obs_dtype)]
    if spec.masked:
        assert isinstance(spec.action, Discrete)
        ports.append(Port("legal", (spec.action.n,), "bool"))
    kept = [Port(f"memory_{i}", x.shape[1:], str(x.dtype)) for i, x in enumerate(memory)]
    if kept:
        ports += [Port("start", (), "bool"), *kept]

    def act(weights: PyTree, obs: Array, *rest: Array) -> tuple[Array, ...]:
        state, hp = weights
        count, others = obs.shape[0], list(rest)
        seen: Any = Masked(obs, others.pop(0)) if spec.masked else obs
        start = others.pop(0) if kept else jnp.ones(count, bool)
        noise = noise_of(count)
        before = jax.tree.unflatten(tree, others)
        action, after, _ = policy.act(state, hp, seen, start, before, noise, False)
        return action, *jax.tree.leaves(after)

    drawn = _reads_noise(member, spec)

    def noise_of(count: Any) -> PyTree:
        """Random numbers of one call; zeros if the best action does not depend on them."""
        if drawn:
            return policy.noise(jax.random.key(0), count)
        shaped = jax.eval_shape(lambda: policy.noise(jax.random.key(0), 1))
        return jax.tree.map(lambda x: _unused(x, count), shaped)

    dtype = "int32" if isinstance(spec.action, Discrete) else "float32"
    action = Port("action", spec.action.shape, dtype)
    outputs = (action, *(port._replace(name=f"next_{port.name}") for port in kept))
    weights = jax.tree.map(as_float, (member.state, member.hp))
    return Greedy(act, weights, tuple(ports), outputs)


def _reads_noise(member: TrainedPolicy, spec: EnvSpec) -> bool:
    """Whether actions without exploration depend on random numbers, from the traced operations."""
    policy = member.policy

    def act(noise: PyTree) -> PyTree:
        obs: Any = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
        if spec.masked:
            assert isinstance(spec.action, Discrete)
            obs = Masked(obs, jnp.ones((1, spec.action.n), bool))
        start = jnp.ones(1, bool)
        return policy.act(member.state, member.hp, obs, start, policy.memory(1), noise, False)[:2]

    closed = jax.make_jaxpr(act)(policy.noise(jax.random.key(0), 1))
    used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))[1]
    return any(used)


def _unused(like: Any, count: Any) -> Array:
    """A stand-in for random numbers [1, ...] or a key; its value is never read."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros((count, *like.shape[1:]), like.dtype)


def shapes(ports: tuple[Port, ...]) -> list[jax.ShapeDtypeStruct]:
    """Arrays [n, ...] of a symbolic n."""
    (count,) = export.symbolic_shape("n")
    return [jax.ShapeDtypeStruct((count, *port.shape), port.dtype) for port in ports]


def to_jax(found: Greedy) -> bytes:
    """The serialised function of `found.inputs`, for CPU, CUDA and TPU.

    act = jax.export.deserialize(bytearray(data)).call
    (action, *memory) = act(obs, ...)
    """

    def act(*inputs: Array) -> tuple[Array, ...]:
        return found.act(found.weights, *inputs)

    return bytes(
        export.export(jax.jit(act), platforms=PLATFORMS)(*shapes(found.inputs)).serialize()
    )
