"""Prompts embedded ahead, so that the encoder's memory is free before the first stage runs."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from imagen_video.text.text_model import TextModel


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedPrompts:
    """Stands for the text model that made it, for the batches of prompts it was made for.

    Attributes:
      digest: of the text model.
      name: what errors call the text model.
      batches: embeddings [b n d] and masks [b n] of each batch, in the host's memory.
    """

    digest: str
    name: str
    batches: Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray]]

    def embed(
        self, captions: Sequence[str]
    ) -> tuple[Float32[Array, "b n d"], Bool[np.ndarray, "b n"]]:
        """Returns what the text model returned for this very batch.

        Raises:
          ValueError: it was not asked for this batch.
        """
        found = self.batches.get(tuple(captions))
        if found is None:
            raise ValueError(f"prompts: {list(captions)} were not embedded before the encoder went")
        text_emb, text_mask = found
        return jnp.asarray(text_emb), text_mask


def embed_and_free(text: TextModel, batches: Iterable[Sequence[str]]) -> EmbeddedPrompts:
    """Embeds batches of prompts and gives up the encoder's parameters, whoever else holds them."""
    embedded = {}
    for prompts in batches:
        text_emb, text_mask = text.embed(prompts)
        # A copy: on a CPU the array would only be looked at.
        embedded[tuple(prompts)] = (np.array(text_emb), text_mask)
    text.encoder.free()
    return EmbeddedPrompts(digest=text.digest, name=text.name, batches=embedded)
