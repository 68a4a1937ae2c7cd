"""Mesh shapes: what fits a number of devices, and what is refused."""

import pytest

from imagen_video.sharding.mesh import MeshShape, make_mesh


def test_minus_one_takes_what_is_left():
    assert MeshShape(data=2, fsdp=-1, context=4).fit(64).sizes == dict(
        data=2, fsdp=8, context=4, tensor=1
    )
    assert MeshShape(fsdp=1).fit(1) == MeshShape(fsdp=1)


@pytest.mark.parametrize(
    ("shape", "devices"),
    [(MeshShape(data=3), 8), (MeshShape(fsdp=4), 8), (MeshShape(data=16, fsdp=1), 8)],
)
def test_a_shape_that_does_not_fit_is_refused(shape, devices):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        shape.fit(devices)


@pytest.mark.parametrize("sizes", [dict(data=0), dict(tensor=-2), dict(data=-1)])
def test_impossible_shapes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"at least 1|more than once"):
        MeshShape(**sizes)


def test_a_mesh_of_one_device_has_all_four_axes():
    mesh = make_mesh(MeshShape())
    assert dict(mesh.shape) == dict(data=1, fsdp=1, context=1, tensor=1)
