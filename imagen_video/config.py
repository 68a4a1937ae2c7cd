"""Config files to records: the one module of the library that sees ml_collections.

A config file is Python with a function `get_config([size])` that returns a
`ml_collections.ConfigDict`; it is named by `PATH.py` or `PATH.py:SIZE`. Everything below this
module takes frozen records instead, which cannot be misspelt or changed after they are checked.
"""

import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from absl import flags, logging
from ml_collections import config_dict, config_flags

from imagen_video import records
from imagen_video.profiling.slices import Slice

T = TypeVar("T")
CONFIG = "config"  # The flag's name, and the first word of every path in error messages.


def load_config(
    path: str | os.PathLike, overrides: Mapping[str, Any] | None = None
) -> config_dict.ConfigDict:
    """Runs a config file and returns its ConfigDict, locked.

    Args:
      path: "PATH.py" or "PATH.py:SIZE"; what follows the colon is handed to `get_config`.
        A path configs/... that the working directory lacks is taken from the installed package.
      overrides: values by dotted path, such as {"stage.unet.channels": (8, 16)}.

    Raises:
      ValueError: the file is missing or fails, or an override names no field of it or has
        another type than the field.
    """
    file, _, size = resolve(os.fspath(path)).partition(":")
    spec = importlib.util.spec_from_file_location("imagen_video_config_file", file)
    if spec is None:  # Python goes by the file's ending.
        raise ValueError(f"{file}: not a config file, its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    args = (size,) if size else ()
    try:
        spec.loader.exec_module(module)
        inspect.signature(module.get_config).bind(*args)
        config = module.get_config(*args)
        if not isinstance(config, config_dict.ConfigDict):
            raise ValueError(f"get_config returned {type(config).__name__}, not a ConfigDict")
        config.lock()
    except Exception as error:  # The file is the user's program: whatever it raises is its fault.
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{os.fspath(path)}: {what}") from error
    for name, value in (overrides or {}).items():
        holder, field = _find(config, name)
        try:
            holder[field] = value
        except (TypeError, ValueError) as error:
            raise ValueError(f"{CONFIG}.{name}: {value!r} does not fit: {error}") from error
    return config


def to_record(cls: type[T], config: config_dict.ConfigDict, *, where: str = CONFIG) -> T:
    """Builds the dataclass `cls` from a ConfigDict of its fields.

    Args:
      cls: a frozen dataclass that `records.from_dict` can build.
      config: its fields, nested ConfigDicts for nested records.
      where: path of `config` in the whole file, for error messages.

    Raises:
      ValueError: naming the path of an unknown, missing or ill-typed field.
    """
    return records.from_dict(cls, _plain(config), where=where)


def resolve(path: str) -> str:
    """Returns `path`, or its place in the installed configs if the working directory lacks it.

    Raises:
      ValueError: no such file in either place.
    """
    file, colon, size = path.partition(":")
    if os.path.isfile(file):
        return path
    parts = pathlib.PurePath(file).parts
    if parts[:1] == ("configs",):
        for root in _installed_configs():
            if root.joinpath(*parts[1:]).is_file():
                return f"{root.joinpath(*parts[1:])}{colon}{size}"
    raise ValueError(f"{file or repr(path)}: no such config file")


class CommandFlags(flags.FlagValues):
    """The flags of one command, which know the arguments they will be parsed from.

    Config overrides (`--config.a.b=v`) become flags only once the arguments and the file that they
    name are known, so the arguments must be at hand when `--config` is defined.

    Attributes:
      argv: the arguments, program name first, each --config path resolved.
      config_path: the config file that they name, resolved, or None.
    """

    def __init__(self, argv: Sequence[str]):
        super().__init__()
        argv, path = list(argv), None
        for i, arg in enumerate(argv):
            if match := re.fullmatch(rf"(--?{CONFIG}=)(.*)", arg, re.DOTALL):
                path = resolve(match[2])
                argv[i] = match[1] + path
            elif re.fullmatch(rf"--?{CONFIG}", arg) and i + 1 < len(argv):
                path = argv[i + 1] = resolve(argv[i + 1])
        # Through __dict__, because FlagValues takes plain attributes for flags.
        self.__dict__["argv"], self.__dict__["config_path"] = argv, path


def define_config(
    flag_values: CommandFlags, *, default: str | None = None, required: bool = False, help: str
) -> None:
    """Defines `--config PATH.py[:SIZE]` and its overrides `--config.a.b=v`.

    After parsing, `flag_values.config` is the locked ConfigDict, overrides applied.

    Args:
      flag_values: the command's flags.
      default: the config file to use where none is given.
      required: whether one must be given.
      help: what the command wants it for.

    Raises:
      ValueError: as `load_config`: the named file fails, or an override names no field of it.
    """
    default = default and resolve(default)
    path = flag_values.config_path or default
    if path:
        # config_flags reports a failing file by a whole traceback and an unknown field by its bare
        # name, so both are looked for first. Indices (a[0].b) are left to it.
        config = load_config(path)
        for arg in flag_values.argv:
            match = re.match(rf"--?(no)?{CONFIG}\.([^=]+)", arg)
            if match and "[" not in match[2]:
                _find(config, match[2])
    config_flags.DEFINE_config_file(
        CONFIG,
        default,
        help,
        flag_values=flag_values,
        sys_argv=flag_values.argv,
        lock_config=True,
    )
    if required:
        flags.mark_flag_as_required(CONFIG, flag_values)


def with_recipe(flag_values: CommandFlags, *, program: str) -> config_dict.ConfigDict:
    """Returns the config with the recipe of `--slice`, the command line's overrides on top.

    Args:
      flag_values: parsed, with --config and --slice.
      program: of `in_recipe`.

    Raises:
      ValueError: the config is of no stage; or a recipe names no field of it, or one of another
        type.
    """
    if flag_values.slice is None:
        return flag_values.config
    overrides = config_flags.get_override_values(flag_values[CONFIG])
    return in_recipe(
        flag_values.config, program=program, slice_name=flag_values.slice, keep=frozenset(overrides)
    )


def stage_of(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns the stage that a config is about.

    Raises:
      ValueError: it is about none.
    """
    if "stage" not in config:
        raise ValueError("config: has no stage; name a configs/stages/NAME.py[:SIZE]")
    return config.stage


def in_recipe(
    config: config_dict.ConfigDict,
    *,
    program: str,
    slice_name: str,
    keep: frozenset[str] = frozenset(),
) -> config_dict.ConfigDict:
    """Returns a stage's config with the recipe of its program on a slice, if there is one.

    Args:
      config: of the stage, or of its distillation.
      program: "train" or "sample"; of a distillation "guide" or "halve", or "distill" for both.
      slice_name: such as "v5e:4x4".
      keep: dotted paths that the recipe does not touch.

    Raises:
      ValueError: as `with_recipe`, or `slice_name` is none.
    """
    slice_name = str(Slice.parse(slice_name))
    recipes, stage = load_recipes(), stage_of(config).name
    programs = ("guide", "halve") if program == "distill" else (program,)
    recipe = {}
    for name in programs:
        recipe |= recipes.get_recipe(stage, name, slice_name)
    if not recipe:
        logging.warning("no recipe for %s, %s on %s", stage, program, slice_name)
    config = config.copy_and_resolve_references()
    for path, value in recipe.items():
        holder, field = _find(config, path)
        if path not in keep:
            try:
                holder[field] = value
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"recipe {slice_name}: {path}: {value!r} does not fit: {error}"
                ) from error
    return config


def load_recipes() -> types.ModuleType:
    """Returns `configs/recipes.py` as a module."""
    spec = importlib.util.spec_from_file_location("recipes", resolve("configs/recipes.py"))
    recipes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipes)
    return recipes


def _installed_configs() -> list[pathlib.Path]:
    """Where config files lie: the installed package, or beside the library in a checkout."""
    package = importlib.util.find_spec("imagen_video_configs")
    if package is not None:
        return [pathlib.Path(place) for place in package.submodule_search_locations]
    return [pathlib.Path(__file__).parents[1] / "configs"]


def _find(config: config_dict.ConfigDict, name: str) -> tuple[config_dict.ConfigDict, str]:
    """Returns the group that holds the field with dotted path `name`, and the field's own name."""
    holder, path = config, CONFIG
    *groups, last = name.split(".")
    for group in groups:
        _check_field(holder, path, group)
        holder, path = holder[group], f"{path}.{group}"
    _check_field(holder, path, last)
    return holder, last


def _check_field(holder: Any, path: str, field: str) -> None:
    known = list(holder) if isinstance(holder, config_dict.ConfigDict) else []
    if field not in known:
        near = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
        raise ValueError(f"{path}.{field}: {path} has no such field; {hint}")


def _plain(value: Any) -> Any:
    """ConfigDicts as dicts, those inside lists and tuples too, references replaced by values."""
    if isinstance(value, config_dict.ConfigDict):
        return {name: _plain(value[name]) for name in value}
    if isinstance(value, Mapping):
        return {name: _plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
