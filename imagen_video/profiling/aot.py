"""Ahead-of-time compilation for a TPU slice by the real compiler, on a machine without a TPU."""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping

import jax

from imagen_video.profiling.slices import Slice
from imagen_video.sharding.layout import Layout, ShardingConfig, make_layout

# libtpu asks the cloud's metadata server who it is, and locks itself: neither is wanted here.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """What the compiler says of a program, for each chip.

    Attributes:
      fits: whether the program fits into the chip's memory.
      hbm_gib: of the chip.
      arguments_gib: parameters, state and inputs; None where the compiler gave up.
      temporaries_gib: all else that is alive at the peak; None where the compiler does not say.
      compile_seconds: on this machine.
    """

    fits: bool
    hbm_gib: float
    arguments_gib: float | None
    temporaries_gib: float | None
    compile_seconds: float


def slice_layout(where: Slice, config: ShardingConfig) -> Layout:
    """Lays `config` out on the slice's chips.

    Raises:
      ValueError: libtpu is missing, has no such slice, or the mesh does not fit its chips.
    """
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=str(where))
    except Exception as error:  # libtpu's own errors have no common type.
        raise ValueError(
            f"slice: {where}: the TPU compiler (pip install libtpu) says {error}"
        ) from error
    return make_layout(config, topology.devices)


def compile_program(lower: Callable[[], jax.stages.Lowered], where: Slice) -> CompiledProgram:
    """Compiles, and returns what became of it."""
    started = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return CompiledProgram(
            fits=False,
            hbm_gib=where.chip.hbm_gib,
            arguments_gib=None,
            temporaries_gib=_temporaries(str(error)),
            compile_seconds=time.perf_counter() - started,
        )
    memory = compiled.memory_analysis()
    arguments = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    ) / GIB
    temporaries = memory.temp_size_in_bytes / GIB
    return CompiledProgram(
        fits=arguments + temporaries <= where.chip.hbm_gib,
        hbm_gib=where.chip.hbm_gib,
        arguments_gib=arguments,
        temporaries_gib=temporaries,
        compile_seconds=time.perf_counter() - started,
    )


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment that a compiling process needs."""
    return {**base, **ENVIRONMENT}


def _temporaries(message: str) -> float | None:
    """GiB from "... required for HLO temporaries (24.92G) exceeds available HBM (15.75G)"."""
    match = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    if not match:
        return None
    return float(match[1]) * {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}[match[2]]
