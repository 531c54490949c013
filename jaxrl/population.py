"""Populations: stage functions mapped over P members, in tiles, on several devices.

The initial state of a member is a pure function of its id: its key is fold_in(root key, id), and
its hyperparameters are one row of a table. Each device of a mesh loops over tiles of W vmapped
members, so temporary memory is that of one tile, and the state is updated in place. The compiled
program has no collectives, since members do not communicate. The number of tiles is an argument of
the program, so that stopped members need not be computed.

A large member may have several devices, which share its environments and minibatches: a second axis
of the mesh, see `jaxrl.rows`.
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
from jax.typing import ArrayLike

from jaxrl.program import Lift, Program, Result, Stage, StageFn, compose
from jaxrl.rows import ROWS
from jaxrl.types import Array, PyTree, as_hyperparams

AXIS = "pop"


class Placement(NamedTuple):
    """Rows of members in the arrays, if only some members are trained.

    Attributes:
      members: [A] trained members, in order.
      rows: [P] row of each member, trained or not.
      order: [padded] member of each row, the inverse of `rows`; P or more for padding.
      tiles: [devices] number of tiles computed on each device, from its first row.
    """

    members: np.ndarray
    rows: np.ndarray
    order: np.ndarray
    tiles: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """Distribution of members: `width` members per tile, tiles over the devices of `mesh`.

    If members have several devices each, a second axis of the mesh has these, and what is said of a
    device holds for such a group.
    """

    mesh: Mesh
    width: int

    @property
    def devices(self) -> int:
        return self.mesh.shape[AXIS]

    @property
    def shares(self) -> bool:
        """Whether members have several devices each."""
        return ROWS in self.mesh.axis_names

    @property
    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    def padded(self, members: int) -> int:
        """The smallest multiple of devices × width that is at least `members`."""
        step = self.devices * self.width
        return math.ceil(members / step) * step

    def placement(self, count: int, members: np.ndarray | None = None) -> Placement:
        """The placement of `count` members, of which `members` [A] are trained, all by default.

        Trained members take the first rows of the devices, in whole tiles. A tile that is not full
        also computes padding or stopped members, whose results are not used. At least one tile is
        computed, so that a process without members makes the same launches as the others.
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
        if self.padded(members) == members:
            return tree  # indexing would compile a gather for each shape
        index = np.minimum(np.arange(self.padded(members)), members - 1)
        return jax.tree.map(lambda x: x[index], tree)

    def split(self, tree: PyTree) -> PyTree:
        """Splits the member axis of every leaf over the devices."""
        return jax.device_put(tree, NamedSharding(self.mesh, Spec(AXIS)))

    def share(self, tree: PyTree) -> PyTree:
        """One copy of every leaf on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, Spec()))


def spread(members: int, width: int, devices: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last + 1) of the members of each process; `devices` are the processes' device counts.

    Each device gets the same number of whole tiles, in the order of the members. The tiles are the
    same as those of one process with all devices.
    """
    tiles = math.ceil(members / width)
    each = math.ceil(tiles / sum(devices)) * width  # members per device
    ends = np.minimum(np.cumsum([0, *devices]) * each, members)
    return [(int(a), int(b)) for a, b in zip(ends, ends[1:], strict=False)]


def tile_width(members: int, devices: int, platform: str, acting: bool = True) -> int:
    """Members per tile: a fixed rule, so that the same command gives the same bits.

    On CPUs tiles of four members are fastest if members step environments: wider tiles exceed the
    cache and split single operations over threads. Members that learn from data alone (not
    `acting`) compute mainly large matrix products, which do not gain from tiles: one member per
    tile. On accelerators a tile has up to 256 members. Tiles are narrowed where that leaves less
    padding.
    """
    limit = (4 if acting else 1) if platform == "cpu" else 256
    each = math.ceil(members / min(devices, members))
    return math.ceil(each / math.ceil(each / limit))


def layout(
    members: int,
    devices: Sequence[Any] | None = None,
    width: int | None = None,
    acting: bool = True,
    each: int = 1,
) -> Layout:
    """The layout of `members` over the devices of this process; surplus devices are not used.

    Args:
      width: members per tile; `tile_width` by default.
      acting: whether any stage of the program steps environments.
      each: devices that share one member; surplus devices are not used.
    """
    devices = list(devices or jax.local_devices())
    groups = len(devices) // each
    width = width or tile_width(members, groups, devices[0].platform, acting)
    groups = min(groups, math.ceil(members / width))
    if each == 1:
        return Layout(Mesh(np.array(devices[:groups]), (AXIS,)), width)
    grid = np.array(devices[: groups * each]).reshape(groups, each)
    return Layout(Mesh(grid, (AXIS, ROWS)), width)


# --- lifting a stage function --------------------------------------------------------------------


def lift(plan: Layout) -> Lift:
    """Maps a stage function over the population; shared stages are computed on every device.

    Every leaf of carry, members and outputs has a leading member axis, split over the devices;
    leaves of `shared` have none. `tiles` [devices] in `shared` limits each device to its first
    tiles; outputs of the others are 0.
    """

    def lifted(fn: StageFn, stage: Stage) -> StageFn:
        spec = Spec() if stage.shared else Spec(AXIS)
        mapped = jax.shard_map(
            fn if stage.shared else _tiled(fn, plan.width),
            mesh=plan.mesh,
            in_specs=(spec, spec, Spec()),
            out_specs=(spec, spec),
            axis_names={AXIS},
            check_vma=False,  # otherwise every loop carry created inside needs a cast
        )
        return _gathered(mapped, NamedSharding(plan.mesh, spec)) if plan.shares else mapped

    return lifted


def _gathered(fn: StageFn, sharding: NamedSharding) -> StageFn:
    """fn with results of `sharding`; otherwise the compiler leaves rows split that it has split."""

    def run(*args: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.with_sharding_constraint(fn(*args), sharding)

    return run


def _tiled(fn: StageFn, width: int) -> StageFn:
    """fn mapped over tiles of `width` members in sequence; the carry is updated in place."""

    def run(carry: PyTree, members: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        def take(tree: PyTree, start: Array) -> PyTree:
            return jax.tree.map(lambda x: _slice(x, start, width), tree)

        def put(tree: PyTree, part: PyTree, start: Array) -> PyTree:
            return jax.tree.map(lambda x, y: _update(x, y, start), tree, part)

        batched = _vmapped(fn, width)

        @jax.jit  # so that eval_shape and the loop share one trace
        def one(start: Array, carry: PyTree, members: PyTree, shared: PyTree) -> PyTree:
            return batched(take(carry, start), take(members, start), shared)

        count = jax.tree.leaves((carry, members))[0].shape[0]
        # The barrier hides the count from the compiler: a loop known to run once would be inlined
        # and fused differently, so that bits would depend on the number of tiles.
        some = shared["tiles"][jax.lax.axis_index(AXIS)] if "tiles" in shared else count // width
        tiles = jax.lax.optimization_barrier(jnp.int32(some))
        shapes = jax.eval_shape(one, tiles, carry, members, shared)[1]
        outputs = jax.tree.map(lambda x: _empty((count, *x.shape[1:]), x.dtype), shapes)

        def body(tile: Array, loop: PyTree) -> PyTree:
            (carry, outputs), start = loop, tile * width
            part, out = one(start, carry, members, shared)
            return put(carry, part, start), put(outputs, out, start)

        # The first index is an int32 array, as `tiles` is: `one` would be traced again for another.
        return jax.lax.fori_loop(jnp.int32(0), tiles, body, (carry, outputs))

    return run


def _vmapped(fn: StageFn, width: int) -> StageFn:
    """fn mapped over `width` members; without vmap for width 1, where it costs 40 % on a CPU."""
    if width > 1:
        return jax.vmap(fn, in_axes=(0, 0, None))

    def alone(*args: PyTree) -> tuple[PyTree, PyTree]:
        carry, members, shared = args
        only = lambda tree: jax.tree.map(lambda x: jax.lax.squeeze(x, (0,)), tree)
        found = fn(only(carry), only(members), shared)
        return jax.tree.map(lambda x: jax.lax.expand_dims(x, (0,)), found)

    return alone


def _slice(x: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, allow_negative_indices=False)


def _update(x: Array, part: Array, start: Array) -> Array:
    part = part.astype(x.dtype)
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, 0, allow_negative_indices=False)


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

    The leaves of `hp`, the agent's `Hypers` or `HyperParams`, and of `own`, the inputs of each
    member, have the axis P. P is a multiple of devices × width (see `Layout.pad`). Results have the
    member axis, after the axis of chunks if there is one; results of shared stages have no member
    axis.
    """
    run = compose(program, lift(plan))

    def whole(key: Array, ids: Array, hp: PyTree, inputs: PyTree, own: PyTree = None) -> Result:
        hp = as_hyperparams(hp)
        return run(run_key(key), member_keys(key, ids), first(hp), hp, inputs, own or {})

    return whole


def member_keys(key: Array, ids: ArrayLike) -> Array:
    """Keys [P] of the members `ids` [P]; a member's key does not depend on the population."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def run_key(key: Array) -> Array:
    """The key of shared stages; no member has its id."""
    return jax.random.fold_in(key, np.iinfo(np.int32).max)


def first(hp: PyTree) -> PyTree:
    """The first member's hyperparameters, which shared stages use."""
    return jax.tree.map(lambda x: x[0], hp)
