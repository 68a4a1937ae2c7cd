"""What runs on each worker of a slice."""

import shutil
import subprocess

import pytest


@pytest.mark.parametrize("command", [("run", "train"), ("stop",)])
def test_who_follows_a_run_that_is_gone_ends_too(checkout, command):
    run = checkout.root / "runs/command"  # begun by another, which has not said yet who it is
    run.mkdir(parents=True)
    process = checkout.start("worker.sh", *command, WORKER="0")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    shutil.rmtree(run)
    assert process.wait(timeout=30) == 255
