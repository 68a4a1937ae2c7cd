"""Group normalisation whose statistics belong to one frame."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagen_video.networks.tiles import FRAMES_FIRST
from imagen_video.sharding import axes

_EPSILON = 1e-6


class GroupNorm(nn.Module):
    """Normalises each frame alone, over height, width and the channels of a group.

    Per-frame statistics make a packed image equal to the same image alone, and need no exchange
    where frames are split over devices (our choice). Statistics are float32.

    Attributes:
      groups: divides the channels.
      dtype: of the output.
      order: of the clip's axes.
    """

    groups: int
    dtype: DTypeLike = jnp.float32
    order: str = FRAMES_FIRST

    @nn.compact
    def __call__(
        self, h: Float[Array, "*clip c"], stored: Float[Array, "*clip c"] | None = None
    ) -> Float[Array, "*clip c"]:
        """Returns the normalised clip, scaled and shifted per channel, in `dtype`.

        Args:
          h: the clip.
          stored: h again, as it lies in memory where it is normalised; by default as it is read
            for the statistics.
        """
        scale, bias = ScaleAndBias(name="group_norm")(h.shape[-1])
        letters = self.order.split()
        pixels = letters.index("h"), letters.index("w")
        h = h.astype(jnp.float32)
        mean, square = self._over_group(h.mean(pixels)), self._over_group((h * h).mean(pixels))
        factor = scale / jnp.sqrt(jnp.maximum(square - mean**2, 0.0) + _EPSILON)
        mean, factor = (jnp.expand_dims(x, pixels) for x in (mean, factor))
        h = h if stored is None else stored.astype(jnp.float32)
        return ((h - mean) * factor + bias).astype(self.dtype)

    def _over_group(self, means: Float[Array, "b f c"]) -> Float[Array, "b f c"]:
        """The mean over each group, for every channel of it."""
        of_groups = rearrange(means, "b f (g c) -> b f g c", g=self.groups).mean(-1)
        return repeat(of_groups, "b f g -> b f (g c)", c=means.shape[-1] // self.groups)


class ScaleAndBias(nn.Module):
    """The parameters of a normalisation, as `flax.linen.GroupNorm` names and draws them."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns scale and bias, float32."""
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (axes.NORM,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axes.NORM,))
        return self.param("scale", ones, (channels,)), self.param("bias", zeros, (channels,))
