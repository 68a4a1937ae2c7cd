"""The launch scripts, run whole against stand-ins for gcloud, xpk, kubectl and Slurm.

The stand-ins refuse any flag or value that the real programs' help does not have, run what is sent
to the machines in a folder for each, and play a plan: see standins/.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"
SCRIPTS = ("tpu_pod.sh", "xpk.sh", "slurm.sbatch", "train_cascade.sh")
STAGES = ("base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3")
SHELLCHECK = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=pathlib.Path(sys.executable).parent
)

TRAINING = ["--config=configs/stages/base.py", "--workdir=gs://bucket/base", "--slice=v5p:4x4x4"]
POD = ["tpu_pod.sh", *TRAINING, "--zone=us-east5-a", "--poll_seconds=0.02"]
XPK = ["xpk.sh", *TRAINING, "--cluster=tpus", "--poll_seconds=0.02"]
SLURM = ["slurm.sbatch", "--config=configs/stages/base.py", "--workdir=/shared/base"]


class Checkout:
    """A small copy of the repository, from which scripts are run with the stand-ins on PATH."""

    def __init__(self, root: pathlib.Path, ledger: pathlib.Path):
        self.root, self.ledger, self.started = root, ledger, []
        self.environment = {
            "PATH": f"{HERE / 'standins'}:{root.parent}/machine:/usr/bin:/bin",
            "HOME": str(ledger),
            "STANDINS": str(ledger),
            "MACHINE": f"{root.parent}/machine",
        }

    def plan(self, **plan) -> None:
        """Writes what the stand-ins play: a file of words for every leaf."""

        def write(path: pathlib.Path, value) -> None:
            if isinstance(value, list) and (not value or isinstance(value[0], dict)):
                value = dict(enumerate(value))
            if isinstance(value, dict):
                path.mkdir(parents=True, exist_ok=True)
                for name, item in value.items():
                    write(path / str(name), item)
            else:
                words = value if isinstance(value, list | tuple) else [value]
                path.write_text("".join(f"{word}\n" for word in words))

        if isinstance(plan.get("attempts"), list):
            plan["attempts"] = {"all": plan["attempts"]}
        write(self.ledger / "plan", plan)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", f"launch/{script}", *arguments],
            cwd=self.root,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As in a terminal, also where the tests run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.started.append(process)
        return process

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def calls(self, *words: str) -> list[list[str]]:
        """Returns the stand-ins' calls so far that have all of `words`."""
        calls = self._lines("calls")
        return [call for call in calls if set(words) <= set(call)]

    def trainings(self) -> list[list[str]]:
        """Returns the arguments of every `imagen-video` that ran on a machine."""
        return self._lines("trainings")

    def logs(self, path: str) -> str:
        return (self.root / "runs" / path).read_text()

    def slices(self) -> list[str]:
        """Returns the slices that cost money now."""
        return sorted(vms.parent.name for vms in self.ledger.glob("*/vms"))

    def wait_for_trainings(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.trainings()) < number:
            assert time.monotonic() < deadline, "no training began"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for written in ("runs", ".venv"):
            shutil.rmtree(self.root / written, ignore_errors=True)

    def _lines(self, file: str) -> list:
        path = self.ledger / file
        return [shlex.split(line) for line in path.open()] if path.exists() else []


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    root, machine = folder / "checkout", folder / "machine"
    shutil.copytree(LAUNCH, root / "launch")
    stages = [f"configs/stages/{stage}.py" for stage in STAGES]
    for file in ("README.md", "pyproject.toml", "setup.py", "imagen_video/__init__.py", *stages):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    shutil.copytree(HERE / "standins" / "machine", machine)
    for version in ("3.14", "3.13", "3.12", "3.11", ""):  # Hides the Pythons of this machine.
        (machine / f"python{version}").write_text("#!/bin/sh\nexit 127\n")
        (machine / f"python{version}").chmod(0o755)
    return root


@pytest.fixture
def checkout(root, tmp_path):
    checkout = Checkout(root, tmp_path)
    yield checkout
    checkout.close()
    refused = tmp_path / "refused"
    assert not refused.exists(), refused.read_text()


def commands_of(result: subprocess.CompletedProcess) -> list[list[str]]:
    """Returns the commands that --dry_run printed."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line, comments=True) for line in result.stdout.splitlines()]


def status_of(result: subprocess.CompletedProcess) -> int:
    """Returns the exit code; what was said shows where an assertion about it fails."""
    print(result.stdout, result.stderr)
    return result.returncode


def flag(call: list[str], name: str) -> str:
    (value,) = [word.partition("=")[2] for word in call if word.startswith(f"{name}=")]
    return value


# All scripts.


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    files = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    command = [SHELLCHECK, "--shell=bash", "--external-sources", "--source-path=SCRIPTDIR"]
    result = subprocess.run([*command, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option(checkout, script):
    text = (LAUNCH / script).read_text()
    (known,) = re.findall(r'^read_options "([^"]+)"', text, re.MULTILINE)
    result = checkout.run(script, "--help")
    assert result.returncode == 0
    for option in known.replace("\\", "").split():
        assert f"--{option.rstrip('=[]')}" in result.stdout
    assert "set -euo pipefail" in text and "set -euo" not in result.stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([*POD, "--zonne=x"], "unknown option '--zonne'"),
        ([*POD, "--zone"], "--zone needs a value"),
        ([*POD, "--zone", "--spot"], "--zone needs a value"),
        ([*POD, "--spot=yes"], "--spot takes no value"),
        ([*POD, "base"], "unexpected argument 'base'"),
        ([*POD, "--zone="], "--zone is missing"),
        ([*POD, "--workdir=/home/me"], "--workdir '/home/me' is not in Cloud Storage"),
        ([*POD, "--config=configs/stages/bass.py"], "is no file of this repository"),
        ([*POD, "--spot", "--reserved"], "--spot and --reserved exclude"),
        ([*POD, "--name=Base"], "--name 'Base'"),
        ([*POD, "--max_retries=many"], "--max_retries 'many' is not a whole number"),
        ([*POD, "--poll_seconds=1m"], "--poll_seconds '1m' is not a number"),
        (POD[:3], "--slice is missing"),
        (XPK[:4], "--cluster is missing"),
        ([*XPK, "--docker_image=a", "--base_docker_image=b"], "exclude each other"),
        (SLURM[:2], "--workdir is missing"),
        (SLURM, "needs Slurm"),
        (["train_cascade.sh", "--slice=v4:2x2x1"], "--workdir is missing"),
        (["train_cascade.sh", "--workdir=gs://b", "--slice=base=v4:2x2x1"], "missing for tsr1"),
        (["train_cascade.sh", "--workdir=gs://b", "--slice=bass=v4:2x2x1"], "the stages are"),
        (["train_cascade.sh", "--workdir=gs://b", "--slice=v4:2x2x1", "--backend=k8s"], "'k8s'"),
        # Found by the script that trains a stage, before the first stage begins.
        (["train_cascade.sh", "--workdir=gs://b", "--slice=v4:2x2x1"], "--zone is missing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(checkout, arguments, complaint):
    result = checkout.run(*arguments)
    assert status_of(result) == 2
    assert complaint in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not checkout.calls() and not (checkout.root / "runs").exists()


def test_slices_have_the_names_that_google_gives_them(checkout):
    # From the tables of TPU v4, v5e, v5p and v6e in Google Cloud's documentation.
    types = {
        "v4:2x2x1": "v4-8",
        "v4:2x4x4": "v4-64",
        "v4:4x4x4": "v4-128",
        "v4:8x16x16": "v4-4096",
        "v5e:1x1": "v5litepod-1",
        "v5e:4x8": "v5litepod-32",
        "v5e:8x8": "v5litepod-64",
        "v5e:16x16": "v5litepod-256",
        "v5p:2x2x2": "v5p-16",
        "v5p:4x4x4": "v5p-128",
        "v5p:4x8x8": "v5p-512",
        "v5p:16x16x24": "v5p-12288",
        "v6e:2x4": "v6e-8",
        "v6e:8x8": "v6e-64",
        "v6e:16x16": "v6e-256",
    }
    # No such generation, no such shape, or not the shape that the type of its size stands for.
    wrong = ["v7:4x4", "v5p", "v5p:", ":4x4x4", "v5e:4x4x4", "v6e:8x4", "v5p:64", "v5p:2x2x16"]
    program = """
      source launch/options.sh; source launch/slices.sh
      for slice in "$@"; do (accelerator_type "$slice" 2>/dev/null) || echo "code $?"; done"""
    result = subprocess.run(
        ["bash", "-c", program, "-", *types, *wrong],
        cwd=checkout.root,
        capture_output=True,
        text=True,
    )
    assert result.stdout.splitlines() == [*types.values(), *["code 2"] * len(wrong)]


# tpu_pod.sh


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


def test_pod_replaces_lost_slices_and_the_training_goes_on(checkout):
    checkout.plan(
        workers=2,
        attempts=[
            {"states": ["FAILED"]},
            {"states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], "end": "preempt"},
            {"states": ["CREATING", "SUSPENDED"]},
            {"end": "vanish"},
            {"end": 143},
            {},
        ],
    )
    result = checkout.run(*POD)
    assert status_of(result) == 0
    order = [call[4] for call in checkout.calls("queued-resources") if call[4] != "describe"]
    assert order == ["create", "delete"] * 6
    trained = checkout.trainings()
    assert len(trained) == 4 * 2 and all(arguments == trained[0] for arguments in trained)
    starts = (checkout.ledger / "imagen-video-base/starts_0").read_text().split()
    assert starts == ["0", "2", "4", "6"]
    assert "no capacity left" in result.stderr and "retry 5 of 10" in result.stderr
    assert not checkout.slices()


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


def test_pod_follows_again_after_a_broken_connection_and_loses_no_line(checkout):
    checkout.plan(
        workers=2, fail={"train": ["break", "break"]}, attempts=[{"steps": 9, "seconds": 0.08}]
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


# xpk.sh


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
    assert sorted(checkout.calls()) == sorted(c for c in printed if c[0] in ("xpk", "kubectl"))
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


def test_xpk_stopped_by_ctrl_c_deletes(checkout):
    checkout.plan(looks=[124], pods=[{pod(0): ["step 1"]}])
    process = checkout.start(*XPK)
    assert process.stdout.readline() == "imagen-video-base: step 1\n"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(checkout.calls("delete")) == 1


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


# slurm.sbatch


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
    assert (checkout.ledger / "installed").read_text() == "[cuda,train]\n"
    directives = dict(
        re.findall(r"^#SBATCH --([\w-]+)=(\S+)", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    )
    assert directives["gpus-per-node"] == directives["ntasks-per-node"]
    assert directives["signal"].startswith("TERM@")


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


def test_slurm_does_not_queue_again_what_scancel_stopped(checkout):
    checkout.plan(attempts=[{"end": "hang"}])
    process = checkout.start(*SLURM, **JOB)
    checkout.wait_for_trainings(1)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # The batch shell and the step, as scancel does.
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert (checkout.ledger / "here/saved_0").exists() and not checkout.calls("scontrol")


# train_cascade.sh


def cascade(*options: str, stages: str) -> list[str]:
    return [
        *("train_cascade.sh", "--workdir=gs://bucket/cascade", f"--stages={stages}", *options),
        *("--", "--zone=us-east5-a", "--poll_seconds=0.02", "--", "--config.train.seed=1"),
    ]


def test_cascade_trains_each_stage_on_its_own_slice(checkout):
    checkout.plan(
        attempts={
            "imagen-video-tsr1": [{"end": 1}],
            "imagen-video-ssr3": [{"end": "preempt"}, {}],
        }
    )
    result = checkout.run(
        *cascade(
            "--slice=v5e:8x8", "--slice=ssr3=v5p:4x4x8", "--size=full", stages="base,tsr1,ssr3"
        )
    )
    assert status_of(result) == 1
    slices = {call[5]: flag(call, "--accelerator-type") for call in checkout.calls("create")}
    names = ("imagen-video-base", "imagen-video-tsr1", "imagen-video-ssr3")
    assert slices == dict(zip(names, ("v5litepod-64", "v5litepod-64", "v5p-256")))
    assert not checkout.slices()
    for stage in ("base", "tsr1", "ssr3"):
        (training,) = {
            tuple(t) for t in checkout.trainings() if f"gs://bucket/cascade/{stage}" in t
        }
        assert f"configs/stages/{stage}.py:full" in training
        assert training[-1] == "--config.train.seed=1"
        assert "step 2" in checkout.logs(f"imagen-video/{stage}.log")
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["stage", "slice", "result", "minutes", "log"]
    assert [row[:3] for row in table[1:]] == [
        ["base", "v5e:8x8", "trained"],
        ["tsr1", "v5e:8x8", "failed:"],
        ["ssr3", "v5p:4x4x8", "trained"],
    ]


def test_cascade_stopped_by_ctrl_c_stops_all(checkout):
    checkout.plan(attempts=[{"end": "hang"}])
    process = checkout.start(*cascade("--slice=v4:2x2x1", stages="base,ssr1"))
    checkout.wait_for_trainings(2)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert output.count(" stopped ") == 2 and not checkout.slices()
    for stage in ("base", "ssr1"):
        assert (checkout.ledger / f"imagen-video-{stage}/saved_0").exists()


@pytest.mark.parametrize("backend", ["tpu_pod", "xpk"])
def test_cascade_dry_run_prints_the_commands_of_all_seven(checkout, backend):
    place = {"tpu_pod": "--zone=us-east5-a", "xpk": "--cluster=tpus"}[backend]
    arguments = ["--workdir=gs://b/c", "--slice=v6e:8x8", f"--backend={backend}", "--dry_run"]
    result = checkout.run("train_cascade.sh", *arguments, "--", place)
    creations = [command for command in commands_of(result) if "create" in command]
    assert len(creations) == 7
    for stage, line in zip(STAGES, [x for x in result.stdout.splitlines() if x[0] == "#"]):
        command = shlex.split(line[2:])
        assert command[:2] == ["bash", f"launch/{backend}.sh"]
        printed = checkout.run(f"{backend}.sh", "--dry_run", *command[2:])
        assert printed.stdout in result.stdout and f"gs://b/c/{stage}" in printed.stdout
