"""The quickstart samples by the students, unless its flags say how to sample."""

import os
import shutil
import subprocess

import pytest
from launch_checkout import LAUNCH

from imagen_video.cli import sample
from imagen_video.config import CommandFlags

# The command, which tells what it was called with.
COMMAND = """#!/bin/sh
[ "$1" = sample ] && shift
printf '%s\\0' "$@" > "$ARGUMENTS"
"""


@pytest.fixture
def quickstart(tmp_path):
    """Runs the script in an installed environment and returns the flags that `sample` got."""
    launch, command = tmp_path / "launch", tmp_path / "bin/imagen-video"
    launch.mkdir()
    shutil.copy(LAUNCH / "quickstart.sh", launch)
    (launch / "environment.sh").write_text(f"VENV={tmp_path}\ninstall_into_venv() {{ :; }}\n")
    command.parent.mkdir()
    command.write_text(COMMAND)
    command.chmod(0o755)

    def run(*arguments):
        told = tmp_path / "arguments"
        subprocess.run(
            ["bash", launch / "quickstart.sh", *arguments],
            cwd=tmp_path,
            env=os.environ | {"ARGUMENTS": str(told)},
            check=True,
        )
        argv = ["sample", *told.read_text().rstrip("\0").split("\0")]
        flag_values = CommandFlags(argv)
        sample.define(flag_values)
        flag_values(flag_values.argv)
        return flag_values

    return run


@pytest.mark.parametrize(
    "flags, students",
    [
        ([], "all"),
        (["--seed", "7", "--out=elsewhere"], "all"),
        (["--distilled=sr"], "sr"),
        (["--nodistilled"], "none"),
        (["--weights", "runs"], "none"),
        (["-steps=published"], "none"),
        (["--guidance=oscillating", "--thresholding", "dynamic"], "none"),
        (["--weights=runs", "--distilled"], "all"),
    ],
)
def test_students_unless_the_flags_say_how_to_sample(quickstart, flags, students):
    assert quickstart("a red circle", *flags).distilled == students


@pytest.mark.parametrize("script", ["quickstart.sh", "train_demo.sh"])
def test_an_unset_variable_is_no_prompt_and_no_folder(script):
    done = subprocess.run(
        ["bash", LAUNCH / script, ""], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_the_demonstration_is_trained_on_a_disk():
    done = subprocess.run(
        ["bash", LAUNCH / "train_demo.sh", "gs://b/runs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: WORKDIR must lie on a disk: gs://b/runs\n"


def test_the_folder_is_named_after_the_prompt(quickstart):
    assert quickstart("a red circle").out == "samples/a-red-circle"
    # Where the name is not all of the prompt, others have the same: a checksum tells them apart.
    folders = {quickstart(prompt).out for prompt in ("a red circle!", "a red circle?")}
    assert len(folders) == 2 and "samples/a-red-circle" not in folders
    assert quickstart("a red circle", "--out", "elsewhere").out == "elsewhere"
