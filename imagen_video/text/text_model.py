"""A tokenizer and the frozen encoder that reads its tokens: from captions to embeddings."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import Literal

import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Float32, Int32

from imagen_video.files import any_path
from imagen_video.sharding.layout import Layout
from imagen_video.text.frozen_t5 import FrozenT5
from imagen_video.text.t5_weights import load_t5, on_one_device, shape_alone
from imagen_video.text.tokenizer import PAD_ID, CaptionTokens, Tokenizer, load_tokenizer

EMBEDDED = "embedded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPaths:
    """Where a text model lies, and how it is run.

    Attributes:
      encoder: a checkpoint that `load_t5` reads, or "embedded" for the one in this package.
      tokenizer: a sentencepiece model file, or "embedded".
      dtype: that the encoder holds its parameters and computes in.
      cache: folder of embeddings that `imagen-video embed-text` made with this text model, for
        training to read instead of running the encoder in every step; None runs it.
    """

    encoder: str = EMBEDDED
    tokenizer: str = EMBEDDED
    dtype: Literal["float32", "bfloat16"] = "float32"
    cache: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextModel:
    """Captions in, embeddings out.

    Attributes:
      tokenizer: captions to ids.
      encoder: ids to embeddings.
      num_tokens: caption length n in tokens, padded or truncated.
      paths: where both lay.
    """

    tokenizer: Tokenizer
    encoder: FrozenT5
    num_tokens: int
    paths: TextPaths

    @property
    def digest(self) -> str:
        """Names tokenizer and encoder: equal digests mean interchangeable embeddings."""
        content = f"{self.tokenizer.digest} {self.encoder.digest}"
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def name(self) -> str:
        """What errors call the text model."""
        return (
            f"{self.digest[:12]} (encoder {self.paths.encoder}, tokenizer {self.paths.tokenizer})"
        )

    @property
    def width(self) -> int:
        """Width d of the embeddings."""
        return self.encoder.config.emb_dim

    @property
    def caption_tokens(self) -> CaptionTokens:
        """Captions to tokens, without the encoder."""
        return CaptionTokens(tokenizer=self.tokenizer, num_tokens=self.num_tokens)

    def tokenize(self, captions: Sequence[str]) -> Int32[np.ndarray, "b n"]:
        """Returns ids, padded with 0."""
        return self.tokenizer(captions, self.num_tokens)

    def embed(
        self, captions: Sequence[str]
    ) -> tuple[Float32[Array, "b n d"], Bool[np.ndarray, "b n"]]:
        """Returns embeddings and the mask of real tokens."""
        tokens = self.tokenize(captions)
        return self.encoder(tokens), tokens != PAD_ID


def load_text_model(
    paths: TextPaths, *, num_tokens: int, layout: Layout | None = None, values: bool = True
) -> TextModel:
    """Loads tokenizer and encoder.

    Args:
      paths: of both.
      num_tokens: caption length in tokens.
      layout: how the encoder's parameters are spread over devices; None for one device.
      values: False reads the parameters for their digest and keeps none of them, so that the model
        can be named and compared but not run.

    Raises:
      ValueError: naming the file that is missing or holds something else; or the tokenizer has
        more pieces than the encoder's table has rows.
    """
    tokenizer = load_tokenizer(_resolve("tokenizer", paths.tokenizer, "tokenizer.model"))
    text = TextModel(
        tokenizer=tokenizer,
        encoder=load_t5(
            _resolve("encoder", paths.encoder, "text_encoder.safetensors"),
            dtype=paths.dtype,
            param_dtype=paths.dtype,
            place=on_one_device if values else shape_alone,
            layout=layout if values else None,
        ),
        num_tokens=num_tokens,
        paths=paths,
    )
    rows = text.encoder.config.vocab_size
    if tokenizer.vocab_size > rows:
        # Their embeddings would be NaN.
        raise ValueError(
            f"tokenizer {paths.tokenizer}: {tokenizer.vocab_size} pieces, more than the {rows} rows"
            f" of encoder {paths.encoder}; they belong to different text models"
        )
    return text


def _resolve(field: str, path: str, embedded_name: str) -> epath.Path:
    if path != EMBEDDED:
        if not path:
            raise ValueError(f"text.{field}: its file or folder has an empty name")
        resolved = any_path(path)
        if "://" in path:
            resolved.exists()  # Imports what reads the bucket, or says what is to be installed.
        return resolved
    return epath.Path(importlib.resources.files("imagen_video") / "assets" / "tiny" / embedded_name)
