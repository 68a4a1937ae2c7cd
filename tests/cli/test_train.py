"""`imagen-video train` and `export`: from a config file to weights that `sample` takes."""

import json

import numpy as np
import pytest
from flax import traverse_util
from micro_cascade import BASE, stage_run
from safetensors.numpy import load_file

from imagen_video import records
from imagen_video.cli.main import main
from imagen_video.training.checkpoints import restore_params

CONFIG = """
import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(r'''{}'''))
"""


@pytest.fixture
def config(tmp_path):
    """A config file that is a micro stage's run."""
    run = records.to_dict(stage_run(BASE, num_steps=2, checkpoint_every=1))
    path = tmp_path / "micro.py"
    path.write_text(CONFIG.format(json.dumps(run)))
    return path


def test_train_export_and_sample_follow_one_another(tmp_path, config, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    workdir, out = tmp_path / "work", tmp_path / "weights"
    argv = ["train", f"--config={config}", "--workdir", str(workdir)]
    assert main([*argv, "--config.train.seed=3"]) == 0
    assert sorted(p.name for p in (workdir / "checkpoints").glob("[0-9]*")) == ["1", "2"]
    assert json.loads((workdir / "config.json").read_text())["run"]["train"]["seed"] == 3

    assert main(["export", "--workdir", str(workdir), "--out", str(out), "--dtype=float32"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out / "base.safetensors"))
    average, _ = restore_params(str(workdir / "checkpoints"))
    stored = load_file(out / "base.safetensors")
    for name, value in traverse_util.flatten_dict(average, sep="/").items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)

    videos = tmp_path / "videos"
    flags = ["--weights", str(out), "--out", str(videos), "--steps=1"]
    assert main(["sample", "--prompt=a red circle", *flags]) == 0
    assert len(list(videos.glob("*.mp4"))) == 1

    # Another seed is another run: it must not go on from this one.
    capsys.readouterr()
    assert main(argv) == 2
    assert "seed" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.num_step=1"], "config.train.num_step: config.train has no such field"),
        (["--config.stage.unet.low_res=True"], "config.stage: unet.low_res: True, but input is"),
        (["--config.train.batch_size=0"], "config.train: batch_size is 0"),
        (["--config.data.image_share=2.0"], "image_share is 2.0, must be in [0, 1]"),
        (["--config.stage.name=bass"], "config.stage.name: 'bass' is not one of"),
        (["--config.text.encoder=/no/encoder"], "/no/encoder"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_work_directory(
    tmp_path, config, capsys, flags, message
):
    workdir = tmp_path / "work"
    assert main(["train", f"--config={config}", "--workdir", str(workdir), *flags]) == 2
    line, end, more = capsys.readouterr().err.partition("\n")
    assert (end, more) == ("\n", "") and line.startswith(f"imagen-video: {message}"), line
    assert not workdir.exists()


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_work_directory_without_a_name_is_not_the_working_directory(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    config = {"train": "configs/stages/base.py:tiny", "distill": "configs/distill.py:base,tiny"}
    assert main([command, f"--config={config[command]}", "--workdir="]) == 2
    assert capsys.readouterr().err == "imagen-video: --workdir: the folder has an empty name\n"
    assert not list(tmp_path.iterdir())


def test_indivisible_sizes_are_named(tmp_path, capsys):
    argv = ["train", "--config=configs/stages/ssr1.py:tiny", "--workdir", str(tmp_path / "work")]
    assert main([*argv, "--config.stage.output.height=26"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("imagen-video: config.stage: height: 26 is not a multiple of 4")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("missing", ["config", "workdir"])
def test_both_flags_are_needed(config, capsys, missing):
    flags = {"config": f"--config={config}", "workdir": "--workdir=x"}
    del flags[missing]
    assert main(["train", *flags.values()]) == 2
    assert missing in capsys.readouterr().err


def test_an_unwritable_work_directory_is_one_line(tmp_path, config, capsys):
    (tmp_path / "file").write_text("")
    argv = ["train", f"--config={config}", "--workdir", str(tmp_path / "file" / "work")]
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"imagen-video: {tmp_path}/file")


def test_exporting_nothing_is_one_line(tmp_path, capsys):
    argv = ["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        f"imagen-video: {tmp_path}/checkpoints: no checkpoint there\n"
    )
    assert not (tmp_path / "out").exists()


def test_exporting_with_a_config_of_no_stage_is_one_line(tmp_path, capsys):
    argv = ["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*argv, "--config", "configs/cascade.py:tiny"]) == 2
    assert capsys.readouterr().err.startswith("imagen-video: config: has no stage; name a")


def test_the_text_encoder_has_no_recipe_for_a_slice(tmp_path, capsys):
    argv = ["train", "--config", "configs/text_encoder.py", "--workdir", str(tmp_path / "work")]
    assert main([*argv, "--slice", "v5e:2x4"]) == 2
    assert "has no recipe for a slice" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
