"""Sources of clips as records of a config: what a training run reads, on the grid it reads it."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from imagen_video import resample
from imagen_video.data.captioned_shapes import render
from imagen_video.data.captioned_shapes.mixture import Mixture
from imagen_video.data.captioned_shapes.scene import Scene
from imagen_video.data.captioned_shapes.source import CaptionedShapesSource, make_scene
from imagen_video.data.transforms import RandomWindow, Record, Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipGrid:
    """Frames, size and rate of whole clips as a stage makes them.

    Attributes:
      frames: of a clip.
      height: pixels.
      width: pixels.
      fps: frames a second.
    """

    frames: int
    height: int
    width: int
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedShapes:
    """The built-in dataset, drawn on demand (see data/captioned_shapes).

    Attributes:
      seed: of its scenes.
      seconds: length of a whole clip, in which the whole motion takes place.
      size: scenes in an epoch.
      supersampling: scenes are drawn this many times larger than asked for and resized down as
        footage would be, so that a stage's clips equal the low-resolution inputs of the next.
      mixture: how often each kind of caption occurs.
    """

    seed: int = 0
    seconds: float = 128 / 24
    size: int = 1_000_000_000
    supersampling: int = 2
    mixture: Mixture = Mixture()

    def __post_init__(self):
        if self.supersampling < 1:
            raise ValueError(f"supersampling: {self.supersampling} is below 1")

    def open(
        self, *, split: str, grid: ClipGrid, window: RandomWindow, is_image: bool
    ) -> "ShapeWindows":
        """Returns clips, or still images, of which only a window is drawn.

        Args:
          split: "train" or "test".
          grid: of whole clips.
          window: what is cut out of one.
          is_image: still images instead of clips.
        """
        shapes = CaptionedShapesSource(
            split=split,
            height=grid.height * self.supersampling,
            width=grid.width * self.supersampling,
            frames=1 if is_image else grid.frames,
            fps=grid.fps,
            duration=self.seconds,
            is_image=is_image,
            seed=self.seed,
            size=self.size,
            mixture=self.mixture,
        )
        return ShapeWindows(shapes=shapes, window=window, supersampling=self.supersampling)

    def caption(self, index: int, *, split: str, is_image: bool) -> str:
        """Returns the caption of scene `index`, of a clip or of a still image."""
        scene = make_scene(
            index, seed=self.seed, split=split, is_image=is_image, mixture=self.mixture
        )
        return scene.caption.text


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeWindows:
    """A `ClipSource` that draws only the window it was asked for.

    Attributes:
      shapes: the scenes, on a canvas `supersampling` times the grid.
      window: drawn anew for each read.
      supersampling: as in `CaptionedShapes`.
    """

    shapes: CaptionedShapesSource
    window: RandomWindow
    supersampling: int

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int, *, rng: np.random.Generator) -> Record:
        """Returns the record of scene `index`, cut to a window that `rng` draws."""
        shapes, k = self.shapes, self.supersampling
        window = self.window.draw(
            rng,
            frames=shapes.frames,
            height=shapes.height // k,
            width=shapes.width // k,
            is_image=shapes.is_image,
        )
        scene = shapes.scene(index)
        video = self.draw(scene, window)
        return {"video": video, "caption": scene.caption.text, "is_image": shapes.is_image}

    def draw(self, scene: Scene, window: Window) -> UInt8[np.ndarray, "frames height width 3"]:
        """Draws a window of any scene, as it would be read."""
        k = self.supersampling
        last = window.start + (window.frames - 1) * window.frame_step
        video = self.shapes.render(
            scene,
            frames=range(window.start, last + 1, window.frame_step),
            window=render.Window(
                top=k * window.top,
                left=k * window.left,
                height=k * window.height,
                width=k * window.width,
            ),
        )
        x = resample.resize(
            video[None].astype(np.float32), height=window.height, width=window.width
        )
        return np.rint(x[0]).astype(np.uint8)
