"""Programs of a test on several CPU devices, which have to be asked for before JAX starts."""

import os
import subprocess
import sys
import textwrap


def printed_on(devices, program):
    """Returns what a program, given as indented text, prints on so many fake devices."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')}"
            f" --xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
