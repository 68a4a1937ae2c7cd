"""Names of TPU slices."""

import pytest

from imagen_video.profiling.slices import Slice


@pytest.mark.parametrize(
    ("name", "shape", "hbm_gib"),
    [
        ("v5p:4x4x4", (4, 4, 4), 95),
        ("v4:2x2x1", (2, 2, 1), 32),
        ("v5e:2x4", (2, 4), 16),
        ("v6e:16x16", (16, 16), 32),
    ],
)
def test_a_name_is_read_and_written_back(name, shape, hbm_gib):
    where = Slice.parse(name)
    assert where.shape == shape
    assert where.chip.hbm_gib == hbm_gib
    assert str(where) == name


@pytest.mark.parametrize("name", ["v5p", "v7:2x2", "v5e:2x2x2", "v4:4x4", "v5p:0x4x4", "v5p:4x4x"])
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(ValueError, match="slice"):
        Slice.parse(name)
