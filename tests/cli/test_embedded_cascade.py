"""The cascade inside the package: what it is made of, and the same videos however it is run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import imagen_video
from imagen_video.cascade.stage import STAGE_NAMES, Stage
from imagen_video.config import load_config, to_record
from imagen_video.loading import load_cascade

ROOT = pathlib.Path(__file__).parents[2]
ASSETS = pathlib.Path(imagen_video.__file__).parent / "assets" / "tiny"
PROMPT = "a large red circle moving left on a white background"
EIGHT = "--xla_force_host_platform_device_count=8"
WHOLE_CLIPS = """
import sys
import numpy as np
from imagen_video.loading import load_cascade
from imagen_video.cascade.cascade import to_uint8

out, rows = sys.argv[1], [int(row) for row in sys.argv[2:]]
prompt = "a {} circle moving left on a white background"
prompts = [prompt.format(colour) for colour in ("red", "green", "blue", "pink")]
results = load_cascade().run([prompts[r] for r in rows], seeds=[7] * len(rows), indices=rows)
np.savez(out, **{r.stage: to_uint8(np.asarray(r.clips)) for r in results})
"""


def test_its_files_are_small_and_its_stages_those_of_the_configs():
    files = {name: ASSETS / f"{name}.safetensors" for name in STAGE_NAMES}
    assert sum(path.stat().st_size for path in files.values()) <= 16 * 2**20
    text = [ASSETS / "text_encoder.safetensors", ASSETS / "tokenizer.model"]
    assert sum(path.stat().st_size for path in text) <= 2 * 2**20
    config = load_config("configs/cascade.py:tiny")
    stages = [to_record(Stage, config.stages[name], where=name) for name in STAGE_NAMES]
    assert load_cascade().stages == tuple(stages)


def environment(cache, *flags):
    """Of a user's process: not the cheap compilation that the tests take."""
    given = {"XLA_FLAGS": " ".join(flags), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return os.environ | given | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_alone_in_a_batch_and_on_eight_devices_it_makes_the_same_pixels(tmp_path):
    def clips(name, rows, *flags):
        path = tmp_path / f"{name}.npz"
        command = [sys.executable, "-c", WHOLE_CLIPS, path, *map(str, rows)]
        subprocess.run(command, check=True, env=environment(tmp_path / "xla", *flags), timeout=1800)
        return dict(np.load(path))

    batch = clips("batch", [0, 1, 2, 3])
    assert list(batch) == list(STAGE_NAMES)
    # In other samples most pixels of the object differ: the comparison can fail.
    assert near(batch["ssr3"][0], batch["ssr3"][1]) < 0.99
    for other, rows in ((clips("alone", [2]), [2]), (clips("eight", [2], EIGHT), [2])):
        for stage in STAGE_NAMES:
            share = near(other[stage], batch[stage][rows])
            print(f"{stage}: {share:.5%} of pixels within one grey level")
            assert share >= 0.999


def near(ours, theirs):
    """Share of pixels whose three channels all differ by at most one grey level."""
    difference = np.abs(ours.astype(int) - theirs.astype(int)).max(axis=-1)
    return float((difference <= 1).mean())


@pytest.mark.slow
def test_killed_outright_inside_ssr2_it_leaves_the_same_bytes(tmp_path):
    def command(out):
        flags = ["--prompt", PROMPT, "--out", out, "--save_every=1"]
        return [sys.executable, "-m", "imagen_video", "sample", *map(str, flags)]

    env = environment(tmp_path / "xla")
    subprocess.run(command(tmp_path / "whole"), check=True, env=env, timeout=1800)
    process = subprocess.Popen(command(tmp_path / "killed"), env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 1800
    while not list((tmp_path / "killed").glob(".unfinished-*/batch_*/ssr2.state.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (kept,) = (tmp_path / "killed").glob(".unfinished-*/batch_00000")
    assert {"base.npz", "tsr1.npz", "ssr1.npz", "ssr2.state.npz"} == {
        path.name for path in kept.iterdir() if not path.name.startswith(".")
    }
    subprocess.run(command(tmp_path / "killed"), check=True, env=env, timeout=1800)
    (video,) = (tmp_path / "whole").glob("*.mp4")
    assert (tmp_path / "killed" / video.name).read_bytes() == video.read_bytes()
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    seconds = manifest["samples"][0]["seconds"]
    assert seconds["base"] == seconds["tsr1"] == seconds["ssr1"] == 0 < seconds["ssr2"]
