"""`imagen-video distill`: from trained weights to students that `sample --distilled` takes."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy_network
from micro_cascade import BASE, drawn_params, stage_run, text_model

from imagen_video import records
from imagen_video.cascade.weights import load_stage, save_stage
from imagen_video.cli.main import main
from imagen_video.diffusion.guidance import ConstantGuidance
from imagen_video.training.checkpoints import restore_params
from imagen_video.training.optimizer import OptimizerConfig
from imagen_video.training.rungs import Distillation, DistillRun

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import json
from ml_collections import ConfigDict, config_dict

def get_config():
    config = ConfigDict(json.loads(r'''{}'''))
    config.teacher = config_dict.placeholder(str)
    return config
"""
# Without attention the training step compiles in half the time.
PLAIN = dataclasses.replace(BASE.unet, attention=("none",), temporal="convolution")
STAGE = dataclasses.replace(BASE, unet=PLAIN)


def write_config(path, stage):
    """A config file of a ladder with one rung, two DDIM steps to two stochastic ones."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="linear")
    fields = {"num_steps": 3, "checkpoint_every": 1, "ema_decay": 0.0, "optimizer": optimizer}
    trained = stage_run(stage, **fields)
    run = DistillRun(
        stage=stage,
        teacher="",
        distillation=Distillation(
            guidance=ConstantGuidance(weight=0.0), start_steps=2, final_steps=2, eval_clips=1
        ),
        data=trained.data,
        text=trained.text,
        guided=trained.train,
        halving=trained.train,
    )
    path.write_text(CONFIG.format(json.dumps(records.to_dict(run))))
    return path


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "micro.py", STAGE)


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher" / "base.safetensors"
    path.parent.mkdir()
    digest = text_model().digest
    save_stage(str(path), STAGE, drawn_params(STAGE), text_digest=digest, dtype="float32")
    return path


def distill(config, teacher, workdir, *flags):
    given = [] if teacher is None else [f"--config.teacher={teacher}"]
    return ["distill", f"--config={config}", *given, "--workdir", str(workdir), *flags]


def weights(workdir, rung):
    params, _ = restore_params(str(workdir / rung / "checkpoints"))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


def test_distil_export_and_sample_follow_one_another(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    teacher = toy_network.install(monkeypatch, tmp_path)
    config = write_config(tmp_path / "toy.py", toy_network.STAGE)
    folder = tmp_path / "weights" / "distilled"
    assert main(distill(config, teacher, folder / "base")) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("steps_0002: error ") and "before training; its clips differ" in line
    # The work directory can be sampled from, by its name among the distilled.
    videos = tmp_path / "videos"
    sample = ["sample", "--prompt=a red circle", "--weights", str(tmp_path / "weights")]
    assert main([*sample, "--out", str(videos), "--distilled"]) == 0
    (stage,) = json.loads((videos / "manifest.json").read_text())["stages"]
    assert stage["sampling"]["num_steps"] == 2
    assert stage["sampling"]["stepper"]["kind"] == "StochasticDistilled"
    assert stage["sampling"]["guidance"]["weight"] == 0.0
    assert main(["export", "--workdir", str(folder / "base"), "--out", str(tmp_path / "out")]) == 0
    exported = load_stage(str(tmp_path / "out" / "base.safetensors")).stage
    # The config of the stage that was distilled samples in other steps, which a student cannot.
    as_configured = ["--out", str(tmp_path / "configured"), f"--config={config}"]
    assert main(["export", "--workdir", str(folder / "base"), *as_configured]) == 0
    assert load_stage(str(tmp_path / "configured" / "base.safetensors")).stage == exported
    capsys.readouterr()
    assert main([*sample, "--out", str(tmp_path / "more"), "--distilled", "--steps=4"]) == 2
    assert "base were distilled for 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.teacher=/no/teacher"], "/no/teacher/checkpoints: no checkpoint there"),
        (["--config.distillation.final_steps=3"], "config.distillation: final_steps: halving 2"),
        (["--config.distillation.finalsteps=4"], "config.distillation.finalsteps: config.distill"),
        (["--config.stage.schedule.logsnr_max=10.0"], "TEACHER: stage.schedule.logsnr_max is 20"),
        (["--config.halving.batch_size=0"], "config.halving: batch_size is 0"),
        (["--config.halving.batch_size=1"], "steps_0002: image_share is 0.5, less than half"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_work_directory(
    tmp_path, config, teacher, capsys, flags, message
):
    workdir = tmp_path / "work"
    assert main(distill(config, teacher, workdir, *flags)) == 2
    line, end, more = capsys.readouterr().err.partition("\n")
    wanted = f"imagen-video: {message.replace('TEACHER', str(teacher))}"
    assert (end, more) == ("\n", "") and line.startswith(wanted), line
    assert not workdir.exists()


def test_a_ladder_needs_a_teacher(tmp_path, config, capsys):
    assert main(distill(config, None, tmp_path / "work")) == 2
    assert capsys.readouterr().err.startswith("imagen-video: config.teacher: ")


@pytest.mark.slow
def test_kill_minus_9_anywhere_leaves_no_trace(tmp_path, config, teacher, monkeypatch):
    """The command, killed as soon as each of its traces appears, and started again."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert main(distill(config, teacher, undisturbed)) == 0
    command = [sys.executable, "-m", "imagen_video", *distill(config, teacher, killed)]
    traces = ("ladder.json", "steps_0002/config.json", "steps_0002/checkpoints/2")
    for trace in traces:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 300
        while not (killed / trace).exists():
            assert process.poll() is None, process.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline, f"no {trace} within five minutes"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert not (killed / "steps_0002/evaluation.json").exists()
    assert main(distill(config, teacher, killed)) == 0
    assert weights(killed, "steps_0002") == weights(undisturbed, "steps_0002")
    evaluations = [folder / "steps_0002/evaluation.json" for folder in (killed, undisturbed)]
    assert evaluations[0].read_text() == evaluations[1].read_text()
