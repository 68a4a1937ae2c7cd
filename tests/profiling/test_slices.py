"""Names of TPU slices."""

import pytest

from imagen_video.profiling.slices import Slice


@pytest.mark.parametrize(
    ("name", "chips"), [("v5p:4x4x4", 64), ("v4:2x2x1", 4), ("v5e:2x4", 8), ("v6e:16x16", 256)]
)
def test_a_name_is_read_and_written_back(name, chips):
    where = Slice.parse(name)
    assert where.chips == chips
    assert str(where) == name


@pytest.mark.parametrize("name", ["v5p", "v7:2x2", "v5e:2x2x2", "v4:4x4", "v5p:0x4x4", "v5p:4x4x"])
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(ValueError, match="slice"):
        Slice.parse(name)
