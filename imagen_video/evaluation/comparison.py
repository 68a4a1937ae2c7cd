"""Table 1 of the paper for a cascade and its students: time, FLOPs and quality of each mixture.

The paper's columns of quality are CLIP scores; here they are what the dataset's reader says: how
often the videos show what was asked, and how far their measurements are from the dataset's own.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax

from imagen_video.cascade.cascade import Cascade, Progress
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.sampling_run import check_request
from imagen_video.cascade.stage import Stage
from imagen_video.cascade.stage_choice import chosen_stages
from imagen_video.evaluation.agreement import REFERENCE, run_agreement
from imagen_video.evaluation.clip_features import reference_features
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.evaluation.kept import keep, kept
from imagen_video.evaluation.standard_error import mean_and_error
from imagen_video.evaluation.timing import interleaved_seconds, times_faster
from imagen_video.evaluation.true_clips import output_grid
from imagen_video.files import atomic_path, held


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to sample: whose students are taken, and how the originals are guided.

    Attributes:
      distilled: see `load_cascade`.
      guidance: see `SamplingOptions`.
    """

    distilled: str
    guidance: str = "constant"


# arXiv 2210.02303, Table 1; the last row, students of the whole oscillating preset, is our own.
TABLE_1 = {
    "original": Row(distilled="none"),
    "sr": Row(distilled="sr"),
    "all": Row(distilled="all"),
    "original_oscillating": Row(distilled="none", guidance="oscillating:base"),
    "sr_oscillating": Row(distilled="sr", guidance="oscillating:base"),
    "all_oscillating": Row(distilled="all", guidance="oscillating:base"),
    "all_oscillating_sr": Row(distilled="all", guidance="oscillating"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonJob:
    """What to compare, and on how much.

    Attributes:
      rows: names in TABLE_1, each once, the first one being what others are compared with.
      num_prompts: held-out prompts of a run, one video of each.
      runs: of every row, each with noise of its own; the paper's four.
      through: last stage that quality is read from; the paper's Table 1 stops at tsr3.
      timing_rounds: of sampling one video with all stages, for the time; 0 leaves it out.
      steps: of the originals: "published", the paper's, or None for each stage's default. Students
        take their own.
    """

    rows: tuple[str, ...] = ("original", "sr", "all")
    num_prompts: int = 50
    runs: int = 4
    through: str | None = "tsr3"
    timing_rounds: int = 3
    steps: Literal["published"] | None = "published"

    def __post_init__(self):
        if not self.rows:
            raise ValueError("rows: there are none")
        for name in self.rows:
            if name not in TABLE_1:
                raise ValueError(f"rows: {name!r} is none of {', '.join(TABLE_1)}")
            if self.rows.count(name) > 1:
                raise ValueError(f"rows: {name!r} is there twice")
        for name, least in (("num_prompts", 1), ("runs", 1), ("timing_rounds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")

    def run(self, row: str, number: int) -> EvaluationJob:
        """Returns a run of a row; run k of all rows has the same prompts and the same noise."""
        return EvaluationJob(
            num_prompts=self.num_prompts,
            num_samples=1,
            seed=number,
            through=self.through,
            options=self.options(row),
        )

    def options(self, row: str) -> SamplingOptions:
        """Returns how a row's stages are sampled."""
        return SamplingOptions(guidance=TABLE_1[row].guidance, steps=self.steps)


def run_comparison(
    load: Callable[[Row], Cascade],
    job: ComparisonJob,
    out: pathlib.Path,
    *,
    flops_per_eval: Callable[[Stage], int],
    batch_size: int = 4,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Samples, reads and times every row; writes comparison.json.

    A rerun goes on where an earlier one stopped, with rows or runs added, too. Times are kept once
    all are taken, for the rows, weights and device that they were taken of.

    Args:
      load: gives the cascade of a row.
      job: the rows.
      out: folder; ROW/run_K in it holds the videos.
      flops_per_eval: of one evaluation of one clip.
      batch_size: videos sampled at a time.
      progress: told after every sampling step.

    Returns:
      JSON values of each row: "name", "distilled", "guidance", "evaluations" by stage, "flops" of a
      video, "agreement" by attribute and "feature_distance", both as [mean, standard error] over
      runs (an error of None for one run, a mean of None for few clips), "seconds" of each round
      and "times_faster" than the first row, where time was measured.

    Raises:
      ValueError: a row's students are missing, an original is a student, `out` holds another
        comparison, or another run is at work there; all this before anything is sampled.
    """
    cascades = {name: load(TABLE_1[name]) for name in job.rows}
    for name, cascade in cascades.items():
        _check_originals(name, cascade, job)
        for number in range(job.runs):
            request = job.run(name, number).request()
            check_request(cascade, request, _folder(out, name, number), batch_size=batch_size)
    with held(out):
        return _compared(
            cascades,
            job,
            out,
            flops_per_eval=flops_per_eval,
            batch_size=batch_size,
            progress=progress,
        )


def _compared(
    cascades: Mapping[str, Cascade],
    job: ComparisonJob,
    out: pathlib.Path,
    *,
    flops_per_eval: Callable[[Stage], int],
    batch_size: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Samples, reads and times what no earlier run has."""
    flops_per_eval = functools.cache(flops_per_eval)  # Rows share stages.
    costs = {name: _cost(c, job.options(name), flops_per_eval) for name, c in cascades.items()}
    first = job.run(job.rows[0], 0)
    reference = reference_features(
        first.request().prompts,
        seed=first.prompt_seed,
        grid=output_grid(cascades[job.rows[0]].through(job.through)[-1].stage),
        num_per_prompt=first.num_samples,
        path=out / REFERENCE,
        progress=progress,
    )
    qualities = {}
    for name, cascade in cascades.items():
        results = [
            run_agreement(
                cascade,
                job.run(name, number),
                _folder(out, name, number),
                batch_size=batch_size,
                reference=reference,
                progress=progress,
            )
            for number in range(job.runs)
        ]
        qualities[name] = quality(results)
    seconds = _seconds(cascades, job, out / "timing.json", progress=progress)
    faster = times_faster(seconds, than=job.rows[0]) if seconds else {}
    rows = [
        {
            "name": name,
            **dataclasses.asdict(TABLE_1[name]),
            **costs[name],
            **qualities[name],
            "seconds": seconds.get(name),
            "times_faster": faster.get(name),
        }
        for name in cascades
    ]
    with atomic_path(out / "comparison.json") as part:
        part.write_text(json.dumps({"job": dataclasses.asdict(job), "rows": rows}, indent=2) + "\n")
    return rows


def quality(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns mean and standard error over runs of their agreements and feature distances."""
    names = results[0]["agreement"]
    distances = [result["feature_distance"] for result in results]
    return {
        "agreement": {
            name: mean_and_error([result["agreement"][name] for result in results])
            for name in names
        },
        "feature_distance": (None, None) if None in distances else mean_and_error(distances),
    }


def _folder(out: pathlib.Path, row: str, number: int) -> pathlib.Path:
    return out / row / f"run_{number}"


def _check_originals(name: str, cascade: Cascade, job: ComparisonJob) -> None:
    """Raises ValueError where a row takes students for originals, and for options out of place."""
    students = chosen_stages(TABLE_1[name].distilled, field="distilled")
    for stage in cascade.stages:
        job.options(name).sampling(stage)
        folded = stage.distilled_steps or stage.distilled_guidance
        if stage.name not in students and folded is not None:
            raise ValueError(
                f"rows: {name!r} takes the original {stage.name}, but these weights were distilled"
            )


def _cost(
    cascade: Cascade, options: SamplingOptions, flops_per_eval: Callable[[Stage], int]
) -> dict[str, Any]:
    """Returns "evaluations" by stage, and "flops" of them all."""
    evaluations = {
        stage.name: stage.evaluations(options.sampling(stage)) for stage in cascade.stages
    }
    flops = sum(evaluations[stage.name] * flops_per_eval(stage) for stage in cascade.stages)
    return {"evaluations": evaluations, "flops": flops}


def _seconds(
    cascades: Mapping[str, Cascade],
    job: ComparisonJob,
    path: pathlib.Path,
    *,
    progress: Progress | None,
) -> dict[str, list[float]]:
    """Times one video of all stages by every row, once: a rerun reads what was measured."""
    if job.timing_rounds == 0:
        return {}
    device = jax.devices()[0].device_kind
    of = {"rounds": job.timing_rounds, "device": device, "steps": job.steps}
    digests = {name: [model.digest for model in c.models] for name, c in cascades.items()}
    known = kept(path, of=of)
    if known and all(known["rows"].get(name) == digest for name, digest in digests.items()):
        return {name: known["seconds"][name] for name in cascades}

    def sampling(name: str) -> Callable[[], object]:
        prompt = EvaluationJob(num_prompts=1, num_samples=1).request().prompts
        options = dataclasses.asdict(job.options(name))
        return lambda: cascades[name].sample(prompt, progress=progress, **options)

    ways = {name: sampling(name) for name in cascades}
    seconds = interleaved_seconds(ways, rounds=job.timing_rounds)
    keep(path, {"rows": digests, "seconds": seconds}, of=of)
    return seconds
