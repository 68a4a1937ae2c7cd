"""A request for videos, and the run that answers it in a folder: mp4, contact sheet, manifest.

The run can be killed at any moment. Started again with the same request it keeps the videos and
stages that are finished and goes on in the middle of the stage that was not.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import imagen_video
from imagen_video import records
from imagen_video.cascade.cascade import Cascade, Progress, StageResult
from imagen_video.cascade.embedded_prompts import embed_and_free
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.store import DirectoryStore
from imagen_video.contact_sheet import contact_sheet
from imagen_video.files import atomic_path, held
from imagen_video.text.text_model import TextModel
from imagen_video.video_io import to_uint8, write_clip, write_image

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to sample.

    Attributes:
      prompts: captions.
      seed: of all samples; sample k of every prompt has the noise of (seed, k).
      num_samples: samples of each prompt.
      through: last stage to run; None for all.
      options: departures from the stages' sampling defaults.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    num_samples: int = 1
    through: str | None = None
    options: SamplingOptions = SamplingOptions()

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("prompts: there are none")
        if self.num_samples < 1:
            raise ValueError(f"num_samples: {self.num_samples} is below 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: {self.seed} is not in [0, 2^31)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One video of a request: its prompt, its number among the prompt's samples, its file name."""

    prompt: str
    index: int
    name: str


def run_request(
    cascade: Cascade,
    request: SampleRequest,
    out: pathlib.Path,
    *,
    batch_size: int = 4,
    save_every: int = 16,
    save_stages: bool = False,
    offload_text: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Samples every prompt and writes the folder; returns the manifest.

    Args:
      cascade: stages and text model.
      request: what to sample.
      out: folder for NAME.mp4, NAME.png and manifest.json.
      batch_size: videos sampled at a time.
      save_every: sampler steps between savings of the state.
      save_stages: whether each stage's clip is written too, as NAME.STAGE.mp4.
      offload_text: embeds all prompts first and gives up the text encoder's memory, for good,
        before the first stage; changes no bit of the videos.
      progress: told after every step of every stage.

    Raises:
      ValueError: `out` holds the videos of another request, or lacks some of this one that its
        manifest names; or another run is at work in it; or an argument is out of range.
      OSError: `out` cannot be written.
    """
    if save_every < 1:
        raise ValueError(f"save_every: {save_every} is below 1")
    digest = _digest(cascade, request, batch_size)
    kept = out / f".unfinished-{digest[:12]}"
    manifest = _finished(out / MANIFEST, digest)
    if manifest is not None:
        _check_files(out, manifest["samples"], save_stages=save_stages)
        DirectoryStore(root=kept).clear()  # where a kill came after the manifest
        return manifest
    with held(out):
        if (manifest := _finished(out / MANIFEST, digest)) is not None:  # by a run just now
            return manifest
        kept.mkdir(parents=True, exist_ok=True)
        batches = list(_batches(request, batch_size))
        if offload_text and isinstance(cascade.text, TextModel):
            prompts = [[sample.prompt for sample in batch] for batch in batches]
            cascade = dataclasses.replace(cascade, text=embed_and_free(cascade.text, prompts))
        entries = []
        for number, batch in enumerate(batches):
            done = kept / f"batch_{number:05d}.json"
            if not done.exists():
                store = DirectoryStore(root=kept / f"batch_{number:05d}")
                results = cascade.run(
                    [sample.prompt for sample in batch],
                    seeds=[request.seed] * len(batch),
                    indices=[sample.index for sample in batch],
                    through=request.through,
                    options=request.options,
                    progress=progress,
                    store=store,
                    save_every=save_every,
                )
                written = _write(out, batch, results, cascade, request, save_stages=save_stages)
                _write_json(done, written)
                store.clear()
            entries += json.loads(done.read_text())
        manifest = _manifest(cascade, request, digest, entries)
        _write_json(out / MANIFEST, manifest)
        DirectoryStore(root=kept).clear()
    return manifest


def check_request(
    cascade: Cascade, request: SampleRequest, out: pathlib.Path, *, batch_size: int = 4
) -> None:
    """Raises the ValueError that `run_request` would raise before it samples; writes nothing."""
    _finished(out / MANIFEST, _digest(cascade, request, batch_size))


def _digest(cascade: Cascade, request: SampleRequest, batch_size: int) -> str:
    """Names all that the videos depend on; raises ValueError where an option fits no stage."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is below 1")
    models = cascade.through(request.through)
    for model in models:
        request.options.sampling(model.stage)
    identity = {
        "request": records.to_dict(request),
        "stages": {model.stage.name: model.digest for model in models},
        "text": cascade.text.digest,
        "batch_size": batch_size,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _finished(path: pathlib.Path, digest: str) -> dict[str, Any] | None:
    """The manifest of this very request, where it has been answered already."""
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


def _check_files(out: pathlib.Path, entries: list[dict[str, Any]], *, save_stages: bool) -> None:
    """Raises ValueError where a file that a finished request left, or should have, is not there."""
    for entry in entries:
        if save_stages and "stages" not in entry:
            raise ValueError(f"{out}: was sampled without its stages' clips; use another folder")
        for name in (entry["video"], entry["sheet"], *entry.get("stages", {}).values()):
            if not (out / name).is_file():
                raise ValueError(
                    f"{out / name}: is gone; delete {out / MANIFEST} to sample the folder again"
                )


def _batches(request: SampleRequest, batch_size: int) -> Iterator[list[Sample]]:
    samples = [
        Sample(prompt=prompt, index=index, name=f"{number:04d}-{_slug(prompt)}-{index}")
        for number, prompt in enumerate(request.prompts)
        for index in range(request.num_samples)
    ]
    for start in range(0, len(samples), batch_size):
        yield samples[start : start + batch_size]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "video"


def _write(
    out: pathlib.Path,
    batch: list[Sample],
    results: list[StageResult],
    cascade: Cascade,
    request: SampleRequest,
    *,
    save_stages: bool,
) -> list[dict[str, Any]]:
    """Writes a batch's files and returns their manifest entries."""
    fps = {stage.name: stage.fps for stage in cascade.stages}
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
            {"prompt": sample.prompt, "seed": request.seed, "index": sample.index}
            | files
            # Of the whole batch: its samples share every evaluation.
            | {"batch": len(batch), "seconds": {r.stage: round(r.seconds, 3) for r in results}}
        )
    return entries


def _manifest(
    cascade: Cascade, request: SampleRequest, digest: str, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    stages = []
    for model in cascade.through(request.through):
        stage, output = model.stage, model.stage.output
        stages.append(
            {
                "name": stage.name,
                "shape": [output.frames, output.height, output.width, 3],
                "fps": stage.fps,
                "sampling": records.to_dict(request.options.sampling(stage)),
                "weights": model.digest,
            }
        )
    return {
        "digest": digest,
        "imagen_video": imagen_video.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "request": records.to_dict(request),
        "text_model": cascade.text.digest,
        "stages": stages,
        "samples": entries,
    }


def _write_json(path: pathlib.Path, value: Any) -> None:
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")
