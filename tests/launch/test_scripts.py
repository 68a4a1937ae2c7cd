"""What all launch scripts have in common: help, mistakes, names of slices."""

import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import types

import pytest
from launch_checkout import LAUNCH, POD, SLURM, XPK, status_of

CASCADE = ("train_cascade.sh", "--workdir=gs://b", "--slice=v4:2x2x1")
PLACE = ("tpu_pod.sh", "--slice=v4:2x2x1", "--zone=us-central2-b")
SCRIPTS = ("tpu_pod.sh", "xpk.sh", "slurm.sbatch", "train_cascade.sh")
SHELLCHECK = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=pathlib.Path(sys.executable).parent
)


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
        ([*POD, "--ref=v1"], "--ref needs --git"),
        ([*POD, "--name=Base"], "--name 'Base'"),
        ([*POD, "--max_retries=many"], "--max_retries 'many' is not a whole number"),
        ([*POD, "--poll_seconds=1m"], "--poll_seconds '1m' is not a number"),
        (POD[:3], "--slice is missing"),
        ([*POD, "--command=export"], "--command 'export' is not train, distill or sample"),
        ([*POD, "--out=gs://b"], "--out is for --command sample; train has --workdir"),
        ([*POD, "--command=sample"], "--out is missing"),
        ([*POD, "--command=sample", "--out=gs://b"], "--workdir is for train and distill"),
        ([*PLACE, "--command=sample", "--out=/b"], "--out '/b' is not in Cloud Storage"),
        (XPK[:4], "--cluster is missing"),
        ([*XPK, "--docker_image=a", "--base_docker_image=b"], "exclude each other"),
        ([*XPK, "--logs=my runs"], "takes no spaces or quotes"),
        (SLURM[:2], "--workdir is missing"),
        ([*SLURM, "--command=sample", "--out=/b"], "--workdir is for train and distill"),
        (SLURM, "needs Slurm"),
        (["train_cascade.sh", "--slice=v4:2x2x1"], "--workdir is missing"),
        (["train_cascade.sh", "--workdir=gs://b", "--slice=base=v4:2x2x1"], "missing for tsr1"),
        (["train_cascade.sh", "--workdir=gs://b", "--slice=bass=v4:2x2x1"], "the stages are"),
        (["train_cascade.sh", "--workdir=gs://b", "--slice=v4:2x2x1", "--backend=k8s"], "'k8s'"),
        ([*CASCADE, "--stages=base,,tsr1"], "'base,,tsr1' is not STAGE,STAGE"),
        ([*CASCADE, "--stages=base,tsr1,base"], "has base twice"),
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


@pytest.mark.parametrize(
    "arguments, begun, exits",
    [
        (POD, "trainings", "imagen-video-base"),
        ([*CASCADE, "--stages=base", "--", *POD[4:]], "trainings", "imagen-video/base"),
        (XPK, "workload", None),
    ],
)
def test_ctrl_c_that_ends_tee_too_cleans_up(checkout, arguments, begun, exits):
    checkout.plan(looks=[124], attempts=[{"end": "hang"}])
    process = checkout.start(*arguments)
    checkout.wait_for(begun)
    for pipe in (process.stdout, process.stderr):
        pipe.close()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert not checkout.slices() and not (checkout.ledger / "workload").exists()
    if exits:  # What a training says while it saves has no reader either, and is read to its end.
        assert checkout.logs(f"{exits}/attempt_1/exits") == "worker_0 143\n"


def test_what_slices_install_opens_the_buckets_that_they_train_into(monkeypatch):
    given = {}
    setuptools = types.SimpleNamespace(setup=given.update, find_packages=lambda *_, **__: [])
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(LAUNCH.parent / "setup.py"))
    names = {re.split("[^a-z-]", line)[0] for line in given["extras_require"]["tpu"]}
    assert {"gcsfs", "google-cloud-storage"} <= names


def test_slices_have_the_names_that_google_gives_them(checkout):
    # From the tables of TPU v4, v5e, v5p and v6e in Google Cloud's documentation.
    types = {
        "v4:2x2x1": "v4-8",
        "v4:2x4x4": "v4-64",
        "v4:4x4x4": "v4-128",
        "v4:8x16x16": "v4-4096",
        "v4:16x16x16": "v4-8192",
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
    wrong += ["v4:16x16x24"]  # More chips than a pod of that generation.
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
