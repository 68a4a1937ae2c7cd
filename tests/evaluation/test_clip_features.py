"""Features of clips: what the scene's own numbers say, and the distance of a known change."""

import dataclasses
import json
import math

import micro_cascade
import numpy as np
import pytest

from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.grammar import parse
from imagen_video.data.captioned_shapes.motion import scene_poses
from imagen_video.data.captioned_shapes.prompts import held_out_prompts
from imagen_video.data.captioned_shapes.reader import read
from imagen_video.data.captioned_shapes.scene import draw_scene
from imagen_video.data.captioned_shapes.source import VERSION
from imagen_video.data.sources import ClipGrid
from imagen_video.evaluation.agreement import read_videos, run_agreement
from imagen_video.evaluation.clip_features import (
    FEATURES,
    clip_features,
    distance_to_dataset,
    reference_features,
)
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.evaluation.true_clips import output_grid, true_clip
from imagen_video.metrics.frechet import frechet_distance
from imagen_video.video_io import write_clip

GRID = ClipGrid(frames=8, height=48, width=80, fps=3.0)
SMALL = ClipGrid(frames=4, height=24, width=40, fps=3.0)
PROMPTS = held_out_prompts(24, seed=5)


def measured(video):
    _, height, width, _ = video.shape
    return clip_features(read(video), height=height, width=width)


def by_name(features):
    return dict(zip(FEATURES, features))


@pytest.mark.parametrize(
    ("words", "moving"),
    [
        ("a red circle moving right on a white background", "right"),
        ("a small blue square moving up on a grey background", "down"),
        ("a green ring bouncing on a black background", "bounce"),
        ("a yellow heart growing on a black background", "growth"),
        ("a purple star shrinking on a beige background", "growth"),
        ("a cyan triangle spinning on a black background", "turn"),
        ("a large pink cross standing still on a black background", None),
    ],
)
def test_they_are_the_numbers_of_the_scene(words, moving):
    scene = draw_scene(parse(words), Draws("true_clip", VERSION, 3, words, 1))
    (body,) = scene.bodies
    tau = np.array([0.0, 0.5, 1.0])
    (path,) = scene_poses(scene, tau, width=80 / 48, height=1.0)
    seen = by_name(measured(true_clip(words, seed=3, index=1, grid=GRID)))
    expected = dict.fromkeys(("right", "down", "bounce", "growth", "turn"), 0.0)
    match moving:
        case "right":
            expected["right"] = path.x[2] - path.x[0]
        case "down":
            expected["down"] = path.y[2] - path.y[0]
        case "growth":
            expected["growth"] = math.log(path.radius[2] / path.radius[0])
        case "turn":
            expected["turn"] = body.turn / (2 * math.pi)
        case "bounce":
            (fine,) = scene_poses(scene, np.linspace(0, 1, 999), width=80 / 48, height=1.0)
            expected["bounce"] = np.ptp(fine.y)
    for name, value in expected.items():
        assert seen[name] == pytest.approx(value, abs=0.04), name
    assert seen["diameter"] == pytest.approx(2 * body.radius, rel=0.08)
    assert 0 <= seen["unlikeness"] < math.acos(0.9)
    if moving != "bounce":  # of whose arcs eight frames have another mean than 16
        assert seen["x"] == pytest.approx(path.x[1], abs=0.08)
        assert seen["y"] == pytest.approx(path.y[1], abs=0.08)


def test_a_clip_without_an_object_stands_in_the_middle_and_is_like_nothing():
    empty = by_name(measured(np.full((8, 48, 80, 3), 255, np.uint8)))
    assert empty.pop("unlikeness") == pytest.approx(math.pi / 2)
    assert (empty.pop("x"), empty.pop("y")) == pytest.approx((80 / 48 / 2, 0.5))
    assert set(empty.values()) == {0.0}
    upright = by_name(measured(np.zeros((8, 80, 48, 3), np.uint8)))
    assert (upright["x"], upright["y"]) == pytest.approx((0.5, 80 / 48 / 2))


def test_a_still_image_does_not_move():
    image = true_clip(PROMPTS[0], seed=0, index=0, grid=GRID)[:1]
    seen = by_name(measured(image))
    assert [seen[name] for name in ("right", "down", "bounce", "growth", "turn")] == [0] * 5
    assert seen["diameter"] > 0.2


@pytest.fixture(scope="module")
def sets():
    """Two independent draws of the same prompts, and the first one moved right by 16 pixels."""

    def features(seed, left):
        rows = []
        for prompt in PROMPTS:
            clip = true_clip(prompt, seed=seed, index=0, grid=GRID)
            border = ((0, 0), (0, 0), (left, 16 - left), (0, 0))
            rows.append(measured(np.pad(clip, border, mode="edge")))
        return np.array(rows)

    return {"first": features(0, 0), "second": features(1, 0), "moved": features(0, 16)}


@pytest.mark.slow
def test_moving_every_clip_adds_the_square_of_the_shift(sets):
    shift = 16 / 48
    assert frechet_distance(sets["moved"], sets["first"]) == pytest.approx(shift**2, rel=0.02)
    # Against an independent draw the covariances' part stays and the means' is known.
    apart = frechet_distance(sets["first"], sets["second"])
    means = sets["first"].mean(axis=0) - sets["second"].mean(axis=0)
    expected = apart + 2 * shift * means[FEATURES.index("x")] + shift**2
    assert frechet_distance(sets["moved"], sets["second"]) == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_two_draws_of_the_dataset_are_closer_than_it_and_still_pictures_of_it(sets):
    apart = frechet_distance(sets["first"], sets["second"])
    stopped = sets["first"].copy()
    stopped[:, [FEATURES.index(name) for name in ("right", "down", "growth", "turn")]] = 0
    assert 0 < apart < 0.06
    assert frechet_distance(stopped, sets["second"]) > 3 * apart


def test_the_reference_passes_through_the_video_file_as_sampled_clips_do(tmp_path):
    prompts, samples, told = PROMPTS[:2], [], []
    for prompt in prompts:
        for index in range(2):
            name = f"{len(samples)}.mp4"
            clip = true_clip(prompt, seed=4, index=index, grid=GRID)
            write_clip(tmp_path / name, clip, fps=GRID.fps)
            samples.append({"prompt": prompt, "video": name})
    reference = reference_features(
        prompts, seed=4, grid=GRID, num_per_prompt=2, progress=lambda **step: told.append(step)
    )
    readings = read_videos(samples, tmp_path)
    np.testing.assert_array_equal([list(r["features"].values()) for r in readings], reference)
    assert [list(r["features"]) for r in readings] == [list(FEATURES)] * 4
    assert told[-1] == {"stage": "reference", "step": 4, "num_steps": 4}
    # Uncompressed they are others: the comparison can fail.
    assert np.abs(measured(clip) - reference[-1]).max() > 1e-6


def test_a_reference_is_kept_for_the_same_prompts_seed_and_grid_alone(tmp_path):
    given = {"seed": 0, "grid": SMALL, "num_per_prompt": 1}
    path, told = tmp_path / "new" / "reference.json", []

    def made(prompts, **changed):
        told.clear()
        return reference_features(
            prompts, **given | changed, path=path, progress=lambda **step: told.append(step)
        )

    first = made(PROMPTS[:2])
    assert len(told) == 2
    np.testing.assert_array_equal(made(PROMPTS[:2]), first)
    assert not told
    for prompts, changed in (
        (PROMPTS[:2], {"seed": 1}),
        (PROMPTS[2:4], {}),
        (PROMPTS[:2], {"grid": dataclasses.replace(SMALL, height=48, width=80)}),
    ):
        assert np.abs(made(prompts, **changed) - first).max() > 1e-3
        assert len(told) == 2


def test_few_clips_have_no_distance_and_the_reference_none_to_itself():
    given = {"seed": 0, "grid": SMALL, "num_per_prompt": 1}
    features = reference_features(PROMPTS[:11], **given)
    assert features.shape == (11, len(FEATURES))
    assert distance_to_dataset(features[:10], features) is None
    assert distance_to_dataset(features, features[:10]) is None
    assert distance_to_dataset(features, features) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_agreement_writes_features_and_their_distance(tmp_path):
    cascade = micro_cascade.cascade()
    job = EvaluationJob(num_prompts=6, num_samples=2, through="base")
    result = run_agreement(cascade, job, tmp_path, batch_size=2)
    assert json.loads((tmp_path / "agreement.json").read_text()) == result
    features = np.array([list(r["features"].values()) for r in result["readings"]])
    reference = reference_features(
        job.request().prompts,
        seed=0,
        grid=output_grid(micro_cascade.BASE),
        num_per_prompt=2,
    )
    assert features.shape == reference.shape == (12, len(FEATURES))
    assert result["feature_distance"] == pytest.approx(frechet_distance(features, reference))
    few = EvaluationJob(num_prompts=1, num_samples=2, through="base")
    few = run_agreement(cascade, few, tmp_path / "few", batch_size=2)
    assert few["feature_distance"] is None
