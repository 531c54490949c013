"""A population: the same stage functions over P members, in tiles, over devices.

A member starts as a pure function of its id: its key is fold_in(root key, id), its hyperparameters
are row id of a table. On each device of a mesh, tiles of W vmapped members take turns in a loop, so
temporary memory stays that of one tile and the state is updated in place. The compiled program
holds no collective: members never meet. How many tiles take turns is an argument of the program, so
that a population some of which has been stopped goes on in fewer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jaxrl.program import Lift, Program, Result, Stage, StageFn, compose
from jaxrl.types import Array, PyTree, as_hyperparams

AXIS = "pop"


class Placement(NamedTuple):
    """Where members are while only some of them are trained.

    Attributes:
      members: those that are trained, [A] in order.
      rows: [P] the row that each member has in the arrays, trained or not.
      order: [padded] its inverse; what is P or more is padding.
      tiles: [devices] how many are computed, the first of each device.
    """

    members: np.ndarray
    rows: np.ndarray
    order: np.ndarray
    tiles: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where members live: `width` members per tile, tiles over the devices of `mesh`."""

    mesh: Mesh
    width: int

    @property
    def devices(self) -> int:
        return self.mesh.size

    def padded(self, members: int) -> int:
        """The least multiple of devices × width that holds `members`."""
        step = self.devices * self.width
        return math.ceil(members / step) * step

    def placement(self, count: int, members: np.ndarray | None = None) -> Placement:
        """The placement of `count` members, of which `members` [A] are trained, all by default.

        They get the first rows of the devices, in whole tiles; where the last one is not full,
        others are computed along to no avail, padding first. One tile is always computed, so that
        a process without any member keeps step.
        """
        members = np.arange(count) if members is None else np.sort(members)
        total = self.padded(count)
        needed = max(math.ceil(members.size / self.width), 1)
        needed = needed if members.size < count else total // self.width  # as `pad` has it
        tiles = (needed + np.arange(self.devices)[::-1]) // self.devices
        device, row = np.divmod(np.arange(total), total // self.devices)
        behind = row >= tiles[device] * self.width
        stopped = np.setdiff1d(np.arange(count), members)
        order = np.empty(total, int)
        order[np.argsort(behind, kind="stable")] = [*members, *range(count, total), *stopped]
        return Placement(members, np.argsort(order)[:count], order, tiles)

    def pad(self, tree: PyTree, members: int) -> PyTree:
        """Repeats the last of `members` rows up to the padded count: [P, ...] -> [padded, ...]."""
        index = np.minimum(np.arange(self.padded(members)), members - 1)
        return jax.tree.map(lambda x: x[index], tree)

    def split(self, tree: PyTree) -> PyTree:
        """Puts the member axis of every leaf over the devices."""
        return jax.device_put(tree, NamedSharding(self.mesh, Spec(AXIS)))

    def share(self, tree: PyTree) -> PyTree:
        """One copy of every leaf on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, Spec()))


def spread(members: int, width: int, devices: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last + 1) of the members that each process takes, which has so many devices.

    Whole tiles in order of the members, as many for each device: the tiles are those of one process
    that has all the devices.
    """
    tiles = math.ceil(members / width)
    each = math.ceil(tiles / sum(devices)) * width  # members of a device
    ends = np.minimum(np.cumsum([0, *devices]) * each, members)
    return [(int(a), int(b)) for a, b in zip(ends, ends[1:], strict=False)]


def tile_width(members: int, devices: int, platform: str, acting: bool = True) -> int:
    """Members per tile: a fixed rule, so that the same command gives the same bits.

    On CPUs tiles of four members are fastest where members step environments: wider ones fall out
    of cache and split single operations over threads. Members that learn from data alone (not
    `acting`) do little but large matrix products, which gain nothing from company: one a tile.
    Accelerators take up to 256 members at once. The widest tile allowed is narrowed to what leaves
    the least padding.
    """
    limit = (4 if acting else 1) if platform == "cpu" else 256
    each = math.ceil(members / min(devices, members))
    return math.ceil(each / math.ceil(each / limit))


def layout(
    members: int,
    devices: Sequence[Any] | None = None,
    width: int | None = None,
    acting: bool = True,
) -> Layout:
    """The layout for `members` over the devices of this process; those beyond the members stay
    unused.

    Args:
      width: members per tile; by default that of `tile_width`, which takes `acting`.
      acting: whether any stage of the program steps environments.
    """
    devices = list(devices or jax.local_devices())
    width = width or tile_width(members, len(devices), devices[0].platform, acting)
    devices = devices[: math.ceil(members / width)]
    return Layout(Mesh(np.array(devices), (AXIS,)), width)


# --- lifting a stage function --------------------------------------------------------------------


def lift(plan: Layout) -> Lift:
    """Spreads a stage function over the population; a shared one is computed everywhere.

    Every leaf of carry, members and outputs has a leading member axis, shared between the devices;
    the leaves of `shared` have none. With `tiles` [devices] in `shared`, only so many are computed
    on each device, the first; outputs of the others are 0.
    """

    def lifted(fn: StageFn, stage: Stage) -> StageFn:
        spec = Spec() if stage.shared else Spec(AXIS)
        return jax.shard_map(
            fn if stage.shared else _tiled(fn, plan.width),
            mesh=plan.mesh,
            in_specs=(spec, spec, Spec()),
            out_specs=(spec, spec),
            check_vma=False,  # loop carries made inside would need a cast each
        )

    return lifted


def _tiled(fn: StageFn, width: int) -> StageFn:
    """fn over tiles of `width` members, one after the other, the carry updated in place."""

    def run(carry: PyTree, members: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        def take(tree: PyTree, tile: Array) -> PyTree:
            return jax.tree.map(lambda x: _slice(x, tile * width, width), tree)

        def put(tree: PyTree, part: PyTree, tile: Array) -> PyTree:
            return jax.tree.map(lambda x, y: _update(x, y, tile * width), tree, part)

        # jit, so that finding the shapes and making the loop share one trace.
        batched = jax.jit(_vmapped(fn, width))

        def one(tile: Array, carry: PyTree) -> tuple[PyTree, PyTree]:
            return batched(take(carry, tile), take(members, tile), shared)

        count = jax.tree.leaves((carry, members))[0].shape[0]
        shapes = jax.eval_shape(one, jnp.int32(0), carry)[1]
        outputs = jax.tree.map(lambda x: _empty((count, *x.shape[1:]), x.dtype), shapes)

        def body(tile: Array, loop: PyTree) -> PyTree:
            carry, outputs = loop
            part, out = one(tile, carry)
            return put(carry, part, tile), put(outputs, out, tile)

        # A count the compiler cannot see: a loop known to run once would be inlined and fused
        # otherwise, and then the bits would depend on the number of tiles.
        some = shared["tiles"][jax.lax.axis_index(AXIS)] if "tiles" in shared else count // width
        tiles = jax.lax.optimization_barrier(jnp.int32(some))
        return jax.lax.fori_loop(0, tiles, body, (carry, outputs))

    return run


def _vmapped(fn: StageFn, width: int) -> StageFn:
    """fn over `width` members; one alone goes without vmap, which would cost it 40 % on a CPU."""
    if width > 1:
        return jax.vmap(fn, in_axes=(0, 0, None))

    def alone(*args: PyTree) -> tuple[PyTree, PyTree]:
        carry, members, shared = args
        only = lambda tree: jax.tree.map(lambda x: x[0], tree)
        return jax.tree.map(lambda x: x[None], fn(only(carry), only(members), shared))

    return alone


def _slice(x: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _update(x: Array, part: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, 0)


def _empty(shape: tuple[int, ...], dtype: Any) -> Array:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
        return jax.random.wrap_key_data(
            jnp.zeros(data.shape, data.dtype), impl=jax.random.key_impl(jnp.empty(0, dtype))
        )
    return jnp.zeros(shape, dtype)


# --- driver one: a whole population as one pure function ------------------------------------------


def train(program: Program, plan: Layout) -> Callable[..., Result]:
    """The whole run of a population as a pure function (root key, ids [P], hp, inputs, own=None).

    `hp` is the agent's `Hypers`, or `HyperParams`; its leaves have the axis P. So have those of
    `own`, the inputs of each member.
    P is a multiple of devices × width (see `Layout.pad`). Results carry the member axis, behind the
    axis of chunks where there is one; those of shared stages do not.
    """
    run = compose(program, lift(plan))

    def whole(key: Array, ids: Array, hp: PyTree, inputs: PyTree, own: PyTree = None) -> Result:
        hp = as_hyperparams(hp)
        return run(run_key(key), member_keys(key, ids), first(hp), hp, inputs, own or {})

    return whole


def member_keys(key: Array, ids: Array) -> Array:
    """Keys [P] of the members `ids` [P]: the same for a member whatever the population."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def run_key(key: Array) -> Array:
    """The key of stages that all members share; no member has this id."""
    return jax.random.fold_in(key, np.iinfo(np.int32).max)


def first(hp: PyTree) -> PyTree:
    """The first member's hyperparameters, which shared stages are trained with."""
    return jax.tree.map(lambda x: x[0], hp)
