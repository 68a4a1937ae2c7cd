"""Loads a checkpoint onto 8 devices and prints what memory that took at most, as JSON.

A program of its own, because the peak of a process is measured: run by test_loading_memory.py.
Simulated devices keep their shards in host memory, so an encoder's own size is part of the peak.
"""

import json
import pathlib
import re
import sys

import jax

from imagen_video.sharding.layout import local_layout
from imagen_video.text.t5_weights import load_t5


def memory(field: str) -> int:
    """Bytes of this process by a field of its status: "VmRSS", or "VmHWM" for the peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def main(path: str) -> None:
    layout = local_layout()
    jax.block_until_ready(jax.device_put(jax.numpy.zeros(8), jax.devices()[-1]))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = memory("VmRSS")
    encoder = load_t5(path, layout=layout)
    jax.block_until_ready(encoder.params)
    values = jax.tree.leaves(encoder.params)
    on_first = [value.addressable_shards[0].data.nbytes for value in values]
    found = {
        "devices": jax.device_count(),
        "kept": sum(value.nbytes for value in values),
        "kept_by_a_device": sum(on_first),
        "peak": memory("VmHWM") - before,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
