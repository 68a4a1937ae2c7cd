"""How clips lie in a TPU's memory, whose tiles have 8 rows of 128 channels.

XLA's convolutions lay what they take for the batch along a tile's rows, and their layouts follow
the order of axes in the program. Where that order is the one in memory, and no axes are folded
between them, norms, FiLM, swish and sums become part of the convolutions; else each is a pass
through memory (our choice; compiler's estimates: README). Without a layout and on other platforms
nothing is reordered.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from einops import rearrange
from jax.experimental.layout import Layout as MemoryOrder
from jax.experimental.layout import with_layout_constraint
from jaxtyping import Array, Float

from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout

TILE_ROWS = 8
FRAMES_FIRST = "b f h w c"
# Pixels first; a tile's rows are frames of one clip, or one frame of several clips.
FRAMES_IN_TILES = "h w b f c"
CLIPS_IN_TILES = "h w f b c"

_NAMES = dict(zip(FRAMES_FIRST.split(), axes.CLIP, strict=True))


def axis_names(order: str) -> tuple[str, ...]:
    """Returns the logical axes of a clip whose axes stand in `order`."""
    return tuple(_NAMES[letter] for letter in order.split())


def clip_order(layout: Layout | None, clip: Float[Array, "b f h w c"]) -> str:
    """Returns the order of axes in which a network is best computed, by the shape of its input.

    On TPUs pixels come first; along a tile's rows lie clips, where a device has a multiple of
    eight, else frames.
    """
    if layout is None or not layout.on_tpu:
        return FRAMES_FIRST
    batch = clip.shape[:1]
    (clips,) = layout.sharding((axes.BATCH,), batch).shard_shape(batch)
    return CLIPS_IN_TILES if clips % TILE_ROWS == 0 else FRAMES_IN_TILES


def frames_first(module: Callable[..., Array], order: str) -> Callable[..., Array]:
    """Returns what `module` does with clips [b f h w c], of clips in `order`."""

    def in_order(h: Float[Array, "*clip c"], *args: Any) -> Float[Array, "*clip c2"]:
        h = module(rearrange(h, f"{order} -> {FRAMES_FIRST}"), *args)
        return rearrange(h, f"{FRAMES_FIRST} -> {order}")

    return in_order


def frames_on_several_tpus(
    layout: Layout | None, h: Float[Array, "*clip c"], *, order: str = FRAMES_FIRST
) -> bool:
    """Whether the frames of clips in `order` lie on several TPUs."""
    if layout is None or not layout.on_tpu:
        return False
    return layout.spec(axis_names(order), h.shape)[order.split().index("f")] is not None


def store(
    layout: Layout | None, h: Float[Array, "*clip c"], memory: str, *, order: str
) -> Float[Array, "*clip c"]:
    """Returns h as it is, in the order `memory` in memory, where its frames lie on several TPUs.

    Elsewhere, and where `order`, that of its axes, is not FRAMES_FIRST, the compiler's own choice
    has taken less time.
    """
    if order != FRAMES_FIRST or not frames_on_several_tpus(layout, h):
        return h
    letters = FRAMES_FIRST.split()
    return _in_memory(layout, h, axes.CLIP, [letters.index(letter) for letter in memory.split()])


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
