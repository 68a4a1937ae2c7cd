"""Peak signal-to-noise ratio of clips, in decibels."""

import numpy as np
from jaxtyping import Float

PEAK = 2.0  # from black to white: clips are in [-1, 1]
_ROUNDING = (PEAK / 255) ** 2 / 12  # mean squared error of rounding to 256 levels


def psnr(
    clips: Float[np.ndarray, "b f h w c"], truth: Float[np.ndarray, "b f h w c"]
) -> Float[np.ndarray, " b"]:
    """Returns 10 log10(4 / MSE) of each clip, dB, float64; the error is averaged over the clip.

    At most 58.9: an error below that of rounding pixels to 256 levels, such as none, counts as
    that. Our choice, because a clip that stands still is restored exactly by repeating its frames,
    and one infinite value would be the mean of all.

    Args:
      clips: in [-1, 1]; values outside are clipped, as they are where clips are shown.
      truth: what they should be.
    """
    difference = np.clip(clips, -1.0, 1.0).astype(np.float64) - truth
    error = np.square(difference).mean(axis=(1, 2, 3, 4))
    return 10 * np.log10(PEAK**2 / np.maximum(error, _ROUNDING))
