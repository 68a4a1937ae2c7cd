"""The files of a folder that a request for videos is answered in, but for the unfinished ones."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_video.cascade.cascade import StageResult
from imagen_video.cascade.stage import Stage
from imagen_video.contact_sheet import contact_sheet
from imagen_video.files import atomic_path
from imagen_video.video_io import to_uint8, write_clip, write_image

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One video of a request: its prompt, its number among the prompt's samples, its file name."""

    prompt: str
    index: int
    name: str


def finished(path: epath.Path, digest: str) -> dict[str, Any] | None:
    """Returns the manifest of this very request, where it has been answered already.

    Raises:
      ValueError: the file is no manifest, or that of another request.
    """
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        same = manifest["digest"] == digest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest of this library; use another folder") from error
    if not same:
        raise ValueError(f"{path.parent}: holds the videos of another request; use another folder")
    return manifest


def check_sizes(stages: Sequence[Stage]) -> None:
    """Raises ValueError where no mp4 can hold a stage's clips."""
    for stage in stages:
        if stage.output.height % 2 or stage.output.width % 2:
            raise ValueError(
                f"{stage.name}.output: {stage.output}: an mp4 has an even height and an even width;"
                " in Python Cascade.sample returns clips of any size"
            )


def check_files(
    out: epath.Path, entries: list[dict[str, Any]], *, record: epath.Path, save_stages: bool
) -> None:
    """Raises ValueError where a file that finished samples left, or should have, is not there.

    Args:
      out: the folder of the files.
      entries: of the samples.
      record: the manifest, or what is kept of a batch, that has the entries.
      save_stages: whether each stage's clips should be there.
    """
    for entry in entries:
        if save_stages and "stages" not in entry:
            raise ValueError(f"{out}: was sampled without its stages' clips; use another folder")
        for name in (entry["video"], entry["sheet"], *entry.get("stages", {}).values()):
            if not (out / name).is_file():
                raise ValueError(f"{out / name}: is gone; delete {record} to sample it again")


def write_samples(
    out: epath.Path,
    batch: list[Sample],
    results: list[StageResult],
    *,
    fps: Mapping[str, float],
    seed: int,
    save_stages: bool,
) -> list[dict[str, Any]]:
    """Writes a batch's files and returns their manifest entries.

    Args:
      out: the folder.
      batch: a sample for each row of the clips.
      results: of every stage that ran.
      fps: of each stage.
      seed: of the request.
      save_stages: whether each stage's clip is written too.
    """
    entries = []
    for row, sample in enumerate(batch):
        clip = to_uint8(np.asarray(results[-1].clips[row]))
        files = {"video": f"{sample.name}.mp4", "sheet": f"{sample.name}.png"}
        write_clip(out / files["video"], clip, fps=fps[results[-1].stage])
        write_image(out / files["sheet"], contact_sheet(clip, label=sample.prompt))
        if save_stages:
            files["stages"] = {}
            for result in results:
                name = files["stages"][result.stage] = f"{sample.name}.{result.stage}.mp4"
                stage_clip = to_uint8(np.asarray(result.clips[row]))
                write_clip(out / name, stage_clip, fps=fps[result.stage])
        entries.append(
            {"prompt": sample.prompt, "seed": seed, "index": sample.index}
            | files
            # Of the whole batch: its samples share every evaluation.
            | {"batch": len(batch), "seconds": {r.stage: round(r.seconds, 3) for r in results}}
        )
    return entries


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")
