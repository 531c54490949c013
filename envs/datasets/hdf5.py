"""Objects of HDF5 files. Importing this module needs h5py (`pip install -e ".[data]"`).

Everything that makes HDF5 read other files is refused: external links, external storage and virtual
datasets. They would turn the bytes of any readable file into data.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.envs.datasets.columns import Stored, bad, reading
from jaxrl.errors import UserError, install_extra

try:
    import h5py
except ImportError as error:
    raise UserError(f"HDF5 files need h5py: {install_extra('data')}") from error

HARD, SOFT = 0, 1  # of h5py.h5l, which has no type hints
WRITTEN = ("v108", "v108")  # first version with checksums of names, shapes and dtypes
LARGE = 2**28  # bytes; smaller datasets may be zeros that were never written
LINKS = 8  # longest chain of symbolic links inside a file


@contextmanager
def opened(file: Path) -> Iterator[h5py.File]:
    """Opens a file for reading; errors of h5py inside the `with` block become a UserError."""
    with reading(file), h5py.File(file, "r") as found:
        yield found


def keys(file: Path) -> list[str]:
    """Sorted names of the top-level entries of the file."""
    with opened(file) as found:
        return sorted(found)


def find(file: Path, group: h5py.Group, path: str, links: int = LINKS) -> Any:
    """The group or dataset at `path`, relative to `group`; None if missing.

    Raises:
      UserError: a link to another file, or a loop of links.
    """
    node: Any = group.file if path.startswith("/") else group
    for name in path.strip("/").split("/"):
        if not isinstance(node, h5py.Group) or not node.id.links.exists(name.encode()):
            return None
        kind = node.id.links.get_info(name.encode()).type
        key = posixpath.join(str(node.name), name).lstrip("/")
        if kind == SOFT and links:
            target = node.id.links.get_val(name.encode()).decode()
            node = find(file, node, target, links - 1)
        elif kind == HARD:
            node = node[name]
        else:
            raise bad(file, key, "links to another file or in a circle: store the data themselves")
    return node


def stored(file: Path, key: str, node: Any) -> Stored:
    """The column in a dataset; the datasets of a group joined to [T, n], in alphabetical order.

    Raises:
      UserError: no dataset, storage in other files, or datasets that differ in length.
    """
    if isinstance(node, h5py.Dataset):
        if node.is_virtual or node.external:
            raise bad(file, key, "is stored in another file: store the data themselves")
        found = Stored(node.shape or (), node.dtype, lambda: np.asarray(node[()]))
        if found.nbytes > LARGE and not _written(node):
            raise bad(file, key, f"shape {node.shape} is declared, but not all rows were written")
        return found
    if not isinstance(node, h5py.Group) or not len(node):
        raise bad(file, key, "holds no numbers")
    parts = [stored(file, f"{key}/{name}", find(file, node, name)) for name in sorted(node)]
    rows = {x.shape[:1] for x in parts}
    if len(rows) > 1 or rows == {()}:
        raise bad(file, key, f"its entries have {sorted(x.shape for x in parts)} rows and columns")
    with reading(file, key):
        dtype = np.result_type(*(x.dtype for x in parts))
    width = sum(prod(x.shape[1:]) for x in parts)

    def read() -> np.ndarray:
        flat = [x.read() for x in parts]
        return np.concatenate([x.reshape(len(x), -1) for x in flat], 1)

    return Stored((parts[0].shape[0], width), dtype, read)


def _written(node: h5py.Dataset) -> bool:
    """Whether a large dataset is stored as a whole; HDF5 fills the rest with zeros."""
    if node.chunks is None:
        return node.id.get_storage_size() > 0
    each = zip(node.shape, node.chunks, strict=True)
    return node.id.get_num_chunks() >= prod(-(-length // chunk) for length, chunk in each)


def tree(file: Path, group: h5py.Group, prefix: str) -> dict[str, Stored]:
    """All datasets below the group at `prefix`, by their paths; {} if it is missing."""
    node, found = find(file, group, prefix), {}
    for name in node if isinstance(node, h5py.Group) else ():
        key = f"{prefix}/{name}"
        child = find(file, group, key)
        if isinstance(child, h5py.Group):
            found |= tree(file, group, key)
        else:
            found[key] = stored(file, key, child)
    return found
