"""Array storage: a flat dictionary of host arrays in one folder, through orbax-checkpoint.

Only orbax's synchronous, single-process pieces are used, so that nothing here waits for another
process or changes orbax's settings. The folder has orbax's OCDBT layout. Imported late, since
orbax takes a second to import.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts


class _LocalArrays(ocp.type_handlers.NumpyHandler):
    """Writes host arrays from every process; orbax's own handler writes from process 0 only."""

    async def serialize(
        self, values: Sequence[np.ndarray], infos: Sequence[Any], args: Any = None
    ) -> Sequence[ocp.Future]:
        """Writes all arrays, and returns when they are written."""
        args = args or [ocp.SaveArgs()] * len(values)

        async def write(value: np.ndarray, info: Any, arg: Any) -> None:
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=value.shape,
                dtype=value.dtype,
                process_index=0,  # of the processes that write this folder
                arg=arg,
            )
            array = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
            await array.write(value, can_reference_source_data_indefinitely=True)

        writes = map(write, values, infos, args)
        # All end before the first error is raised: a late error would be printed by asyncio.
        for error in await asyncio.gather(*writes, return_exceptions=True):
            if error is not None:
                raise error
        return []


def _handler() -> Any:
    return ocp.PyTreeCheckpointHandler(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index()
        ),
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _LocalArrays()), (jax.Array, ocp.type_handlers.ArrayHandler())
        ),
    )


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays with at least one element each; `folder` exists and is empty.

    The arrays must not change before this returns.

    Raises:
      OSError: ENOSPC, the disk is full.
    """
    handler = _handler()
    with _disk_full_as_oserror(), contextlib.closing(handler):
        handler.save(folder, args=ocp.args.PyTreeSave(dict(arrays)))
        handler.finalize(folder)


def read(folder: Path, name: str) -> np.ndarray:
    """Reads one array. Damaged or missing files raise errors of many types."""
    with contextlib.closing(_handler()) as handler:
        args = ocp.args.PyTreeRestore(
            item={name: 0},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        return np.asarray(handler.restore(folder, args=args)[name])


@contextlib.contextmanager
def _disk_full_as_oserror() -> Iterator[None]:
    """tensorstore reports a full disk as a ValueError."""
    try:
        yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "No space left" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "no space left for a checkpoint") from error
