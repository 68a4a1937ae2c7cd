"""Paths on a disk or in a bucket, files that appear whole or not at all, folders one run holds."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator

from etils import epath

try:
    import fcntl
except ImportError:  # On Windows.
    fcntl = None


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns what is to be read or written by libraries that know a machine's own disks alone.

    Raises:
      ValueError: it is a URL, such as gs://bucket/name, which would be a folder `gs:`; or empty, as
        an unset variable of the shell is, which would be the working directory; or begins with a ~
        that no shell has replaced, which would be a folder `~`.
    """
    if "://" in _named(path):
        raise ValueError(f"{path}: must be a path on a disk of this machine, or a mounted one")
    return pathlib.Path(path)


def any_path(path: str | os.PathLike) -> epath.Path:
    """Returns what may lie on a disk or in a bucket of Cloud Storage, gs://BUCKET/NAME.

    Raises:
      ValueError: it is another URL, or empty, or begins with ~.
    """
    if "://" in _named(path) and not re.match("gs://[^/:]", os.fspath(path)):
        raise ValueError(f"{path}: must be a path on a disk, or gs://BUCKET/NAME")
    return epath.Path(path)


def _named(path: str | os.PathLike) -> str:
    if not os.fspath(path):
        raise ValueError("a file or folder has an empty name")
    if os.fspath(path).startswith("~"):
        raise ValueError(f"{path}: no shell has replaced the ~, as after =; write $HOME")
    return os.fspath(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a hidden name beside `path`; what is written there becomes `path`, or nothing does.

    The name is always the same, so that a run killed outright is cleared up by its successor; two
    processes must not write one path at a time. A file may be read by all who may read a new file:
    safetensors, for one, leaves its own to their owner.

    What shall lie in a bucket is written on this machine's disk first, and must be a file. It is
    uploaded under the hidden name: an upload that is broken off may leave the part that came.
    """
    if "://" in os.fspath(path):
        with tempfile.TemporaryDirectory() as folder:
            written = pathlib.Path(folder) / epath.Path(path).name
            yield written
            _upload(written, epath.Path(path))
        return
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.part")
    _remove(part)
    part.touch()
    mode = part.stat().st_mode
    part.unlink()
    try:
        yield part
        if part.is_file():
            part.chmod(mode)
        os.replace(part, path)
    except BaseException:
        _remove(part)
        raise


@contextlib.contextmanager
def downloaded(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields where libraries that know this machine's own disks alone can read a file.

    That is the file itself, or a copy, for as long as it is read, of one in a bucket.

    Raises:
      FileNotFoundError: there is none in the bucket.
    """
    if "://" not in os.fspath(path):
        yield pathlib.Path(path)
        return
    path = any_path(path)
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(path.copy(pathlib.Path(folder) / path.name))


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
    """Makes a folder and keeps a second run out of it; however a run ends, it lets go.

    Only on a machine's own disk: buckets, mounted ones and most network disks know no lock of a
    folder, and there nothing is kept out. A run that was killed is waited for a second.

    Raises:
      ValueError: another run is at work in the folder, or it is a file.
    """
    if "://" not in os.fspath(folder):
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(f"{folder}: is a file, not a folder") from None
    if "://" in os.fspath(folder) or fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _locked(handle):
            raise ValueError(
                f"{folder}: another run is at work there; wait for it or use another folder"
            )
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether nobody else holds what is open; true where the disk knows no locks."""
    for tries_left in reversed(range(10)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1 if tries_left else 0)
        except OSError:
            break
        else:
            break
    else:
        return False
    return True


def _upload(file: pathlib.Path, path: epath.Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        epath.Path(file).copy(part, overwrite=True)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
