"""The console script `imagen-video`: finds the command, parses its flags, reports mistakes.

A command is a module with a docstring, `define(flag_values)`, which defines its flags in the
`CommandFlags` it is given, and `run(flag_values)`, which does the work and returns None or an exit
code. Exit codes: 0 done, 2 a mistake of the user's, 130 interrupted, 141 nobody reads the output.
"""

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from absl import flags

import imagen_video
from imagen_video import config
from imagen_video.cli import help_page

NAMES = (
    *("sample", "upsample", "train", "distill", "evaluate", "embed-text", "prepare-data"),
    *("export", "describe", "compile", "recipes", "benchmark"),
)
# The extra of setup.py that brings a module which a plain install lacks.
EXTRAS = {
    "array_record": "train",
    "grain": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "data",
    "scipy": "metrics",
}
MODULES = {name: f"imagen_video.cli.{name.replace('-', '_')}" for name in NAMES}


def main(argv: Sequence[str] | None = None, *, commands: Mapping[str, str] = MODULES) -> int:
    """Runs one command and returns its exit code.

    Args:
      argv: the command's name, then its flags; the process's own arguments by default.
      commands: module of each command by its name; those that do not exist are left out.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        name: module for name, module in commands.items() if importlib.util.find_spec(module)
    }
    try:
        if not argv or argv[0] in ("--help", "-h", "help"):
            print(help_page.all_commands(commands))
            return 0 if argv else 2
        if argv[0] == "--version":
            print(f"imagen-video {imagen_video.__version__}")
            return 0
        name, *rest = argv
        if name not in commands:
            raise flags.Error(f"no command {name!r}; there are {', '.join(commands) or 'none'}")
        command = importlib.import_module(commands[name])
        if "--help" in rest or "-h" in rest:
            flag_values = config.CommandFlags([name])
            command.define(flag_values)
            print(help_page.one_command(name, command.__doc__ or "", flag_values))
            return 0
        return command.run(_parsed(command, [name, *rest])) or 0
    except BrokenPipeError:  # The reader of a pipe, such as `head`, has seen enough.
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(
            f"imagen-video: {argv[0]} needs {error.name}:"
            f" pip install 'imagen-video[{EXTRAS[error.name]}]'",
            file=sys.stderr,
        )
        return 2
    except (flags.Error, ValueError, OSError) as error:
        if os.environ.get("IMAGEN_VIDEO_TRACEBACK", "0") != "0":
            raise
        print(f"imagen-video: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nimagen-video: interrupted", file=sys.stderr)
        return 130


def _parsed(command, argv: list[str]) -> config.CommandFlags:
    flag_values = config.CommandFlags(argv)
    command.define(flag_values)
    try:
        _, *unexpected = flag_values(flag_values.argv)
    except (AttributeError, LookupError, TypeError) as error:  # An override that fits nothing.
        raise flags.Error(f"{type(error).__name__}: {error}") from error
    if unexpected:
        raise flags.Error(f"unexpected argument {unexpected[0]!r}; flags begin with --")
    return flag_values


def _drop_stdout() -> None:
    """Sends what is still buffered nowhere, or Python would complain of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
