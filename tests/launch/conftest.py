"""The checkout that the launch scripts run in."""

import shutil

import pytest
from launch_checkout import HERE, LAUNCH, STAGES, Checkout


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    root, machine = folder / "checkout", folder / "machine"
    shutil.copytree(LAUNCH, root / "launch")
    configs = ["configs/distill.py", *(f"configs/stages/{stage}.py" for stage in STAGES)]
    for file in ("README.md", "pyproject.toml", "setup.py", "imagen_video/__init__.py", *configs):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    shutil.copytree(HERE / "standins" / "machine", machine)
    for version in ("3.14", "3.13", "3.12", "3.11", ""):  # Hides the Pythons of this machine.
        (machine / f"python{version}").write_text("#!/bin/sh\nexit 127\n")
        (machine / f"python{version}").chmod(0o755)
    return root


@pytest.fixture
def checkout(root, tmp_path):
    checkout = Checkout(root, tmp_path)
    yield checkout
    checkout.close()
    refused = tmp_path / "refused"
    assert not refused.exists(), refused.read_text()


@pytest.fixture
def hidden_source(root):
    """The name of a file that is missing from the checkout during the test."""
    file, elsewhere = root / "setup.py", root.parent / "setup.py"
    file.rename(elsewhere)
    yield file.name
    elsewhere.rename(file)
