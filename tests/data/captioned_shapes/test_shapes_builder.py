"""The TFDS builder: what is on disk is what the source draws."""

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from imagen_video.data.captioned_shapes.builder import (  # noqa: E402
    CaptionedShapes,
    CaptionedShapesConfig,
)
from imagen_video.data.captioned_shapes.source import CaptionedShapesSource  # noqa: E402


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    config = CaptionedShapesConfig(
        name="tiny", height=12, width=20, frames=8, fps=3.0, seed=4, videos=20, images=5
    )
    made = CaptionedShapes(config=config, data_dir=tmp_path_factory.mktemp("tfds"))
    made.download_and_prepare()
    return made


def test_splits_have_the_sizes_asked_for(builder):
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"train": 20, "test": 2, "train_images": 5, "test_images": 1}


@pytest.mark.parametrize("split", ["train", "test", "train_images", "test_images"])
def test_record_i_is_sample_i(builder, split):
    name, is_image = split.removesuffix("_images"), split.endswith("_images")
    source = CaptionedShapesSource(
        split=name,
        height=12,
        width=20,
        frames=1 if is_image else 8,
        fps=3.0,
        duration=64 / 24,
        is_image=is_image,
        seed=4,
    )
    records = builder.as_data_source(split=split)
    for index in range(len(records)):
        record, sample = records[index], source[index]
        np.testing.assert_array_equal(record["video"], sample["video"])
        assert record["caption"].decode() == sample["caption"]
        assert record["is_image"] == is_image


def test_files_are_array_records(builder):
    data = {path.name for path in builder.data_path.iterdir() if path.suffix != ".json"}
    assert len(data) == 4
    assert all(".array_record-" in name for name in data)
