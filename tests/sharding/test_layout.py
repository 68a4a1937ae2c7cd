"""The rule table and its fallbacks, on abstract devices: no array is made."""

import types

import jax
import numpy as np
import pytest
from absl import logging
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout, ShardingConfig, layout_if_needed
from imagen_video.sharding.mesh import MESH_AXES, MeshShape


def layout(data=1, fsdp=1, context=1, tensor=1, **fields):
    """A layout of as many stand-ins for this process's device as its mesh wants."""
    device = jax.devices()[0]
    devices = np.full((data, fsdp, context, tensor), device, dtype=object)
    return Layout(mesh=Mesh(devices, MESH_AXES), **fields)


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        (dict(data=2, fsdp=4), P(("data", "fsdp"), None, None, None, None)),
        (dict(context=4), P(None, "context", None, None, None)),
        (dict(tensor=8), P(None, None, None, None, "tensor")),
    ],
)
def test_clips(fields, spec):
    assert layout(**fields).spec(axes.CLIP, (8, 16, 24, 40, 64)) == spec


def split_height(parts, rows, min_rows=4):
    mesh = layout(context=parts).mesh
    height = Layout(mesh=mesh, context="height", min_rows=min_rows)
    return height.spec(axes.CLIP, (1, 16, rows, 40, 64))[2]


def test_height_is_cut_only_where_enough_rows_are_left():
    assert split_height(8, 32) == "context"
    assert split_height(8, 24) is None  # 3 rows each
    assert split_height(8, 24, min_rows=3) == "context"
    assert split_height(8, 36) is None  # not divisible


@pytest.mark.parametrize(
    ("context", "shape", "uncut"),
    [
        ("frames", (1, 9, 64, 40, 3), "9 frames"),
        ("height", (1, 16, 28, 40, 3), "28 rows of pixels"),  # 3.5 rows each
        ("height", (1, 16, 24, 40, 3), "24 rows of pixels"),  # 3 rows each
        ("height", (1, 16, 64, 40, 3), None),
    ],
)
def test_an_axis_that_cuts_no_clip_is_warned_of(monkeypatch, context, shape, uncut):
    warned = []
    monkeypatch.setattr(
        logging, "log_first_n", lambda level, text, n, *args: warned.append(text % args)
    )
    over = Layout(mesh=layout(context=8).mesh, context=context)
    over.spec(axes.PIXELS, shape)
    # A lower level that is left whole is no matter.
    Layout(mesh=over.mesh, context="height").spec(axes.CLIP, (1, 16, 8, 10, 256))
    assert [text for text in warned if "devices all compute the same clips" in text] == warned
    assert warned == [] if uncut is None else [uncut in text for text in warned] == [True]


def test_a_batch_that_not_all_axes_divide_is_cut_by_those_that_do():
    assert layout(data=2, fsdp=4).spec(axes.CLIP, (2, 16, 24, 40, 64))[0] == "data"
    assert layout(data=2, fsdp=4).spec(axes.CLIP, (1, 16, 24, 40, 64))[0] is None


def test_names_and_shape_must_agree():
    with pytest.raises(ValueError, match="do not fit shape"):
        layout().spec(axes.CLIP, (1, 2, 3))


CONV = (axes.KERNEL, axes.KERNEL, axes.IN, axes.OUT)


@pytest.mark.parametrize(
    ("names", "shape", "spec"),
    [
        (CONV, (3, 3, 256, 512), P(None, None, "fsdp", "tensor")),
        # Three colours come in, and tensor has what comes out: nothing is left for fsdp.
        (CONV, (3, 3, 3, 1024), P(None, None, None, "tensor")),
        # A stack of layers is never cut, even where it divides best.
        ((axes.LAYERS, axes.NORM), (64, 256), P(None, "fsdp")),
        ((axes.OUT,), (512,), P()),  # small
        ((axes.IN, axes.HEADS, axes.HEAD_DIM), (1024, 16, 64), P("fsdp", "tensor", None)),
    ],
)
def test_parameters(names, shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    found = layout(fsdp=4, tensor=2).params({"p": names}, {"p": leaf})["p"].spec
    assert found == spec


def test_fsdp_falls_back_to_the_largest_dimension_it_divides():
    leaf = jax.ShapeDtypeStruct((3, 3, 3, 2048), np.float32)
    assert layout(fsdp=4).params({"p": CONV}, {"p": leaf})["p"].spec == P(None, None, None, "fsdp")


def of_processes(parts):
    """A layout whose devices carry the process numbers of `parts`, one row a batch part."""
    devices = np.array(
        [[types.SimpleNamespace(process_index=p) for p in part] for part in parts], dtype=object
    )
    mesh = types.SimpleNamespace(
        devices=devices,
        axis_names=MESH_AXES,
        shape=dict(data=len(parts), fsdp=1, context=len(parts[0]), tensor=1),
    )
    made = object.__new__(Layout)
    object.__setattr__(made, "mesh", mesh)
    return made


def test_every_process_reads_the_rows_its_devices_hold():
    assert of_processes([[0, 0], [0, 0], [1, 1], [1, 1]]).parts_of_process(1) == (2, 3)
    # One clip over two processes: both read it.
    shared = of_processes([[0, 1], [2, 3]])
    assert [shared.parts_of_process(p) for p in range(4)] == [(0,), (0,), (1,), (1,)]
    assert of_processes([[0], [1], [0], [1]]).parts_of_process(1) == (1, 3)
    with pytest.raises(ValueError, match="not as many"):
        of_processes([[0], [1], [0]]).parts_of_process(0)


def test_a_single_cpu_needs_no_layout():
    assert layout_if_needed(ShardingConfig(), jax.devices()[:1]) is None
    with pytest.raises(ValueError, match=r"mesh: data 2, .* does not fit 1 devices"):
        layout_if_needed(ShardingConfig(mesh=MeshShape(data=2)), jax.devices()[:1])
