"""The package's rooms, held by reading every module's imports with ast, nested ones too.

A module imports only from rooms with a smaller number or from its own folder; rooms of one number
never import each other. Each rule is also shown a module that breaks it.
"""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "imagen_video"
ROOMS = {
    **dict.fromkeys(("array_types", "files", "records"), 0),
    **dict.fromkeys(("resample", "video_io", "contact_sheet", "diffusion"), 1),
    **dict.fromkeys(("sampling", "sharding"), 2),
    **dict.fromkeys(("networks", "text", "data", "metrics"), 3),
    "cascade": 4,
    "training": 5,
    **dict.fromkeys(("evaluation", "profiling"), 6),
    "config": 7,
    "loading": 8,
    "cli": 9,
    "__main__": 10,
}
LINES, COMMAND_LINES = 300, 80
LINEN_ROOMS = ("networks", "text", "metrics.extractors")
CONFIG_ROOMS = ("config", "cli")
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
ARRAY_TYPES_MAY = {"dataclasses", "typing", "collections", "jax", "jaxtyping"}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of everything imported, names taken from a module included."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def room_of(name: str) -> str | None:
    """The room a dotted name of this package lies in; None for a name of the package's own top."""
    first = name.split(".")[1] if "." in name else ""
    return first if first in ROOMS else None


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{PACKAGE}.{room}.") for room in rooms)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Everything wrong with one module of the package, as `line: rule` texts."""
    found = []
    tree = ast.parse(source)
    top = module == PACKAGE
    room = room_of(module)
    if is_package and not top and source.strip():
        found.append("1: __init__.py must be empty")
    if not top and room is None:
        found.append("1: lies in no room")
        return found
    limit = COMMAND_LINES if room == "cli" else LINES
    lines = source.count("\n")
    if lines > limit:
        found.append(f"{lines}: more than {limit} lines")
    if module.rpartition(".")[2] in ("utils", "helpers", "common"):
        found.append("1: a file is named after what it holds")

    for line, name in imports(tree, module, is_package):
        base, last = name.split(".")[0], name.rpartition(".")[2]
        if base == PACKAGE and not top:
            other = room_of(name)
            if other is None and last != "__version__" and name != PACKAGE:
                found.append(f"{line}: {name} is no room")
            elif other is not None and other != room and ROOMS[other] >= ROOMS[room]:
                found.append(
                    f"{line}: {room} ({ROOMS[room]}) must not import {other} ({ROOMS[other]})"
                )
        if name.startswith("flax.linen") and not within(module, LINEN_ROOMS):
            found.append(f"{line}: flax.linen outside {', '.join(LINEN_ROOMS)}")
        if name.startswith("flax.struct") and not within(module, LINEN_ROOMS):
            found.append(f"{line}: flax.struct outside {', '.join(LINEN_ROOMS)}")
        if name.startswith("flax.nnx"):
            found.append(f"{line}: flax.nnx; the networks are Linen")
        if base == "flax" and room == "data":
            found.append(f"{line}: flax in data")
        if base == "ml_collections" and not within(module, CONFIG_ROOMS):
            found.append(f"{line}: ml_collections outside {', '.join(CONFIG_ROOMS)}")
        if base in UNPICKLERS:
            found.append(f"{line}: {base} runs code from files")
        if f"{name}.".startswith("jax._src."):
            found.append(f"{line}: jax._src is private")
        if name == "__future__.annotations":
            found.append(f"{line}: annotations as strings hide shapes from the checker")
        if room == "array_types" and base not in ARRAY_TYPES_MAY:
            found.append(f"{line}: array_types needs jax and jaxtyping only")

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text in ("flax.linen", "flax.struct") and not within(module, LINEN_ROOMS):
                found.append(f"{node.lineno}: {text} outside {', '.join(LINEN_ROOMS)}")
            if text in ("flax.nnx", "jax._src"):
                found.append(f"{node.lineno}: {text}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{node.lineno}: allow_pickle runs code from files")

    if source.strip() and not ast.get_docstring(tree):
        found.append("1: the module has no docstring")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{node.lineno}: {node.name} has no docstring")
    return found


def modules() -> Iterator[tuple[str, pathlib.Path]]:
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_every_module_keeps_the_rules(module, path):
    found = violations(module, path.read_text(), is_package=path.name == "__init__.py")
    assert not found, "\n".join(f"{path.relative_to(ROOT)}:{text}" for text in found)


def test_every_folder_is_a_package():
    # Otherwise a wheel leaves it out.
    for path in (ROOT / PACKAGE).rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path.parent


def test_no_file_is_named_after_nothing_elsewhere_either():
    names = {"utils.py", "helpers.py", "common.py"}
    for folder in ("configs", "tests", "colabs"):
        assert not [p for p in (ROOT / folder).rglob("*.py") if p.name in names]


def test_test_files_have_names_of_their_own():
    # pytest imports them by bare name.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


DOC = '"""What it is."""\n'
ALLOWED = [
    ("imagen_video.sampling.sampler", "from imagen_video.diffusion import process\n"),
    ("imagen_video.sampling.sampler", "from imagen_video.sampling import steppers\n"),
    ("imagen_video.sampling.sampler", "from . import steppers\nfrom ..diffusion import losses\n"),
    ("imagen_video.networks.unet", "from flax import linen as nn\nimport flax.linen\n"),
    ("imagen_video.metrics.extractors.clip", "import flax.linen as nn\n"),
    ("imagen_video.text.t5_weights", "from flax import serialization\n"),
    ("imagen_video.cli.train", "from ml_collections import config_flags\nimport imagen_video\n"),
    ("imagen_video.cascade.weights", "from imagen_video import __version__, records\n"),
    ("imagen_video.data.sources", "import numpy as np\nnp.load('x', allow_pickle=False)\n"),
    ("imagen_video.cascade.stage", "def _private():\n    pass\n"),
]
FORBIDDEN = [
    (
        "imagen_video.diffusion.losses",
        "from imagen_video.sampling import sampler\n",
        "diffusion (1)",
    ),
    ("imagen_video.diffusion.losses", "import imagen_video.sampling.sampler\n", "sampling (2)"),
    ("imagen_video.diffusion.losses", "from imagen_video import cascade\n", "cascade (4)"),
    # Rooms of one number.
    ("imagen_video.text.tokenizer", "from imagen_video.networks import unet\n", "networks (3)"),
    ("imagen_video.resample", "from imagen_video import video_io\n", "video_io (1)"),
    # Nested, relative and dynamic imports.
    (
        "imagen_video.diffusion.losses",
        "def _f():\n    if 1:\n        from imagen_video.cli import main\n",
        "4: diffusion (1) must not import cli (9)",
    ),
    ("imagen_video.diffusion.losses", "from ..cascade import stage\n", "cascade (4)"),
    ("imagen_video.diffusion.losses", "from .. import cascade\n", "cascade (4)"),
    (
        "imagen_video.diffusion.losses",
        "import importlib\nimportlib.import_module('imagen_video.cascade.stage')\n",
        "cascade (4)",
    ),
    # The top of the package lies above every room.
    ("imagen_video.cascade.stage", "from imagen_video import load_cascade\n", "is no room"),
    ("imagen_video.shapes", "", "lies in no room"),
    ("imagen_video.training.step", "import flax.linen as nn\n", "flax.linen outside"),
    ("imagen_video.training.step", "from flax import linen\n", "flax.linen outside"),
    ("imagen_video.training.step", "from flax.linen import Module\n", "flax.linen outside"),
    ("imagen_video.training.step", "import flax\nflax.linen.Module\n", "flax.linen outside"),
    ("imagen_video.metrics.fid", "import flax.linen as nn\n", "flax.linen outside"),
    ("imagen_video.training.state", "from flax import struct\n", "flax.struct outside"),
    ("imagen_video.networks.unet", "from flax import nnx\n", "flax.nnx"),
    ("imagen_video.data.sources", "from flax import serialization\n", "flax in data"),
    ("imagen_video.cascade.stage", "import ml_collections\n", "ml_collections outside"),
    ("imagen_video.loading", "from ml_collections import ConfigDict\n", "ml_collections outside"),
    ("imagen_video.cascade.weights", "import pickle\n", "pickle runs code"),
    (
        "imagen_video.cascade.weights",
        "import numpy as np\nnp.load('x', allow_pickle=True)\n",
        "allow_pickle",
    ),
    ("imagen_video.sharding.mesh", "from jax._src import core\n", "jax._src"),
    ("imagen_video.sharding.mesh", "import jax\njax._src.core\n", "jax._src"),
    ("imagen_video.array_types", "import numpy\n", "jax and jaxtyping only"),
    (
        "imagen_video.cascade.stage",
        "from __future__ import annotations\n",
        "annotations as strings",
    ),
    ("imagen_video.cascade.utils", "", "named after what it holds"),
    ("imagen_video.cascade.stage", "x = 1\n" * 300, "more than 300 lines"),
    ("imagen_video.cli.train", "x = 1\n" * 80, "more than 80 lines"),
    ("imagen_video.cascade.stage", "def make_stage():\n    pass\n", "make_stage has no docstring"),
    ("imagen_video.cascade.stage", "class Stage:\n    pass\n", "Stage has no docstring"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_good_modules_pass(module, source):
    assert violations(module, DOC + source) == []


@pytest.mark.parametrize(("module", "source", "message"), FORBIDDEN)
def test_each_rule_catches_a_module_that_breaks_it(module, source, message):
    found = violations(module, DOC + source)
    assert any(message in text for text in found), found


def test_packages_are_empty_and_modules_say_what_they_are():
    assert violations("imagen_video.cascade", "", is_package=True) == []
    assert "1: __init__.py must be empty" in violations(
        "imagen_video.cascade", DOC + "import os\n", is_package=True
    )
    assert violations("imagen_video.cascade.stage", "x = 1\n") == ["1: the module has no docstring"]
