"""The real TPU compiler on real programs, without a TPU."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")


def compile_stage(*arguments):
    command = [sys.executable, "-m", "imagen_video", "compile", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_an_sr_stage_is_sampled_by_a_slice():
    mesh = ("--config.sharding.mesh.fsdp=1", "--config.sharding.mesh.context=-1")
    code, found, errors = compile_stage(
        "--config=configs/stages/ssr1.py:tiny", "--slice=v5e:2x2", "--program=sample", *mesh
    )
    assert code == 0, errors[-2000:]
    assert found["fits"]
    assert found["hbm_gib"] == 16.0
    # Parameters alone are 3.4 MB in float32, on every chip.
    assert 3.4e6 / 2**30 < found["arguments_gib"] < 0.1
    assert 0 < found["temporaries_gib"] < 1


def test_mistakes_end_in_one_line_and_exit_code_2():
    for arguments in (
        ("--config=configs/stages/ssr1.py:tiny", "--slice=v5e:2x2x2", "--program=sample"),
        (
            "--config=configs/stages/ssr1.py:tiny",
            "--slice=v5e:2x2",
            "--program=sample",
            "--config.sharding.mesh.fsdp=3",
        ),
    ):
        code, found, errors = compile_stage(*arguments)
        assert code == 2, errors
        assert found is None
        assert "imagen-video: " in errors.strip().splitlines()[-1]


def test_too_many_clips_do_not_fit():
    stage = ("--config=configs/stages/ssr1.py:tiny", "--slice=v5e:2x2", "--program=sample")
    code, found, errors = compile_stage(*stage, "--clips=20000")
    assert code == 1, errors[-2000:]
    assert not found["fits"]
    # z_t and the low-res clip alone, float32, on one of 4 chips.
    assert found["temporaries_gib"] > 2 * 20000 * 16 * 24 * 40 * 3 * 4 / 4 / 2**30
