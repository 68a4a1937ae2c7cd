"""Muon: momentum whose matrices are made orthogonal before they are applied.

Keller Jordan 2024 (https://kellerjordan.github.io/posts/muon/), with the scale of arXiv 2502.16982,
section 2.2, so that learning rates found for Adam carry over. optax does the work; this file says
which parameters are matrices and which of their axes are rows and columns.
"""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from imagen_video.networks.blocks import is_scanned

Params = Any

_TO_HEADS = ("query", "key", "value", "text_key", "text_value")  # [... in, heads, head_dim]
# Embeddings, biases and gains are no matrices; the last layer is left to Adam as is usual.
_LAST_LAYER = "out"
_ADAM_RMS = 0.2  # of an Adam update, arXiv 2502.16982 section 2.2


def scale_by_muon(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Orthogonalised momentum for kernels, Adam (Nesterov's form) for all else and the last layer.

    Args:
      b1: decay of Adam's mean; Muon's momentum keeps its usual 0.95.
      b2: decay of Adam's mean square.
      eps: added to Adam's root, and to the norm that Muon divides by.
    """
    return optax.contrib.muon(
        learning_rate=-1.0,  # optax's alias descends; the rate and its sign follow in the chain.
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        muon_weight_dimension_numbers=matrix_axes,
        consistent_rms=_ADAM_RMS,
    )


def matrix_axes(params: Params) -> Params:
    """Says of each parameter which axes a matrix's rows and columns are, or None for no matrix.

    A kernel's inputs (of a convolution with its window) are rows, its outputs (of a projection to
    heads all heads together) columns; the layers of scanned blocks are matrices of their own.

    Args:
      params: a U-Net's parameters, nested mappings.
    """

    def of_leaf(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] != "kernel" or names[0] == _LAST_LAYER:
            return None
        first = int(is_scanned(names[0]))
        axes = tuple(range(first, leaf.ndim))
        # Of T5 the heads are one axis already.
        columns = 2 if names[-2] in _TO_HEADS and len(axes) > 2 else 1
        return MuonDimensionNumbers(reduction_axis=axes[:-columns], output_axis=axes[-columns:])

    return jax.tree_util.tree_map_with_path(of_leaf, params)
