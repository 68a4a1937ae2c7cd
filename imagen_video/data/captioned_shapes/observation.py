"""First step of reading a clip: background, object, colour, and where the object is.

Everything works on a grid of 96 pixels on the shorter side, whatever the clip's size, and on at
most 16 frames. After the background is taken away the object's pixels are, with its colour c, the
background b, coverage alpha and brightness s, the residual X = alpha * (s * c - b): all later
steps are linear in X, so that noise averages out and blur cancels in sums.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage

from imagen_video.data.captioned_shapes.palette import BACKGROUND_RGB, OBJECT_RGB

SIDE = 96  # working resolution: pixels on the shorter side
MAX_FRAMES = 16
UNSURE = "unsure"
_BORDER = 3  # pixels
_MAX_BACKGROUND_ERROR = 0.25  # RGB distance beyond which no palette entry is meant
_MAX_COLOUR_ERROR = 0.35  # of the object's contrast
_MIN_COLOUR_LEAD = 1.2  # the next best colour must fit this much worse
_SHADES = (0.55, 0.7, 0.85, 1.0)  # brightnesses that sides of a cube and dark halves have
_MIN_PART = 0.12  # blobs below this share of the largest one are specks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What a clip shows, frame by frame; lengths in working pixels.

    Attributes:
      tau: clip time of each frame.
      height, width: of the working grid.
      background, colour: palette names, or "unsure".
      background_rgb, colour_rgb: the palette entries b and c that fit best, in [0, 1], also where
        they fit too badly to be named.
      residual: X, clip minus background, zero away from the object.
      noise_energy: mean of |X|^2 over a pixel of bare background.
      mass: sum of X along c - b, in units of |c - b|: the area of a flat object.
      x, y: centroid of the mass; pixel k spans [k, k + 1].
      seen: whether an object was found in the frame.
      colour_lead: how much worse the second best colour fits.
    """

    tau: Float[np.ndarray, " f"]
    height: int
    width: int
    background: str
    colour: str
    background_rgb: Float[np.ndarray, "3"]
    colour_rgb: Float[np.ndarray, "3"]
    residual: Float[np.ndarray, "f h w 3"]
    noise_energy: float
    mass: Float[np.ndarray, " f"]
    x: Float[np.ndarray, " f"]
    y: Float[np.ndarray, " f"]
    seen: Bool[np.ndarray, " f"]
    colour_lead: float


def border_background(video: UInt8[np.ndarray, "f h w 3"]) -> str:
    """Names the background by the border's median colour; "unsure" if no palette entry is near."""
    return _background(_border_median(_to_working_grid(video[chosen_frames(len(video))])))[0]


def observe(video: UInt8[np.ndarray, "f h w 3"]) -> Observation | None:
    """Finds background, object and colour; None if there is no object in half of the frames."""
    frames = chosen_frames(len(video))
    clip = _to_working_grid(video[frames])
    middle = _border_median(clip)
    smooth = ndimage.gaussian_filter(clip - middle, (0, 1, 1, 0))
    contrast = np.sqrt((smooth * smooth).sum(-1))
    # Three times the median of a Rayleigh-like noise is beyond its last pixel.
    threshold = max(
        0.25 * float(np.quantile(contrast, 0.998)), 3.2 * float(np.median(contrast)), 0.04
    )
    masks = np.stack([_object_mask(frame, threshold) for frame in contrast])
    seen = masks.any(axis=(1, 2))
    if seen.mean() < 0.5:
        return None
    near = ndimage.maximum_filter(masks, (1, 9, 9))
    # The mean, where noise is cut off at white or black, is not the median.
    rest = clip[~near]
    bare = rest.mean(axis=0) if len(rest) > 500 else middle
    residual = np.where(near[..., None], clip - bare, 0).astype(np.float32)
    noise_energy = float(((rest - bare) ** 2).sum(-1).mean()) if len(rest) > 500 else 0.0

    background, background_rgb = _background(middle)
    inside = smooth[masks] + middle - bare
    colour, colour_rgb, lead = _colour(inside, bare)
    to_colour = colour_rgb - background_rgb
    share = residual @ (to_colour / (to_colour @ to_colour)).astype(np.float32)
    mass = np.maximum(share.sum(axis=(1, 2)), 1.0)
    height, width = clip.shape[1:3]
    x = (share.sum(axis=1) @ (np.arange(width) + 0.5)) / mass
    y = (share.sum(axis=2) @ (np.arange(height) + 0.5)) / mass
    return Observation(
        tau=frames / len(video),
        height=height,
        width=width,
        background=background,
        colour=colour,
        background_rgb=background_rgb,
        colour_rgb=colour_rgb,
        residual=residual,
        noise_energy=noise_energy,
        mass=mass,
        x=x,
        y=y,
        seen=seen,
        colour_lead=lead,
    )


def chosen_frames(count: int) -> Int[np.ndarray, " f"]:
    """Returns at most MAX_FRAMES frame numbers, evenly spread over a clip of `count` frames."""
    number = min(count, MAX_FRAMES)
    return np.arange(number) * count // number


def _to_working_grid(video: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f rows cols 3"]:
    """Resizes to SIDE pixels on the shorter side, antialiased; values in [0, 1]."""
    height, width = video.shape[1:3]
    scale = SIDE / min(height, width)
    size = round(width * scale), round(height * scale)
    if (width, height) != size:
        resized = [Image.fromarray(f).resize(size, Image.Resampling.BILINEAR) for f in video]
        video = np.stack([np.asarray(frame) for frame in resized])
    return video.astype(np.float32) / 255


def _border_median(clip: Float[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "3"]:
    sides = clip[:, :_BORDER], clip[:, -_BORDER:], clip[:, :, :_BORDER], clip[:, :, -_BORDER:]
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def _object_mask(contrast: Float[np.ndarray, "h w"], threshold: float) -> Bool[np.ndarray, "h w"]:
    """The blobs that stand out, without the specks."""
    mask = contrast > threshold
    parts, number = ndimage.label(ndimage.maximum_filter(mask, 3))
    if number == 0:
        return mask
    weight = ndimage.sum_labels(contrast * mask, parts, np.arange(1, number + 1))
    keep = np.flatnonzero(weight >= _MIN_PART * weight.max()) + 1
    return mask & np.isin(parts, keep)


def _background(rgb: Float[np.ndarray, "3"]) -> tuple[str, Float[np.ndarray, "3"]]:
    distance = {
        name: float(np.linalg.norm(rgb - np.array(BACKGROUND_RGB[name]))) for name in BACKGROUND_RGB
    }
    nearest, second = sorted(distance, key=distance.get)[:2]
    sure = distance[nearest] < _MAX_BACKGROUND_ERROR and distance[second] > 1.3 * distance[nearest]
    return nearest if sure else UNSURE, np.array(BACKGROUND_RGB[nearest])


def _colour(
    inside: Float[np.ndarray, "n 3"], background: Float[np.ndarray, "3"]
) -> tuple[str, Float[np.ndarray, "3"], float]:
    """Names the colour of the object's clearest pixels.

    A pixel of colour c may be shaded and may be mixed with background, X = a * (s * c - b), so the
    nearest palette entry is the one whose fan of such points comes nearest.
    """
    energy = (inside * inside).sum(-1)
    clear = inside[energy >= np.quantile(energy, 0.6)][:: max(1, len(inside) // 4000)]
    energy = (clear * clear).sum(-1)
    misfit = {}
    for name, rgb in OBJECT_RGB.items():
        fits = []
        for shade in _SHADES:
            towards = shade * np.array(rgb) - background
            mix = np.clip(clear @ towards / (towards @ towards), 0.2, 1.1)
            fits.append(((clear - mix[:, None] * towards) ** 2).sum(-1))
        misfit[name] = float(np.sqrt(np.min(fits, axis=0).sum() / energy.sum()))
    best, second = sorted(misfit, key=misfit.get)[:2]
    lead = misfit[second] / max(misfit[best], 1e-6)
    sure = misfit[best] < _MAX_COLOUR_ERROR and lead > _MIN_COLOUR_LEAD
    return best if sure else UNSURE, np.array(OBJECT_RGB[best]), lead
