"""How often videos show what held-out prompts asked for, by the dataset's own reader."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from imagen_video.cascade.cascade import Cascade, Progress
from imagen_video.cascade.sampling_run import run_request
from imagen_video.contact_sheet import contact_sheet, joined
from imagen_video.data.captioned_shapes.reader import ATTRIBUTES, read, score
from imagen_video.evaluation.clip_features import (
    FEATURES,
    READER,
    clip_features,
    distance_to_dataset,
    reference_features,
)
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.evaluation.kept import keep, kept
from imagen_video.evaluation.true_clips import output_grid
from imagen_video.files import held
from imagen_video.video_io import read_clip, write_image

RESULTS, REFERENCE, PICTURE = "agreement.json", "reference.json", "sheets.png"
SHEETS = 20


def run_agreement(
    cascade: Cascade,
    job: EvaluationJob,
    out: pathlib.Path,
    *,
    batch_size: int = 4,
    reference: Float[np.ndarray, "n 9"] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Samples into `out`, reads every mp4 back, writes agreement.json and sheets.png.

    Args:
      cascade: to be judged.
      job: on what.
      out: folder; a rerun goes on where an earlier one stopped, and reads no video again.
      batch_size: videos sampled at a time.
      reference: features of the dataset's own clips of the same prompts, where many jobs share
        them; made here by default.
      progress: told after every sampling step, and after every clip of the reference.

    Returns:
      JSON values: "of" (names videos and reader), "videos", "agreement" (share of videos by
      attribute, and "all" of them at once), "standard_error" likewise, "feature_distance" (see
      `clip_features`) to as many clips of the same prompts by the dataset itself, None for few, and
      "readings", one a video.

    Raises:
      ValueError: as `run_request`; another run is at work in `out`.
    """
    request = job.request()
    manifest = run_request(cascade, request, out, batch_size=batch_size, progress=progress)
    with held(out):
        of = {"digest": manifest["digest"], "reader": READER}
        readings = kept(out / RESULTS, of=of).get("readings")
        if readings is None:
            readings = read_videos(manifest["samples"], out)
            keep(out / RESULTS, {"readings": readings}, of=of)  # A kill below loses none.
            (out / PICTURE).unlink(missing_ok=True)
        if not (out / PICTURE).exists():
            write_image(out / PICTURE, first_sheets(manifest, out))
        result = {"videos": len(readings), **summarise([r["right"] for r in readings])}
        if reference is None:
            reference = reference_features(
                request.prompts,
                seed=job.prompt_seed,
                grid=output_grid(cascade.through(job.through)[-1].stage),
                num_per_prompt=job.num_samples,
                path=out / REFERENCE,
                progress=progress,
            )
        features = np.array([list(r["features"].values()) for r in readings])
        result["feature_distance"] = distance_to_dataset(features, reference)
        result["readings"] = readings
        keep(out / RESULTS, result, of=of)
        return {"of": of, **result}


def read_videos(samples: Sequence[dict[str, Any]], out: pathlib.Path) -> list[dict[str, Any]]:
    """Reads each sample's mp4 in `out`; returns what was seen, what is right, and features."""
    readings = []
    for sample in samples:
        frames = read_clip(out / sample["video"]).frames
        _, height, width, _ = frames.shape
        reading = read(frames)
        features = clip_features(reading, height=height, width=width)
        right = score(reading, sample["prompt"])
        readings.append(
            {
                "prompt": sample["prompt"],
                "video": sample["video"],
                "seen": {name: getattr(reading, name) for name in ATTRIBUTES},
                "right": {name: bool(right[name]) for name in ATTRIBUTES},
                "features": dict(zip(FEATURES, features.tolist())),
            }
        )
    return readings


def summarise(right: Sequence[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Returns the share of right answers by attribute and its standard error, sqrt(p(1-p)/n)."""
    table = {name: np.array([row[name] for row in right]) for name in ATTRIBUTES}
    table["all"] = np.all(list(table.values()), axis=0)
    shares = {name: float(values.mean()) for name, values in table.items()}
    errors = {name: float(np.sqrt(p * (1 - p) / len(right))) for name, p in shares.items()}
    return {"agreement": shares, "standard_error": errors}


def table(result: Mapping[str, Any]) -> str:
    """Returns what `run_agreement` found as lines of text."""
    lines = [f"{result['videos']} videos"]
    for name, share in result["agreement"].items():
        lines.append(f"{name:<10} {share:6.1%} +- {result['standard_error'][name]:.1%}")
    distance = result["feature_distance"]
    if distance is None:
        lines.append("feature distance  not given: too few videos")
    else:
        lines.append(f"feature distance  {distance:.3f} to the dataset's own clips")
    return "\n".join(lines)


def first_sheets(manifest: dict[str, Any], out: pathlib.Path) -> np.ndarray:
    """Returns one picture of the first videos, five frames each under the prompt."""
    sheets = [
        contact_sheet(
            read_clip(out / sample["video"]).frames,
            label=sample["prompt"],
            max_frames=5,
            columns=5,
            frame_width=160,
        )
        for sample in manifest["samples"][:SHEETS]
    ]
    return joined(sheets, columns=2)
