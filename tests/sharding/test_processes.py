"""What goes wrong on the first process of a job is told to all: none waits for the others."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Ends each process with what it was told, as a user's error or as it is.
PROCESS = """
import sys
import jax
address, process, kind = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from imagen_video.sharding.processes import from_first
def make():
    raise {"ValueError": ValueError, "KeyError": KeyError}[kind]("samples")
try:
    from_first(make)
except Exception as error:
    print("told", type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("ValueError", "told ValueError samples", "told ValueError samples"),
        # Not a user's mistake: its type is told, too.
        ("KeyError", "told KeyError 'samples'", "told ValueError KeyError('samples')"),
    ],
)
def test_every_error_of_the_first_process_reaches_the_second(kind, first, second):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), kind],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    told = [[line for line in text.splitlines() if line.startswith("told")] for text in outputs]
    assert told == [[first], [second]]
