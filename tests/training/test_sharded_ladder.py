"""A ladder whose rows and parameters are cut over devices against the same on one."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.slow
def test_a_ladder_on_eight_devices_is_that_on_one(tmp_path):
    program, rungs = pathlib.Path(__file__).parents[1] / "sharded_ladder.py", {}
    for devices in (1, 8):
        count = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, str(program), str(tmp_path / str(devices))],
            env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["devices"] == devices
        rungs[devices] = found["rungs"]
    for ours, wanted in zip(rungs[8], rungs[1]):
        assert ours["error"] < ours["error_before"]
        for name in ("error_before", "error", "sample_difference"):
            np.testing.assert_allclose(ours[name], wanted[name], rtol=1e-3)
