"""JAX configuration of a command: one CPU device per core, and a cache of compiled programs."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import stat
import tempfile
from pathlib import Path

import jax

from jaxrl.experiments import interrupts


def start() -> None:
    """Sets the options that the user left unset; only commands call it, before any computation.

    A CPU device uses about one core, so there is one device per core. Compiled programs are kept
    in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR. Matrix products have float32
    precision, also on TPUs, whose default is bfloat16 (see JAX_DEFAULT_MATMUL_PRECISION).
    """
    interrupts.let_clean_up()  # everything is imported
    if not gc.isenabled():  # see `jaxrl.experiments.main`
        gc.freeze()
        gc.enable()
    enable_compilation_cache()
    if jax.config.values["jax_default_matmul_precision"] is None:
        jax.config.update("jax_default_matmul_precision", "highest")
    forced = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 0 and not forced:
        # CPUs available to this process; macOS does not report them.
        allowed = getattr(os, "sched_getaffinity", lambda pid: range(os.cpu_count() or 1))
        with contextlib.suppress(RuntimeError):  # devices are already initialised
            jax.config.update("jax_num_cpu_devices", len(allowed(0)))
    logger = logging.getLogger("jax._src.xla_bridge")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, as the commands do; for scripts that use jaxrl.

    The folder is JAX_COMPILATION_CACHE_DIR, or the user's cache folder (`cache_folder`). A later
    process with the same program, shapes and versions reads the compiled program. What is set
    already, in JAX's configuration or by environment variables, stays.
    """
    if not jax.config.values["jax_compilation_cache_dir"] and (folder := cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def cache_folder() -> Path | None:
    """jaxrl's folder in the user's cache folder; without a writable one, in the temporary folder.

    None if neither can be written by this user, or if others can write the temporary one: compiled
    programs are run as they are found.
    """
    with contextlib.suppress(RuntimeError):  # no home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        existing = next(path for path in (home, *home.parents) if path.exists())
        if os.access(existing, os.W_OK | os.X_OK):
            return home / "jaxrl"
    folder = Path(tempfile.gettempdir()) / f"jaxrl-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and private:
            return folder
    return None
