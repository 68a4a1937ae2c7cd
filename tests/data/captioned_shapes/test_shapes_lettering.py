"""The letters against their outlines, filled by Pillow and measured by the shoelace formula."""

import json
from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagen_video.data.captioned_shapes.grammar import ALPHABET
from imagen_video.data.captioned_shapes.lettering import lettering

FONT = json.loads(
    resources.files("imagen_video.data.captioned_shapes").joinpath("letters.json").read_text()
)


def outline(letter):
    return [
        np.reshape(contour, (-1, 2)) / FONT["cap_height"]
        for contour in FONT["letters"][letter]["contours"]
    ]


def area(letter):
    """In square cap heights; holes run the other way round and subtract themselves."""
    total = 0.0
    for contour in outline(letter):
        x, y = contour.T
        total += 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1))
    return abs(total)


def picture(text, pixels_per_cap=64):
    """Coverage on a grid around the text's origin, and the pixel's place in cap heights."""
    letters = lettering(text)
    half_width, half_height = letters.width / 2 + 0.15, 0.85
    x = np.arange(-half_width, half_width, 1 / pixels_per_cap)
    y = np.arange(-half_height, half_height, 1 / pixels_per_cap)
    cap = np.float32(letters.cap)
    distance = letters.distance(x.astype(np.float32) * cap, y.astype(np.float32)[:, None] * cap)
    return np.clip(0.5 - distance / cap * pixels_per_cap, 0, 1), x, y


@pytest.mark.parametrize("letter", ALPHABET)
def test_a_letter_is_its_outline_filled(letter):
    mask, x, y = picture(letter)
    left = min(contour[:, 0].min() for contour in outline(letter))
    right = max(contour[:, 0].max() for contour in outline(letter))
    filled = np.zeros(mask.shape, bool)
    for contour in outline(letter):
        # Eight times finer, because Pillow paints every pixel that the outline runs through.
        image = Image.new("1", (8 * len(x), 8 * len(y)))
        at_x = (contour[:, 0] - (left + right) / 2 - x[0]) * 512
        at_y = (0.5 - contour[:, 1] - y[0]) * 512
        points = np.stack([at_x, at_y], axis=1)
        ImageDraw.Draw(image).polygon([tuple(point) for point in points], fill=1)
        filled ^= np.asarray(image)[::8, ::8]
    assert (filled != (mask > 0.5)).mean() < 0.01
    assert mask.sum() / 64**2 == pytest.approx(area(letter), rel=0.01)


@pytest.mark.parametrize("word", ["GO", "JAM", "TIGER", "WWWWW", "III", "QJ"])
def test_a_word_is_its_letters_side_by_side(word):
    mask, *_ = picture(word)
    assert mask.sum() / 64**2 == pytest.approx(sum(map(area, word)), rel=0.02)
    columns = mask.max(axis=0) > 0.5
    if word == "III":
        assert np.diff(columns.astype(int)).tolist().count(1) == 3
    assert columns.sum() / 64 <= lettering(word).width + 0.05


def test_words_fit_the_box_of_their_size():
    for word in ("GO", "CAT", "MOON", "WWWWW", "III"):
        letters = lettering(word)
        assert letters.cap * letters.width <= 3.2 + 1e-6
        assert letters.cap <= 1.5


def test_letters_are_told_apart_by_their_pictures():
    pictures = {}
    for letter in ALPHABET:
        mask, *_ = picture(letter, pixels_per_cap=12)
        canvas = np.zeros((24, 40))
        top, left = 0, (40 - mask.shape[1]) // 2
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask[:24]
        pictures[letter] = canvas / np.linalg.norm(canvas)
    for a in ALPHABET:
        for b in ALPHABET:
            assert (pictures[a] * pictures[b]).sum() < 0.97 or a == b
