"""What is seen to move, against what was commanded."""

import math

import numpy as np
import pytest
from scipy import ndimage

from imagen_video.data.captioned_shapes import grammar
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.motion import GROWTH, extent, reach, scene_poses
from imagen_video.data.captioned_shapes.render import render
from imagen_video.data.captioned_shapes.scene import DIAMETER, draw_scene

DURATION = 64 / 24
WIDTH, HEIGHT = 5 / 3, 1.0  # of the canvas, in shorter sides


def scene_of(words, *, key=0):
    return draw_scene(grammar.parse(f"a {words} on a white background"), Draws("motion", key))


def clip_of(scene, *, frames=8, height=96):
    return render(
        scene,
        height=height,
        width=height * 5 // 3,
        frames=range(frames),
        fps=frames / DURATION,
        duration=DURATION,
    )


def seen(clip):
    """Area and centroid of each frame, by how much the colours differ from white's."""
    differs = np.abs(clip.astype(float) - clip[0, 0, 0]).sum(axis=-1)
    shares = differs / differs.max()
    area = shares.sum(axis=(1, 2))
    side = clip.shape[1]
    x = (shares.sum(axis=1) @ (np.arange(clip.shape[2]) + 0.5)) / area / side
    y = (shares.sum(axis=2) @ (np.arange(clip.shape[1]) + 0.5)) / area / side
    return area, x, y


@pytest.mark.parametrize("height", [12, 96])
@pytest.mark.parametrize("direction", grammar.DIRECTIONS)
def test_moving_is_steady_far_and_inside(direction, height):
    for key in range(4):
        scene = scene_of(f"red circle moving {direction}", key=key)
        _, x, y = seen(clip_of(scene, height=height))
        along, across, length = (x, y, WIDTH) if direction in ("left", "right") else (y, x, HEIGHT)
        if direction in ("left", "up"):
            along = -along
        steps = np.diff(along)
        np.testing.assert_allclose(steps, steps.mean(), atol=0.004)
        assert 0.4 * length < 8 * steps.mean() < 0.7 * length  # of 8 steps 7 are seen
        np.testing.assert_allclose(across, across.mean(), atol=0.003)
        radius = scene.bodies[0].radius
        for values, side in ((x, WIDTH), (y, HEIGHT)):
            assert radius < values.min()
            assert values.max() < side - radius


@pytest.mark.parametrize("height", [12, 96])
def test_bouncing_has_two_arcs_above_a_floor(height):
    for key in range(6):
        _, x, y = seen(clip_of(scene_of("red circle bouncing", key=key), frames=32, height=height))
        assert np.ptp(x) < 0.003
        assert np.ptp(y) > 0.28
        above = y.max() - y
        tops = (above > np.roll(above, 1)) & (above >= np.roll(above, -1)) & (above > 0.2)
        assert tops.sum() == 2
        # An arc of |sin| spends a third of its time below half its height.
        assert (above < above.max() / 2).mean() == pytest.approx(1 / 3, abs=0.07)


@pytest.mark.parametrize("shape", ["square", "heart", "letter K", "word SUN"])
def test_spinning_turns_the_first_frame_about_the_centroid(shape):
    scene = scene_of(f"large red {shape} spinning", key=3)
    clip = clip_of(scene)
    poses = scene_poses(scene, np.zeros(1), width=WIDTH, height=HEIGHT)[0]
    at_x, at_y = 96 * float(poses.x[0]) - 0.5, 96 * float(poses.y[0]) - 0.5
    rows, cols = np.mgrid[:96, :160].astype(float)
    assert abs(scene.bodies[0].turn) > math.radians(179)
    for k in range(1, 8):
        angle = scene.bodies[0].turn * k / 8
        x = at_x + math.cos(angle) * (cols - at_x) + math.sin(angle) * (rows - at_y)
        y = at_y - math.sin(angle) * (cols - at_x) + math.cos(angle) * (rows - at_y)
        first = clip[0, ..., 1].astype(float)
        turned = ndimage.map_coordinates(first, [y, x], order=1, mode="nearest")
        inside = (
            (np.hypot(cols - at_x, rows - at_y) < 40) & (x > 0) & (x < 159) & (y > 0) & (y < 95)
        )
        error = np.abs(turned - clip[k, ..., 1])[inside].mean()
        unturned = np.abs(first - clip[k, ..., 1])[inside].mean()
        assert error < 4.0
        assert error < 0.4 * unturned


@pytest.mark.parametrize("shape", ["circle", "ring", "cube"])
def test_a_spinning_disc_and_cube_are_seen_to_spin(shape):
    clip = clip_of(scene_of(f"red {shape} spinning"), height=12).astype(int)
    at_rest = clip_of(scene_of(f"red {shape} standing still"), height=12).astype(int)
    assert np.abs(np.diff(clip, axis=0)).max(axis=(1, 2, 3)).min() > 25
    assert np.abs(np.diff(at_rest, axis=0)).max() == 0


def test_growing_and_shrinking_change_the_size_as_said():
    for motion, sign in (("growing", 1), ("shrinking", -1)):
        for shape in ("circle", "star", "letter B"):
            scene = scene_of(f"red {shape} {motion}")
            area, x, y = seen(clip_of(scene, frames=16))
            log_size = 0.5 * np.log(area)
            steps = np.diff(log_size)
            np.testing.assert_allclose(steps, sign * math.log(GROWTH) / 16, atol=0.01)
            assert np.exp(np.ptp(log_size)) > 2
            assert max(np.ptp(x), np.ptp(y)) < 0.02


def test_size_words_are_ratios_of_one_and_a_half():
    diameters = {}
    for size in ("small ", "", "large "):
        areas = [
            seen(clip_of(scene_of(f"{size}red circle standing still", key=k), frames=1))[0][0]
            for k in range(8)
        ]
        diameters[size] = 2 * np.sqrt(np.array(areas) / math.pi) / 96
    named = DIAMETER["small"], DIAMETER["normal"], DIAMETER["large"]
    for drawn, diameter in zip(diameters.values(), named, strict=True):
        assert np.abs(drawn / diameter - 1).max() < 0.06
    assert 1.4 < diameters[""].min() / diameters["small "].max() * 1.1 < 1.7
    assert diameters["large "].min() > 1.3 * diameters[""].max()


@pytest.mark.parametrize(("height", "width"), [(96, 160), (60, 60), (100, 48)])
@pytest.mark.parametrize("motion", ["spinning", "growing", "standing still"])
def test_what_has_room_stays_on_the_canvas(motion, height, width):
    for key, shape in enumerate((*grammar.FORMS, "letter Q", "letter W", "word JQ")):
        scene = scene_of(f"red {shape} {motion}", key=key)
        clip = render(
            scene, height=height, width=width, frames=range(8), fps=3.0, duration=DURATION
        )
        frame = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=1)
        if motion == "growing" and shape.startswith("word") and width <= height:
            continue  # wider than a square canvas when full grown
        assert (frame == clip[0, 0, 0]).all(), shape


def test_extents_bound_every_shape():
    for shape in (*grammar.FORMS, *grammar.LETTERS, "word QUEEN", "word III"):
        half_width, half_height = extent(shape)
        assert max(half_width, half_height) <= reach(shape) + 1e-6
        scene = scene_of(f"large red {shape} standing still")
        clip = clip_of(scene, frames=1, height=192)[0].astype(int)
        rows, cols = np.nonzero(np.abs(clip - clip[0, 0]).sum(axis=-1))
        pose = scene_poses(scene, np.zeros(1), width=WIDTH, height=HEIGHT)[0]
        away = np.hypot((cols + 0.5) / 192 - pose.x[0], (rows + 0.5) / 192 - pose.y[0]).max()
        assert away < reach(shape) * pose.radius[0] + 0.02
