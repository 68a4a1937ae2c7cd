"""Training and evaluation on 8 devices are those on one, for every stage kind and mesh."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[1] / "sharded_stages.py"
KINDS = ("base", "tsr1", "ssr1", "ssr1+self")
MESHES = {
    "8x1x1x1": ("frames",),
    "2x4x1x1": ("frames",),
    "1x1x8x1": ("frames", "height"),
    "2x1x2x2": ("frames", "height"),
}
CASES = [
    f"{kind},{mesh},{context}"
    for kind in KINDS
    for mesh, contexts in MESHES.items()
    for context in contexts
]
FAST = ("ssr1,1x1x8x1,frames",)


def compare(cases):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *cases],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found):
    kind, mesh, context = found["case"].split(",")
    assert found["devices"] == 8
    for what in ("loss", "gradient", "evaluation"):
        assert found[what] < 1e-4, found
    assert not found["fallbacks"], found
    if mesh.split("x")[1] != "1":
        # The kernels' gradients are summed and cut in one go.
        assert found["collectives"]["reduce-scatter"] > 0, found
    if mesh.split("x")[2] == "1":
        return
    # Both levels are cut, and neighbours exchange their edges.
    assert found["split"], found
    if kind != "base" or context == "height":
        assert found["collectives"]["collective-permute"] > 0, found
    if kind != "base" and mesh == "1x1x8x1" and context == "frames":
        # Frames alone, time mixed by convolutions: nobody needs another's clip.
        assert found["collectives"]["all-gather"] == 0, found


def test_eight_devices_compute_what_one_does():
    for found in compare(FAST):
        check(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_mesh_computes_what_one_device_does(kind):
    cases = [case for case in CASES if case.split(",")[0] == kind]
    found = compare(cases)
    assert [result["case"] for result in found] == cases
    for result in found:
        check(result)
