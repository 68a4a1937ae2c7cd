"""A T5 encoder bound to parameters that no longer change, and the digest that names it."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float32, Int32

from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout
from imagen_video.text.t5_encoder import T5Config, T5Encoder, param_axes, param_shapes


def tensor_digest(value: Any) -> str:
    """sha256 of a tensor's shape and its values rounded to bfloat16, in row-major order."""
    value = np.asarray(value)
    rounded = np.ascontiguousarray(value.astype(ml_dtypes.bfloat16)).view("<u2")
    return hashlib.sha256(f"{value.shape}".encode() + rounded.tobytes()).hexdigest()


def combined_digest(tensor_digests: dict[str, str]) -> str:
    """sha256 over the sorted (path, tensor digest) pairs, which may be made in any order."""
    lines = [f"{path} {digest}\n" for path, digest in sorted(tensor_digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def params_digest(params: Any) -> str:
    """Names the values of a parameter tree: sha256 over sorted paths, shapes and values.

    Values are rounded to bfloat16 first, so that one checkpoint held in float32, in bfloat16 or
    exported as bfloat16 keeps one name.
    """
    flat = traverse_util.flatten_dict(nn.meta.unbox(params), sep="/")
    return combined_digest({path: tensor_digest(value) for path, value in flat.items()})


@functools.partial(jax.jit, static_argnames=("config",))
def encode(config: T5Config, params: Any, tokens: Int32[Array, "b n"]) -> Float32[Array, "b n d"]:
    """Runs T5Encoder(config) on its params; compiled once per config and shape of tokens."""
    return T5Encoder(config).apply({"params": params}, tokens)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrozenT5:
    """An encoder with its parameters, never trained further: tokens [b n] to embeddings [b n d].

    Attributes:
      config: sizes.
      params: unboxed tree with T5X names.
      digest: names the encoder: equal digests mean interchangeable embeddings. It covers sizes and
        values, not the compute dtype.
      layout: how parameters and captions are spread over devices; None for one device.
    """

    config: T5Config
    params: Any
    digest: str
    layout: Layout | None = None

    def __call__(
        self, tokens: Int32[Array, "b n"] | Int32[np.ndarray, "b n"]
    ) -> Float32[Array, "b n d"]:
        """Returns one embedding per token; those at padding (id 0) are meaningless."""
        tokens = jnp.asarray(tokens)
        if self.layout is not None:
            rows = self.layout.sharding((axes.BATCH, None), tokens.shape)
            tokens = jax.device_put(tokens, rows)
        return encode(self.config, self.params, tokens)

    def placed(self, layout: Layout) -> "FrozenT5":
        """Returns the encoder spread over devices; what lies so already is not moved."""
        shardings = layout.params(param_axes(self.config), self.params)
        params = jax.device_put(self.params, shardings)
        return dataclasses.replace(self, params=params, layout=layout)

    def free(self) -> None:
        """Gives up the parameters' memory, whoever else holds them; no caption can be read then."""
        for value in jax.tree.leaves(self.params):
            value.delete()


def make_frozen_t5(
    config: T5Config,
    params: Any,
    *,
    values_digest: str | None = None,
    layout: Layout | None = None,
) -> FrozenT5:
    """Binds params, boxed or not, to a config.

    Args:
      config: sizes.
      params: tree of a T5Encoder.
      values_digest: params_digest(params) where a loader made it while reading.
      layout: that the params lie in already.

    Raises:
      ValueError: naming a tensor that is missing, unknown or of another shape.
    """
    params = nn.meta.unbox(params)
    found = {
        path: tuple(value.shape)
        for path, value in traverse_util.flatten_dict(params, sep="/").items()
    }
    _check_shapes(config, found)
    sizes = {k: v for k, v in dataclasses.asdict(config).items() if k != "dtype"}
    content = json.dumps(sizes, sort_keys=True) + (values_digest or params_digest(params))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return FrozenT5(config=config, params=params, digest=digest, layout=layout)


def _check_shapes(config: T5Config, found: dict[str, tuple[int, ...]]) -> None:
    """Compares shapes by slash path with what T5Encoder(config) declares.

    Raises:
      ValueError: naming the first tensor that is missing, unknown or of another shape.
    """
    expected = param_shapes(config)
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            raise ValueError(f"{path}: missing from the encoder's parameters")
        if path not in expected:
            raise ValueError(f"{path}: not a parameter of a {config.num_layers}-layer encoder")
        if found[path] != expected[path]:
            raise ValueError(f"{path}: shape {found[path]}, expected {expected[path]}")
