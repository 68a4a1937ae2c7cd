"""Config files: found here or in the installed package, checked, and turned into records."""

import dataclasses
import sys

import pytest
from ml_collections import config_dict

from imagen_video import config

FILE = """
from ml_collections import config_dict

def get_config(size="full"):
    width = {"full": 512, "tiny": 8}[size]
    inner = config_dict.ConfigDict(dict(kind="Inner", width=width))
    return config_dict.ConfigDict(
        dict(name="base", inner=inner, many=(config_dict.ConfigDict(dict(width=3)),), steps=(8, 4)))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner | None
    many: tuple[Inner, ...]
    steps: tuple[int, int]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outer.py").write_text(FILE)
    return tmp_path


def expected(width):
    return Outer(name="base", inner=Inner(width=width), many=(Inner(width=3),), steps=(8, 4))


def test_file_to_record(folder):
    assert config.to_record(Outer, config.load_config("outer.py")) == expected(512)
    assert config.to_record(Outer, config.load_config(folder / "outer.py:tiny")) == expected(8)


def test_overrides_are_typed_and_named(folder):
    loaded = config.load_config("outer.py", {"inner.width": 7, "steps": (1, 2)})
    assert (loaded.inner.width, loaded.steps) == (7, (1, 2))
    with pytest.raises(ValueError, match=r"^config.inner.with: .*did you mean width\?"):
        config.load_config("outer.py", {"inner.with": 7})
    with pytest.raises(ValueError, match=r"^config.inner.width: 'wide' does not fit"):
        config.load_config("outer.py", {"inner.width": "wide"})


def test_a_loaded_config_takes_no_new_field(folder):
    loaded = config.load_config("outer.py")
    with pytest.raises(AttributeError):
        loaded.widht = 3
    # A group named like its own field is still a group.
    nested = config_dict.ConfigDict({"a": {"a": 1}})
    assert config.to_record(Nest, nested) == Nest(a=Leaf(a=1))


@dataclasses.dataclass(frozen=True)
class Leaf:
    a: int


@dataclasses.dataclass(frozen=True)
class Nest:
    a: Leaf


def test_override_inside_a_group_named_like_its_field(folder):
    (folder / "nest.py").write_text(
        "from ml_collections import config_dict\n"
        "def get_config():\n    return config_dict.ConfigDict({'a': {'a': 1}})\n"
    )
    assert config.load_config("nest.py", {"a.a": 2}).a.a == 2


def test_record_errors_name_the_path_in_the_file(folder):
    loaded = config.load_config("outer.py")
    with loaded.unlocked():
        loaded.inner.height = 3
    with pytest.raises(ValueError, match=r"^config.inner.height: unknown field of Inner"):
        config.to_record(Outer, loaded)


def test_references_arrive_as_values():
    width = config_dict.FieldReference(4)
    group = config_dict.ConfigDict({"width": width * 2})
    assert config.to_record(Inner, group) == Inner(width=8)


def test_files_that_fail_are_named(folder):
    cases = {
        "raise.py": ("def get_config():\n    raise ValueError('too wide')\n", "too wide"),
        "typo.py": ("def get_config(:\n", "SyntaxError"),
        "none.py": ("def get_config():\n    pass\n", "returned NoneType, not a ConfigDict"),
        "missing.py": ("", "AttributeError"),
        "module.py": ("import no_such_module\n", "ModuleNotFoundError"),
    }
    for name, (text, message) in cases.items():
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
            config.load_config(name)
    with pytest.raises(ValueError, match=r"^none.py:tiny: TypeError: too many positional"):
        config.load_config("none.py:tiny")
    (folder / "weights.bin").write_bytes(b"\x00\xff")
    with pytest.raises(ValueError, match=r"^weights.bin: not a config file, its name does not end"):
        config.load_config("weights.bin:tiny")
    with pytest.raises(ValueError, match=r"^absent.py: no such config file"):
        config.load_config("absent.py:tiny")


def test_installed_configs_stand_in_for_absent_ones(folder, monkeypatch):
    site = folder / "site"
    (site / "imagen_video_configs" / "stages").mkdir(parents=True)
    (site / "imagen_video_configs" / "__init__.py").touch()
    (site / "imagen_video_configs" / "stages" / "zz_test.py").write_text(FILE)
    monkeypatch.delitem(sys.modules, "imagen_video_configs", raising=False)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]

    installed = f"{site}/imagen_video_configs/stages/zz_test.py:tiny"
    assert config.resolve("configs/stages/zz_test.py:tiny") == installed
    assert config.load_config("configs/stages/zz_test.py:tiny").inner.width == 8
    # One in the working directory comes first.
    (folder / "configs" / "stages").mkdir(parents=True)
    (folder / "configs" / "stages" / "zz_test.py").write_text(FILE.replace("8}", "9}"))
    assert config.load_config("configs/stages/zz_test.py:tiny").inner.width == 9
    # Only paths that begin with configs/ are looked for there.
    with pytest.raises(ValueError, match="no such config file"):
        config.resolve("stages/zz_test.py")
