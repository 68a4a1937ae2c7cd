"""The run of equal blocks inside a DBlock or UBlock: each by itself, or scanned.

Scanned, blocks of one shape are one module, its parameters stacked, and one compiled loop body; or,
if the loop is unrolled, as many as they are. A first block that reads another width, as where a
skip is joined, stands apart. Blocks by themselves and scanned ones are the same function of trees
that `stack_layers` and `unstack_layers` turn into each other.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.networks.attention import READ, SpatialAttention
from imagen_video.networks.conditioning import Context
from imagen_video.networks.norms import STATISTICS
from imagen_video.networks.residual import SUM
from imagen_video.networks.resnet import SpaceTimeBlock
from imagen_video.networks.softmax import PROBABILITIES
from imagen_video.networks.tiles import frames_first
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout

# What is small beside what it takes to compute it again; sums of residual branches take the place
# of the branch's last product.
_KEPT = (PROBABILITIES, READ, STATISTICS, SUM)


def _is_kept(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether an equation is a convolution or a projection, or names one of `_KEPT`.

    Attention's own products have batch axes.
    """
    if primitive.name == "name":
        return params["name"] in _KEPT
    if primitive.name == "dot_general":
        _, (batch_axes, _) = params["dimension_numbers"]
        return not batch_axes
    return primitive.name == "conv_general_dilated"


# What scanned blocks are called, by how many stand apart before them.
_SCANNED = ("all", "rest")

# What of a block the backward pass finds, by how blocks are rematerialised; None for nothing.
REMATERIALISED = {"blocks": None, "products": _is_kept}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockStack:
    """What one DBlock or UBlock repeats: `UNetConfig` for one level, and how its clips lie."""

    features: int
    num_blocks: int
    groups: int
    head_dim: int
    attention: Literal["self", "cross", "none"]
    attention_every_block: bool
    temporal: Literal["attention", "convolution"]
    max_offset: int
    scan: bool
    unroll: bool
    remat: Literal["none", "blocks", "products"]
    dtype: str
    order: str
    layout: Layout | None


class _Step(SpaceTimeBlock):
    """A SpaceTimeBlock in the form that `nn.scan` calls: (carry, broadcast) -> (carry, None)."""

    @nn.compact
    def __call__(self, h: Float[Array, "*clip c"], context: Context) -> tuple[Array, None]:
        return SpaceTimeBlock.__call__(self, h, context), None


def stack(
    config: BlockStack, h: Float[Array, "*clip c"], context: Context, *, name: str
) -> Float[Array, "*clip c2"]:
    """Runs the blocks, then the attention once per stack; called in a Linen module's scope.

    Blocks are named `{name}_0`, `{name}_1`, ... Where `scan` is set and there are three or more,
    those of one shape are one scanned module with a leading layers axis, whether or not the loop is
    unrolled: `{name}_all`, or, after a first block of another width, `{name}_rest`.
    """
    dtype = jnp.dtype(config.dtype)
    block, step = SpaceTimeBlock, _Step
    if config.remat != "none":
        policy = REMATERIALISED[config.remat]
        block = nn.remat(block, policy=policy)
        # Inside a loop body nothing outside can be merged with the recomputation, so there the
        # barriers against that (prevent_cse) would only cost.
        step = nn.remat(step, policy=policy, prevent_cse=config.unroll)
    fields = dict(
        features=config.features,
        groups=config.groups,
        head_dim=config.head_dim,
        attention=config.attention if config.attention_every_block else "none",
        temporal=config.temporal,
        max_offset=config.max_offset,
        dtype=dtype,
        order=config.order,
        layout=config.layout,
    )
    scan = config.scan and config.num_blocks >= 3
    first = int(h.shape[-1] != config.features)  # of the blocks of one shape
    for i in range(first if scan else config.num_blocks):
        h = block(**fields, name=f"{name}_{i}")(h, context)
    if scan:
        loop = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_blocks - first,
            unroll=config.num_blocks - first if config.unroll else 1,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )
        h, _ = loop(**fields, name=f"{name}_{_SCANNED[first]}")(h, context)
    if config.attention != "none" and not config.attention_every_block:
        attention = SpatialAttention(
            config.head_dim,
            config.groups,
            attend_pixels=config.attention == "self",
            dtype=dtype,
            layout=config.layout,
            name=f"{name}_attention",
        )
        h = frames_first(attention, config.order)(
            h, context.tokens, context.text_mask, context.caption_index
        )
    return h


def is_scanned(name: str) -> bool:
    """Whether a U-Net's top-level module holds scanned blocks, parameters with a layers axis."""
    return name.rsplit("_", 1)[-1] in _SCANNED


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the tree of a scanned U-Net into that of the same network with no block scanned."""
    flat = {}
    for name, tree in params.items():
        if not is_scanned(name):
            flat[name] = tree
            continue
        stack_name, kind = name.rsplit("_", 1)
        first = _SCANNED.index(kind)
        for i in range(len(jax.tree.leaves(tree)[0])):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
            flat[f"{stack_name}_{first + i}"] = layer
    return flat


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a tree that `unstack_layers` returned back into that of the scanned U-Net."""
    stacked, layers = {}, {}
    for name, tree in params.items():
        if match := re.fullmatch(r"((?:down|up)_\d+)_(\d+)", name):
            layers.setdefault(match[1], {})[int(match[2])] = tree
        else:
            stacked[name] = tree
    for name, trees in layers.items():
        ordered = [trees[i] for i in sorted(trees)]
        if len(ordered) < 3:
            stacked |= {f"{name}_{i}": tree for i, tree in enumerate(ordered)}
            continue
        shapes = [jax.tree.map(jnp.shape, tree) for tree in ordered]
        first = int(shapes[0] != shapes[1])
        stacked |= {f"{name}_{i}": tree for i, tree in enumerate(ordered[:first])}
        equal = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered[first:])
        stacked[f"{name}_{_SCANNED[first]}"] = equal
    return stacked
