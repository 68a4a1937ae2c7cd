"""A file appears whole under its name, and for the same readers as any other."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagen_video.files import atomic_path


def test_an_interrupted_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as part:
        part.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_they_may_read_of_a_new_file(tmp_path):
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    save_file({"x": np.zeros(1)}, tmp_path / "alone")
    assert (tmp_path / "alone").stat().st_mode != mode  # or there would be nothing to see to
    with atomic_path(tmp_path / "tensors") as part:
        save_file({"x": np.zeros(1)}, part)
    assert (tmp_path / "tensors").stat().st_mode == mode
