"""Ahead-of-time compilation for a TPU slice by the real compiler, on a machine without a TPU."""

import ctypes.util
import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import jax

from imagen_video.files import atomic_path
from imagen_video.profiling.ceiling import alone_seconds
from imagen_video.profiling.hlo import parse_program
from imagen_video.profiling.programs import DeviceProgram
from imagen_video.profiling.schedule import convolutions, program_cost
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
# By name, the first that there is; and what it is told.
_ALLOCATORS = (
    ("jemalloc", {"MALLOC_CONF": "thp:always,metadata_thp:always"}),
    ("tcmalloc_minimal", {}),
    ("tcmalloc", {}),
)
GIB = 2**30
_UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the compiler says of a program.

    Attributes:
      fits: whether the program fits into the chip's memory.
      hbm_gib: of a chip.
      compile_seconds: on this machine.
      host_gib: most memory this process has had.
      model_tflops: that the model asks for, all chips together, without recomputation or padding.
      missing_gib: memory that the program wants beyond a chip's; None if it fits, or where the
        compiler does not say.
      compiled: None where the compiler refuses it, for it does not fit.
    """

    fits: bool
    hbm_gib: float
    compile_seconds: float
    host_gib: float
    model_tflops: float
    missing_gib: float | None = None
    compiled: "CompiledProgram | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """A program that compiled: its memory, work and time on each chip.

    Attributes:
      arguments_gib: parameters, state and inputs.
      temporaries_gib: all else that is alive at the peak.
      tflops: convolutions and dot products, recomputed ones too, without padding.
      repeated: `tflops` of all chips over the model's.
      collective_gib: sent, by kind of collective.
      seconds: the compiler's estimate, its loops run as often as they say.
      seconds_of: the parts of them, by what they go into, as in `schedule.Cost`.
      share_of_peak: model FLOPs over what the chips could do in these seconds, in bfloat16.
      ceiling: the same, if only convolutions and dot products took time, each as when compiled
        alone; None if not asked for.
    """

    arguments_gib: float
    temporaries_gib: float
    tflops: float
    repeated: float
    collective_gib: Mapping[str, float]
    seconds: float
    seconds_of: Mapping[str, float]
    share_of_peak: float
    ceiling: float | None


def slice_layout(where: Slice, config: ShardingConfig) -> Layout:
    """Lays `config` out on the slice's chips.

    Raises:
      ValueError: libtpu is missing, has no such slice, or the mesh does not fit its chips.
    """
    from jax.experimental import topologies

    # A v4 chip is two cores, which programs see as one.
    options = {"chip_config_name": "megacore"} if where.generation == "v4" else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=str(where), **options)
    except Exception as error:  # libtpu's own errors have no common type.
        raise ValueError(
            f"slice: {where}: the TPU compiler (pip install libtpu) says {error}"
        ) from error
    return make_layout(config, topology.devices)


def compile_program(
    program: DeviceProgram,
    layout: Layout,
    where: Slice,
    *,
    ceiling: bool = True,
    text_file: str | None = None,
) -> Report:
    """Compiles for the slice, and returns what became of it.

    Args:
      program: of all devices of `layout`.
      layout: of the slice.
      where: the slice.
      ceiling: whether to compile every convolution alone, too.
      text_file: where to leave the compiled program as text.
    """
    started = time.perf_counter()
    chip, chips = where.chip, layout.mesh.size
    failure = compiled = None
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        failure = str(error)
    report = Report(
        fits=failure is None,
        hbm_gib=chip.hbm_gib,
        compile_seconds=time.perf_counter() - started,
        host_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        model_tflops=program.model_flops / 1e12,
        missing_gib=None if failure is None else _missing(failure),
    )
    if compiled is None:
        return report

    memory = compiled.memory_analysis()
    arguments = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    ) / GIB
    temporaries = memory.temp_size_in_bytes / GIB
    text = compiled.as_text()
    if text_file is not None:
        with atomic_path(text_file) as part:
            part.write_text(text)
    read = parse_program(text)
    cost = program_cost(read, chip)
    peak_seconds = program.model_flops / (chips * chip.flops)
    alone = None
    if ceiling:
        alone = alone_seconds(convolutions(read), layout.mesh.devices.flat[0], chip)
    missing = arguments + temporaries - chip.hbm_gib
    return dataclasses.replace(
        report,
        fits=missing <= 0,
        missing_gib=missing if missing > 0 else None,
        compiled=CompiledProgram(
            arguments_gib=arguments,
            temporaries_gib=temporaries,
            tflops=cost.flops / 1e12,
            repeated=cost.flops * chips / program.model_flops,
            collective_gib={kind: sent / GIB for kind, sent in cost.collective_bytes.items()},
            seconds=cost.seconds,
            seconds_of=cost.seconds_of,
            share_of_peak=peak_seconds / cost.seconds,
            ceiling=None if alone is None else peak_seconds / alone,
        ),
    )


def run_compiler(argv: Sequence[str], variables: Mapping[str, str]) -> int:
    """Runs `imagen-video` in a process that can compile, and returns its exit code.

    Args:
      argv: its command and flags.
      variables: of its environment, beside those that compiling needs.

    Raises:
      ValueError: it was ended by a signal.
    """
    command = [sys.executable, "-m", "imagen_video", *argv]
    code = subprocess.run(command, env=environment() | dict(variables)).returncode
    if code < 0:
        raise ValueError(
            f"the compiler was ended by {signal.Signals(-code).name}: SIGKILL is often too little"
            " memory, SIGABRT a fault of its own"
        )
    return code


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment that a compiling process needs.

    jemalloc, in huge pages, or else tcmalloc is preloaded where there is one (Debian's libjemalloc2
    and libtcmalloc-minimal4), for the compiler allocates much: tsr3's sampling step for v5e:4x4
    took it 66 to 69 s with jemalloc, 77 to 83 with tcmalloc, tsr1's training step for v5e:16x16
    625 s with tcmalloc, 715 s without.
    """
    found = ((ctypes.util.find_library(name), variables) for name, variables in _ALLOCATORS)
    library, variables = next((one for one in found if one[0]), (None, {}))
    preloaded = [entry for entry in (base.get("LD_PRELOAD"), library) if entry]
    preload = {"LD_PRELOAD": ":".join(preloaded)} if preloaded else {}
    return {**variables, **base, **preload, **ENVIRONMENT}


def _missing(message: str) -> float | None:
    """GiB from "... HLO temporaries (24.92G) exceeds available HBM (15.75G)"."""
    match = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", message)
    if not match:
        return None
    return float(match[1]) * _UNITS[match[2]] - float(match[3]) * _UNITS[match[4]]
