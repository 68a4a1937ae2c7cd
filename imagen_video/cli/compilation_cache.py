"""Keeps compiled programs between runs, so that a second run starts sampling at once."""

import os
import pathlib

import jax


def use_compilation_cache() -> None:
    """Points jax at a folder in the user's cache, unless JAX_COMPILATION_CACHE_DIR names another.

    The cached program is the same program: results keep their bits.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "imagen_video" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
