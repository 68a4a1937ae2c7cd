"""A tokenizer and the frozen encoder that reads its tokens: from captions to embeddings."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Float32, Int32

from imagen_video.text.frozen_t5 import FrozenT5
from imagen_video.text.t5_weights import load_t5
from imagen_video.text.tokenizer import PAD_ID, Tokenizer, load_tokenizer

EMBEDDED = "embedded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPaths:
    """Where a text model lies.

    Attributes:
      encoder: a checkpoint that `load_t5` reads, or "embedded" for the one in this package.
      tokenizer: a sentencepiece model file, or "embedded".
    """

    encoder: str = EMBEDDED
    tokenizer: str = EMBEDDED


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextModel:
    """Captions in, embeddings out.

    Attributes:
      tokenizer: captions to ids.
      encoder: ids to embeddings.
      num_tokens: caption length n in tokens, padded or truncated.
    """

    tokenizer: Tokenizer
    encoder: FrozenT5
    num_tokens: int

    @property
    def digest(self) -> str:
        """Names tokenizer and encoder: equal digests mean interchangeable embeddings."""
        content = f"{self.tokenizer.digest} {self.encoder.digest}"
        return hashlib.sha256(content.encode()).hexdigest()

    def tokenize(self, captions: Sequence[str]) -> Int32[np.ndarray, "b n"]:
        """Returns ids, padded with 0."""
        return self.tokenizer(captions, self.num_tokens)

    def embed(
        self, captions: Sequence[str]
    ) -> tuple[Float32[Array, "b n d"], Bool[np.ndarray, "b n"]]:
        """Returns embeddings and the mask of real tokens."""
        tokens = self.tokenize(captions)
        return self.encoder(tokens), tokens != PAD_ID


def load_text_model(paths: TextPaths, *, num_tokens: int) -> TextModel:
    """Loads tokenizer and encoder.

    Raises:
      ValueError: naming the file that is missing or holds something else.
    """
    return TextModel(
        tokenizer=load_tokenizer(_resolve(paths.tokenizer, "tokenizer.model")),
        encoder=load_t5(_resolve(paths.encoder, "text_encoder.safetensors")),
        num_tokens=num_tokens,
    )


def _resolve(path: str, embedded_name: str) -> epath.Path:
    if path != EMBEDDED:
        return epath.Path(path)
    return epath.Path(importlib.resources.files("imagen_video") / "assets" / "tiny" / embedded_name)
