"""What `--help` prints: the list of commands, and the flags of one."""

import ast
import importlib.util
import textwrap
from collections.abc import Mapping

from absl import flags

FOOTER = "IMAGEN_VIDEO_TRACEBACK=1 shows where an error came from."


def all_commands(commands: Mapping[str, str]) -> str:
    """Returns the page that lists `commands` (name: module) by the first line of each docstring.

    The modules are read, not imported, so that the page appears at once.
    """
    rows = [(name, _docstring(module).partition("\n")[0]) for name, module in commands.items()]
    lines = ["usage: imagen-video COMMAND [FLAGS]", "", _docstring("imagen_video"), ""]
    lines += [*_table(rows), "", "imagen-video COMMAND --help lists a command's flags.", FOOTER]
    return "\n".join(lines)


def one_command(name: str, docstring: str, flag_values: flags.FlagValues) -> str:
    """Returns the page of command `name`: its module's docstring and its flags as defined."""
    rows = []
    for flag in dict.fromkeys(flag_values[name] for name in flag_values):
        # absl puts the options of an enum before its help; here they are part of the usage.
        text = flag.help.removeprefix(f"<{'|'.join(map(str, _options(flag)))}>: ")
        rows.append((_usage(flag), " ".join(text.split()) + _default(flag)))
    lines = [f"usage: imagen-video {name} [FLAGS]", "", docstring.strip(), "", *_table(rows)]
    return "\n".join([*lines, "", FOOTER])


def _docstring(module: str) -> str:
    source = importlib.util.find_spec(module).loader.get_source(module)
    return ast.get_docstring(ast.parse(source)) or ""


def _options(flag: flags.Flag) -> list:
    return getattr(flag.parser, "enum_values", [])


def _usage(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    if options := _options(flag):
        return f"--{flag.name} {'|'.join(map(str, options))}"
    return f"--{flag.name} {flag.name.upper()}"


def _default(flag: flags.Flag) -> str:
    if flag.parser.flag_type() == "config object" or flag.default in (None, "", []):
        return ""
    return f" (default: {flag.default_as_str.strip(chr(39))})"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(left) for left, _ in rows if len(left) <= 24), default=0)
    lines = []
    for left, right in rows:
        texts = textwrap.wrap(right, 96 - width) or [""]
        if len(left) > width:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:{width}}  {texts[0]}")
        lines += [f"  {'':{width}}  {text}" for text in texts[1:]]
    return lines
