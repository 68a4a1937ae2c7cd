"""The built-in dataset on a stage's grid: windows are parts of whole clips, and sizes agree."""

import numpy as np
import pytest

from imagen_video import resample
from imagen_video.data.clip_source import ClipSource
from imagen_video.data.sources import CaptionedShapes, ClipGrid
from imagen_video.data.transforms import RandomWindow

GRID = ClipGrid(frames=8, height=12, width=20, fps=3.0)
SHAPES = CaptionedShapes(seconds=64 / 24, size=1000)


def open_source(window, *, grid=GRID, dataset=SHAPES, is_image=False, split="train"):
    return dataset.open(split=split, grid=grid, window=window, is_image=is_image)


def read(source, index, seed=0):
    return source.read(index, rng=np.random.default_rng(seed))


def whole(grid=GRID, **options):
    return open_source(RandomWindow(frames=grid.frames), grid=grid, **options)


def test_it_is_a_dataset_of_clips():
    source = whole()
    assert isinstance(source, ClipSource)
    assert len(source) == 1000
    record = read(source, 3)
    assert record["video"].shape == (8, 12, 20, 3) and record["video"].dtype == np.uint8
    assert record["caption"] == SHAPES.caption(3, split="train", is_image=False)
    assert record["is_image"] is False


def test_the_same_scene_whenever_it_is_read_and_another_for_another_number_or_seed():
    first = read(whole(), 3)
    np.testing.assert_array_equal(first["video"], read(whole(), 3, seed=9)["video"])
    other_seed = CaptionedShapes(seconds=64 / 24, size=1000, seed=1)
    for other in (
        read(whole(), 4),
        read(whole(dataset=other_seed), 3),
        read(whole(split="test"), 3),
    ):
        assert np.abs(other["video"].astype(int) - first["video"]).max() > 30


def test_a_window_is_a_part_of_the_whole_clip():
    window = RandomWindow(frames=4, start_multiple=2, crop=(8, 12), crop_multiple=2)
    source, places = open_source(window), set()
    for seed in range(12):
        video = read(source, 5, seed)["video"]
        drawn = window.draw(
            np.random.default_rng(seed), frames=8, height=12, width=20, is_image=False
        )
        part = drawn.cut(read(whole(), 5)["video"]).astype(int)
        # The filter reaches one drawn pixel over the crop's edge, where it has nothing to read.
        np.testing.assert_array_equal(video[:, 1:-1, 1:-1], part[:, 1:-1, 1:-1])
        assert np.abs(video - part).mean() < 4
        assert drawn.start % 2 == drawn.top % 2 == drawn.left % 2 == 0
        places.add((drawn.start, drawn.top, drawn.left))
    assert len(places) > 5


def test_a_stages_clips_are_the_low_resolution_inputs_of_the_next():
    large_grid = ClipGrid(frames=16, height=24, width=40, fps=6.0)
    for index in range(5):
        small = read(whole(), index)["video"].astype(np.float64)
        large = read(whole(large_grid), index)["video"][None].astype(np.float64)
        reduced = resample.downsample(large, frames=8, height=12, width=20)[0]
        assert np.abs(reduced - small).mean() < 2
        later = resample.downsample(large[:, ::-1], frames=8, height=12, width=20)[0]
        still = "standing still" in SHAPES.caption(index, split="train", is_image=False)
        assert still or np.abs(later - small).mean() > 2


def test_still_images_are_single_frames_with_their_own_captions():
    source = whole(is_image=True)
    captions = set()
    for index in range(6):
        record = read(source, index)
        assert record["video"].shape == (1, 12, 20, 3) and record["is_image"] is True
        assert record["caption"].startswith("a picture of ")
        captions.add(record["caption"])
    assert len(captions) > 3


def test_impossible_sources_are_refused():
    with pytest.raises(ValueError, match="supersampling: 0 is below 1"):
        CaptionedShapes(supersampling=0)
    with pytest.raises(ValueError, match="split: 'dev'"):
        whole(split="dev")
    with pytest.raises(ValueError, match="into a clip of"):
        whole(grid=ClipGrid(frames=9, height=12, width=20, fps=3.0))
    with pytest.raises(ValueError, match="holds no window"):
        read(open_source(RandomWindow(frames=9)), 0)
