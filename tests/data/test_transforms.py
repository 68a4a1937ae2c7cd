"""Windows, crops and packing against slices, pooling and counting done by hand."""

import numpy as np
import pytest

from imagen_video.data.transforms import RandomWindow, packed_row, to_float, video_row


def numbered_clip(frames=12, height=16, width=24):
    """A clip whose channels are frame, pixel row and pixel column."""
    f, y, x = np.meshgrid(range(frames), range(height), range(width), indexing="ij")
    return np.stack([f, y, x], axis=-1).astype(np.uint8)


def record(video, caption="a clip", is_image=False):
    return {"video": video, "caption": caption, "is_image": is_image}


def pooled(video, factor):
    f, h, w, c = video.shape
    blocks = video.reshape(f, h // factor, factor, w // factor, factor, c)
    return blocks.astype(np.float64).mean(axis=(2, 4))


def test_one_crop_for_all_frames_and_skipped_frames_in_step():
    window = RandomWindow(frames=3, frame_step=4, crop=(8, 12), crop_multiple=4)
    video = window(record(numbered_clip()), np.random.default_rng(0))["video"]
    assert video.shape == (3, 8, 12, 3)
    frame, y, x = video[..., 0], video[..., 1], video[..., 2]
    np.testing.assert_array_equal(np.diff(frame[:, 0, 0]), [4, 4])
    assert np.ptp(frame, axis=(1, 2)).max() == 0
    # Every frame shows the same pixels of the clip.
    np.testing.assert_array_equal(y, np.broadcast_to(y[:1], y.shape))
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
    assert y[0, 0, 0] % 4 == 0 and x[0, 0, 0] % 4 == 0


def test_every_window_that_fits_is_drawn_and_no_other():
    window = RandomWindow(frames=4, frame_step=2, start_multiple=2, crop=(8, 8), crop_multiple=4)
    rng = np.random.default_rng(0)
    drawn = [window.draw(rng, frames=12, height=16, width=24, is_image=False) for _ in range(600)]
    assert {w.start for w in drawn} == {0, 2, 4}  # the window spans 7 of 12 frames
    assert {w.top for w in drawn} == {0, 4, 8}
    assert {w.left for w in drawn} == {0, 4, 8, 12, 16}


def test_low_res_of_an_aligned_crop_is_a_crop_of_the_low_res():
    clip = np.random.default_rng(1).integers(0, 256, (2, 16, 24, 3), np.uint8)
    window = RandomWindow(frames=2, crop=(8, 8), crop_multiple=4)
    for seed in range(5):
        w = window.draw(np.random.default_rng(seed), frames=2, height=16, width=24, is_image=False)
        rows = slice(w.top // 4, w.top // 4 + 2)
        columns = slice(w.left // 4, w.left // 4 + 2)
        np.testing.assert_array_equal(pooled(w.cut(clip), 4), pooled(clip, 4)[:, rows, columns])
    # Off the grid it is not: the multiple is needed.
    assert np.abs(pooled(clip[:, 1:9, :8], 4) - pooled(clip, 4)[:, :2, :2]).max() > 1


def test_a_still_image_has_one_frame_whatever_the_window():
    window = RandomWindow(frames=8, frame_step=2, start_multiple=4, crop=(8, 8))
    image = window(record(numbered_clip(frames=1), is_image=True), np.random.default_rng(0))
    assert image["video"].shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"frames": 0}, "frames"),
        ({"frames": 1, "crop": (8, 6), "crop_multiple": 4}, "crop_multiple"),
        ({"frames": 1, "frame_step": 0}, "frame_step"),
    ],
)
def test_impossible_windows_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        RandomWindow(**fields)


def test_a_clip_too_short_or_small_is_refused():
    clip = record(numbered_clip(frames=7))
    for window in (RandomWindow(frames=4, frame_step=3), RandomWindow(frames=2, crop=(32, 8))):
        with pytest.raises(ValueError, match="holds no window"):
            window(clip, np.random.default_rng(0))


def test_to_float_maps_grey_levels_to_minus_one_and_one():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = to_float(levels)
    assert x.dtype == np.float32 and x.min() == -1.0 and x.max() == 1.0
    np.testing.assert_allclose(x.ravel(), np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_array_equal(np.round((x + 1) * 127.5), levels)


def test_packed_row_keeps_images_and_captions_in_order():
    images = [
        record(np.full((1, 2, 2, 3), 50 * i, np.uint8), f"picture {i}", True) for i in range(4)
    ]
    row = packed_row(images)
    assert row["captions"] == [f"picture {i}" for i in range(4)] and row["is_image"]
    np.testing.assert_allclose(row["video"][:, 0, 0, 0], np.arange(4) * 50 / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="still images"):
        packed_row([record(numbered_clip())])
    with pytest.raises(ValueError, match="still image"):
        video_row(images[0])
