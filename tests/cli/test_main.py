"""The console script: lazy commands, one-line errors, exit codes, and config files by flag."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from imagen_video.cli.main import MODULES, main

COMMAND = '''
"""Draws a thing.

The second paragraph.
"""
import json
import time
from absl import flags
from imagen_video import config

def define(flag_values):
    flags.DEFINE_string("prompt", "a cat", "what to draw", flag_values=flag_values)
    flags.DEFINE_enum("fill", "repeat", ["repeat", "blank"], "how to fill", flag_values=flag_values)
    flags.DEFINE_bool("wait", False, "sleeps", flag_values=flag_values)
    flags.DEFINE_string("fail", "", "raises this", flag_values=flag_values)
    config.define_config(flag_values, help="the sizes")

def run(flag_values):
    print(json.dumps([flag_values.prompt, flag_values.fill,
                      flag_values.config and flag_values.config.to_dict()]), flush=True)
    if flag_values.wait:
        time.sleep(60)
    if flag_values.fail == "value":
        raise ValueError("steps = 0\\nmust be positive")
    if flag_values.fail == "os":
        open("/no/such/folder/clip.mp4")
    if flag_values.fail == "nan":
        raise FloatingPointError("step 8: 8 steps in a row without a finite gradient")
    if flag_values.fail == "bug":
        raise RuntimeError("a bug")
    if flag_values.fail.startswith("xla"):
        import jax
        jax.jit(abs, compiler_options=dict([flag_values.fail.split("=")]))(0)
    if flag_values.fail == "extra":
        import grain
    if flag_values.fail == "bucket":
        from etils import epath
        epath.Path("gs://bucket/run").mkdir()
'''
CONFIG = """
from ml_collections import config_dict

def get_config(size="full"):
    if size not in ("full", "tiny"):
        raise ValueError(f"size {size!r} is not one of full, tiny")
    group = config_dict.ConfigDict(dict(width=8 if size == "tiny" else 512, levels=(1, 2)))
    return config_dict.ConfigDict(dict(rate=1e-3, group=group))
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A command `draw` that exists, one that does not, and one whose import would be noticed."""
    (tmp_path / "draw_command.py").write_text(COMMAND)
    (tmp_path / "noisy_command.py").write_text(
        '"""Makes noise."""\nraise RuntimeError("imported")\n'
    )
    (tmp_path / "sizes.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield {"draw": "draw_command", "noisy": "noisy_command", "absent": "no_such_command"}
    sys.modules.pop("draw_command", None)


def failure(argv, commands, capsys) -> str:
    """The one line a mistake ends in; checks code 2 and an otherwise silent stderr."""
    assert main(argv, commands=commands) == 2
    captured = capsys.readouterr()
    line, end, more = captured.err.partition("\n")
    assert (end, more) == ("\n", "") and "Traceback" not in captured.err
    assert line.startswith("imagen-video: ")
    return line.removeprefix("imagen-video: ")


def test_help_lists_existing_commands_without_importing_them(commands, capsys):
    assert main(["--help"], commands=commands) == 0
    page = capsys.readouterr().out
    assert "  draw   Draws a thing.\n  noisy  Makes noise.\n" in page
    assert "second paragraph" not in page and "absent" not in page
    assert "draw_command" not in sys.modules


def test_help_of_a_command_lists_its_flags(commands, capsys):
    assert main(["draw", "--help"], commands=commands) == 0
    page = capsys.readouterr().out
    assert page.startswith(
        "usage: imagen-video draw [FLAGS]\n\nDraws a thing.\n\nThe second paragra"
    )
    assert "  --prompt PROMPT      what to draw (default: a cat)\n" in page
    assert "  --fill repeat|blank  how to fill (default: repeat)\n" in page
    assert "  --[no]wait           sleeps (default: false)\n" in page
    assert "  --config CONFIG      the sizes\n" in page


def test_no_command_prints_help_and_fails(commands, capsys):
    assert main([], commands=commands) == 2
    assert "draw" in capsys.readouterr().out


def test_one_process_runs_a_command_twice_with_fresh_flags(commands, capsys):
    assert main(["draw", "--prompt=a dog", "--fill", "blank"], commands=commands) == 0
    assert main(["draw"], commands=commands) == 0
    assert capsys.readouterr().out == '["a dog", "blank", null]\n["a cat", "repeat", null]\n'


@pytest.mark.parametrize("style", [["--config=sizes.py:tiny"], ["--config", "sizes.py:tiny"]])
def test_config_file_and_typed_overrides(commands, capsys, style):
    changes = ["--config.rate=2", "--config.group.levels=(3, 4)", "--prompt", "x"]
    assert main(["draw", *style, *changes], commands=commands) == 0
    expected = '["x", "repeat", {"group": {"levels": [3, 4], "width": 8}, "rate": 2.0}]\n'
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["drow"], "no command 'drow'; there are draw, noisy"),
        (["draw", "--promt=x"], "Unknown command line flag 'promt'. Did you mean: prompt ?"),
        (["draw", "--prompt"], "Missing value for flag --prompt"),
        (["draw", "--fill=black"], "flag --fill=black: value should be one of <repeat|blank>"),
        (["draw", "a dog"], "unexpected argument 'a dog'; flags begin with --"),
        (["draw", "--config=no.py"], "no.py: no such config file"),
        (["draw", "--config="], "'': no such config file"),
        (["draw", "--config=sizes.py:huge"], "sizes.py:huge: size 'huge' is not one of full, tiny"),
        (
            ["draw", "--config=sizes.py", "--config.rat=1"],
            "config.rat: config has no such field; did you mean rate?",
        ),
        (
            ["draw", "--config=sizes.py", "--config.group.x=1"],
            "config.group.x: config.group has no such field; it has levels, width",
        ),
        (
            ["draw", "--config=sizes.py", "--config.rate.x=1"],
            "config.rate.x: config.rate has no such field; it has none",
        ),
        (
            ["draw", "--config=sizes.py", "--config.group.width=wide"],
            "flag --config.group.width=wide: invalid literal for int() with base 10: 'wide'",
        ),
        (["draw", "--config=sizes.py", "--config.group.levels[7]=1"], "IndexError: "),
        (["draw", "--fail=value"], "steps = 0 must be positive"),
        (["draw", "--fail=nan"], "step 8: 8 steps in a row without a finite gradient"),
        (["draw", "--fail=xla_so=1"], "compiler_options: INVALID_ARGUMENT: No such compile option"),
        (
            ["draw", "--fail=xla_dump_hlo_as_text=2"],
            "compiler_options: INVALID_ARGUMENT: While setting option xla_dump_hlo_as_text,",
        ),
        (["draw", "--fail=os"], "/no/such/folder/clip.mp4: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(commands, capsys, argv, message):
    assert failure(argv, commands, capsys).startswith(message)


def test_override_before_its_file_is_refused(commands, capsys):
    argv = ["draw", "--config.rate=1", "--config=sizes.py"]
    assert "before a value for --config" in failure(argv, commands, capsys)


def test_a_bug_is_not_taken_for_a_mistake(commands):
    with pytest.raises(RuntimeError, match="a bug"):
        main(["draw", "--fail=bug"], commands=commands)


def test_traceback_on_request(commands, monkeypatch):
    monkeypatch.setenv("IMAGEN_VIDEO_TRACEBACK", "1")
    with pytest.raises(ValueError, match="must be positive"):
        main(["draw", "--fail=value"], commands=commands)


def test_ctrl_c_ends_with_130_and_no_traceback(commands, tmp_path):
    program = textwrap.dedent(
        f"""
        import signal, sys
        from imagen_video.cli.main import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored in background jobs.
        sys.exit(main(["draw", "--wait"], commands={commands!r}))
        """
    )
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline()  # It runs.
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.split() == ["imagen-video:", "interrupted"]


def test_a_module_that_an_extra_brings_is_one_line(commands, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)  # As if not installed.
    line = failure(["draw", "--fail=extra"], commands, capsys)
    assert line == "draw needs grain: pip install 'imagen-video[train]'"


def test_a_bucket_without_the_extra_that_opens_it_is_one_line(commands, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    line = failure(["draw", "--fail=bucket"], commands, capsys)
    assert line == "draw needs gcsfs: pip install 'imagen-video[gcs]'"


def test_a_reader_that_has_seen_enough_is_no_mistake(commands, tmp_path):
    program = f"""
import sys
from imagen_video.cli.main import main
sys.exit(main(["draw", "--prompt=x"], commands={commands!r}))
"""
    root = pathlib.Path(__file__).parents[2]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_the_script_itself_starts_without_jax():
    program = """
import sys
from imagen_video.cli.main import main
assert main(["--help"]) == 0 and main(["--version"]) == 0
assert not {"jax", "flax", "numpy"} & set(sys.modules), "the help page must not load them"
"""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: imagen-video COMMAND")


def test_commands_are_named_after_their_modules():
    assert MODULES["embed-text"] == "imagen_video.cli.embed_text"
    for module in MODULES.values():
        assert module.startswith("imagen_video.cli.")
