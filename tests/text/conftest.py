"""Copies of the T5 checkpoints in tests/fixtures, to be changed."""

import pathlib
import shutil

import pytest
from t5_files import HF, T5X


@pytest.fixture
def t5x(tmp_path):
    return pathlib.Path(shutil.copytree(T5X / "checkpoint_0", tmp_path / "checkpoint_0"))


@pytest.fixture
def hf(tmp_path):
    shutil.copytree(HF, tmp_path / "hf")
    return tmp_path / "hf"
