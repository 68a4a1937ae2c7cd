"""The text encoder spread over 8 devices and whole on one, compared; prints a JSON object.

A program, because the number of devices is fixed when JAX starts.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from imagen_video.cascade.embedding import embed_captions
from imagen_video.sharding.layout import ShardingConfig, local_layout, make_layout
from imagen_video.sharding.mesh import MeshShape
from imagen_video.text.t5_encoder import param_axes
from imagen_video.text.text_model import TextPaths, load_text_model

CAPTIONS = [f"a red letter {chr(65 + i)} moving left" for i in range(8)]


def compare(layout):
    """What differs between the two, and how much of the parameters a device holds."""
    one = load_text_model(TextPaths(), num_tokens=16)
    many = load_text_model(TextPaths(), num_tokens=16, layout=layout)
    found, mask = many.embed(CAPTIONS)
    truth, _ = one.embed(CAPTIONS)
    expected = layout.params(param_axes(many.encoder.config), many.encoder.params)
    leaves = jax.tree.leaves(many.encoder.params)
    moved = one.encoder.placed(layout)
    return {
        "difference": float(np.abs(np.asarray(found) - np.asarray(truth))[mask].max()),
        "scale": float(np.abs(np.asarray(truth))[mask].max()),
        "devices": len(found.sharding.device_set),
        "placed": all(
            leaf.sharding == sharding
            for tree in (many.encoder.params, moved.params)
            for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(expected))
        ),
        "share": sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        / sum(leaf.nbytes for leaf in leaves),
        "same_digest": many.digest == one.digest,
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    two_ways = make_layout(ShardingConfig(mesh=MeshShape(fsdp=4, tensor=2)))
    print(json.dumps([compare(local_layout()), compare(two_ways)]))
    text = load_text_model(TextPaths(), num_tokens=16, layout=local_layout())
    embed_captions(CAPTIONS, text, pathlib.Path(sys.argv[1]), batch_size=8)
