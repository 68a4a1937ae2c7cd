"""Contact sheets show first and last frames, unaltered where they are small, under their label."""

import numpy as np
import pytest
from PIL import ImageColor

from imagen_video import contact_sheet as module
from imagen_video.contact_sheet import MARGIN, contact_sheet


def numbered(frames, height, width):
    """Frame i is flat grey of level i."""
    levels = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (frames, height, width, 3)).copy()


def tiles(sheet, *, count, columns, height, width):
    top = sheet.shape[0] - -(-count // columns) * (height + MARGIN)
    for place in range(count):
        row, column = divmod(place, columns)
        y, x = top + row * (height + MARGIN), MARGIN + column * (width + MARGIN)
        yield sheet[y : y + height, x : x + width]


@pytest.mark.parametrize(("frames", "shown"), [(64, 16), (16, 16), (5, 5), (1, 1)])
def test_evenly_spaced_frames_first_and_last_included(frames, shown):
    sheet = contact_sheet(numbered(frames, 12, 20), label="a prompt", frame_width=40)
    columns = min(4, shown)
    grid = tiles(sheet, count=shown, columns=columns, height=24, width=40)
    levels = [int(tile.mean()) for tile in grid]
    assert levels[0] == 0 and levels[-1] == frames - 1 and len(levels) == shown
    steps = np.diff(levels)
    assert shown == 1 or (steps.min() > 0 and steps.max() - steps.min() <= 1)


def test_small_frames_are_enlarged_without_a_change():
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 10, 3), dtype=np.uint8)
    sheet = contact_sheet(frames, label="", frame_width=40)
    grid = tiles(sheet, count=3, columns=3, height=24, width=40)
    for frame, tile in zip(frames, grid, strict=True):
        np.testing.assert_array_equal(tile, frame.repeat(4, 0).repeat(4, 1))


def test_large_frames_are_shrunk():
    sheet = contact_sheet(numbered(4, 96, 160), label="", frame_width=40)
    assert sheet.shape == (MARGIN + 24 + MARGIN, 4 * (40 + MARGIN) + MARGIN, 3)


def test_label_is_drawn_and_wraps_inside_the_sheet():
    frames = numbered(4, 12, 20)
    none = contact_sheet(frames, label="")
    short = contact_sheet(frames, label="a red circle")
    long = contact_sheet(frames, label="a large red circle moving left " * 12)
    assert none.shape[0] < short.shape[0] < long.shape[0]
    assert none.shape[1] == short.shape[1] == long.shape[1]
    text = long[: long.shape[0] - (192 + MARGIN)]
    assert (text == 0).any()
    # No line runs into the right margin.
    background = ImageColor.getrgb(module.BACKGROUND)
    assert (text[:, -MARGIN:] == background).all()
    other = contact_sheet(frames, label="a blue circle")
    assert (other != short).any()
