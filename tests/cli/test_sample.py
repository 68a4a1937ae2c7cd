"""`imagen-video sample`: a kill leaves no trace in the result, a mistake leaves nothing at all."""

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
from micro_cascade import BASE, STAGES, drawn_params, text_model, write_weights
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from imagen_video.cascade.weights import save_stage
from imagen_video.cli.main import main
from imagen_video.text.frozen_t5 import make_frozen_t5
from imagen_video.text.t5_weights import save_t5

TESTS = pathlib.Path(__file__).parents[1]
PROMPT = "a red circle moving left on a white background"
# The command itself, killed outright right after a state of tsr1 was kept.
KILLED_IN_TSR1 = """
import os, signal, sys
from imagen_video.cascade.store import DirectoryStore
from imagen_video.cli.main import main

save_state = DirectoryStore.save_state

def save_and_die(store, stage, state):
    save_state(store, stage, state)
    if stage == "tsr1" and int(state.step) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

DirectoryStore.save_state = save_and_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Compiled programs are kept where the commands look for them, outside the user's folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


def sample(weights, out, *flags, prompt=PROMPT):
    prompts = [] if prompt is None else ["--prompt", prompt]
    return ["sample", *prompts, "--weights", str(weights), "--out", str(out), *flags]


def manifest(out):
    """Of a folder, without the only thing in it that may differ between two runs."""
    content = json.loads((out / "manifest.json").read_text())
    return content | {"samples": [s | {"seconds": None} for s in content["samples"]]}


@pytest.fixture(scope="module")
def undisturbed(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(sample(weights, out, "--seed=5", "--save_stages")) == 0
    return out


def test_the_folder_holds_what_was_asked_for(undisturbed, capsys):
    (video,) = undisturbed.glob("*-0.mp4")
    assert video.with_suffix(".png").is_file()
    assert [video.with_suffix(f".{s.name}.mp4").is_file() for s in STAGES] == [True] * 3
    (entry,) = manifest(undisturbed)["samples"]
    assert (entry["prompt"], entry["seed"], entry["video"]) == (PROMPT, 5, video.name)
    assert not list(undisturbed.glob(".*"))


def test_killed_outright_in_the_middle_of_a_stage_and_run_again(
    weights, tmp_path, undisturbed, capfd
):
    out = tmp_path / "out"
    argv = sample(weights, out, "--seed=5", "--save_stages", "--save_every=1")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_TSR1, *argv],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (kept,) = out.glob(".unfinished-*/batch_00000")
    assert sorted(path.name for path in kept.iterdir()) == ["base.npz", "tsr1.state.npz"]
    assert not list(out.glob("*.mp4")) and not (out / "manifest.json").exists()
    with np.load(kept / "tsr1.state.npz") as state:
        assert int(state["step"]) == 3

    capfd.readouterr()
    assert main(argv) == 0
    progress = capfd.readouterr().err
    assert "base" not in progress and "tsr1" in progress and "ssr1" in progress
    seconds = json.loads((out / "manifest.json").read_text())["samples"][0]["seconds"]
    assert seconds["base"] == 0 and seconds["tsr1"] > 0
    assert manifest(out) == manifest(undisturbed)
    for path in undisturbed.iterdir():
        if path.name != "manifest.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert not list(out.glob(".*"))


def failure(argv, out, capsys) -> str:
    """The one line a mistake ends in; the folder must not have come to be."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    line, end, more = captured.err.partition("\n")
    assert (end, more, captured.out) == ("\n", "", "")
    assert line.startswith("imagen-video: ")
    assert not out.exists()
    return line.removeprefix("imagen-video: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--through=tsr9"], "through: no stage 'tsr9'; there are base, tsr1, ssr1"),
        (["--steps=0"], "steps: 0 is not 'published' or a number from 1"),
        (["--steps=-3"], "steps: -3 is not"),
        (["--steps=abc"], "--steps: 'abc' is not 'published' or a number"),
        (["--num_samples=0"], "num_samples: 0 is below 1"),
        (["--seed=-1"], "seed: -1 is not in [0, 2^31)"),
        (["--batch_size=0"], "batch_size: 0 is below 1"),
        (["--save_every=0"], "save_every: 0 is below 1"),
        (["--guidance=high"], "guidance: 'high' is not 'constant', 'oscillating' or"),
        (["--guidance=oscillating:ssr2"], "guidance: ssr2 does not oscillate, only base,"),
        (["--distilled=ssr"], "distilled: 'ssr' is none of all, sr, none, base,"),
        (["--distilled=base"], "distilled: there are no distilled weights, {weights}/distilled"),
        (["--distilled=True"], "distilled: there are no distilled weights, {weights}/distilled"),
        (["--thresholding=none"], "flag --thresholding=none: value should be one of"),
        (["--out="], "a file or folder has an empty name"),
        (["--sed=1"], "Unknown command line flag 'sed'"),
        (["--prompts=/no/such/file"], "/no/such/file: No such file or directory"),
        (["--config=configs/cascade.py:huge"], "configs/cascade.py:huge: size 'huge'"),
        (["--config=configs/stages/base.py:tiny"], "config: has no stages"),
        (["--config=configs/cascade.py:tiny"], "weights: {weights} holds none of ssr2"),
        (
            ["--config=configs/cascade.py:tiny", "--config.stages.base.unet.chanels=(8,)"],
            "config.stages.base.unet.chanels: config.stages.base.unet has no such field;"
            " did you mean channels?",
        ),
        (
            ["--config=configs/cascade.py:tiny", "--config.stages.base.output.height=13"],
            "stages.base: height: 13 is not a multiple of 4",
        ),
        (
            ["--config=configs/cascade.py:tiny", "--config.stages.base.output.height=16"],
            "tsr1.input: 8x12x20, but base.output is 8x16x20",
        ),
    ],
)
def test_a_mistaken_flag_is_one_line(weights, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    found = failure(sample(weights, out, *flags), out, capsys)
    assert found.startswith(message.format(weights=weights)), found


def test_no_prompts_are_one_line(weights, tmp_path, capsys):
    out, empty = tmp_path / "out", tmp_path / "prompts.txt"
    assert failure(sample(weights, out, prompt=None), out, capsys).startswith("no prompts")
    empty.write_text("\n  \n")
    argv = sample(weights, out, f"--prompts={empty}", prompt=None)
    assert failure(argv, out, capsys).startswith("no prompts")


def test_a_prompts_file_that_is_no_text_is_named(weights, tmp_path, capsys):
    out, prompts = tmp_path / "out", tmp_path / "prompts"
    prompts.write_bytes(b"a red circle\n\xff\xfea\x00")
    argv = sample(weights, out, f"--prompts={prompts}", prompt=None)
    assert failure(argv, out, capsys) == f"{prompts}:2: not UTF-8"


def test_a_note_about_prompts_comes_with_the_first_step_and_an_error_alone(tmp_path, capsys):
    """A prompt that the embedded cascade cannot draw, into folders that cannot be written."""
    (tmp_path / "file").write_text("in the way")
    argv = ["sample", "--prompt", "a horse", "--through=base", "--steps=1"]
    for out in (tmp_path / "file" / "below", tmp_path):
        (tmp_path / "manifest.json").write_text("{}")
        assert main([*argv, "--out", str(out)]) == 2
        line, end, more = capsys.readouterr().err.partition("\n")
        assert (end, more) == ("\n", "") and line.startswith(f"imagen-video: {out}"), line
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    note, _, bar = capsys.readouterr().err.partition("\n")
    assert note.startswith("note: ") and "expect little of 'a horse'" in note and "base" in bar


def test_byte_order_mark_and_carriage_returns_are_no_part_of_a_prompt(weights, tmp_path):
    out, prompts = tmp_path / "out", tmp_path / "prompts"
    prompts.write_bytes(b"\xef\xbb\xbfa red circle\r\n\r\na blue star\r\n")
    assert main(sample(weights, out, f"--prompts={prompts}", "--through=base", prompt=None)) == 0
    assert manifest(out)["request"]["prompts"] == ["a red circle", "a blue star"]


def rewritten(folder, change):
    """The base's file with its tensors changed; written by other means than ours."""
    path = folder / "base.safetensors"
    save_stage(
        str(path), BASE, drawn_params(BASE), text_digest=text_model().digest, dtype="float32"
    )
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


ENCODER_OF_ANOTHER = """
from ml_collections import ConfigDict
from imagen_video import records
from micro_cascade import BASE
def get_config():
    text = {"encoder": %r, "tokenizer": "embedded", "dtype": "float32", "cache": None}
    return ConfigDict({"stages": {"base": records.to_dict(BASE)}, "text": text})
"""


def test_weights_of_another_text_model_than_the_encoder_given_are_refused_naming_both(
    weights, tmp_path, capsys
):
    encoder = text_model().encoder
    params = jax.tree.map(lambda value: 2 * value, encoder.params)
    other = tmp_path / "other.safetensors"
    save_t5(other, make_frozen_t5(encoder.config, params))
    config, out = tmp_path / "config.py", tmp_path / "out"
    config.write_text(ENCODER_OF_ANOTHER % str(other))
    message = failure(sample(weights, out, f"--config={config}"), out, capsys)
    assert re.match(
        f"base: trained with text model {text_model().digest[:12]}, but the cascade's is"
        rf" [0-9a-f]{{12}} \(encoder {other}, tokenizer embedded\); a config, such as"
        r" configs/cascade\.py, names another$",
        message,
    ), message


def foreign_text(folder):
    save_stage(
        str(folder / "base.safetensors"),
        BASE,
        drawn_params(BASE),
        text_digest="0123456789abcdef",
        dtype="float32",
    )


KERNEL = "out/conv/kernel"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder.rmdir(), "weights: {folder} is not a folder"),
        (lambda folder: None, "weights: {folder} holds those of no stage"),
        (
            lambda folder: (folder / "base.safetensors").write_bytes(b"\x80\x04\x95pickle."),
            "{folder}/base.safetensors: not a safetensors file",
        ),
        (
            lambda folder: rewritten(folder, lambda t: t.update({KERNEL: t[KERNEL][..., :1]})),
            "{folder}/base.safetensors: out/conv/kernel: shape (3, 3, 8, 1), base has (3, 3, 8, 3)",
        ),
        (
            lambda folder: rewritten(folder, lambda t: t.pop(KERNEL)),
            "{folder}/base.safetensors: out/conv/kernel: missing from the weights of base",
        ),
        (foreign_text, "base: trained with text model 0123456789ab, but the cascade's is {text}"),
    ],
)
def test_weights_that_cannot_be_used_are_one_line(tmp_path, capsys, write, message):
    folder, out = tmp_path / "weights", tmp_path / "out"
    folder.mkdir()
    write(folder)
    found = failure(sample(folder, out), out, capsys)
    assert found.startswith(message.format(folder=folder, text=text_model().digest[:12])), found


def test_a_folder_that_cannot_be_written_is_one_line(weights, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("in the way")
    for out in (file, file / "below"):
        assert main(sample(weights, out, "--through=base")) == 2
        assert capsys.readouterr().err.strip().split(": ")[0] == "imagen-video"
    assert file.read_text() == "in the way"


def test_a_folder_with_another_requests_videos_is_left_alone(weights, undisturbed, capsys):
    before = {path: path.read_bytes() for path in undisturbed.iterdir()}
    assert main(sample(weights, undisturbed, "--seed=6")) == 2
    message = capsys.readouterr().err
    assert message == (
        f"imagen-video: {undisturbed}: holds the videos of another request; use another folder\n"
    )
    assert {path: path.read_bytes() for path in undisturbed.iterdir()} == before
