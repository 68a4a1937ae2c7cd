"""The dataset's own clips of a prompt, on a stage's grid: what a stage's own should be like."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from imagen_video.cascade.stage import Stage
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.grammar import parse
from imagen_video.data.captioned_shapes.scene import draw_scene
from imagen_video.data.captioned_shapes.source import VERSION
from imagen_video.data.sources import CaptionedShapes, ClipGrid
from imagen_video.data.transforms import RandomWindow, Window


def output_grid(stage: Stage) -> ClipGrid:
    """Returns size and frame rate of the clips that a stage makes."""
    return ClipGrid(**dataclasses.asdict(stage.output), fps=stage.fps)


def true_clip(
    prompt: str, *, seed: int, index: int, grid: ClipGrid
) -> UInt8[np.ndarray, "f h w 3"]:
    """Draws a clip of `prompt` as those are drawn that stages are trained on.

    The caption leaves open where the object is, its exact size, shade, tilt and speed.

    Args:
      prompt: a caption of a video of the built-in dataset.
      seed: with `prompt` and `index` decides the scene, the same on every grid, drawn independently
        of all those that are trained on.
      index: which of the prompt's clips.
      grid: of the whole clip, in which the whole motion takes place.

    Raises:
      ValueError: `prompt` is no caption of the dataset.
    """
    scene = draw_scene(parse(prompt), Draws("true_clip", VERSION, seed, prompt, index))
    clips = CaptionedShapes(seconds=grid.frames / grid.fps).open(
        split="test", grid=grid, window=RandomWindow(frames=grid.frames), is_image=False
    )
    whole = Window(
        start=0,
        frames=grid.frames,
        frame_step=1,
        top=0,
        left=0,
        height=grid.height,
        width=grid.width,
    )
    return clips.draw(scene, whole)
