"""Agreement with prompts: the dataset's own videos agree, others do not."""

import numpy as np
import pytest

from imagen_video.data.captioned_shapes.grammar import parse
from imagen_video.data.captioned_shapes.mixture import Mixture
from imagen_video.data.captioned_shapes.prompts import held_out_prompts
from imagen_video.data.captioned_shapes.source import CaptionedShapesSource
from imagen_video.data.captioned_shapes.splits import may_train
from imagen_video.evaluation.agreement import first_sheets, read_videos, summarise
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.video_io import write_clip

NUM = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Renders of ten held-out scenes, as mp4 files beside their captions."""
    out = tmp_path_factory.mktemp("videos")
    source = CaptionedShapesSource(
        split="test",
        height=96,
        width=160,
        frames=64,
        fps=24.0,
        duration=64 / 24,
        seed=11,
        mixture=Mixture(two_objects=0.0),
    )
    samples = []
    for index in range(NUM):
        record = source[index]
        write_clip(out / f"{index}.mp4", record["video"], fps=24.0)
        samples.append({"prompt": record["caption"], "video": f"{index}.mp4"})
    return out, samples


def test_renders_of_a_caption_agree_with_it_after_the_video_file(folder):
    out, samples = folder
    agreement = summarise([r["right"] for r in read_videos(samples, out)])["agreement"]
    assert all(share >= 0.9 for share in agreement.values()), agreement


def test_videos_of_other_captions_do_not_agree(folder):
    out, samples = folder
    shuffled = [
        {"prompt": samples[(i + 1) % NUM]["prompt"], "video": sample["video"]}
        for i, sample in enumerate(samples)
    ]
    agreement = summarise([r["right"] for r in read_videos(shuffled, out)])["agreement"]
    assert agreement["all"] == 0.0
    assert agreement["shape"] <= 0.4


def test_shares_and_standard_errors_are_those_of_a_proportion():
    names = ("background", "colour", "shape", "size", "motion")
    rows = [dict.fromkeys(names, True), dict.fromkeys(names, True) | {"shape": False}] * 8
    summary = summarise(rows)
    assert summary["agreement"] == {**dict.fromkeys(names, 1.0), "shape": 0.5, "all": 0.5}
    assert summary["standard_error"]["shape"] == pytest.approx(np.sqrt(0.25 / 16))


def test_the_job_asks_for_unchosen_prompts_that_training_never_shows():
    request = EvaluationJob(num_prompts=30, num_samples=2).request()
    assert request.prompts == tuple(held_out_prompts(30, seed=0))
    assert len(set(request.prompts)) == 30 and request.num_samples == 2
    assert not any(may_train(parse(prompt)) for prompt in request.prompts)
    for count in (0, 5001):  # There are not many more: drawing would go on for ever.
        with pytest.raises(ValueError, match=f"num_prompts: {count} is not from 1 to 5000"):
            EvaluationJob(num_prompts=count)


def test_the_picture_holds_every_video(folder):
    out, samples = folder
    picture = first_sheets({"samples": samples}, out)
    assert picture.dtype == np.uint8
    one = first_sheets({"samples": samples[:1]}, out)
    assert picture.shape[1] == one.shape[1]
    assert picture.shape[0] >= 5 * 96
