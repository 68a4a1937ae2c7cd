"""Table 1 of the paper for a cascade and its students: time, FLOPs and quality of each mixture.

The paper's columns of quality are CLIP scores; here they are what the dataset's reader says: how
often the videos show what was asked, and how far their measurements are from the dataset's own.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imagen_video.cascade.cascade import Cascade, Progress
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.stage import Stage
from imagen_video.evaluation.agreement import run_agreement
from imagen_video.evaluation.clip_features import reference_features
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.evaluation.timing import interleaved_seconds, times_faster
from imagen_video.evaluation.true_clips import output_grid
from imagen_video.files import atomic_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One way to sample: whose students are taken, and how the originals are guided.

    Attributes:
      distilled: see `load_cascade`.
      guidance: see `SamplingOptions`.
    """

    distilled: str
    guidance: str = "constant"

    @property
    def options(self) -> SamplingOptions:
        """Originals take the published steps, students their own."""
        return SamplingOptions(guidance=self.guidance, steps="published")


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
      rows: names in TABLE_1, the first one being what others are compared with.
      num_prompts: held-out prompts of a run, one video of each.
      runs: of every row, each with noise of its own; the paper's four.
      through: last stage that quality is read from; the paper's Table 1 stops at tsr3.
      timing_rounds: of sampling one video with all stages, for the time; 0 leaves it out.
    """

    rows: tuple[str, ...] = ("original", "sr", "all")
    num_prompts: int = 50
    runs: int = 4
    through: str | None = "tsr3"
    timing_rounds: int = 3

    def __post_init__(self):
        if not self.rows:
            raise ValueError("rows: there are none")
        for name in self.rows:
            if name not in TABLE_1:
                raise ValueError(f"rows: {name!r} is none of {', '.join(TABLE_1)}")
        for name, least in (("num_prompts", 1), ("runs", 1), ("timing_rounds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")


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

    Run k of all rows has the same prompts and the same noise. A rerun goes on where an earlier one
    stopped; times are kept, too.

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
      ValueError: a row's students are missing, or `out` holds another comparison.
    """
    cascades = {name: load(TABLE_1[name]) for name in job.rows}
    for name, cascade in cascades.items():  # Every mistake shows before hours of sampling.
        for stage in cascade.stages:
            TABLE_1[name].options.sampling(stage)
        cascade.through(job.through)
    reference, qualities = None, {}
    for name, cascade in cascades.items():
        results = []
        for seed in range(job.runs):
            run = EvaluationJob(
                num_prompts=job.num_prompts,
                num_samples=1,
                seed=seed,
                through=job.through,
                options=TABLE_1[name].options,
            )
            if reference is None:
                reference = reference_features(
                    run.request().prompts,
                    seed=run.prompt_seed,
                    grid=output_grid(cascade.through(job.through)[-1].stage),
                    num_per_prompt=1,
                    progress=progress,
                )
            results.append(
                run_agreement(
                    cascade,
                    run,
                    out / name / f"run_{seed}",
                    batch_size=batch_size,
                    reference=reference,
                    progress=progress,
                )
            )
        qualities[name] = quality(results)
    seconds = _seconds(cascades, job, out / "timing.json", progress=progress)
    faster = times_faster(seconds, than=job.rows[0]) if seconds else {}
    rows = []
    for name, cascade in cascades.items():
        evaluations = {
            stage.name: TABLE_1[name].options.sampling(stage).evaluations
            for stage in cascade.stages
        }
        cost = sum(evaluations[stage.name] * flops_per_eval(stage) for stage in cascade.stages)
        rows.append(
            {
                "name": name,
                **dataclasses.asdict(TABLE_1[name]),
                "evaluations": evaluations,
                "flops": cost,
                **qualities[name],
                "seconds": seconds.get(name),
                "times_faster": faster.get(name),
            }
        )
    with atomic_path(out / "comparison.json") as part:
        part.write_text(json.dumps({"job": dataclasses.asdict(job), "rows": rows}, indent=2) + "\n")
    return rows


def quality(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns mean and standard error over runs of their agreements and feature distances."""
    names = results[0]["agreement"]
    return {
        "agreement": {
            name: mean_and_error([result["agreement"][name] for result in results])
            for name in names
        },
        "feature_distance": mean_and_error([result["feature_distance"] for result in results]),
    }


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Returns the mean of independent values and its standard error, s / sqrt(n)."""
    if None in values:
        return None, None
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None
    return mean, float(np.std(values, ddof=1) / np.sqrt(len(values)))


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
    identity = {
        "rounds": job.timing_rounds,
        "rows": {name: [model.digest for model in c.models] for name, c in cascades.items()},
    }
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["identity"] == identity:
            return kept["seconds"]

    def sampling(name: str) -> Callable[[], object]:
        prompt = EvaluationJob(num_prompts=1, num_samples=1).request().prompts
        options = dataclasses.asdict(TABLE_1[name].options)
        return lambda: cascades[name].sample(prompt, progress=progress, **options)

    ways = {name: sampling(name) for name in cascades}
    seconds = interleaved_seconds(ways, rounds=job.timing_rounds)
    with atomic_path(path) as part:
        part.write_text(json.dumps({"identity": identity, "seconds": seconds}, indent=2) + "\n")
    return seconds
