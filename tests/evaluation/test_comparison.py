"""Table 1's rows: which evaluations, the same noise in all, nothing sampled twice."""

import dataclasses
import json
import shutil
from dataclasses import replace

import micro_cascade
import numpy as np
import pytest
from micro_cascade import BASE, drawn_params, text_model, write_weights

from imagen_video.cascade import options
from imagen_video.cascade.weights import save_stage
from imagen_video.cli.main import main
from imagen_video.diffusion.guidance import ConstantGuidance
from imagen_video.evaluation import agreement
from imagen_video.evaluation.comparison import (
    TABLE_1,
    ComparisonJob,
    quality,
    run_comparison,
)
from imagen_video.evaluation.comparison_table import comparison_table
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.files import held
from imagen_video.loading import load_cascade
from imagen_video.sampling.steppers import StochasticDistilled

JOB = ComparisonJob(
    rows=("original", "all"), num_prompts=1, runs=2, through="base", timing_rounds=0
)
TIMED = dataclasses.replace(JOB, timing_rounds=1)


STEPS = 8  # as if the paper had published so few: 256 take long


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(options.PUBLISHED_STEPS, "base", STEPS)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
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
    return folder


@pytest.fixture(scope="module")
def cascade(weights):
    return load_cascade(weights=weights)


def compare(cascade, job, out, *, batch_size=4):
    """The rows, and what was sampled or drawn for them."""
    told = []
    rows = run_comparison(
        lambda row: cascade.with_students(row.distilled, guidance=row.guidance),
        job,
        out,
        flops_per_eval=lambda stage: 1000,
        batch_size=batch_size,
        progress=lambda **step: told.append(step["stage"]),
    )
    return rows, told


@pytest.fixture(scope="module")
def compared(cascade, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, *compare(cascade, TIMED, out)


def test_originals_take_the_published_steps_twice_evaluated_students_their_own(compared):
    _, rows, _ = compared
    assert [row["name"] for row in rows] == ["original", "all"]
    assert [row["evaluations"] for row in rows] == [{"base": 2 * STEPS}, {"base": 2}]
    assert [row["flops"] for row in rows] == [1000 * 2 * STEPS, 2_000]
    seconds = [row["seconds"][0] for row in rows]
    assert [row["times_faster"] for row in rows] == [1.0, pytest.approx(seconds[0] / seconds[1])]


def test_originals_take_their_own_steps_where_the_job_says_so(compared, cascade, tmp_path):
    out = tmp_path / "out"
    rows, _ = compare(cascade, replace(TIMED, runs=1, steps=None), out)
    assert [row["evaluations"] for row in rows] == [
        {"base": 2 * BASE.sampling.num_steps},
        {"base": 2},
    ]
    # A student's videos are the same ones, an original's are others.
    videos = [
        [path.read_bytes() for path in (folder / name / "run_0").glob("*.mp4")]
        for name in JOB.rows
        for folder in (out, compared[0])
    ]
    assert videos[0] != videos[1] and videos[2] == videos[3]
    # Times of other steps are not taken for these.
    shutil.copy(compared[0] / "timing.json", out)
    again, told = compare(cascade, replace(TIMED, runs=1, steps=None), out)
    assert told and again[0]["seconds"] != rows[0]["seconds"]


def test_figures_are_those_of_the_runs_videos(compared):
    out, rows, _ = compared
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


def test_a_rerun_samples_reads_draws_and_times_nothing(compared, cascade, monkeypatch):
    out, rows, told = compared
    assert set(told) == {"reference", "base"}
    monkeypatch.setattr(agreement, "read_videos", None)
    assert compare(cascade, TIMED, out) == (rows, [])
    # Nor one of some rows, in another order.
    student = compare(cascade, dataclasses.replace(TIMED, rows=("all",)), out)
    assert student == ([rows[1] | {"times_faster": 1.0}], [])


def test_killed_while_the_reference_is_drawn_it_reads_no_video_again(
    cascade, tmp_path, monkeypatch
):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    job = EvaluationJob(num_prompts=1, num_samples=1, through="base")
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "reference_features", killed)
        with pytest.raises(KeyboardInterrupt):
            agreement.run_agreement(cascade, job, tmp_path)
    monkeypatch.setattr(agreement, "read_videos", None)
    result = agreement.run_agreement(cascade, job, tmp_path)
    assert result["videos"] == 1
    assert json.loads((tmp_path / "agreement.json").read_text()) == result


def test_a_folder_is_one_comparisons_at_a_time(compared, cascade):
    out, *_ = compared
    with held(out), pytest.raises(ValueError, match="another run is at work there"):
        compare(cascade, TIMED, out)


def test_a_folder_is_one_evaluations_at_a_time_after_sampling_too(cascade, tmp_path):
    job = EvaluationJob(num_prompts=1, num_samples=1, through="base")
    refused = []

    def second(*, stage, **_):
        if stage == "reference":
            with pytest.raises(ValueError, match="another run is at work there"):
                agreement.run_agreement(cascade, job, tmp_path)
            refused.append(stage)

    agreement.run_agreement(cascade, job, tmp_path, progress=second)
    assert refused


@pytest.mark.parametrize("damage", ["{", "[]", '{"of": 1}'])
@pytest.mark.parametrize("name", ["timing.json", "reference.json", "original/run_0/agreement.json"])
def test_a_damaged_file_of_results_is_made_again(compared, cascade, tmp_path, name, damage):
    out = shutil.copytree(compared[0], tmp_path / "out")
    whole = json.loads((out / name).read_text())
    (out / name).write_text(damage)
    rows, _ = compare(cascade, TIMED, out)
    again = json.loads((out / name).read_text())
    if name == "timing.json":
        assert again.pop("seconds") != whole.pop("seconds")
    else:
        assert rows == compared[1]
    assert again == whole


def test_mistakes_are_told_before_anything_is_sampled(compared, cascade, tmp_path):
    out, *_ = compared

    def refused(message, job, *, cascade=cascade, out=out, **arguments):
        before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
        with pytest.raises(ValueError, match=message):
            compare(cascade, job, out, **arguments)
        assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before

    # The second row's folder alone is another comparison's: the first one is not sampled.
    mixed = tmp_path / "mixed"
    shutil.copytree(out / "all", mixed / "all")
    refused("all/run_0: holds the videos of another", replace(JOB, num_prompts=2), out=mixed)
    refused("batch_size: 0 is below 1", JOB, out=tmp_path / "new", batch_size=0)
    student = cascade.with_students("all")
    original = replace(JOB, rows=("original",))
    refused("takes the original base", original, cascade=student, out=tmp_path / "new")


def test_the_command_prints_the_table(weights, tmp_path, capsys):
    argv = ["compare", f"--weights={weights}", f"--out={tmp_path / 'out'}", "--timing_rounds=0"]
    argv += ["--num_prompts=1", "--runs=1", "--through=base"]
    assert main([*argv, "--rows=all"]) == 0
    head, _, line = capsys.readouterr().out.splitlines()
    assert head.startswith("| row | seconds | times faster | TFLOP |")
    assert line.startswith("| all |  |  | ")
    assert main([*argv, "--rows=all,sr_oscillating,all"]) == 2
    assert "rows: 'all' is there twice" in capsys.readouterr().err
    assert main([*argv, "--rows=all_oscillating"]) == 2
    assert "no student of base in 'distilled/oscillating'" in capsys.readouterr().err
    assert main([*argv, "--rows=all", "--num_prompts=2"]) == 2
    assert "all/run_0: holds the videos of another request" in capsys.readouterr().err


def test_quality_is_a_mean_over_runs_where_all_have_one():
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
        ({"rows": ("sr", "sr")}, "rows: 'sr' is there twice"),
        ({"rows": ("ssr",)}, "rows: 'ssr' is none of original, sr, all"),
        ({"runs": 0}, "runs: 0 is below 1"),
        ({"timing_rounds": -1}, "timing_rounds: -1 is below 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ComparisonJob(**fields)


def test_students_that_are_missing_are_named_before_anything_is_sampled(tmp_path):
    cascade = micro_cascade.cascade()
    with pytest.raises(ValueError, match="distilled: this cascade has no distilled weights"):
        compare(cascade, JOB, tmp_path / "out")
    assert not (tmp_path / "out").exists()
