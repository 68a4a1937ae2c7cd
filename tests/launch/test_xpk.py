"""xpk.sh, run whole against stand-ins for xpk and kubectl."""

import os
import shlex
import signal
import subprocess
import time

import pytest
from launch_checkout import XPK, commands_of, flag, status_of

CONTEXT = "gke_lab_us-east5_tpus"


def pod(worker: int, attempt: int = 0) -> str:
    return f"imagen-video-base-slice-job-0-{worker}-{'abcdefgh'[attempt] * 5}"


def test_xpk_trains_and_runs_what_dry_run_prints(checkout):
    lines = ["XPK Start: today", "step 1", "EXIT_CODE=0"]
    checkout.plan(looks=[0], pods=[{pod(0): lines, pod(1): lines}])
    arguments = [*XPK, "--project=lab", "--zone=us-east5-a", "--create_flag=--priority=high"]
    arguments += ["--restart_on=1", "--", "--config.text.tokenizer=it's a $HOME; *"]
    printed = commands_of(checkout.run(arguments[0], "--dry_run", *arguments[1:]))
    assert not checkout.calls() and not (checkout.root / "runs").exists()

    result = checkout.run(*arguments)
    assert status_of(result) == 0
    # Logs are read beside the waiting, so their order is not fixed.
    called = [[word.replace(CONTEXT, "$context") for word in call] for call in checkout.calls()]
    assert ["context=$(kubectl config current-context)"] in printed
    called.remove(["kubectl", "config", "current-context"])
    assert sorted(called) == sorted(c for c in printed if c[0] in ("xpk", "kubectl"))
    words = [call[2] for call in checkout.calls("xpk")]
    assert words == ["list", "create", "list", "delete"]
    (create,) = checkout.calls("create")
    assert flag(create, "--tpu-type") == "v5p-128" and flag(create, "--num-slices") == "1"
    assert flag(create, "--max-restarts") == "10"
    assert flag(create, "--restart-on-exit-codes") == "1"
    command = shlex.split(flag(create, "--command"))
    assert command[:8] == [*"python -m pip install --quiet .[tpu,train] && exec".split()]
    assert command[8:11] == ["imagen-video", "train", "--config"]
    assert command[-2:] == ["--distributed", "--config.text.tokenizer=it's a $HOME; *"]
    for worker in range(2):
        log = checkout.logs(f"imagen-video-base/{pod(worker)}.log")
        assert log.splitlines() == lines
    assert result.stdout.count("step 1") == 1


def test_xpk_samples(checkout):
    place = ["--slice=v5e:4x4", "--cluster=tpus", "--out=gs://bucket/videos"]
    flags = ["--weights", "gs://bucket/cascade", "--prompt", "it's a red circle"]
    arguments = ["--command=sample", *place, "--dry_run", "--", *flags]
    (create,) = [c for c in commands_of(checkout.run("xpk.sh", *arguments)) if "create" in c]
    command = shlex.split(flag(create, "--command"))
    sampling = ["sample", "--out", "gs://bucket/videos", "--slice", "v5e:4x4", "--distributed"]
    assert command[8:] == ["imagen-video", *sampling, *flags]
    assert flag(create, "--workload") == "imagen-video-sample"


def test_xpk_follows_restarts_and_reports_a_training_that_fails(checkout):
    first = {pod(0): ["step 1", "step 2", "EXIT_CODE=143"], pod(1): ["EXIT_CODE=134"]}
    again = {pod(0, 1): ["step 3"], pod(1, 1): []}
    failed = {
        pod(0, 1): ["step 3", "terminated", "EXIT_CODE=143"],
        pod(1, 1): ["config.train: no such field", "EXIT_CODE=2"],
    }
    checkout.plan(looks=[1, 124, 124, 124, 125], pods=[{}, first, first, again, again, failed])
    result = checkout.run(*XPK, "--docker_image=gcr.io/lab/imagen-video")
    assert status_of(result) == 2
    (create,) = checkout.calls("create")
    assert flag(create, "--docker-image") == "gcr.io/lab/imagen-video"
    assert flag(create, "--command").startswith("exec imagen-video train ")
    assert "failed with exit code 2" in result.stderr
    assert "config.train: no such field" in result.stderr
    assert checkout.logs(f"imagen-video-base/{pod(0)}.log").splitlines() == first[pod(0)]
    assert checkout.logs(f"imagen-video-base/{pod(0, 1)}.log").splitlines() == failed[pod(0, 1)]
    assert len(checkout.calls("delete")) == 1


@pytest.mark.parametrize(
    "plan, complaint, deleted",
    [
        ({"fail": {"list": [1]}}, "xpk does not answer: [XPK] list failed", 0),
        ({"taken": "imagen-video-base"}, "imagen-video-base exists", 0),
        ({"fail": {"context": [1]}}, "kubectl does not answer: error: current-context is", 0),
        ({"fail": {"create": [1]}}, "[XPK] create failed", 1),
        ({"looks": [1]}, "xpk does not answer, see", 1),
        ({"looks": [125]}, "failed with exit code 1", 1),
        ({"fail": {"delete": [1, 1, 1]}}, "NOT DELETED after 3 tries", 3),
    ],
)
def test_xpk_after_a_step_that_fails(checkout, plan, complaint, deleted):
    checkout.plan(**plan)
    result = checkout.run(*XPK)
    assert status_of(result) == 1
    assert complaint in result.stderr
    assert len(checkout.calls("delete")) == deleted
    assert ("NOT DELETED" in result.stderr) == (checkout.ledger / "workload").exists()


def test_xpk_asks_for_nothing_where_the_source_cannot_be_copied(checkout, hidden_source):
    result = checkout.run(*XPK)
    assert status_of(result) == 1
    assert f"{hidden_source}': No such file" in result.stderr
    assert not checkout.calls("create") and not checkout.calls("delete")


def test_xpk_without_logs_says_so_and_ends_as_the_training_does(checkout):
    checkout.plan(looks=[124, 0], pods=[{pod(0): ["step 1"]}], fail={"kubectl": [1] * 20})
    result = checkout.run(*XPK)
    assert status_of(result) == 0
    assert "kubectl gives no logs, see" in result.stderr and "step 1" not in result.stdout
    assert "logs are not at hand" in checkout.logs("imagen-video-base/kubectl.log")
    assert len(checkout.calls("delete")) == 1


def test_xpk_reads_the_logs_of_its_own_cluster(checkout):
    # Before the first answer and after the second an xpk.sh on another cluster has its turn.
    other = "gke_lab_us-east5_other"
    pods = [{pod(0): ["step 1"]}]
    checkout.plan(looks=[124, 0], pods=pods, contexts=[other, CONTEXT, other])
    result = checkout.run(*XPK)
    assert status_of(result) == 0 and "step 1" in result.stdout
    assert {flag(call, "--context") for call in checkout.calls("kubectl", "logs")} == {CONTEXT}
    assert len(checkout.calls("kubectl", "config")) == 2


def test_xpk_stopped_by_ctrl_c_deletes(checkout):
    checkout.plan(looks=[124], pods=[{pod(0): ["step 1"]}])
    process = checkout.start(*XPK)
    assert process.stdout.readline() == "imagen-video-base: step 1\n"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(checkout.calls("delete")) == 1


def test_xpk_kept_is_not_deleted(checkout):
    checkout.plan(looks=[0])
    result = checkout.run(*XPK, "--keep")
    assert status_of(result) == 0
    assert not checkout.calls("delete") and (checkout.ledger / "workload").exists()
    delete = "kept; to delete it: xpk workload delete --cluster=tpus --workload=imagen-video-base"
    assert delete in result.stderr
    # xpk has the cluster delete it, and counts from its end: one that runs on is never deleted.
    told = checkout.run("xpk.sh", "--help").stdout
    assert "leaves the workload there; one that has ended goes after 12 hours" in told


@pytest.mark.parametrize("command, reached", [("true && exec train", True), ("train; true", False)])
def test_sigterm_reaches_the_training_through_the_shell_of_xpk(tmp_path, command, reached):
    # So xpk's container runs the command; SIGTERM goes to the process that it started.
    program = tmp_path / "train"
    program.write_text(
        f"#!/bin/bash\ntrap 'touch {tmp_path}/saved; exit 143' TERM\ntouch {tmp_path}/begun\n"
        f"while [[ ! -e {tmp_path}/over ]]; do sleep 0.02; done\n"
    )
    program.chmod(0o755)
    wrapper = f"""_sigterm() (kill -SIGTERM $! 2>/dev/null;)
      trap _sigterm SIGTERM
      ({command.replace("train", str(program))}) & PID=$!
      while kill -0 $PID 2>/dev/null; do sleep 0.02; done
      wait $PID; exit $?"""
    process = subprocess.Popen(["bash", "-c", wrapper], start_new_session=True)
    try:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143
        assert (tmp_path / "saved").exists() == reached
    finally:
        (tmp_path / "over").touch()
