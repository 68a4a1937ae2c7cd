"""A sample is the same alone, in a batch and on eight devices; its noise to the bit."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sampled_rows import sampled_rows

TESTS = pathlib.Path(__file__).parents[1]
NOISE = ("init", "step", "low_res")
STAGES = ("base", "tsr1")


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    paths = {name: folder / f"{name}.npz" for name in STAGES}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, TESTS / "sampled_rows.py", *(str(x) for kv in paths.items() for x in kv)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(TESTS.parent)},
        check=True,
        timeout=300,
    )
    return {name: dict(np.load(path)) for name, path in paths.items()}


@pytest.fixture(scope="module")
def in_a_batch():
    return {name: sampled_rows(name, [0, 1, 2, 3]) for name in STAGES}


def assert_same_samples(found, expected):
    assert found.keys() == expected.keys()
    for name in NOISE:
        if name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    assert 0.2 < expected["evaluation"].std() < 5
    np.testing.assert_allclose(found["evaluation"], expected["evaluation"], atol=1e-5)
    np.testing.assert_allclose(found["clip"], expected["clip"], atol=1e-3)


@pytest.mark.parametrize("name", STAGES)
def test_alone_and_in_a_batch(in_a_batch, name):
    alone = sampled_rows(name, [2])
    assert_same_samples(alone, {key: x[2:3] for key, x in in_a_batch[name].items()})
    other = {key: x[1:2] for key, x in in_a_batch[name].items()}
    for key in alone:
        assert np.abs(alone[key] - other[key]).max() > 1e-2


@pytest.mark.parametrize("name", STAGES)
def test_on_eight_devices(in_a_batch, on_eight_devices, name):
    first = {key: x[:4] for key, x in on_eight_devices[name].items()}
    assert_same_samples(first, in_a_batch[name])


@pytest.mark.parametrize("name", STAGES)
def test_the_same_program_and_batch_repeat_their_bits_and_another_seed_does_not(in_a_batch, name):
    again = sampled_rows(name, [0, 1, 2, 3])
    for key, value in in_a_batch[name].items():
        np.testing.assert_array_equal(again[key], value)
    other = sampled_rows(name, [0, 1, 2, 3], seed=4)
    for key, value in in_a_batch[name].items():
        assert np.abs(other[key] - value).max() > 1e-2


def sampled_by_eight(stage, context, mesh):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    program = pathlib.Path(__file__).parents[1] / "sharded_sampling.py"
    done = subprocess.run(
        [sys.executable, str(program), stage, context, mesh],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "context" in found["cut"]
    assert found["difference"] < 1e-3
    return found


@pytest.mark.parametrize(
    ("stage", "context"),
    [("ssr1", "frames")]
    + [
        pytest.param(stage, context, marks=pytest.mark.slow)
        for stage, context in (("tsr1", "height"), ("ssr1", "height"), ("tsr1", "frames"))
    ],
)
def test_eight_devices_that_share_a_clip_gather_none_of_it(stage, context):
    """Dynamic thresholding included; the samples are those of one device."""
    found = sampled_by_eight(stage, context, "1x1x8x1")
    assert found["permutes"] > 0
    assert found["largest_all_gather"] < found["clip"] / 8


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "context"), [("ssr1", "frames"), ("tsr1", "height")])
def test_devices_that_cut_channels_too_gather_those_of_their_own_part_of_a_clip(stage, context):
    found = sampled_by_eight(stage, context, "2x1x2x2")
    assert found["permutes"] > 0 and found["largest_all_gather"] > 0
    assert not found["whole"], found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "mesh", "attention"),
    [
        ("frames", "1x1x8x1", "temporal"),
        ("height", "1x1x8x1", "spatial"),
        ("frames", "2x1x2x2", "temporal"),
    ],
)
def test_self_attention_alone_gathers_its_keys_and_values(context, mesh, attention):
    """Each frame, or row, of the base model attends to all others; nothing else needs them."""
    found = sampled_by_eight("base", context, mesh)
    assert found["whole"]
    for operation in found["whole"]:
        assert f"/{attention}/" in operation and "dot_general" in operation, found
