"""A URL where a path must be on a disk: said at once, and no folder `gs:` is left."""

import pathlib

import pytest

from imagen_video.cli.main import main

CONFIG = f"--config={pathlib.Path(__file__).parents[2]}/configs/stages/base.py:tiny"
URL = "gs://bucket/name"


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", f"--out={URL}"],
        ["embed-text", CONFIG, f"--out={URL}"],
        ["embed-text", CONFIG, f"--captions={URL}", "--out=out"],
        ["train", CONFIG, f"--config.text.cache={URL}", "--workdir=run"],
    ],
)
def test_a_url_is_refused_by_name(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    line = f"imagen-video: {URL}: must be a path on a disk of this machine, or a mounted one\n"
    assert capsys.readouterr().err == line
    assert not list(tmp_path.iterdir())


def test_a_home_that_no_shell_has_replaced_is_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["train", CONFIG, "--workdir=~/runs/base"],
        ["sample", "--prompt=a red circle", "--weights=~/runs", "--out=out"],
        ["evaluate", "--out=~/out"],
    ):
        assert main(command) == 2
        assert "no shell has replaced the ~, as after =; write $HOME" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_compiled_programs_text_goes_where_it_can_be_written(tmp_path, capsys):
    program = ["compile", CONFIG, "--slice=v5e:2x2", "--program=sample"]
    assert main([*program, f"--hlo={URL}"]) == 2
    assert capsys.readouterr().err.startswith(f"imagen-video: {URL}: must be a path on a disk")
    assert main([*program, f"--hlo={tmp_path}/none/text"]) == 2
    line = f"imagen-video: --hlo: {tmp_path}/none/text would lie in a folder that does not exist\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("url", ["s3://bucket/name", "gs://", "gs:///name"])
def test_samples_and_exports_know_cloud_storage_alone(tmp_path, monkeypatch, capsys, url):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["sample", "--prompt=a red circle", f"--out={url}"],
        ["sample", f"--prompts={url}", "--out=out"],
        ["sample", "--prompt=a red circle", f"--weights={url}", "--out=out"],
        ["export", "--workdir=run", f"--out={url}"],
        ["export", f"--workdir={url}", "--out=out"],
        ["train", CONFIG, f"--workdir={url}"],
        ["train", CONFIG, f"--config.text.encoder={url}", "--workdir=run"],
    ):
        assert main(command) == 2
        line = f"imagen-video: {url}: must be a path on a disk, or gs://BUCKET/NAME\n"
        assert capsys.readouterr().err == line
    assert not list(tmp_path.iterdir())


def test_export_is_told_a_folder_not_a_file(tmp_path, capsys):
    out = tmp_path / "base.safetensors"
    assert main(["export", "--workdir=run", f"--out={out}"]) == 2
    line = (
        f"imagen-video: out: {out} must be a folder; what is written there is STAGE.safetensors\n"
    )
    assert capsys.readouterr().err == line and not out.exists()
