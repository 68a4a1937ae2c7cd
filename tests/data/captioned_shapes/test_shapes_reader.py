"""The reader on clips it has never seen: held-out renders, clean, and blurred with noise."""

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from imagen_video.data.captioned_shapes import grammar
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.mixture import Mixture
from imagen_video.data.captioned_shapes.reader import ATTRIBUTES, read, score
from imagen_video.data.captioned_shapes.render import render
from imagen_video.data.captioned_shapes.scene import draw_scene
from imagen_video.data.captioned_shapes.source import CaptionedShapesSource

DURATION = 64 / 24
BLUR, NOISE = 1.0, 0.08  # pixels of 96x160; share of the range


def held_out(*, seed, frames=64, height=96, is_image=False, spelled_words=0.25):
    return CaptionedShapesSource(
        split="test",
        height=height,
        width=height * 5 // 3,
        frames=frames,
        fps=24.0 * frames / 64,
        duration=DURATION,
        is_image=is_image,
        seed=seed,
        mixture=Mixture(two_objects=0.0, styled_images=0.0, spelled_words=spelled_words),
    )


def blurred_and_noisy(clip, seed):
    blurred = ndimage.gaussian_filter(clip.astype(np.float32), (0, BLUR, BLUR, 0))
    noise = np.random.default_rng(seed).standard_normal(clip.shape, np.float32)
    return np.clip(np.rint(blurred + 255 * NOISE * noise), 0, 255).astype(np.uint8)


def accuracy(source, count, spoil=lambda clip, seed: clip):
    """Share of clips in which each attribute is read right."""
    right = Counter()
    for index in range(count):
        scene = source.scene(index)
        reading = read(spoil(source.render(scene), index))
        right.update(name for name, good in score(reading, scene.caption).items() if good)
    return {name: right[name] / count for name in ATTRIBUTES}


def clip_of(text, *, frames=16, height=96):
    return render(
        draw_scene(grammar.parse(text), Draws("reader", text)),
        height=height,
        width=height * 5 // 3,
        frames=range(frames),
        fps=frames / DURATION,
        duration=DURATION,
    )


# The reader looks at 16 of 64 frames: the quick tests draw only those.
def test_clean_held_out_clips_are_read():
    shares = accuracy(held_out(seed=1, frames=16), 40)
    assert min(shares.values()) >= 0.97, shares


def test_blurred_and_noisy_held_out_clips_are_read():
    shares = accuracy(held_out(seed=2, frames=16), 20, blurred_and_noisy)
    assert min(shares.values()) >= 0.9, shares


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "least"), [(None, 0.97), (blurred_and_noisy, 0.9)])
def test_many_held_out_clips_of_full_length_are_read(spoil, least):
    spoil = spoil or (lambda clip, seed: clip)
    shares = accuracy(held_out(seed=3), 400, spoil)
    assert min(shares.values()) >= least, shares


def test_sixteen_frames_are_all_the_reader_needs():
    for index in range(3):
        scene = held_out(seed=4).scene(index)
        whole = read(held_out(seed=4).render(scene))
        assert whole == read(held_out(seed=4, frames=16).render(scene))


def test_still_images_are_read_without_a_motion():
    source = held_out(seed=5, frames=1, is_image=True)
    shares = accuracy(source, 20)
    assert min(shares.values()) >= 0.93, shares
    assert read(source[0]["video"]).motion is None


def test_eight_frames_of_twelve_by_twenty_tell_colour_background_and_motion():
    shares = accuracy(held_out(seed=6, frames=8, height=12), 20)
    assert min(shares["background"], shares["colour"], shares["motion"]) >= 0.95, shares
    assert min(shares["size"], shares["shape"]) >= 0.75, shares


@pytest.mark.parametrize("word", ["GO", "JJX", "QUEEN", "MILL", "XYZZY", "OCGQ", "IIII"])
def test_words_are_spelled_out(word):
    caption = f"a blue word {word} moving right on a white background"
    assert score(read(clip_of(caption)), caption)["shape"]


@pytest.mark.parametrize("letter", grammar.ALPHABET)
def test_letters_are_told_apart(letter):
    caption = f"a green letter {letter} bouncing on a black background"
    assert all(score(read(clip_of(caption)), caption).values())


def test_another_caption_scores_wrong_where_it_differs():
    reading = read(clip_of("a small red ring moving up on a grey background"))
    scores = score(reading, "a red ring moving down on a beige background")
    right = {name for name, good in scores.items() if good}
    assert right == {"colour", "shape"}
    with pytest.raises(ValueError, match="two objects"):
        score(reading, "a red ring spinning and a red ring spinning on a grey background")


def test_measurements_are_those_of_the_scene():
    text = "a large blue star spinning on a white background"
    scene = draw_scene(grammar.parse(text), Draws("reader", text))
    measured = read(clip_of(text)).measurements
    assert measured["turn"] == pytest.approx(np.degrees(scene.bodies[0].turn), abs=5)
    assert measured["diameter"] == pytest.approx(2 * scene.bodies[0].radius, rel=0.05)
    measured = read(clip_of("a blue star growing on a white background")).measurements
    assert measured["growth"] == pytest.approx(np.log(2.25), abs=0.03)
    assert abs(measured["bounce"]) + abs(measured["right"]) + abs(measured["down"]) < 0.02


def test_frames_out_of_order_have_no_motion():
    order = np.random.default_rng(0).permutation(16)
    for motion in ("moving left", "moving down", "growing"):
        clip = clip_of(f"a red circle {motion} on a white background")
        assert read(clip).motion == motion
        assert read(clip[order]).motion == "unsure"
    backwards = clip_of("a red circle moving left on a white background")[::-1]
    assert read(backwards).motion == "moving right"


def test_what_shows_nothing_is_unsure():
    empty = np.full((8, 96, 160, 3), 250, np.uint8)
    reading = read(empty)
    assert reading.background == "white"
    assert {reading.colour, reading.shape, reading.size, reading.motion} == {"unsure"}
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 160, 3)).astype(np.uint8)
    reading = read(noise)
    assert {reading.shape, reading.motion} <= {"unsure", "standing still"}
    assert reading.shape == "unsure"


def test_a_colour_or_background_off_the_palette_is_unsure():
    clip = clip_of("a large red square standing still on a white background").copy()
    red = clip[..., 1] < 100
    clip[red] = (110, 110, 110)
    assert read(clip).colour == "unsure"
    clip = clip_of("a large red square standing still on a white background").copy()
    clip[clip[..., 1] > 150] = (20, 20, 200)
    assert read(clip).background == "unsure"
