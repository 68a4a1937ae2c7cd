"""Recipes for TPU slices name real fields of real stages and fit their slices."""

import math
import pathlib
import re

import pytest

from imagen_video.cli import compile as compile_command
from imagen_video.cli.main import main
from imagen_video.cli.recipe_shardings import recipe_shardings
from imagen_video.config import CommandFlags, load_recipes, to_record, with_recipe
from imagen_video.profiling.slices import Slice
from imagen_video.training.rungs import DistillRun
from imagen_video.training.stage_run import StageRun

RECIPES = load_recipes().all_recipes()


def flags_of(*arguments):
    flag_values = CommandFlags(["compile", *arguments])
    compile_command.define(flag_values)
    flag_values(flag_values.argv)
    return flag_values


@pytest.mark.parametrize("stage, program, where", RECIPES)
def test_a_recipe_fits_its_slice_and_its_stage(stage, program, where):
    rung = {"guide": "guided", "halve": "halving"}.get(program)
    config = f"configs/distill.py:{stage}" if rung else f"configs/stages/{stage}.py"
    flag_values = flags_of(f"--config={config}", f"--program={program}", f"--slice={where}")
    kind = DistillRun if rung else StageRun
    plain = to_record(kind, flag_values.config)
    run = to_record(kind, with_recipe(flag_values, program=program))
    assert run != plain
    mesh = run.sharding.mesh.fit(math.prod(Slice.parse(where).shape))
    if program != "sample":
        train = getattr(run, rung or "train")
        rows = mesh.data * mesh.fsdp * train.microbatches
        assert train.batch_size % rows == 0
    if run.sharding.context == "frames":
        assert run.stage.output.frames % mesh.context == 0


@pytest.mark.parametrize("program", ["train", "sample"])
def test_every_stage_has_recipes_for_large_chips_and_for_small_ones(program):
    for stage in sorted({stage for stage, *_ in RECIPES}):
        slices = {
            where.split(":")[0] for name, kind, where in RECIPES if (name, kind) == (stage, program)
        }
        assert slices & {"v4", "v5p"} and slices & {"v5e", "v6e"}, (stage, slices)


def test_rows_of_the_readme_are_recipes_and_every_program_has_one():
    row = re.compile(r"^\| (\w+) \| (\w+)\** \| (v\d\w*:[\dx]+) \|", re.MULTILINE)
    rows = row.findall(pathlib.Path("README.md").read_text())
    assert len(rows) == len(set(rows)) and set(rows) <= set(RECIPES)
    assert {(stage, program) for stage, program, _ in rows} == {recipe[:2] for recipe in RECIPES}


def test_distillation_takes_the_recipes_of_both_its_stages():
    flag_values = flags_of(
        "--config=configs/distill.py:ssr1", "--program=halve", "--slice=v5p:4x4x4"
    )
    config = with_recipe(flag_values, program="distill")
    assert flag_values.config.guided.microbatches == flag_values.config.halving.microbatches == 1
    assert config.guided.microbatches == config.halving.microbatches == 4


def test_the_command_line_wins_over_a_recipe():
    flag_values = flags_of(
        "--config=configs/stages/ssr3.py",
        "--program=sample",
        "--slice=v5e:4x4",
        "--config.sharding.mesh.context=4",
    )
    mesh = with_recipe(flag_values, program="sample").sharding.mesh
    assert (mesh.fsdp, mesh.context) == (1, 4)


def test_on_other_slices_sampling_cuts_frames_and_training_is_as_configured():
    with pytest.raises(ValueError, match="slice: 'v5p-128' is not GENERATION:TOPOLOGY"):
        recipe_shardings("v5p-128")
    mesh = recipe_shardings("v6e:2x4")["base"].mesh.fit(8)
    assert (mesh.fsdp, mesh.context) == (1, 8)
    flag_values = flags_of("--config=configs/stages/base.py", "--program=train", "--slice=v6e:2x4")
    assert with_recipe(flag_values, program="train").sharding == flag_values.config.sharding


def test_the_command_lists_them(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split()) for line in lines] == RECIPES
    assert len(set(lines)) == len(lines) > 0


def test_a_table_of_nothing_is_a_mistake(tmp_path, capsys):
    assert main(["recipes", "--reports", str(tmp_path)]) == 2
    assert "json reports" in capsys.readouterr().err
