"""`imagen-video embed-text`: a kill leaves no trace in the files, a mistake leaves no folder."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from imagen_video.cli.main import main
from imagen_video.config import load_config, to_record
from imagen_video.text.frozen_t5 import make_frozen_t5
from imagen_video.text.t5_weights import save_t5
from imagen_video.text.text_model import TextPaths, load_text_model
from imagen_video.training.run_text import load_run_text
from imagen_video.training.stage_run import StageRun, make_batches

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/stages/base.py:tiny"
# The command itself, killed outright while the second file is written.
KILLED = """
import os, signal, sys
from imagen_video.data import embedding_cache
from imagen_video.cli.main import main

write, written = embedding_cache.ArrayRecordWriter.write, []

class Writer(embedding_cache.ArrayRecordWriter):
    def write(self, record):
        written.append(record)
        if len(written) == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(record)

embedding_cache.ArrayRecordWriter = Writer
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "xla"))


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a red letter {chr(65 + i)}\n" for i in range(24)) + "a red letter A")
    return path


def command(out, *flags, config=CONFIG):
    return ["embed-text", f"--config={config}", "--out", str(out), *map(str, flags)]


def files(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_killed_outright_in_the_middle_of_a_file_and_run_again(tmp_path, captions, capfd):
    flags = ("--captions", captions, "--batch_size=4", "--shard_captions=8")
    assert main(command(tmp_path / "undisturbed", *flags)) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{tmp_path / 'undisturbed'}\n"
    assert "24 captions embedded: " in printed.err and "tokens/s" in printed.err

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command(tmp_path / "out", *flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    shards = [name for name in files(tmp_path / "out") if name.endswith("array_record")]
    assert shards == ["embeddings-00000-of-00003.array_record"]
    assert main(command(tmp_path / "out", *flags)) == 0
    assert "16 captions embedded, 8 from before" in capfd.readouterr().err
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    header = json.loads((tmp_path / "out" / "header.json").read_text())
    assert (header["captions"], header["num_tokens"], header["width"]) == (24, 32, 128)
    assert (header["encoder"], header["tokenizer"]) == ("embedded", "embedded")


def test_without_captions_those_that_training_will_read_are_embedded(tmp_path):
    out = tmp_path / "out"
    assert main(command(out, "--config.data.source.size=12")) == 0
    overrides = {"data.source.size": 12, "train.batch_size": 4, "text.cache": str(out)}
    run = to_record(StageRun, load_config(CONFIG, overrides))
    cache = load_run_text(run.text, num_tokens=32)
    source = run.data.source
    for is_image in (False, True):
        captions = [source.caption(i, split="train", is_image=is_image) for i in range(12)]
        tokens = load_text_model(run.text, num_tokens=32).tokenize(captions)
        np.testing.assert_array_equal(cache(captions)["tokens"], tokens)
    # Whole epochs of clips and images, and no caption is missing.
    batches = make_batches(run, cache)
    read = {tuple(row) for k in range(6) for row in batches[k]["tokens"].tolist()}
    assert 12 < len(read) <= cache.header.captions <= 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--captions", "no.txt"], "no.txt: no such file of captions"),
        (["--captions", "bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["--captions", "empty.txt"], "captions: there are none"),
        (["--captions", ""], "captions: their file or folder has an empty name"),
        (
            ["--captions", "good.txt", "--config.text.tokenizer=empty.txt"],
            "empty.txt: model: not a sentencepiece model",
        ),
        (
            ["--captions", "good.txt", "--config.text.encoder=good.txt"],
            "good.txt: neither a T5X or Hugging Face folder nor a .safetensors file",
        ),
        (["--captions", "good.txt", "--batch_size=0"], "batch_size: 0 is below 1"),
        (["--captions", "good.txt", "--config.text.encoder=no/encoder"], "no/encoder: no such"),
        (["--captions", "good.txt", "--config.text.dtype=float16"], "config.text.dtype: 'float16'"),
        # Before an encoder is looked for: a large one takes minutes to load.
        (["--config.text.encoder=no/encoder"], "data.source.size: 1000000000 captions are too"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"caption": "a"}\n{\n')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "good.txt").write_text("a red circle\n")
    assert main(command(tmp_path / "out", *flags)) == 2
    line, end, more = capsys.readouterr().err.partition("\n")
    assert (end, more) == ("\n", "") and line.startswith(f"imagen-video: {message}"), line
    assert not (tmp_path / "out").exists()


def test_the_share_of_a_matrix_product_is_of_two_flops_a_parameter_and_token(
    tmp_path, captions, capsys
):
    assert main(command(tmp_path / "out", "--captions", captions, "--share_of_peak")) == 0
    *_, tokens, share = capsys.readouterr().err.splitlines()
    speed = float(re.search(r"(\d+) tokens/s", tokens)[1])
    reached, percent, peak = map(float, re.findall(r"[\d.]+(?:e\+?\d+)?", share)[:3])
    encoder = load_text_model(TextPaths(), num_tokens=32).encoder.params
    layers = sum(leaf.size for leaf in jax.tree.leaves(encoder["encoder"]))  # not the table
    assert reached * 1e9 == pytest.approx(2 * layers * speed, rel=0.02)
    assert percent == pytest.approx(100 * reached / peak, rel=0.02, abs=0.051)


def test_a_folder_of_another_text_model_is_refused_naming_both(tmp_path, captions, capsys):
    out = tmp_path / "out"
    assert main(command(out, "--captions", captions)) == 0
    capsys.readouterr()
    encoder = load_text_model(TextPaths(), num_tokens=32).encoder
    other = make_frozen_t5(encoder.config, jax.tree.map(lambda value: 2 * value, encoder.params))
    path = tmp_path / "other.safetensors"
    save_t5(path, other)
    assert main(command(out, "--captions", captions, f"--config.text.encoder={path}")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "encoder embedded" in line and f"encoder {path}" in line
