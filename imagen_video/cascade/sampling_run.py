"""A request for videos, and the run that answers it in a folder: mp4, contact sheet, manifest.

The run can be killed at any moment. Started again with the same request it keeps the videos and
stages that are finished and goes on in the middle of the stage that was not. Of several processes
that sample together the first one owns the folder; the others need not see it.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

import imagen_video
from imagen_video import records
from imagen_video.cascade.answer_files import (
    MANIFEST,
    Sample,
    check_files,
    check_sizes,
    finished,
    write_json,
    write_samples,
)
from imagen_video.cascade.cascade import Cascade, Progress
from imagen_video.cascade.embedded_prompts import embed_and_free
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.store import DirectoryStore
from imagen_video.files import any_path, held
from imagen_video.sharding.processes import from_first
from imagen_video.text.text_model import TextModel

UNFINISHED = ".unfinished-"


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
        if isinstance(self.prompts, str):
            raise ValueError(f"prompts: {self.prompts!r} is one string, not a tuple of them")
        if not self.prompts:
            raise ValueError("prompts: there are none")
        if self.num_samples < 1:
            raise ValueError(f"num_samples: {self.num_samples} is below 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: {self.seed} is not in [0, 2^31)")


def run_request(
    cascade: Cascade,
    request: SampleRequest,
    out: epath.PathLike,
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
      out: folder for NAME.mp4, NAME.png and manifest.json, on a disk or in a bucket (gs://).
      batch_size: videos sampled at a time.
      save_every: sampler steps between savings of the state.
      save_stages: whether each stage's clip is written too, as NAME.STAGE.mp4.
      offload_text: embeds all prompts first and gives up the text encoder's memory, for good,
        before the first stage; changes no bit of the videos.
      progress: told after every step of every stage.

    Raises:
      ValueError: `out` holds the videos of another request, finished or not, or lacks some of this
        one that its manifest names; or another run is at work in it; or an argument is out of
        range; or no mp4 can hold the clips.
      OSError: `out` cannot be written.
    """
    if save_every < 1:
        raise ValueError(f"save_every: {save_every} is below 1")
    digest = _digest(cascade, request, batch_size)
    if save_stages:
        check_sizes([model.stage for model in cascade.through(request.through)])
    out = any_path(out)
    kept = _kept(out, digest)

    def answered() -> dict[str, Any] | None:
        manifest = finished(out / MANIFEST, digest)
        if manifest is not None:
            check_files(out, manifest["samples"], record=out / MANIFEST, save_stages=save_stages)
            DirectoryStore(root=kept).clear()  # where a kill came after the manifest
        return manifest

    if (manifest := from_first(answered)) is not None:
        return manifest
    with contextlib.ExitStack() as holding:

        def begin() -> dict[str, Any] | None:
            holding.enter_context(held(out))
            if (manifest := answered()) is None:  # by a run just now
                _check_unfinished(out, kept)
                kept.mkdir(parents=True, exist_ok=True)
            return manifest

        if (manifest := from_first(begin)) is not None:
            return manifest
        batches = list(_batches(request, batch_size))
        if offload_text and isinstance(cascade.text, TextModel):
            prompts = [[sample.prompt for sample in batch] for batch in batches]
            cascade = dataclasses.replace(cascade, text=embed_and_free(cascade.text, prompts))
        entries = []
        for number, batch in enumerate(batches):
            entries += _sampled(
                cascade,
                request,
                batch,
                out=out,
                kept=kept / f"batch_{number:05d}",
                save_every=save_every,
                save_stages=save_stages,
                progress=progress,
            )

        def finish() -> dict[str, Any]:
            manifest = _manifest(cascade, request, digest, entries)
            write_json(out / MANIFEST, manifest)
            DirectoryStore(root=kept).clear()
            return manifest

        return from_first(finish)


def _sampled(
    cascade: Cascade,
    request: SampleRequest,
    batch: list[Sample],
    *,
    out: epath.Path,
    kept: epath.Path,
    save_every: int,
    save_stages: bool,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Samples a batch if that has not been done, and returns the manifest entries of its files.

    What is not finished lies in `kept`, the entries of a finished batch beside it, in KEPT.json.
    """
    done, store = kept.with_suffix(".json"), DirectoryStore(root=kept)

    def sampled_before() -> list[dict[str, Any]] | None:
        if not done.exists():
            return None
        entries = json.loads(done.read_text())
        check_files(out, entries, record=done, save_stages=save_stages)
        return entries

    if (entries := from_first(sampled_before)) is not None:
        return entries
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

    def write() -> list[dict[str, Any]]:
        written = write_samples(
            out,
            batch,
            results,
            fps={stage.name: stage.fps for stage in cascade.stages},
            seed=request.seed,
            save_stages=save_stages,
        )
        write_json(done, written)
        return written

    entries = from_first(write)
    store.clear()
    return entries


def check_request(
    cascade: Cascade, request: SampleRequest, out: epath.PathLike, *, batch_size: int = 4
) -> None:
    """Raises ValueError where `out` would not do for `run_request`; writes nothing.

    That another run is at work there is found by `run_request` alone.
    """
    out, digest = any_path(out), _digest(cascade, request, batch_size)
    manifest = finished(out / MANIFEST, digest)
    if manifest is not None:
        check_files(out, manifest["samples"], record=out / MANIFEST, save_stages=False)
    else:
        _check_unfinished(out, _kept(out, digest))


def _kept(out: epath.Path, digest: str) -> epath.Path:
    """Where a request keeps what it has begun."""
    return out / f"{UNFINISHED}{digest[:12]}"


def _check_unfinished(out: epath.Path, kept: epath.Path) -> None:
    """Raises ValueError where another request was begun: its videos may have the same names."""
    for other in out.glob(f"{UNFINISHED}*"):
        if other != kept and any(other.iterdir()):
            raise ValueError(
                f"{out}: holds what another request, batch size or version began; finish that,"
                f" delete {other} with its videos, or use another folder"
            )


def _digest(cascade: Cascade, request: SampleRequest, batch_size: int) -> str:
    """Names all that the videos depend on.

    Raises:
      ValueError: an option fits no stage, or no mp4 can hold the last one's clips.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is below 1")
    models = cascade.through(request.through)
    for model in models:
        request.options.sampling(model.stage)
    check_sizes([models[-1].stage])
    identity = {
        "request": records.to_dict(request),
        "stages": {model.stage.name: model.digest for model in models},
        "text": cascade.text.digest,
        "batch_size": batch_size,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


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
