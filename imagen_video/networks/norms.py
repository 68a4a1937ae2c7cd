"""Group normalisation whose statistics belong to one frame."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from imagen_video.networks.tiles import FRAMES_FIRST
from imagen_video.sharding import axes

# What rematerialisation knows the means over pixels by.
STATISTICS = "norm_statistics"
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
        self,
        h: Float[Array, "*clip c"],
        stored: Float[Array, "*clip c"] | None = None,
        film: Float[Array, "b f1 2*c"] | None = None,
        zero: Bool[Array, " b"] | None = None,
    ) -> Float[Array, "*clip c"]:
        """Returns the normalised clip, scaled and shifted per channel, in `dtype`.

        It is one product and one sum for each value of h, so that a gradient needs two sums over
        pixels, whatever scales and shifts there are.

        Args:
          h: the clip.
          stored: h again, as it lies in memory where it is normalised; by default as it is read
            for the statistics.
          film: a scale, from 0, and a shift to apply afterwards (scale-shift norm, arXiv
            2105.05233), one for each channel of each frame, or of all frames.
          zero: rows to return zeros in.
        """
        scale, bias = ScaleAndBias(name="group_norm")(h.shape[-1])
        letters = self.order.split()
        pixels = letters.index("h"), letters.index("w")
        of_frames = " ".join(letter for letter in letters if letter not in "hw")
        h = h.astype(jnp.float32)
        mean, square = (
            self._over_group(checkpoint_name(values.mean(pixels), STATISTICS))
            for values in (h, h * h)
        )
        factor = scale / jnp.sqrt(jnp.maximum(square - mean**2, 0.0) + _EPSILON)
        offset = bias - mean * factor
        if film is not None:
            film = rearrange(film.astype(jnp.float32), f"b f c -> {of_frames}")
            film_scale, film_shift = jnp.split(film, 2, axis=-1)
            factor, offset = factor * (1 + film_scale), offset * (1 + film_scale) + film_shift
        if zero is not None:
            zero = rearrange(zero, f"b -> {of_frames.replace('f', '1').replace('c', '1')}")
            factor, offset = (jnp.where(zero, 0.0, x) for x in (factor, offset))
        factor, offset = (jnp.expand_dims(x, pixels) for x in (factor, offset))
        h = h if stored is None else stored.astype(jnp.float32)
        return (h * factor + offset).astype(self.dtype)

    def _over_group(self, means: Float[Array, "*frames c"]) -> Float[Array, "*frames c"]:
        """The mean over each group, for every channel of it."""
        of_groups = rearrange(means, "... (g c) -> ... g c", g=self.groups).mean(-1)
        return repeat(of_groups, "... g -> ... (g c)", c=means.shape[-1] // self.groups)


class ScaleAndBias(nn.Module):
    """The parameters of a normalisation, as `flax.linen.GroupNorm` names and draws them."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns scale and bias, float32."""
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (axes.NORM,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axes.NORM,))
        return self.param("scale", ones, (channels,)), self.param("bias", zeros, (channels,))
