"""Several processes of one machine train as one process with the same devices does."""

import json
import os
import pathlib
import signal
import subprocess

import pytest
from launch_checkout import status_of
from micro_cascade import drawn_params, text_model

from imagen_video.cascade.stage import Stage
from imagen_video.cascade.weights import save_stage
from imagen_video.config import load_config, to_record

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = ("error", "sample_difference")  # of a rung's evaluation
MICRO = """
from imagen_video_configs import distill
from imagen_video_configs.stages import ssr3

def micro(config):
    config.stage.input = dict(frames=4, height=4, width=8)
    config.stage.output = dict(frames=4, height=8, width=16)
    config.stage.unet.update(
        stem_channels=32, channels=(32, 32), groups=2, head_dim=8, text_dim=8, emb_dim=16,
        max_frames=4,
    )
    config.data.update(train_frames=4, train_crop=(8, 16))
    return config
"""
CONFIG = f"""{MICRO}
def get_config():
    config = micro(ssr3.get_config("tiny"))
    config.train.update(num_steps=3, log_every=1)
    config.train.optimizer.warmup_steps = 1
    return config
"""
LADDER = f"""{MICRO}
def get_config():
    config = micro(distill.get_config("ssr3,tiny"))
    config.distillation.update(start_steps=4, final_steps=2, eval_clips=2)
    config.data.image_share = 0.5
    config.halving.update(num_steps=2, log_every=1, batch_size=4)
    return config
"""


def launch(*arguments, logs):
    return subprocess.run(
        ["bash", str(ROOT / "launch/local.sh"), *arguments],
        cwd=ROOT,
        env=os.environ | {"LOCAL_LOGS": str(logs)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the script would make .venv first")
@pytest.mark.parametrize(
    "shape", [(2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=["data", "fsdp", "context"]
)
def test_two_processes_have_the_loss_curve_of_one(tmp_path, shape):
    config = tmp_path / "micro.py"
    config.write_text(CONFIG)
    found = {}
    for processes, devices in ((2, 1), (1, 2)):
        workdir = tmp_path / f"{processes}x{devices}"
        axes = zip(("data", "fsdp", "context"), shape)
        mesh = [f"--config.sharding.mesh.{axis}={size}" for axis, size in axes]
        train = ("--config", str(config), "--workdir", str(workdir), *mesh)
        done = launch(
            "-n", str(processes), "-d", str(devices), "--", *train, logs=tmp_path / "logs"
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[processes] = losses(workdir)
    assert len(found[1]) == 3
    assert found[2] == pytest.approx(found[1], rel=1e-5)
    # Process 0 alone reports and writes: the second left no metrics of its own.
    assert "steps/s" not in (tmp_path / "logs/process_1.log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the script would make .venv first")
def test_two_processes_climb_the_ladder_of_one(tmp_path):
    config = tmp_path / "micro.py"
    config.write_text(LADDER)
    stage = to_record(Stage, load_config(str(config)).stage)
    teacher, digest = tmp_path / "ssr3.safetensors", text_model().digest
    save_stage(str(teacher), stage, drawn_params(stage), text_digest=digest, dtype="float32")
    found = {}
    for processes, devices in ((2, 1), (1, 2)):
        workdir = tmp_path / f"{processes}x{devices}"
        ladder = (f"--config={config}", f"--config.teacher={teacher}", f"--workdir={workdir}")
        done = launch(
            *("-n", str(processes), "-d", str(devices), "--", "distill"),
            *ladder,
            logs=tmp_path / "logs",
        )
        assert done.returncode == 0, done.stderr[-2000:]
        names = json.loads((workdir / "ladder.json").read_text())["rungs"]
        files = [json.loads((workdir / name / "evaluation.json").read_text()) for name in names]
        found[processes] = [file[field] for file in files for field in FIELDS]
    assert len(found[1]) == 4
    assert found[2] == pytest.approx(found[1], rel=1e-3)


def test_a_mistake_in_one_process_ends_them_all_with_its_code(tmp_path):
    train = ("--config", "no/such.py", "--workdir", str(tmp_path / "run"))
    done = launch("-n", "2", "--", *train, logs=tmp_path / "logs")
    assert done.returncode == 2
    assert "no/such.py" in done.stdout + done.stderr


def test_output_is_added_to_a_file_that_has_some(checkout):
    path = checkout.ledger / "output"
    path.write_text("before\n")
    with path.open("a") as output:
        command = ["bash", "launch/local.sh", "-n", "2", "--", "--workdir=w"]
        environment = checkout.environment
        subprocess.run(command, cwd=checkout.root, env=environment, stdout=output, check=True)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["before", "worker 0 goes on from step 0"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_ends_when_all_have_saved(checkout, number, code):
    checkout.plan(attempts=[{"end": "hang", "saving_0": 0, "saving_1": 0.6, "saving_2": 0.3}])
    process = checkout.start("local.sh", "-n", "3", "--", "--workdir=w")
    checkout.wait_for_trainings(3)
    os.killpg(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == code
    for worker in range(3):
        assert (checkout.ledger / f"here/saved_{worker}").exists()


def test_the_exit_code_is_that_of_the_failure_which_others_follow_from(checkout):
    checkout.plan(attempts=[{"end_0": 134, "end_1": 2, "end_2": 134}])
    result = checkout.run(
        "local.sh", "-n", "3", "--", "--workdir=w", LOCAL_LOGS=str(checkout.ledger)
    )
    assert status_of(result) == 2
    assert f"{checkout.ledger}/process_*.log" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("-n", "0", "--", "x"), ("-n", "2"), ("--processes",)])
def test_mistakes_are_one_line(arguments, tmp_path):
    done = launch(*arguments, logs=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
