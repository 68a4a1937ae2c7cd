"""Trains a micro stage on 8 devices, its text encoder in parts, and once from cached embeddings.

    sharded_training.py WORKDIR CACHE

leaves WORKDIR/encoded and WORKDIR/cached, and prints the share of the encoder on each device.
"""

import json
import sys

import jax
from small_epoch import STAGE, run_of

from imagen_video.sharding.layout import layout_if_needed
from imagen_video.training.run_text import frozen_params, load_run_text
from imagen_video.training.stage_run import train_stage

if __name__ == "__main__":
    assert jax.device_count() == 8
    workdir, cache = sys.argv[1:]
    share = None
    for name, run in {
        "encoded": run_of(num_steps=2, batch_size=8),
        "cached": run_of(num_steps=2, batch_size=8, cache=cache),
    }.items():
        layout = layout_if_needed(run.sharding)
        text = load_run_text(run.text, num_tokens=STAGE.text_tokens, layout=layout)
        train_stage(run, text=text, workdir=f"{workdir}/{name}")
        leaves = jax.tree.leaves(frozen_params(text, layout))
        if leaves:
            held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
            share = held / sum(leaf.nbytes for leaf in leaves)
    print(json.dumps({"share": share}))
