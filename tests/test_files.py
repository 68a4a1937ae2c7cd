"""A file appears whole under its name, and for the same readers as any other."""

import errno
import subprocess
import sys

import numpy as np
import pytest
from memory_bucket import Buckets, buckets
from safetensors.numpy import save_file

from imagen_video import files
from imagen_video.files import any_path, atomic_path, held


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


@pytest.mark.parametrize("breaks", ["writing", "uploading", "renaming"])
def test_what_breaks_off_leaves_a_bucket_as_it_was(monkeypatch, breaks):
    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    path = "gs://bucket/folder/clip.mp4"
    with buckets() as store:
        with atomic_path(path) as part:
            part.write_text("before")
        assert set(store) == {"/bucket/folder/clip.mp4"}
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if breaks == "uploading":
                patch.setattr(Buckets, "open", broken)
            if breaks == "renaming":
                patch.setattr(Buckets, "cp_file", broken)
            with atomic_path(path) as part:
                part.write_text("half")
                if breaks == "writing":
                    raise KeyboardInterrupt
        assert {name: file.getvalue() for name, file in store.items()} == {
            "/bucket/folder/clip.mp4": b"before"
        }
        with atomic_path(path) as part:
            part.write_text("after")
        assert any_path(path).read_text() == "after" and len(store) == 1


def test_others_may_read_what_they_may_read_of_a_new_file(tmp_path):
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    save_file({"x": np.zeros(1)}, tmp_path / "alone")
    assert (tmp_path / "alone").stat().st_mode != mode  # or there would be nothing to see to
    with atomic_path(tmp_path / "tensors") as part:
        save_file({"x": np.zeros(1)}, part)
    assert (tmp_path / "tensors").stat().st_mode == mode


HOLDING = """
import sys
from imagen_video.files import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_against_another_process_until_it_ends(tmp_path):
    folder = tmp_path / "new" / "folder"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDING, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == b"held\n" and not list(folder.iterdir())
    with pytest.raises(ValueError, match=f"{folder}: another run is at work there"), held(folder):
        pass
    first.kill()
    first.communicate()
    with held(folder), pytest.raises(ValueError, match="another run"), held(folder):
        pass


def test_a_file_is_no_folder_to_hold(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="file: is a file, not a folder"), held(tmp_path / "file"):
        pass


def test_a_disk_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with held(tmp_path), held(tmp_path):
        pass
    monkeypatch.setattr(files, "fcntl", None)
    with held(tmp_path), held(tmp_path):
        pass
