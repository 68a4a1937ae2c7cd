"""Makes files' permissions count, also where tests are run by root."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

NOBODY = 65534


@contextlib.contextmanager
def unprivileged(folder: pathlib.Path) -> Iterator[None]:
    """Root becomes nobody, who may go down to `folder`; everyone else is without privileges."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.parents):
        if path == pathlib.Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
