"""Where every axis of every array lies on the mesh: the one rule table, and its fallbacks."""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_video.sharding import axes
from imagen_video.sharding.mesh import CONTEXT, DATA, FSDP, MESH_AXES, TENSOR, MeshShape, make_mesh

Names = tuple[str | None, ...]

# Logical axis to mesh axes; what is not here is not cut by its name. Frames or height are added per
# run.
RULES = {
    axes.BATCH: (DATA, FSDP),
    axes.CHANNELS: (TENSOR,),
    axes.IN: (FSDP,),
    axes.OUT: (TENSOR,),
    axes.HEADS: (TENSOR,),
    axes.EMB: (FSDP,),
    axes.VOCAB: (TENSOR,),
    axes.EMBED: (FSDP,),
    axes.MLP: (TENSOR,),
}
# Parameters below this many elements are not worth cutting (our choice).
SMALL = 2**13


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How a run is spread over devices.

    Attributes:
      mesh: devices along each axis.
      context: what the context axis cuts, the frames of a clip or its height. Frames cost least
        where time is mixed by convolutions.
      min_rows: a height is not cut where fewer rows than this would be left on a device.
    """

    mesh: MeshShape = MeshShape()
    context: Literal["frames", "height"] = "frames"
    min_rows: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh and what lies where on it. Hashable, so that it can be a static argument.

    Attributes:
      mesh: with the axes of `MESH_AXES`.
      context: as in `ShardingConfig`.
      min_rows: likewise.
    """

    mesh: Mesh
    context: Literal["frames", "height"] = "frames"
    min_rows: int = 4

    def __post_init__(self):
        if self.mesh.axis_names != MESH_AXES:
            raise ValueError(f"mesh: its axes are {self.mesh.axis_names}, not {MESH_AXES}")

    @property
    def batch_shards(self) -> int:
        """Parts that a batch is cut into."""
        return math.prod(self.mesh.shape[name] for name in RULES[axes.BATCH])

    @property
    def on_tpu(self) -> bool:
        """Whether the mesh is one of TPUs, present or only named to the compiler."""
        return self.mesh.devices.flat[0].platform == "tpu"

    def spec(self, names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
        """Returns which mesh axes cut each dimension of an array.

        A dimension that its mesh axes do not divide is cut by the first so many of them as do;
        that is logged, once for each shape.

        Args:
          names: of the dimensions; None for one that is never cut.
          shape: of the array.

        Raises:
          ValueError: there is not one name a dimension.
        """
        if len(names) != len(shape):
            raise ValueError(f"names: {tuple(names)} do not fit shape {tuple(shape)}")
        return _spec(self, tuple(names), tuple(shape))

    def sharding(self, names: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """Returns `spec` on the mesh."""
        return NamedSharding(self.mesh, self.spec(names, shape))

    def batch(self, *, microbatches: int = 1) -> NamedSharding:
        """Rows over data and fsdp, of every array of a batch; stacked microbatches come first."""
        rows = RULES[axes.BATCH]
        return NamedSharding(self.mesh, PartitionSpec(*[None] * (microbatches > 1), rows))

    def parts_of_process(self, process: int) -> tuple[int, ...]:
        """Returns which of a batch's `batch_shards` equal parts the process reads, ascending.

        They need not be neighbours: a TPU's mesh follows its torus, not its hosts. Processes that
        share the clips of one part, cut over context, read the same part.

        Raises:
          ValueError: not all processes hold as many parts.
        """
        parts = self.mesh.devices.reshape(self.batch_shards, -1)
        held = [{device.process_index for device in part} for part in parts]
        counts = Counter(itertools.chain.from_iterable(held))
        if len(set(counts.values())) > 1 or process not in counts:
            raise ValueError(
                f"mesh: its processes hold {dict(counts)} parts of a batch, not as many"
            )
        return tuple(i for i, processes in enumerate(held) if process in processes)

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def params(self, names: Any, shapes: Any) -> Any:
        """Returns the sharding of every parameter.

        Where no dimension took the fsdp axis by its name, the largest one that fsdp divides takes
        it, so that memory is cut all the same; but for stacked layers and dimensions that are cut
        already. Parameters below `SMALL` are not cut.

        Args:
          names: a tree of tuples of logical names.
          shapes: the same tree of arrays or `jax.ShapeDtypeStruct`s.
        """

        def of_leaf(leaf_names: Names, leaf: Any) -> NamedSharding:
            return NamedSharding(self.mesh, self.param_spec(leaf_names, leaf.shape))

        return jax.tree.map(of_leaf, names, shapes, is_leaf=lambda x: isinstance(x, tuple))

    def param_spec(self, names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
        """Returns which mesh axes cut each dimension of a parameter, as `params` lays it out."""
        return _with_fsdp(self, tuple(names), tuple(shape))

    def _axes_of(self, name: str | None) -> tuple[str, ...]:
        if name == (axes.FRAMES if self.context == "frames" else axes.HEIGHT):
            return (CONTEXT,)
        return RULES.get(name, ())


def gather_fsdp(kernel: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Joins the parts of a parameter that lie along the fsdp axis; for use inside `jax.shard_map`.

    The gradient of a gather is summed and cut in one go (reduce-scatter). Left to the compiler, it
    is summed whole on every device and cut afterwards, twice the bytes.

    Args:
      kernel: the part that this device holds.
      spec: how the whole is cut.
    """
    for dimension, entry in enumerate(spec):
        if FSDP in _as_tuple(entry):
            kernel = jax.lax.all_gather(kernel, FSDP, axis=dimension, tiled=True)
    return kernel


def constrain(layout: Layout | None, x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay a traced array out so, None for nothing; values stay the same."""
    return (
        x
        if layout is None
        else jax.lax.with_sharding_constraint(x, layout.sharding(names, x.shape))
    )


def make_layout(config: ShardingConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """Builds the mesh of `config` on `devices`, by default on all there are.

    Raises:
      ValueError: the mesh does not fit the devices.
    """
    mesh = make_mesh(config.mesh, devices)
    return Layout(mesh=mesh, context=config.context, min_rows=config.min_rows)


def layout_if_needed(
    config: ShardingConfig, devices: Sequence[jax.Device] | None = None
) -> Layout | None:
    """Returns what `make_layout` does, or None on a single device that is not a TPU.

    There nothing is cut, and a program without a layout is smaller. A single TPU has nothing to
    cut either, but programs order their axes for its memory by what they are laid out on
    (`imagen_video/networks/tiles.py`).

    Raises:
      ValueError: the mesh does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) == 1 and devices[0].platform != "tpu":
        config.mesh.fit(1)  # raises if it does not
        return None
    return make_layout(config, devices)


def local_layout() -> Layout | None:
    """Returns the layout of this process's own devices, all along fsdp, if it needs one."""
    return layout_if_needed(ShardingConfig(), jax.local_devices())


@functools.lru_cache(maxsize=4096)
def _spec(layout: Layout, names: Names, shape: tuple[int, ...]) -> PartitionSpec:
    taken: set[str] = set()
    entries = []
    for name, size in zip(names, shape):
        wanted = [
            axis
            for axis in layout._axes_of(name)
            if layout.mesh.shape[axis] > 1 and axis not in taken
        ]
        least = layout.min_rows if name == axes.HEIGHT else 1
        cut = list(wanted)
        while cut and not _divides(layout.mesh, cut, size, least):
            cut.pop()
        if cut != wanted:
            logging.info("%s of %s: %s not cut over %s", name, names, shape, wanted[len(cut) :])
            # Frames are alike at every level and no level has more rows than the pixels, so the
            # axis is of no use at all.
            if name == axes.FRAMES or (name == axes.HEIGHT and names == axes.PIXELS):
                logging.log_first_n(
                    logging.WARNING,
                    "the mesh's %s axis of %d does not cut %d %s: its devices all compute the same"
                    " clips",
                    1,
                    CONTEXT,
                    layout.mesh.shape[CONTEXT],
                    size,
                    "frames" if name == axes.FRAMES else "rows of pixels",
                )
        taken.update(cut)
        entries.append(tuple(cut) if len(cut) > 1 else cut[0] if cut else None)
    return PartitionSpec(*entries)


def _divides(mesh: Mesh, cut: list[str], size: int, least: int) -> bool:
    parts = math.prod(mesh.shape[axis] for axis in cut)
    return size % parts == 0 and size // parts >= least


@functools.lru_cache(maxsize=4096)
def _with_fsdp(layout: Layout, names: Names, shape: tuple[int, ...]) -> PartitionSpec:
    fsdp = layout.mesh.shape[FSDP]
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    spec = _spec(layout, names, shape)
    if fsdp == 1 or any(FSDP in _as_tuple(entry) for entry in spec):
        return spec
    free = [
        (size, i)
        for i, (name, size) in enumerate(zip(names, shape))
        if spec[i] is None and size % fsdp == 0 and name != axes.LAYERS
    ]
    if not free:
        logging.info("%s: %s is whole on every fsdp device", names, shape)
        return spec
    _, largest = max(free)
    return PartitionSpec(*(FSDP if i == largest else entry for i, entry in enumerate(spec)))


def _as_tuple(entry: Any) -> tuple:
    return entry if isinstance(entry, tuple) else (entry,)
