"""The real TPU compiler on real programs, without a TPU."""

import json
import subprocess
import sys

import pytest

from imagen_video.profiling import aot

pytest.importorskip("libtpu")

# As small as a stage can be, so that the compiler's own work is what is tested.
MICRO = (
    "--config.stage.unet.stem_channels=16",
    "--config.stage.unet.channels=(16,)",
    "--config.stage.unet.strides=(1,)",
    "--config.stage.unet.num_blocks=(1,)",
    "--config.train.batch_size=8",
)


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


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 27.01G of 15.75G hbm. Exceeded", 27.01),
        ("Used 1.50T of 95.00G hbm", 1536.0),
        ("another kind of memory", None),
    ],
)
def test_what_the_compiler_wanted_is_read_from_its_message(message, gib):
    assert aot._needed(message) == gib


@pytest.mark.slow
def test_a_training_step_is_compiled_and_does_not_fit_where_the_batch_is_too_large():
    mesh = ("--config.stage.unet.attention=('self',)",)
    base = ("--config=configs/stages/base.py:tiny", "--slice=v5e:2x2", "--program=train")
    code, found, errors = compile_stage(*base, *MICRO, *mesh)
    assert code == 0, errors[-2000:]
    assert found["fits"]
    code, found, _ = compile_stage(*base, *MICRO, *mesh, "--config.train.batch_size=65536")
    assert code == 1
    assert not found["fits"]
    assert found["needed_gib"] is None or found["needed_gib"] > 16
