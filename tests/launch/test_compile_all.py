"""launch/compile_all.sh keeps the reports that there are and makes their table."""

import json
import pathlib
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


@pytest.mark.parametrize("arguments", [(), ("--ceiling",)])
def test_without_a_folder_it_says_so_in_one_line(arguments):
    done = launch(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "folder" in done.stderr
