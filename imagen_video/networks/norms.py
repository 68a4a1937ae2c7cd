"""Group normalisation whose statistics belong to one frame."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagen_video.sharding import axes


class GroupNorm(nn.Module):
    """Normalises each frame alone, over height, width and the channels of a group.

    Per-frame statistics make a packed image equal to the same image alone, and need no exchange
    where frames are split over devices (our choice). Statistics are float32.
    """

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Returns the normalised clip, scaled and shifted per channel, in `dtype`."""
        norm = nn.GroupNorm(
            num_groups=self.groups,
            epsilon=1e-6,
            reduction_axes=(-3, -2, -1),
            dtype=self.dtype,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axes.NORM,)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (axes.NORM,)),
            name="group_norm",
        )
        return norm(h)
