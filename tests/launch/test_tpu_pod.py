"""tpu_pod.sh, run whole against stand-ins for gcloud."""

import os
import shutil
import signal
import subprocess

import pytest
from launch_checkout import POD, commands_of, flag, status_of


def test_pod_trains_and_runs_what_dry_run_prints(checkout):
    checkout.plan(workers=3)
    arguments = [*POD, "--spot", "--project=lab", "--create_flag=--network=tpu"]
    arguments += ["--ssh_flag=--internal-ip", "--", "--config.data.source.seed=1"]
    arguments += ["--config.text.tokenizer=it's a $HOME; *"]
    printed = commands_of(checkout.run(arguments[0], "--dry_run", *arguments[1:]))
    assert not checkout.calls() and not (checkout.root / "runs").exists()

    result = checkout.run(*arguments)
    assert status_of(result) == 0
    done = [call for call in checkout.calls() if "describe" not in call]
    assert done == [command for command in printed if {"tar", "describe"}.isdisjoint(command)]
    assert done[0][3:6] == ["queued-resources", "create", "imagen-video-base"]
    assert done[-1][3:6] == ["queued-resources", "delete", "imagen-video-base"]
    assert flag(done[0], "--accelerator-type") == "v5p-128"
    assert flag(done[0], "--runtime-version") == "v2-alpha-tpuv5"
    for call in checkout.calls("gcloud"):
        assert flag(call, "--zone") == "us-east5-a" and flag(call, "--project") == "lab"

    training = ["train", "--config", "configs/stages/base.py", "--workdir", "gs://bucket/base"]
    training += ["--slice", "v5p:4x4x4", "--distributed", "--config.data.source.seed=1"]
    assert checkout.trainings() == [[*training, "--config.text.tokenizer=it's a $HOME; *"]] * 3
    assert (checkout.ledger / "installed").read_text() == "[tpu,train]\n" * 3
    for worker in range(3):
        log = checkout.logs(f"imagen-video-base/attempt_1/worker_{worker}.log")
        assert log == f"worker {worker} goes on from step 0\nstep 1\nstep 2\n"
    assert result.stdout.splitlines() == [
        "imagen-video-base: worker 0 goes on from step 0",
        "imagen-video-base: step 1",
        "imagen-video-base: step 2",
    ]
    assert not checkout.slices()


def test_pod_samples_and_a_lost_slice_goes_on(checkout):
    checkout.plan(workers=2, attempts=[{"end": "preempt"}, {}])
    script, slice = "tpu_pod.sh", "--slice=v5e:4x4"
    place = ["--zone=us-west4-a", "--poll_seconds=0.02", slice]
    flags = ["--weights", "gs://bucket/cascade", "--prompt", "it's a red circle"]
    command = ["--command=sample", "--out=gs://bucket/videos"]
    result = checkout.run(script, *command, *place, "--", *flags)
    assert status_of(result) == 0
    sampling = ["sample", "--out", "gs://bucket/videos", "--slice", "v5e:4x4", "--distributed"]
    assert checkout.trainings() == [[*sampling, *flags]] * 4
    assert "sample is done" in result.stderr and not checkout.slices()
    assert [call[5] for call in checkout.calls("create")] == ["imagen-video-sample"] * 2


@pytest.mark.parametrize(("size", "name"), [("full", "full"), ("1.6b", "1-6b")])
def test_pod_distills_under_a_name_of_the_ladder(checkout, size, name):
    arguments = ["--command=distill", f"--config=configs/distill.py:base,{size}", "--dry_run"]
    printed = commands_of(checkout.run(*POD[:1], *arguments, *POD[2:]))
    assert printed[1][5] == f"imagen-video-distill-base-{name}"
    (work,) = [line for line in printed if any("worker.sh run" in word for word in line)]
    distilling = f"run distill --config configs/distill.py:base,{size} --workdir gs://bucket/base"
    assert distilling in flag(work, "--command")


def test_pod_replaces_lost_slices_and_the_training_goes_on(checkout):
    checkout.plan(
        workers=2,
        attempts=[
            {"states": ["FAILED"]},
            {"states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], "end": "preempt"},
            {"states": ["CREATING", "SUSPENDED"]},
            {"end": "GONE"},
            {"end": "REPAIRING"},
            {"end": "RESTARTING"},
            {"end": 143},
            {},
        ],
    )
    result = checkout.run(*POD)
    assert status_of(result) == 0
    order = [call[4] for call in checkout.calls("queued-resources") if call[4] != "describe"]
    assert order == ["create", "delete"] * 8
    trained = checkout.trainings()
    assert len(trained) == 6 * 2 and all(arguments == trained[0] for arguments in trained)
    starts = (checkout.ledger / "imagen-video-base/starts_0").read_text().split()
    assert starts == ["0", "2", "4", "6", "8", "10"]
    assert "no capacity left" in result.stderr and "retry 7 of 10" in result.stderr
    assert not checkout.slices()


def test_pod_replaces_a_slice_whose_workers_crash_because_one_is_lost(checkout):
    # By SIGTERM; without a status; without a word. JAX ends the others with 134.
    lost = [{"end_0": 134, "end_1": how} for how in (143, "reboot", "die")]
    checkout.plan(workers=2, attempts=[*lost, {"end": 134}])
    result = checkout.run(*POD)
    assert status_of(result) == 134
    assert result.stderr.count("worker_1 is lost") == 3
    exits = [checkout.logs(f"imagen-video-base/attempt_{number}/exits") for number in (2, 3)]
    assert sorted(exits[0].splitlines()) == ["worker_0 134", "worker_1 143"]
    assert exits[1] == "worker_0 134\n"
    assert len(checkout.calls("create")) == 4 and not checkout.slices()


def test_pod_reports_a_training_that_fails_and_does_not_repeat_it(checkout):
    # Worker 1 fails; the others' end (134, as when JAX misses a neighbour) follows from it.
    checkout.plan(workers=3, attempts=[{"end_0": 134, "end_1": 2, "end_2": 134}])
    result = checkout.run(*POD)
    assert status_of(result) == 2
    assert "failed with exit code 2 on worker_1" in result.stderr
    assert "worker 1 goes on from step 0\nstep 1\nstep 2\n" in result.stderr
    assert len(checkout.calls("create")) == 1 and not checkout.slices()


@pytest.mark.parametrize(
    "plan, complaint, deleted",
    [
        ({"fail": {"describe": [1]}}, "gcloud does not answer: ERROR: (gcloud) UNAVAILABLE", 0),
        ({"taken": "imagen-video-base"}, "imagen-video-base exists (ACTIVE)", 0),
        ({"fail": {"create": [1]}}, "ERROR: (gcloud) create failed", 0),
        ({"fail": {"scp": [1]}}, "ERROR: (gcloud) scp failed", 1),
        ({"fail": {"install": [3]}}, "ERROR: (gcloud) install failed", 1),
        ({"no_network": "yes"}, "error: installation failed, see above", 1),
        (
            {"fail": {"run": ["break"] * 20}, "attempts": [{"steps": 2000, "seconds": 0.05}]},
            "cannot reach the workers",
            1,
        ),
        ({"attempts": [{"end": 1}]}, "failed with exit code 1 on worker_0", 1),
        ({"attempts": [{"states": ["FAILED"]}]}, "gave up after 2 lost slices", 2),
        ({"fail": {"delete": [1] * 10}}, "NOT DELETED after 10 tries", 10),
    ],
)
def test_pod_after_a_step_that_fails(checkout, plan, complaint, deleted):
    checkout.plan(**plan)
    result = checkout.run(*POD, "--max_retries=1")
    assert status_of(result) == 1
    assert complaint in result.stderr
    assert len(checkout.calls("delete")) == deleted
    assert len(checkout.calls("create")) == (
        2 if "gave up" in complaint else deleted > 0 or "create" in complaint
    )
    assert bool(checkout.slices()) == ("NOT DELETED" in complaint)


def test_pod_asks_for_nothing_where_the_source_cannot_be_packed(checkout, hidden_source):
    result = checkout.run(*POD)
    assert status_of(result) == 1
    assert f"{hidden_source}: Cannot stat" in result.stderr
    assert not checkout.calls("create") and not checkout.calls("delete")


def test_pod_follows_again_after_a_broken_connection_and_loses_no_line(checkout):
    checkout.plan(
        workers=2, fail={"run": ["break", "break"]}, attempts=[{"steps": 9, "seconds": 0.08}]
    )
    result = checkout.run(*POD)
    assert status_of(result) == 0
    assert len(checkout.calls("ssh")) == 1 + 3 and len(checkout.trainings()) == 2
    steps = [f"step {step}" for step in range(1, 10)]
    for worker in range(2):
        log = checkout.logs(f"imagen-video-base/attempt_1/worker_{worker}.log")
        assert log.splitlines() == [f"worker {worker} goes on from step 0", *steps]
    assert result.stdout.count("step 9") == 1


def test_pod_stopped_by_ctrl_c_saves_and_deletes(checkout):
    checkout.plan(workers=2, attempts=[{"end": "hang"}])
    process = checkout.start(*POD)
    checkout.wait_for_trainings(2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    for worker in range(2):
        assert (checkout.ledger / f"imagen-video-base/saved_{worker}").exists()
        assert "saved at SIGTERM" in checkout.logs(
            f"imagen-video-base/attempt_1/worker_{worker}.log"
        )
    assert not checkout.slices()


def test_pod_from_git_on_machines_with_an_old_python_kept(checkout):
    checkout.plan(workers=2, old_python="yes")
    repository = checkout.ledger / "repository"
    shutil.copytree(checkout.root, repository)
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in ("init -q", "add .", "commit -qm x", "tag v1", "rm -q setup.py", "commit -qm y"):
        subprocess.run([*git, *command.split()], check=True)
    url = f"file://{repository}"  # Only its tag can be installed.
    result = checkout.run(*POD, "--git", url, "--ref", "v1", "--keep", "--name=kept")
    assert status_of(result) == 0
    assert not checkout.calls("scp") and len(checkout.trainings()) == 2
    assert checkout.slices() == ["kept"]
    assert "gcloud compute tpus queued-resources delete kept" in result.stderr
