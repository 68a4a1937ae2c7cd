"""The run of equal blocks inside a DBlock or UBlock: unrolled, or as one scanned loop body.

The first block stands apart, because its input width may differ; the rest have one shape, so one
compiled body serves them all. Unrolled and scanned are the same function of trees that
`stack_layers` and `unstack_layers` turn into each other.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.networks.attention import SpatialAttention
from imagen_video.networks.conditioning import Context
from imagen_video.networks.resnet import SpaceTimeBlock
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout


def _is_product_of_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether an equation is a convolution or a projection; attention has batch axes."""
    if primitive.name == "dot_general":
        _, (batch_axes, _) = params["dimension_numbers"]
        return not batch_axes
    return primitive.name == "conv_general_dilated"


_KEPT = {"blocks": None, "products": _is_product_of_weights}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockStack:
    """What one DBlock or UBlock repeats; fields as in `UNetConfig`, of one level; and layout."""

    features: int
    num_blocks: int
    groups: int
    head_dim: int
    attention: Literal["self", "cross", "none"]
    attention_every_block: bool
    temporal: Literal["attention", "convolution"]
    max_offset: int
    scan: bool
    remat: Literal["none", "blocks", "products"]
    dtype: str
    layout: Layout | None


class _Step(SpaceTimeBlock):
    """A SpaceTimeBlock in the form that `nn.scan` calls: (carry, broadcast) -> (carry, None)."""

    @nn.compact
    def __call__(self, h: Float[Array, "b f h w c"], context: Context) -> tuple[Array, None]:
        return SpaceTimeBlock.__call__(self, h, context), None


def stack(
    config: BlockStack, h: Float[Array, "b f h w c"], context: Context, *, name: str
) -> Float[Array, "b f h w c2"]:
    """Runs the blocks, then the attention once per stack; called in a Linen module's scope.

    Blocks are named `{name}_0`, `{name}_1`, ...; where two or more follow the first and `scan` is
    set, they are one scanned module `{name}_rest` with a leading layers axis.
    """
    dtype = jnp.dtype(config.dtype)
    block, step = SpaceTimeBlock, _Step
    if config.remat != "none":
        policy = _KEPT[config.remat]
        block = nn.remat(block, policy=policy)
        # Inside a loop body nothing outside can be merged with the recomputation, so the
        # barriers against that (prevent_cse) would only cost.
        step = nn.remat(step, policy=policy, prevent_cse=False)
    fields = dict(
        features=config.features,
        groups=config.groups,
        head_dim=config.head_dim,
        attention=config.attention if config.attention_every_block else "none",
        temporal=config.temporal,
        max_offset=config.max_offset,
        dtype=dtype,
        layout=config.layout,
    )
    h = block(**fields, name=f"{name}_0")(h, context)
    rest = config.num_blocks - 1
    if config.scan and rest >= 2:
        loop = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=rest,
            metadata_params={nn.PARTITION_NAME: axes.LAYERS},
        )
        h, _ = loop(**fields, name=f"{name}_rest")(h, context)
    else:
        for i in range(rest):
            h = block(**fields, name=f"{name}_{i + 1}")(h, context)
    if config.attention != "none" and not config.attention_every_block:
        attention = SpatialAttention(
            config.head_dim,
            config.groups,
            attend_pixels=config.attention == "self",
            dtype=dtype,
            layout=config.layout,
            name=f"{name}_attention",
        )
        h = attention(h, context.tokens, context.text_mask, context.caption_index)
    return h


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the tree of a scanned U-Net into that of the same network unrolled."""
    unrolled = {}
    for name, tree in params.items():
        match = re.fullmatch(r"((?:down|up)_\d+)_rest", name)
        if not match:
            unrolled[name] = tree
            continue
        for i in range(len(jax.tree.leaves(tree)[0])):
            unrolled[f"{match[1]}_{i + 1}"] = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
    return unrolled


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the tree of an unrolled U-Net into that of the same network with scanned blocks."""
    stacked, layers = {}, {}
    for name, tree in params.items():
        match = re.fullmatch(r"((?:down|up)_\d+)_([1-9]\d*)", name)
        if match:
            layers.setdefault(match[1], {})[int(match[2])] = tree
        else:
            stacked[name] = tree
    for name, trees in layers.items():
        ordered = [trees[i] for i in sorted(trees)]
        if len(ordered) == 1:
            stacked[f"{name}_1"] = ordered[0]
        else:
            stacked[f"{name}_rest"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return stacked
