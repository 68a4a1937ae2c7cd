"""The one list of logical axis names: modules say what an axis is, rules say where it goes.

Activations of a clip are (BATCH, FRAMES, HEIGHT, WIDTH, CHANNELS), or PIXELS where the channels are
colours, never cut; TEXT is the width of projected captions. Kernels of convolutions and projections
are (..., IN, OUT); attention kernels are (IN, HEADS, HEAD_DIM) and (HEADS, HEAD_DIM, OUT). LAYERS
is the stacked axis of scanned blocks and is never split.
"""

BATCH = "batch"
FRAMES = "frames"
HEIGHT = "height"
WIDTH = "width"
CHANNELS = "channels"

TEXT = "text"

LAYERS = "layers"
IN = "in"
OUT = "out"
HEADS = "heads"
HEAD_DIM = "head_dim"
KERNEL = "kernel"
NORM = "norm"
EMB = "emb"
OFFSETS = "offsets"

VOCAB = "vocab"
EMBED = "embed"
MLP = "mlp"
BUCKETS = "relpos_buckets"

CLIP = (BATCH, FRAMES, HEIGHT, WIDTH, CHANNELS)
PIXELS = (BATCH, FRAMES, HEIGHT, WIDTH, None)
