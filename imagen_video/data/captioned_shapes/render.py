"""Scenes to pixels, at any size, any frame rate, any window, antialiased."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from imagen_video.data.captioned_shapes.grammar import Phrase
from imagen_video.data.captioned_shapes.motion import Poses, extent, scene_poses
from imagen_video.data.captioned_shapes.paint import paint
from imagen_video.data.captioned_shapes.scene import Body, Scene

FINE_HEIGHT = 96  # canvases with fewer pixels on the shorter side are drawn finer, then averaged
_SAMPLES_AT_ONCE = 1 << 16  # keeps the working arrays in the cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of pixels of the whole canvas: rows top..top+height, columns left..left+width."""

    top: int
    left: int
    height: int
    width: int


def render(
    scene: Scene,
    *,
    height: int,
    width: int,
    frames: Sequence[int],
    fps: float,
    duration: float,
    window: Window | None = None,
) -> UInt8[np.ndarray, "f h w c"]:
    """Draws frames of a scene.

    A pixel's value depends on the scene, the canvas and the frame alone: a window equals the same
    part of the whole picture, and a choice of frames the same frames of the whole clip, exactly.

    Args:
      scene: what to draw.
      height: of the whole canvas, pixels.
      width: of the whole canvas, pixels.
      frames: which frames, e.g. range(8) or [0, 8, 16]; frame k is shown k / fps seconds after the
        clip begins. A still image is the same at any time: use [0].
      fps: frames per second.
      duration: length of the whole clip in seconds, over which the whole motion takes place.
      window: the part of the canvas to draw; None draws all of it.

    Returns:
      Pixels [frames, window height, window width, 3], uint8 sRGB.

    Raises:
      ValueError: a size is not positive, a frame outside the clip, a window outside the canvas.
    """
    window = window or Window(top=0, left=0, height=height, width=width)
    tau = np.asarray(frames, np.float64) / (fps * duration)
    _check(height, width, tau, window)
    side = min(height, width)
    canvas = {"width": width / side, "height": height / side}
    still = all(phrase.motion in (None, "standing still") for phrase in scene.caption.objects)
    drawn = tau[:1] if still else tau
    video = np.empty((len(drawn), window.height, window.width, 3), np.uint8)
    video[:] = np.rint(255 * np.asarray(scene.background)).astype(np.uint8)
    objects = zip(
        scene.caption.objects, scene.bodies, scene_poses(scene, drawn, **canvas), strict=True
    )
    for phrase, body, poses in objects:
        rgb = np.asarray(body.rgb, np.float32) * 255
        for patch in _patches(phrase, poses, side, window):
            coverage, light = _sample(patch, phrase, body, scene.caption.style, poses, side)
            for k, frame in enumerate(patch.frames):
                rows = slice(patch.top[k] - window.top, patch.top[k] - window.top + patch.height)
                cols = slice(patch.left[k] - window.left, patch.left[k] - window.left + patch.width)
                behind = video[frame, rows, cols].astype(np.float32)
                mixed = behind * (1 - coverage[k, :, :, None]) + rgb * light[k, :, :, None]
                video[frame, rows, cols] = (mixed + np.float32(0.5)).astype(np.uint8)
    return np.repeat(video, len(tau), axis=0) if still else video


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Patch:
    """The pixels of some frames that an object can touch, all of one size; canvas coordinates."""

    frames: Int[np.ndarray, " n"]
    top: Int[np.ndarray, " n"]
    left: Int[np.ndarray, " n"]
    height: int
    width: int


def _patches(phrase: Phrase, poses: Poses, side: int, window: Window) -> Iterator[_Patch]:
    """Yields the patches that meet the window, a few frames at a time."""
    half_width, half_height = extent(phrase.shape)
    cos, sin = np.abs(np.cos(poses.angle)), np.abs(np.sin(poses.angle))
    if phrase.shape == "cube":
        cos, sin = np.ones_like(cos), np.zeros_like(sin)
    half_x = side * poses.radius * (half_width * cos + half_height * sin) + 1
    half_y = side * poses.radius * (half_width * sin + half_height * cos) + 1
    left, top = np.floor(side * poses.x - half_x), np.floor(side * poses.y - half_y)
    right, bottom = np.ceil(side * poses.x + half_x), np.ceil(side * poses.y + half_y)
    seen = (right > window.left) & (left < window.left + window.width)
    seen &= (bottom > window.top) & (top < window.top + window.height)
    frames = np.flatnonzero(seen)
    if not len(frames):
        return
    area = (right - left)[frames].max() * (bottom - top)[frames].max() * _fineness(side) ** 2
    count = max(1, int(_SAMPLES_AT_ONCE / area))
    for start in range(0, len(frames), count):
        some = frames[start : start + count]
        height = min(int((bottom - top)[some].max()), window.height)
        width = min(int((right - left)[some].max()), window.width)
        # A patch over the rim of the window is moved inwards: it still covers what can be seen.
        yield _Patch(
            frames=some,
            top=np.clip(top[some].astype(int), window.top, window.top + window.height - height),
            left=np.clip(left[some].astype(int), window.left, window.left + window.width - width),
            height=height,
            width=width,
        )


def _sample(
    patch: _Patch, phrase: Phrase, body: Body, style: str | None, poses: Poses, side: int
) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, "n h w"]]:
    """Coverage and light (see `paint`) of a patch's pixels, each averaged over its samples."""
    fine = _fineness(side)
    some = Poses(
        x=poses.x[patch.frames],
        y=poses.y[patch.frames],
        radius=poses.radius[patch.frames],
        angle=poses.angle[patch.frames],
    )
    columns = fine * patch.left[:, None] + np.arange(fine * patch.width) + 0.5
    rows = fine * patch.top[:, None] + np.arange(fine * patch.height) + 0.5
    x = (columns / (fine * side) - some.x[:, None]) / some.radius[:, None]
    y = (rows / (fine * side) - some.y[:, None]) / some.radius[:, None]
    coverage, light = paint(
        x.astype(np.float32)[:, None, :],
        y.astype(np.float32)[:, :, None],
        phrase=phrase,
        texture=body.texture,
        style=style,
        poses=some,
        scale=fine * side * some.radius,
    )
    return _average(coverage, fine), _average(light, fine)


def _fineness(side: int) -> int:
    """Samples per pixel along one side."""
    return max(1, math.ceil(FINE_HEIGHT / side))


def _average(
    values: Float[np.ndarray, "n samples_h samples_w"], fine: int
) -> Float[np.ndarray, "n h w"]:
    """Means over fine x fine samples, always added in the same order whatever the window."""
    if fine == 1:
        return values
    rows = sum(values[:, k::fine] for k in range(1, fine)) + values[:, ::fine]
    both = sum(rows[:, :, k::fine] for k in range(1, fine)) + rows[:, :, ::fine]
    return both * np.float32(1 / fine**2)


def _check(height: int, width: int, tau: Float[np.ndarray, " f"], window: Window) -> None:
    for name, size in (("height", height), ("width", width), ("frames", len(tau))):
        if size < 1:
            raise ValueError(f"{name}: {size} is not positive")
    if tau.min() < 0 or tau.max() >= 1:
        raise ValueError(f"frames: clip times {tau.min()} to {tau.max()} are not within [0, 1)")
    inside = 0 <= window.top and window.top + window.height <= height and window.height > 0
    inside &= 0 <= window.left and window.left + window.width <= width and window.width > 0
    if not inside:
        raise ValueError(f"window: {window} is not inside a canvas of {height}x{width}")
