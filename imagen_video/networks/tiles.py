"""How clips lie in a TPU's memory, whose tiles have 8 rows of 128 channels.

XLA's convolutions over height and width lay frames along a tile's rows, those over frames lay
columns there, and its layouts follow the order of axes in the program. Where that order or a
constraint says the same, norms, FiLM and swish become part of the convolutions; else each is a
pass through memory (our choice; compiler's estimates: README). Without a layout and on other
platforms nothing is reordered.
"""

from collections.abc import Sequence

import jax
from jax.experimental.layout import Layout as MemoryOrder
from jax.experimental.layout import with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout

TILE_ROWS = 8
FRAMES_FIRST = "b f h w c"
PIXELS_FIRST = "h w b f c"

_NAMES = dict(zip(FRAMES_FIRST.split(), axes.CLIP, strict=True))


def axis_names(order: str) -> tuple[str, ...]:
    """Returns the logical axes of a clip whose dimensions stand in `order`."""
    return tuple(_NAMES[letter] for letter in order.split())


def spatial_order(layout: Layout | None) -> str:
    """Returns the order of axes in which frames are convolved one by one."""
    return PIXELS_FIRST if layout is not None and layout.on_tpu else FRAMES_FIRST


def frames_on_several_tpus(layout: Layout | None, h: Float[Array, "b f h w c"]) -> bool:
    """Whether a clip's frames lie on several TPUs."""
    return layout is not None and layout.on_tpu and _spec(layout, h)[1] is not None


def store(
    layout: Layout | None, h: Float[Array, "b f h w c"], order: str
) -> Float[Array, "b f h w c"]:
    """Returns h as it is, in `order` in memory where its frames lie on several TPUs.

    Elsewhere the compiler's own choice has taken less time.
    """
    if not frames_on_several_tpus(layout, h):
        return h
    letters = FRAMES_FIRST.split()
    return _in_memory(layout, h, axes.CLIP, [letters.index(letter) for letter in order.split()])


def store_as_written(
    layout: Layout | None, x: Float[Array, "..."], names: Sequence[str | None]
) -> Float[Array, "..."]:
    """Returns x as it is, in a TPU's memory in the order of its axes: the last fills the lanes.

    Args:
      layout: where x lies.
      x: any array.
      names: the logical axes of its dimensions; None for one that is never cut.
    """
    if layout is None or not layout.on_tpu:
        return x
    return _in_memory(layout, x, names, range(x.ndim))


def _in_memory(
    layout: Layout, x: Array, names: Sequence[str | None], order: Sequence[int]
) -> Array:
    """Says in which order a TPU's memory has the dimensions of x, the last along the lanes."""
    memory, spec = MemoryOrder(tuple(order)), layout.spec(names, x.shape)
    # On each device's block: of a cut array the partitioner forgets the constraint.
    return jax.shard_map(
        lambda block: with_layout_constraint(block, memory),
        mesh=layout.mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )(x)


def _spec(layout: Layout, h: Array) -> PartitionSpec:
    return layout.spec(axes.CLIP, h.shape)
