"""How well each super-resolution stage alone restores the dataset's clips.

A stage is given what it was trained on: the true clip, brought down to its input grid, instead of
what the stages before it made. Its output then has one right answer, apart from what the input
does not tell, and stands beside plain resizing of the same input.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from imagen_video import records, resample
from imagen_video.cascade.cascade import Cascade, Progress
from imagen_video.cascade.sampling_run import SampleRequest
from imagen_video.cascade.stage import Stage
from imagen_video.cascade.stage_sampler import sample_stage
from imagen_video.cascade.weights import StageModel
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.evaluation.standard_error import mean_and_error
from imagen_video.evaluation.true_clips import output_grid, true_clip
from imagen_video.files import atomic_path, held
from imagen_video.metrics.psnr import psnr
from imagen_video.sampling import keys as sampling_keys
from imagen_video.video_io import from_uint8

RESULTS = "restoration.json"
Clips = Float[np.ndarray, "b f h w 3"]
LowRes = Float[np.ndarray, "b f_low h_low w_low 3"]


def run_restoration(
    cascade: Cascade,
    job: EvaluationJob,
    out: pathlib.Path,
    *,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Restores clips of held-out prompts by each stage and writes restoration.json in `out`.

    Args:
      cascade: whose super-resolution stages are judged.
      job: on what; `num_samples` scenes of each prompt.
      out: folder; a rerun goes on after the last batch of an earlier one, and stages that it did
        not reach are added.
      batch_size: clips sampled at a time.
      progress: told after every sampling step, counted over all batches of a stage.

    Returns:
      JSON values by stage: "grid" as text, "psnr" in dB of the "stage", of the input "resized", and
      the "gain" of the one over the other, each a mean over clips, "standard_error" likewise (None
      of a single clip), and "clips", the values of each.

    Raises:
      ValueError: no stage up to `job.through` has an input, an option does not fit a stage, or
        `out` holds results of other weights or another request, or another run is at work there.
      OSError: `out` cannot be written.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is below 1")
    models = [model for model in cascade.through(job.through) if model.stage.input is not None]
    if not models:
        raise ValueError(f"through: {cascade.stages[0].name} has no input to restore clips from")
    for model in models:
        job.options.sampling(model.stage)  # raises before the folder is made
    with held(out):
        return _restored(cascade, models, job, out, batch_size=batch_size, progress=progress)


def _restored(
    cascade: Cascade,
    models: Sequence[StageModel],
    job: EvaluationJob,
    out: pathlib.Path,
    *,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Samples what no earlier run has."""
    request = job.request()
    path = out / RESULTS
    results = _kept(path)
    digests = {model.stage.name: _digest(model, cascade, job, request) for model in models}
    for model in models:  # Every mistake shows before anything is sampled.
        name = model.stage.name
        if name in results and results[name]["digest"] != digests[name]:
            raise ValueError(
                f"{path}: {name} is of other weights or another request; use another folder"
            )
    samples = [(prompt, index) for prompt in request.prompts for index in range(job.num_samples)]
    for model in models:
        stage = model.stage
        clips = results[stage.name]["clips"] if stage.name in results else []
        for start in range(len(clips), len(samples), batch_size):
            batch = samples[start : start + batch_size]
            truth = true_clips(stage, batch, seed=job.prompt_seed)
            low_res = low_res_input(stage, truth)
            told = _scaled(progress, start=start, batch=len(batch), total=len(samples))
            restored = restore(model, low_res, batch, cascade=cascade, job=job, progress=told)
            values = zip(batch, psnr(restored, truth), psnr(resized(stage, low_res), truth))
            clips += [
                {"prompt": prompt, "index": index, "stage": float(ours), "resized": float(plain)}
                for (prompt, index), ours, plain in values
            ]
            found = {"grid": str(stage.output), **summarise(clips), "clips": clips}
            results[stage.name] = {"digest": digests[stage.name], **found}
            with atomic_path(path) as part:
                part.write_text(json.dumps(results, indent=2) + "\n")
    return {model.stage.name: results[model.stage.name] for model in models}


def true_clips(stage: Stage, samples: Sequence[tuple[str, int]], *, seed: int) -> Clips:
    """Returns the dataset's clips of (prompt, index) on a stage's output grid, in [-1, 1]."""
    grid = output_grid(stage)
    return np.stack(
        [from_uint8(true_clip(prompt, seed=seed, index=i, grid=grid)) for prompt, i in samples]
    )


def low_res_input(stage: Stage, truth: Clips) -> LowRes:
    """Returns true clips on a stage's input grid, as its training brings them there."""
    small = stage.input
    return resample.downsample(truth, frames=small.frames, height=small.height, width=small.width)


def resized(stage: Stage, low_res: LowRes) -> Clips:
    """Returns clips on a stage's output grid: bilinear in space, every frame repeated."""
    large = stage.output
    return resample.upsample(
        low_res, frames=large.frames, height=large.height, width=large.width, fill="repeat"
    )


def restore(
    model: StageModel,
    low_res: LowRes,
    samples: Sequence[tuple[str, int]],
    *,
    cascade: Cascade,
    job: EvaluationJob,
    progress: Progress,
) -> Clips:
    """Returns a stage's samples from low-resolution clips of (prompt, index)."""
    stage = model.stage
    sampling = job.options.sampling(stage)
    progress(stage=stage.name, step=0, num_steps=sampling.num_steps)
    text_emb, text_mask = cascade.text.embed([prompt for prompt, _ in samples])
    states = sample_stage(
        model,
        sampling,
        text_emb=text_emb,
        text_mask=jnp.asarray(text_mask),
        low_res=jnp.asarray(low_res),
        keys=sampling_keys.sample_keys(
            seeds=[job.seed] * len(samples), indices=[index for _, index in samples]
        ),
    )
    for state in states:
        progress(stage=stage.name, step=int(state.step), num_steps=sampling.num_steps)
    return np.asarray(state.z)


def summarise(clips: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Returns means over clips, dB, and their standard errors."""
    values = {name: np.array([clip[name] for clip in clips]) for name in ("stage", "resized")}
    values["gain"] = values["stage"] - values["resized"]
    found = {name: mean_and_error(v) for name, v in values.items()}
    means = {name: mean for name, (mean, _) in found.items()}
    errors = {name: error for name, (_, error) in found.items()}
    return {"psnr": means, "standard_error": errors}


def table(results: Mapping[str, Any]) -> str:
    """Returns what `run_restoration` found as lines of text, one a stage."""
    lines = [f"{'stage':<6}{'grid':<14}{'PSNR, dB':>16}{'of resizing':>16}{'gain':>16}"]
    for name, result in results.items():
        cells = []
        for column in ("stage", "resized", "gain"):
            error = result["standard_error"][column]
            text = f"{result['psnr'][column]:.2f}" + ("" if error is None else f" +- {error:.2f}")
            cells.append(f"{text:>16}")
        lines.append(f"{name:<6}{result['grid']:<14}{''.join(cells)}")
    return "\n".join(lines)


def _scaled(progress: Progress | None, *, start: int, batch: int, total: int) -> Progress:
    """Tells `progress` of a batch's steps as steps of all clips."""

    def tell(*, stage: str, step: int, num_steps: int) -> None:
        if progress is not None:
            progress(
                stage=stage, step=start * num_steps + step * batch, num_steps=total * num_steps
            )

    return tell


def _digest(model: StageModel, cascade: Cascade, job: EvaluationJob, request: SampleRequest) -> str:
    """Names all that a stage's results depend on, batch size apart."""
    identity = {
        "request": records.to_dict(request) | {"through": None},
        "prompt_seed": job.prompt_seed,
        "weights": model.digest,
        "text": cascade.text.digest,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _kept(path: pathlib.Path) -> dict[str, Any]:
    """What an earlier run wrote, if there was one."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        for result in results.values():
            result["digest"], result["clips"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not written by this command; use another folder") from error
    return results
