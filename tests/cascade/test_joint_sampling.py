"""Two processes sample together what one process with the same devices samples."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from micro_cascade import BASE, TSR1, write_weights

from imagen_video.video_io import read_clip

PROMPTS = ("--prompt", "a red circle", "--prompt", "a blue star")
STEPS = 64  # long enough to be killed in
pytestmark = pytest.mark.slow


def start(folder, *flags, out, processes, devices):
    """Starts the processes of one job; each of them is given a disk of its own."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    running = []
    for process in range(processes):
        disk = folder / f"disk_{process}"
        disk.mkdir(exist_ok=True)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-m", "imagen_video", "sample", "--distributed", *PROMPTS]
        command += ["--weights", str(folder), "--out", out, "--batch_size", "1"]
        command += ["--steps", str(STEPS), *flags]
        running.append(
            subprocess.Popen(
                command,
                cwd=disk,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finish(running):
    """Exit codes, standard outputs and standard errors."""
    said = [process.communicate(timeout=300) for process in running]
    return [process.returncode for process in running], *zip(*said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"), stages=(BASE, TSR1))


@pytest.fixture(scope="module")
def alone(folder):
    codes, _, errors = finish(start(folder, out="alone", processes=1, devices=2))
    assert codes == [0], errors
    return folder / "disk_0/alone"


def check_same_videos(out, alone):
    ours, theirs = (json.loads((where / "manifest.json").read_text()) for where in (out, alone))
    assert {k: v for k, v in ours.items() if k != "samples"} == {
        k: v for k, v in theirs.items() if k != "samples"
    }
    assert len(ours["samples"]) == 2
    for sample in ours["samples"]:
        clips = [read_clip(where / sample["video"]).frames.astype(int) for where in (out, alone)]
        output = TSR1.output
        assert clips[0].shape == (output.frames, output.height, output.width, 3)
        assert clips[0].std() > 5  # something to see
        assert np.abs(clips[0] - clips[1]).mean() < 0.5


def test_videos_are_those_of_one_process_and_the_first_alone_writes_them(folder, alone):
    codes, outputs, errors = finish(start(folder, out="both", processes=2, devices=1))
    assert codes == [0, 0], errors
    check_same_videos(folder / "disk_0/both", alone)
    assert not (folder / "disk_1/both").exists()
    printed = [[line for line in o.splitlines() if not line.startswith("[Gloo]")] for o in outputs]
    assert [len(lines) for lines in printed] == [2, 0]
    assert "step/s" in errors[0] and "step/s" not in errors[1]


def test_a_killed_job_goes_on_in_the_middle_of_a_stage(folder, alone):
    out = folder / "disk_0/killed"
    running = start(folder, "--save_every=1", out="killed", processes=2, devices=1)
    until = time.monotonic() + 200
    while not list(out.glob(".unfinished-*/batch_00000/base.state.npz")):
        assert time.monotonic() < until and running[0].poll() is None
        time.sleep(0.01)
    for process in running:
        process.send_signal(signal.SIGKILL)
    finish(running)
    (kept,) = out.glob(".unfinished-*/batch_00000/base.state.npz")
    with np.load(kept) as state:
        assert 0 < state["step"] < STEPS
        first_bar = f" {int(state['step'])}/{STEPS} "
    codes, _, errors = finish(start(folder, out="killed", processes=2, devices=1))
    assert codes == [0, 0], errors
    assert first_bar in errors[0].partition("base:")[2].partition("\r")[0]
    check_same_videos(out, alone)


def test_what_is_wrong_with_the_first_ones_folder_ends_all_with_one_line(folder, alone):
    codes, _, errors = finish(start(folder, "--seed=5", out="alone", processes=2, devices=1))
    assert codes == [2, 2]
    for said in errors:
        assert "holds the videos of another request" in said and "Traceback" not in said
