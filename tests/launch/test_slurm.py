"""slurm.sbatch, run whole against stand-ins for Slurm."""

import os
import re
import signal

import pytest
from launch_checkout import LAUNCH, SLURM, commands_of, status_of

JOB = {"SLURM_JOB_ID": "7"}


def test_slurm_runs_one_task_a_gpu_and_what_dry_run_prints(checkout):
    environment = {**JOB, "SLURM_SUBMIT_DIR": str(checkout.root), "SLURM_CPUS_PER_TASK": "6"}
    arguments = [*SLURM, "--", "--config.train.num_steps=5"]
    printed = commands_of(checkout.run(arguments[0], "--dry_run", *arguments[1:], **environment))
    assert not checkout.calls()
    result = checkout.run(*arguments, **environment)
    assert status_of(result) == 0
    (step,) = checkout.calls()
    assert step in printed and "--cpus-per-task=6" in step
    assert not any(word.startswith("--gpus-per-task") for word in step)
    assert checkout.trainings() == [
        [
            *("train", "--config", "configs/stages/base.py", "--workdir", "/shared/base"),
            *("--distributed", "--config.train.num_steps=5"),
        ]
    ]
    assert (checkout.ledger / "installed").read_text() == "[cuda,gcs,train]\n"
    directives = dict(
        re.findall(r"^#SBATCH --([\w-]+)=(\S+)", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    )
    assert directives["gpus-per-node"] == directives["ntasks-per-node"]
    assert directives["signal"].startswith("TERM@")


def test_slurm_samples(checkout):
    sampling = ["--out", "gs://bucket/videos", "--distributed", "--prompt", "a red circle"]
    result = checkout.run(SLURM[0], "--command=sample", *sampling[:2], "--", *sampling[3:], **JOB)
    assert status_of(result) == 0
    assert checkout.trainings() == [["sample", *sampling]]
    assert (checkout.ledger / "installed").read_text() == "[cuda,gcs,train]\n"


@pytest.mark.parametrize(
    "plan, arguments, status, requeued",
    [
        ({"terminate_step": "yes", "attempts": [{"end": "hang"}]}, [], 143, True),
        ({"terminate_step": "yes", "attempts": [{"end": "hang"}]}, ["--max_retries=3"], 143, False),
        ({"attempts": [{"end": 2}]}, [], 2, False),
    ],
)
def test_slurm_queues_again_what_sigterm_stopped(checkout, plan, arguments, status, requeued):
    checkout.plan(**plan)
    result = checkout.run(*SLURM, *arguments, **JOB, SLURM_RESTART_COUNT="3")
    assert status_of(result) == status
    assert checkout.calls("scontrol") == ([["scontrol", "requeue", "7"]] if requeued else [])
    assert (checkout.ledger / "here/saved_0").exists() == (status == 143)


def test_slurm_says_when_it_cannot_queue_again(checkout):
    checkout.plan(terminate_step="yes", attempts=[{"end": "hang"}], fail={"requeue": [1]})
    result = checkout.run(*SLURM, **JOB)
    assert status_of(result) == 143
    assert "NOT QUEUED" in result.stderr and (checkout.ledger / "here/saved_0").exists()


def test_slurm_trains_nothing_where_it_cannot_install(checkout):
    checkout.plan(no_network="yes")
    result = checkout.run(*SLURM, **JOB)
    assert status_of(result) == 1
    assert "ERROR: no network" in result.stderr and "installation failed" in result.stderr
    assert not checkout.calls() and not checkout.trainings()


def test_slurm_does_not_queue_again_what_scancel_stopped(checkout):
    checkout.plan(attempts=[{"end": "hang"}])
    process = checkout.start(*SLURM, **JOB)
    checkout.wait_for("here/checkpoint_0")
    os.killpg(process.pid, signal.SIGTERM)  # The batch shell and the step, as scancel does.
    print(*process.communicate(timeout=10))
    assert process.returncode == 143
    assert (checkout.ledger / "here/saved_0").exists() and not checkout.calls("scontrol")
