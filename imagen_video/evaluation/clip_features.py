"""What the dataset's reader measures in a clip, as features of a Fréchet distance.

Agreement asks whether each clip is right; this asks whether many clips together are spread as the
dataset's are: how clean the shapes, how large, where, how far and how fast they move. It sees
neither colours nor which shape it is.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

import imagen_video
from imagen_video.cascade.cascade import Progress
from imagen_video.data.captioned_shapes.reader import Reading, read
from imagen_video.data.captioned_shapes.source import VERSION
from imagen_video.data.sources import ClipGrid
from imagen_video.evaluation.kept import keep, kept
from imagen_video.evaluation.true_clips import true_clip
from imagen_video.metrics.frechet import frechet_distance
from imagen_video.video_io import read_clip, write_clip

FEATURES = ("unlikeness", "diameter", "x", "y", "right", "down", "bounce", "growth", "turn")
READER = f"{imagen_video.__version__}, captioned_shapes {VERSION}"  # that readings are kept of
_DEGREES = 360.0  # of a turn


def clip_features(reading: Reading, *, height: int, width: int) -> Float[np.ndarray, "9"]:
    """Returns a clip's FEATURES, float64.

    The units are our choice, because a tenth is then a visible difference in each of them:
    "unlikeness" is the angle, radians, whose cosine is the likeness with the best candidate;
    "turn" is in turns, clockwise; "growth" is the log of last over first size; the others are in
    shorter sides of the canvas. See `reader.Reading` and `fit.Course`.

    A clip without an object has likeness 0 (a quarter turn of unlikeness), diameter 0, the
    canvas's centre and no motion. A still image has no motion.

    Args:
      reading: of the clip.
      height: of the clip, pixels.
      width: likewise.
    """
    side = min(height, width)
    nothing = {"likeness": 0.0, "diameter": 0.0, "x": width / side / 2, "y": height / side / 2}
    seen = dict.fromkeys(FEATURES, 0.0) | (reading.measurements or nothing)
    seen["unlikeness"] = np.arccos(np.clip(seen["likeness"], -1.0, 1.0))
    seen["turn"] /= _DEGREES
    return np.array([seen[name] for name in FEATURES], np.float64)


def reference_features(
    prompts: Sequence[str],
    *,
    seed: int,
    grid: ClipGrid,
    num_per_prompt: int,
    path: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "n 9"]:
    """Returns the features of the dataset's own clips, read back from mp4 as sampled ones are.

    Args:
      prompts: captions of the dataset.
      seed: of the scenes.
      grid: of the clips: that of the stage they stand beside.
      num_per_prompt: clips of each prompt, one after the other.
      path: a JSON file to keep them in: a clip takes half a second and more to be read.
      progress: told after every clip, as a stage "reference".
    """
    of = {
        "reader": READER,
        "prompts": list(prompts),
        "seed": seed,
        "grid": dataclasses.asdict(grid),
        "num_per_prompt": num_per_prompt,
    }
    found = kept(path, of=of).get("features") if path is not None else None
    if found is not None:
        return np.array(found)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    features, count = [], len(prompts) * num_per_prompt
    with tempfile.TemporaryDirectory() as folder:
        video = pathlib.Path(folder) / "clip.mp4"
        for prompt in prompts:
            for index in range(num_per_prompt):
                clip = true_clip(prompt, seed=seed, index=index, grid=grid)
                write_clip(video, clip, fps=grid.fps)
                reading = read(read_clip(video).frames)
                features.append(clip_features(reading, height=grid.height, width=grid.width))
                if progress is not None:
                    progress(stage="reference", step=len(features), num_steps=count)
    features = np.array(features).reshape(count, len(FEATURES))
    if path is not None:
        keep(path, {"features": features.tolist()}, of=of)
    return features


def distance_to_dataset(
    features: Float[np.ndarray, "n 9"], reference: Float[np.ndarray, "m 9"]
) -> float | None:
    """Returns the Fréchet distance of clips' features to those of the dataset's own clips.

    Args:
      features: of the clips.
      reference: see `reference_features`; as many as there are of `features`, or more.

    Returns:
      The distance; None for so few clips that their covariance would say nothing: no more than
      one above the number of features.
    """
    if min(len(features), len(reference)) <= len(FEATURES) + 1:
        return None
    return frechet_distance(features, reference)
