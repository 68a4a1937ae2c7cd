"""The device mesh: four axes, whatever the slice.

data     copies of the model, each with rows of its own
fsdp     rows as well, and parameters and optimiser state are cut over it
context  one clip is cut over it: its frames, or its height
tensor   attention heads and channels are cut over it
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

DATA, FSDP, CONTEXT, TENSOR = MESH_AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices lie along each axis; -1 for one of them means all that are left."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, size in self.sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"{name}: {size} must be at least 1, or -1 for what is left")
        if list(self.sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh: {self} has -1 more than once")

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by axis name, in the mesh's order."""
        return {name: getattr(self, name) for name in MESH_AXES}

    def fit(self, devices: int) -> "MeshShape":
        """Returns the shape with -1 replaced, for so many devices.

        Raises:
          ValueError: the axes do not multiply to `devices`.
        """
        fixed = math.prod(size for size in self.sizes.values() if size != -1)
        fitted = {
            name: devices // fixed if size == -1 else size for name, size in self.sizes.items()
        }
        if math.prod(fitted.values()) != devices:
            shape = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
            raise ValueError(f"mesh: {shape} does not fit {devices} devices")
        return MeshShape(**fitted)


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices, by default all, out in `shape`, neighbours of a torus next to each other.

    Axes are of type Auto: the compiler places what no rule names.

    Raises:
      ValueError: see `MeshShape.fit`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = shape.fit(len(devices)).sizes
    types = (AxisType.Auto,) * len(sizes)
    lengths = tuple(sizes.values())
    try:
        return jax.make_mesh(lengths, MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # No whole axes of the torus make up these: part of one does.
        grid = mesh_utils.create_device_mesh(lengths, devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=types)
