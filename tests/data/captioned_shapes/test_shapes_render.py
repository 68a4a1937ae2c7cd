"""Pixels against closed forms, and windows and frames against the whole."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_video.data.captioned_shapes import cube, forms, grammar
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.mixture import Mixture
from imagen_video.data.captioned_shapes.render import Window, render
from imagen_video.data.captioned_shapes.scene import draw_scene
from imagen_video.data.captioned_shapes.source import make_scene

DURATION = 64 / 24


def white_on_black(text, *, key=0, **numbers):
    """A scene whose pixels are 255 times the share of them that the object covers."""
    scene = draw_scene(grammar.parse(text), Draws("render", key))
    middle = {"across": 0.5, "down": 0.5, "rgb": (1.0, 1.0, 1.0)} | numbers
    body = dataclasses.replace(scene.bodies[0], **middle)
    return dataclasses.replace(scene, bodies=(body,), background=(0.0, 0.0, 0.0))


def still(shape, style=None, **numbers):
    ending = f" in {style} style" if style else ""
    text = f"a picture of a large red {shape} on a white background{ending}"
    return white_on_black(text, **numbers)


def draw(scene, *, height=96, width=160, frames=(0,), **options):
    return render(
        scene, height=height, width=width, frames=frames, fps=24.0, duration=DURATION, **options
    )


def any_scene(index, *, is_image=False):
    mixture = Mixture(two_objects=0.5, styled_videos=0.5)
    return make_scene(index, seed=9, split="test", is_image=is_image, mixture=mixture)


def cube_area(yaw):
    """A parallel projection of a cube: each pair of faces shows its cosine with the sight."""
    sight = (
        math.cos(cube.ELEVATION) * math.sin(yaw),
        math.sin(cube.ELEVATION),
        math.cos(cube.ELEVATION) * math.cos(yaw),
    )
    return (2 * cube.HALF_EDGE) ** 2 * sum(abs(cosine) for cosine in sight)


AREA = {
    "circle": math.pi,
    "square": (2 * forms.SQUARE_HALF_SIDE) ** 2,
    "triangle": 3 * math.sqrt(3) / 4 * forms.TRIANGLE_CIRCUMRADIUS**2,
    "star": 5 * forms.STAR_OUTER * forms.STAR_INNER * math.sin(math.radians(36)),
    "cross": 8 * forms.CROSS_HALF_LENGTH * forms.CROSS_HALF_WIDTH - 4 * forms.CROSS_HALF_WIDTH**2,
    "ring": math.pi * (forms.RING_OUTER**2 - forms.RING_INNER**2),
    # A square whose diagonal is 1, and two half discs on sides of length sqrt(1/2).
    "heart": (0.5 + math.pi / 8) * forms.HEART_SCALE**2,
}


@pytest.mark.parametrize("shape", AREA)
@pytest.mark.parametrize(
    ("height", "tolerance"), [(12, 0.01), (30, 0.01), (96, 0.01), (200, 0.005)]
)
def test_a_form_covers_its_area(shape, height, tolerance):
    for tilt in (0.0, 0.1, 0.77):
        scene = still(shape, tilt=tilt, radius=0.3)
        pixels = draw(scene, height=height, width=height * 5 // 3)[0, ..., 0].sum() / 255
        assert pixels == pytest.approx(AREA[shape] * (0.3 * height) ** 2, rel=tolerance)


def test_a_cube_covers_its_projection_at_every_angle():
    for yaw in np.linspace(0, math.pi, 13):
        scene = still("cube", tilt=float(yaw), radius=0.3)
        covered = (draw(scene, height=288, width=480)[0, ..., 0] > 50).sum()
        assert covered == pytest.approx(cube_area(yaw) * (0.3 * 288) ** 2, rel=0.02)


def test_a_form_is_centred_on_its_centroid():
    for shape in AREA:
        image = draw(still(shape, tilt=0.4, radius=0.3))[0, ..., 0].astype(float)
        x = (image.sum(axis=0) @ (np.arange(160) + 0.5)) / image.sum()
        y = (image.sum(axis=1) @ (np.arange(96) + 0.5)) / image.sum()
        assert (x, y) == pytest.approx((80, 48), abs=0.05)


def test_forms_are_upright_and_letters_are_not_mirrored():
    """The triangle's and star's tip is up, the heart's is down, the stem of L is on the left."""
    for shape, wide_half in (("triangle", "lower"), ("heart", "upper")):
        image = draw(still(shape, tilt=0.0))[0, ..., 0].astype(int)
        upper, lower = (image[:48] > 128).sum(axis=1).max(), (image[48:] > 128).sum(axis=1).max()
        assert (lower > upper) == (wide_half == "lower")
    image = draw(still("letter L", tilt=0.0))[0, ..., 0].astype(float)
    assert image[:, :80].sum() > 2 * image[:, 80:].sum()
    assert image[48:].sum() > 1.3 * image[:48].sum()


def test_colours_are_those_of_the_scene():
    scene = draw_scene(
        grammar.parse("a picture of a large red square on a grey background"), Draws(0)
    )
    image = draw(scene)[0]
    for rgb, pixel in ((scene.background, image[0, 0]), (scene.bodies[0].rgb, None)):
        wanted = np.rint(255 * np.array(rgb))
        if pixel is None:
            strongest = np.abs(image.astype(int) - image[0, 0]).sum(axis=-1).argmax()
            pixel = image.reshape(-1, 3)[strongest]
        assert np.abs(pixel - wanted).max() <= 1


def test_a_small_canvas_is_the_mean_of_a_large_one():
    for index in range(12):
        scene = any_scene(index)
        if len(scene.bodies) > 1:
            continue
        large = draw(scene, frames=(0, 32)).reshape(2, 12, 8, 20, 8, 3).mean(axis=(2, 4))
        small = draw(scene, height=12, width=20, frames=(0, 32))
        assert np.abs(large - small).max() < 1.1  # both are rounded


def test_edges_are_antialiased():
    image = draw(still("circle", radius=0.3))[0, ..., 0]
    grey = ((image > 10) & (image < 245)).sum()
    circumference = 2 * math.pi * 0.3 * 96
    assert 0.8 * circumference < grey < 2 * circumference


@settings(max_examples=40, deadline=None)
@given(
    index=st.integers(0, 500),
    size=st.sampled_from([(96, 160), (24, 40), (30, 30), (50, 20), (97, 161)]),
    start=st.integers(0, 60),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    is_image=st.booleans(),
)
def test_a_window_equals_that_part_of_the_whole(index, size, start, corner, share, is_image):
    height, width = size
    rows, cols = 1 + int(share[0] * (height - 1)), 1 + int(share[1] * (width - 1))
    window = Window(
        top=int(corner[0] * (height - rows)),
        left=int(corner[1] * (width - cols)),
        height=rows,
        width=cols,
    )
    frames = (0,) if is_image else range(start, start + 4)
    scene = any_scene(index, is_image=is_image)
    whole = draw(scene, height=height, width=width, frames=frames)
    part = draw(scene, height=height, width=width, frames=frames, window=window)
    cut = whole[:, window.top : window.top + rows, window.left : window.left + cols]
    np.testing.assert_array_equal(part, cut)


@settings(max_examples=15, deadline=None)
@given(
    index=st.integers(0, 500),
    frames=st.lists(st.integers(0, 63), min_size=1, max_size=5),
)
def test_some_frames_equal_those_of_the_whole_clip(index, frames):
    scene = any_scene(index)
    whole = draw(scene, height=24, width=40, frames=range(64))
    np.testing.assert_array_equal(draw(scene, height=24, width=40, frames=frames), whole[frames])


def test_a_lower_frame_rate_shows_every_so_many_frames():
    for index in range(10):
        scene = any_scene(index)
        fast = draw(scene, height=24, width=40, frames=range(0, 64, 8))
        slow = render(scene, height=24, width=40, frames=range(8), fps=3.0, duration=DURATION)
        np.testing.assert_array_equal(fast, slow)


def test_a_style_changes_how_an_object_is_filled_and_nothing_else():
    for shape in ("circle", "star", "cube", "letter S", "word JAM"):
        plain = draw(still(shape, tilt=0.1))[0, ..., 0].astype(int)
        outline = draw(still(shape, "outline", tilt=0.1))[0, ..., 0].astype(int)
        assert (outline <= plain + (255 if shape == "cube" else 1)).all()
        assert (outline[plain == 0] == 0).all()
        assert 0.15 < (outline > 128).sum() / (plain > 100).sum() < 0.75
        for style in ("striped", "mosaic"):
            filled = draw(still(shape, style, tilt=0.1))[0, ..., 0].astype(int)
            assert (filled <= plain + 1).all()
            assert (filled[plain > 150] > 25).all()
            inside = filled[plain == plain.max()]
            assert inside.std() > 20  # and there is a pattern


def test_pastel_is_lighter_and_of_the_same_hue():
    text = "a picture of a large blue square on a black background"
    rgb, pastel = (
        np.array(draw_scene(grammar.parse(t), Draws(1)).bodies[0].rgb)
        for t in (text, f"{text} in pastel style")
    )
    assert (pastel > rgb).all()
    spread = [colour - colour.min() for colour in (rgb, pastel)]
    np.testing.assert_allclose(spread[0] / spread[0].max(), spread[1] / spread[1].max(), atol=1e-6)


def test_two_objects_each_keep_to_their_half():
    text = "a red circle growing and a blue star spinning on a white background"
    for key in range(5):
        clip = draw(draw_scene(grammar.parse(text), Draws(key)), frames=range(0, 64, 8)).astype(int)
        red, blue = clip[..., 0] - clip[..., 2] > 80, clip[..., 2] - clip[..., 0] > 80
        assert red[:, :, :80].sum() > 0.98 * red.sum() > 0
        assert blue[:, :, 80:].sum() > 0.98 * blue.sum() > 0


def test_impossible_requests_are_named():
    scene = any_scene(0)
    with pytest.raises(ValueError, match="height"):
        draw(scene, height=0)
    with pytest.raises(ValueError, match="frames"):
        draw(scene, frames=(64,))
    with pytest.raises(ValueError, match="frames"):
        draw(scene, frames=())
    with pytest.raises(ValueError, match="window"):
        draw(scene, window=Window(top=90, left=0, height=10, width=10))
