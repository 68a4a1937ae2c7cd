"""launch/compile_all.sh keeps the reports that there are and makes their table."""

import json
import pathlib
import shutil
import subprocess

import pytest

from imagen_video.config import load_recipes

ROOT = pathlib.Path(__file__).parents[2]


def launch(*arguments):
    return subprocess.run(
        ["bash", str(ROOT / "launch/compile_all.sh"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_reports_that_are_there_are_not_compiled_again(tmp_path):
    recipes = load_recipes().all_recipes()
    for stage, program, where in recipes:
        report = {"stage": stage, "program": program, "slice": where, "rows": 1, "compiled": None}
        report |= {"missing_gib": 1.0, "jax": "1", "libtpu": "2"}
        report |= {"compile_seconds": 1.0, "host_gib": 1.0}
        (tmp_path / f"{stage}-{program}-{where.replace(':', '-')}.json").write_text(
            json.dumps(report)
        )
    done = launch(str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "==" not in done.stderr
    rows = [line for line in done.stdout.splitlines() if "does not fit" in line]
    assert len(rows) == len(recipes)


def test_a_crash_is_not_taken_for_a_program_that_does_not_fit(tmp_path):
    scripts, command = tmp_path / "launch", tmp_path / "bin/imagen-video"
    shutil.copytree(ROOT / "launch", scripts)
    (scripts / "environment.sh").write_text(f"VENV={tmp_path}\ninstall_into_venv() {{ :; }}\n")
    command.parent.mkdir()
    command.write_text('#!/bin/sh\n[ "$1" != recipes ] || exec echo base train v5e:2x2\nexit 1\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", str(scripts / "compile_all.sh"), str(tmp_path / "reports")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: no report of base train on v5e:2x2"
    assert not list((tmp_path / "reports").glob("*.json"))


@pytest.mark.parametrize("arguments", [(), ("--ceiling",)])
def test_without_a_folder_it_says_so_in_one_line(arguments):
    done = launch(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "folder" in done.stderr
