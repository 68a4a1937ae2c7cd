"""The dataset as a random-access source that draws sample i when it is asked for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.mixture import Mixture, draw_caption
from imagen_video.data.captioned_shapes.render import Window, render
from imagen_video.data.captioned_shapes.scene import Scene, draw_scene
from imagen_video.data.captioned_shapes.splits import SPLITS

VERSION = 1  # of the data: raised when any sample would change


def make_scene(index: int, *, seed: int, split: str, is_image: bool, mixture: Mixture) -> Scene:
    """Draws scene `index`: the same for ever for the same arguments."""
    draws = Draws("captioned_shapes", VERSION, seed, split, "image" if is_image else "video", index)
    return draw_scene(draw_caption(draws, is_image=is_image, split=split, mixture=mixture), draws)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedShapesSource:
    """Captioned clips, or captioned still images, of one split.

    Sample i is the same scene at any size and frame rate, so sources of two sizes with one seed
    hold the same clips. Any number of samples can be had; `size` only says where an epoch ends.

    Attributes:
      split: "train" or "test".
      height, width: pixels.
      frames: frames of a sample; 1 for still images.
      fps: frames per second. The first eight frames at 3 fps are every eighth of 64 at 24 fps.
      duration: seconds the whole clip lasts; the whole motion takes place in this time.
      start_frame: first frame of a sample, counted at `fps`.
      is_image: True for a source of still images.
      seed: of the scenes.
      size: number of samples.
      mixture: how often each kind of caption occurs.
    """

    split: str
    height: int
    width: int
    frames: int = 1
    fps: float = 24.0
    duration: float = 128 / 24
    start_frame: int = 0
    is_image: bool = False
    seed: int = 0
    size: int = 1_000_000
    mixture: Mixture = Mixture()

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split: {self.split!r} is not one of {', '.join(SPLITS)}")
        for name in ("height", "width", "frames", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.is_image and self.frames != 1:
            raise ValueError(f"frames: {self.frames}, but a still image has 1")
        end = (self.start_frame + self.frames - 1) / self.fps
        if self.start_frame < 0 or not end < self.duration:
            raise ValueError(
                f"start_frame, frames: the last is {end:g} s into a clip of {self.duration:g} s"
            )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns sample `index`: video uint8 [f h w 3], caption str, is_image bool."""
        scene = self.scene(index)
        return {
            "video": self.render(scene),
            "caption": scene.caption.text,
            "is_image": self.is_image,
        }

    def scene(self, index: int) -> Scene:
        """Returns what sample `index` shows, undrawn.

        Raises:
          IndexError: `index` is not in [0, size).
        """
        if not 0 <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        return make_scene(
            int(index),
            seed=self.seed,
            split=self.split,
            is_image=self.is_image,
            mixture=self.mixture,
        )

    def render(
        self, scene: Scene, *, frames: Sequence[int] | None = None, window: Window | None = None
    ) -> UInt8[np.ndarray, "f h w c"]:
        """Draws a scene as this source would, or only some of its frames, or only a window of it.

        Args:
          scene: any scene.
          frames: frame numbers at `fps`, counted from the start of the clip; None for the
            source's own.
          window: the part of the canvas; None for all of it.
        """
        if frames is None:
            frames = range(self.start_frame, self.start_frame + self.frames)
        return render(
            scene,
            height=self.height,
            width=self.width,
            frames=frames,
            fps=self.fps,
            duration=self.duration,
            window=window,
        )
