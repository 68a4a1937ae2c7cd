"""The source: random access, the same for ever, the same at any size."""

import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.grammar import parse
from imagen_video.data.captioned_shapes.source import VERSION, CaptionedShapesSource

CLIPS = CaptionedShapesSource(
    split="train", height=24, width=40, frames=8, fps=3.0, duration=64 / 24, seed=7
)
IMAGES = CaptionedShapesSource(split="train", height=24, width=40, is_image=True, seed=7)
DIGEST = """
import hashlib
from imagen_video.data.captioned_shapes.source import CaptionedShapesSource
digest = hashlib.sha256()
for is_image in (False, True):
    source = CaptionedShapesSource(
        split="train", height=24, width=40, frames=1 if is_image else 8, fps=3.0,
        duration=64 / 24, is_image=is_image, seed=7,
    )
    for index in (999, 0, 5, 123_456):
        sample = source[index]
        digest.update(sample["caption"].encode() + sample["video"].tobytes())
print(digest.hexdigest())
"""


def test_a_sample_is_what_it_says():
    for source, frames in ((CLIPS, 8), (IMAGES, 1)):
        for index in range(20):
            sample = source[index]
            assert sample["video"].shape == (frames, 24, 40, 3)
            assert sample["video"].dtype == np.uint8
            assert parse(sample["caption"]).is_image == sample["is_image"] == source.is_image
            assert len(np.unique(sample["video"].reshape(-1, 3), axis=0)) > 5


def test_other_processes_draw_the_same_samples():
    def run(hash_seed):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True
        ).stdout.decode()

    digest = hashlib.sha256()
    for source in (CLIPS, IMAGES):
        for index in (999, 0, 5, 123_456):  # in any order
            sample = source[index]
            digest.update(sample["caption"].encode() + sample["video"].tobytes())
    assert run("1").strip() == run("2").strip() == digest.hexdigest()


def test_version_1_keeps_its_scenes():
    """The contract of `VERSION`: whoever changes one of these scenes raises it."""
    assert VERSION == 1
    source = CaptionedShapesSource(split="train", height=24, width=40)
    assert [source.scene(index).caption.text for index in (0, 1, 123_456)] == [
        "a green ring shrinking and a large blue heart shrinking on a black background",
        "a large orange star moving right on a white background",
        "a small yellow word PRVC bouncing on a black background",
    ]


def test_draws_are_the_bits_of_the_documented_generator():
    digest = hashlib.blake2b(b"('a', 1)", digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(3)
    draws = Draws("a", 1)
    for raw in bits:
        assert draws.uniform() == pytest.approx(int(raw) / 2**64, abs=1e-15)


def test_seed_split_kind_and_index_each_change_the_sample():
    def caption(**changed):
        options = {"split": "train", "seed": 7, "is_image": False} | changed
        source = CaptionedShapesSource(height=24, width=40, **options)
        return [source.scene(index).caption.text for index in range(5)]

    drawn = [caption(), caption(seed=8), caption(split="test"), caption(is_image=True)]
    assert len({tuple(captions) for captions in drawn}) == 4
    assert len(set(drawn[0])) == 5


def test_sizes_and_rates_show_the_same_scenes():
    large = CaptionedShapesSource(
        split="train", height=96, width=160, frames=64, fps=24.0, duration=64 / 24, seed=7
    )
    for index in range(6):
        assert large.scene(index) == CLIPS.scene(index)
        scene = large.scene(index)
        clip = large.render(scene, frames=range(0, 64, 8)).reshape(8, 24, 4, 40, 4, 3)
        difference = clip.mean(axis=(2, 4)) - CLIPS[index]["video"]
        # Two objects that overlap are laid over one another before or after averaging.
        limit = 1.1 if len(scene.bodies) == 1 else 30
        assert np.abs(difference).max() < limit


def test_a_start_frame_skips_what_comes_before():
    late = CaptionedShapesSource(
        split="train",
        height=24,
        width=40,
        frames=3,
        start_frame=5,
        fps=3.0,
        duration=64 / 24,
        seed=7,
    )
    np.testing.assert_array_equal(late[3]["video"], CLIPS[3]["video"][5:])


def test_it_is_a_sequence_that_workers_can_copy():
    short = CaptionedShapesSource(split="test", height=12, width=20, size=3)
    assert len(list(short)) == len(short) == 3
    copy = pickle.loads(pickle.dumps(CLIPS))
    np.testing.assert_array_equal(copy[2]["video"], CLIPS[2]["video"])
    for index in (-1, 3):
        with pytest.raises(IndexError):
            short[index]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"split": "dev"}, "split"),
        ({"height": 0}, "height"),
        ({"frames": 0}, "frames"),
        ({"frames": 8, "is_image": True}, "frames"),
        ({"frames": 129}, "frames"),
        ({"frames": 64, "start_frame": 65}, "start_frame"),
        ({"start_frame": -1}, "start_frame"),
    ],
)
def test_impossible_sources_are_refused(changed, named):
    with pytest.raises(ValueError, match=named):
        CaptionedShapesSource(**({"split": "train", "height": 24, "width": 40} | changed))
