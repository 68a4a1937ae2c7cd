"""A Cloud Storage of this process's memory: what gs:// paths are opened with, but for the network.

As there, a folder is nothing but the names that begin with it.
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar
from unittest import mock

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Buckets(MemoryFileSystem):
    """fsspec's file system in memory, under the names that gcsfs has."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("gs://"))

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass


@contextlib.contextmanager
def buckets() -> Iterator[dict]:
    """Opens gs:// in memory; yields the files that lie there, by name, none at first."""
    opened = backend.fsspec_backend._get_filesystem
    with mock.patch.dict(_registry, gcs=Buckets):
        opened.cache_clear()
        try:
            yield Buckets.store
        finally:
            Buckets.store.clear()
            opened.cache_clear()
