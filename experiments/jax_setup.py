"""This process's JAX: one CPU device per core, and compiled programs kept between runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import jax


def start() -> None:
    """Settings that have to come before the first computation.

    One CPU device uses about one core, so a population gets one per core. Compiled programs are
    kept in the user's cache folder (JAX_COMPILATION_CACHE_DIR moves it). Single precision is single
    precision: TPUs would multiply matrices in bfloat16 by default.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxrl" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_default_matmul_precision", "highest")
    forced = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 0 and not forced:
        # Those that this process may use; macOS does not tell.
        allowed = getattr(os, "sched_getaffinity", lambda pid: range(os.cpu_count() or 1))
        jax.config.update("jax_num_cpu_devices", len(allowed(0)))
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
