"""Table 1's rows: which evaluations, the same noise in all, nothing sampled twice."""

import dataclasses
import json

import micro_cascade
import numpy as np
import pytest
from micro_cascade import BASE, drawn_params, text_model, write_weights

from imagen_video.cascade.weights import save_stage
from imagen_video.diffusion.guidance import ConstantGuidance
from imagen_video.evaluation.comparison import (
    TABLE_1,
    ComparisonJob,
    mean_and_error,
    quality,
    run_comparison,
)
from imagen_video.evaluation.comparison_table import comparison_table
from imagen_video.loading import load_cascade
from imagen_video.sampling.steppers import StochasticDistilled

JOB = ComparisonJob(rows=("original", "all"), num_prompts=1, runs=2, through="base")


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """A base and its student of two steps, which has other parameters."""
    folder = write_weights(tmp_path_factory.mktemp("weights"), (BASE,))
    (folder / "distilled").mkdir()
    sampling = dataclasses.replace(
        BASE.sampling,
        num_steps=2,
        stepper=StochasticDistilled(),
        guidance=ConstantGuidance(weight=0.0),
    )
    student = dataclasses.replace(
        BASE,
        sampling=sampling,
        oscillating=None,
        distilled_steps=2,
        distilled_guidance=ConstantGuidance(weight=2.0),
    )
    save_stage(
        str(folder / "distilled" / "base.safetensors"),
        student,
        drawn_params(BASE, seed=1),
        text_digest=text_model().digest,
        dtype="float32",
    )
    return load_cascade(weights=folder)


@pytest.fixture(scope="module")
def compared(cascade, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    told = []

    def again():
        told.clear()
        rows = run_comparison(
            lambda row: cascade.with_students(row.distilled, guidance=row.guidance),
            dataclasses.replace(JOB, timing_rounds=1),
            out,
            flops_per_eval=lambda stage: 1000,
            progress=lambda **step: told.append(step["stage"]),
        )
        return rows, list(told)

    return out, again(), again()


def test_originals_take_the_published_steps_twice_evaluated_students_their_own(compared):
    _, (rows, _), _ = compared
    assert [row["name"] for row in rows] == ["original", "all"]
    assert [row["evaluations"] for row in rows] == [{"base": 2 * 256}, {"base": 2}]
    assert [row["flops"] for row in rows] == [512_000, 2_000]
    assert rows[0]["times_faster"] == 1.0 and rows[1]["times_faster"] > 1.0


def test_figures_are_those_of_the_runs_videos(compared):
    out, (rows, _), _ = compared
    assert json.loads((out / "comparison.json").read_text())["rows"] == json.loads(json.dumps(rows))
    for row in rows:
        shares = []
        for run in range(JOB.runs):
            folder = out / row["name"] / f"run_{run}"
            assert len(list(folder.glob("*.mp4"))) == JOB.num_prompts
            shares.append(json.loads((folder / "agreement.json").read_text())["agreement"]["shape"])
        assert row["agreement"]["shape"][0] == pytest.approx(np.mean(shares))
        # One video a run is too few for a distance.
        assert row["feature_distance"] == (None, None)
    # The runs of a row differ in their noise, and the same run of another row shares it.
    seeds = [
        json.loads((out / name / f"run_{run}" / "manifest.json").read_text())["request"]["seed"]
        for name in JOB.rows
        for run in range(JOB.runs)
    ]
    assert seeds == [0, 1, 0, 1]


def test_a_rerun_samples_and_times_nothing(compared):
    _, (rows, told), (rows_again, told_again) = compared
    assert rows_again == rows
    assert "base" in told and set(told_again) == {"reference"}


def test_mean_and_standard_error_of_runs():
    assert mean_and_error([0.5]) == (0.5, None)
    mean, error = mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0 and error == pytest.approx(np.sqrt(14 / 3) / 2)
    runs = [
        {"agreement": {"shape": s}, "feature_distance": d} for s, d in ((0.5, None), (1.0, 2.0))
    ]
    assert quality(runs)["agreement"]["shape"] == (0.75, pytest.approx(0.25))
    assert quality(runs)["feature_distance"] == (None, None)


def test_the_table_leaves_empty_what_was_not_measured():
    row = {
        "name": "all",
        "seconds": None,
        "times_faster": None,
        "flops": 1.5e12,
        "agreement": {"shape": (0.625, 0.0125)},
        "feature_distance": (None, None),
    }
    timed = row | {
        "seconds": [3.0, 1.0, 2.0],
        "times_faster": 20.0,
        "feature_distance": (0.5, None),
    }
    lines = comparison_table([row, timed]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert cells[2] == ["all", "", "", "1.5", "62.5 ± 1.2", ""]
    assert cells[3] == ["all", "2.0", "20.0", "1.5", "62.5 ± 1.2", "0.500"]


def test_rows_are_table_1():
    """Constant and oscillating guidance: original, SR students, all students; section 3.4."""
    assert [(row.distilled, row.guidance) for row in TABLE_1.values()][:6] == [
        (distilled, guidance)
        for guidance in ("constant", "oscillating:base")
        for distilled in ("none", "sr", "all")
    ]
    for fields, message in (
        ({"rows": ()}, "rows: there are none"),
        ({"rows": ("ssr",)}, "rows: 'ssr' is none of original, sr, all"),
        ({"runs": 0}, "runs: 0 is below 1"),
        ({"timing_rounds": -1}, "timing_rounds: -1 is below 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ComparisonJob(**fields)


def test_students_that_are_missing_are_named_before_anything_is_sampled(tmp_path):
    cascade = micro_cascade.cascade()
    with pytest.raises(ValueError, match="distilled: this cascade has no distilled weights"):
        run_comparison(
            lambda row: cascade.with_students(row.distilled, guidance=row.guidance),
            JOB,
            tmp_path / "out",
            flops_per_eval=lambda stage: 1,
        )
    assert not (tmp_path / "out").exists()
