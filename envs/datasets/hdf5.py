"""Opening of HDF5 files. Importing this module needs h5py (`pip install "jaxrl[data]"`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrl.envs.datasets.npz import bad
from jaxrl.errors import UserError

try:
    import h5py
except ImportError as error:
    raise UserError('HDF5 files need h5py: pip install "jaxrl[data]"') from error


@contextmanager
def opened(file: Path) -> Iterator[h5py.File]:
    """Opens a file for reading; errors of h5py inside the `with` block become a UserError."""
    try:
        with h5py.File(file, "r") as found:
            yield found
    except (OSError, RuntimeError, KeyError) as error:
        raise bad(file, "as a whole", f"cannot be read, truncated or damaged? ({error})") from None


def keys(file: Path) -> list[str]:
    """Sorted names of the top-level entries of the file."""
    with opened(file) as found:
        return sorted(found)
