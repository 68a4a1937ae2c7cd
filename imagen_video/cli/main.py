"""The console script `imagen-video`: finds the command, parses its flags, reports mistakes.

A command is a module with a docstring, `define(flag_values)`, which defines its flags in the
`CommandFlags` it is given, and `run(flag_values)`, which does the work and returns None or an exit
code: 0 done, one of failures.py, or the command's own.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence

from absl import flags

import imagen_video
from imagen_video import config
from imagen_video.cli import distributed, failures, help_page

NAMES = (
    *("sample", "train", "distill", "evaluate", "compare", "embed-text"),
    *("export", "describe", "compile", "recipes"),
)
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
    except (Exception, KeyboardInterrupt) as error:
        exit_code = failures.report(error, command="".join(argv[:1]))
        distributed.leave(exit_code, error)
        if exit_code is None:
            raise
        return exit_code


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
