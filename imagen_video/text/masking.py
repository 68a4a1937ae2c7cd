"""Masked-token prediction (BERT, arXiv 1810.04805, section 3.1): how the tiny encoder is trained.

T5 itself is pre-trained with a decoder (span corruption); an encoder alone needs this objective.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from imagen_video.array_types import KeyArray
from imagen_video.text.t5_encoder import T5Config, T5Encoder
from imagen_video.text.tokenizer import EOS_ID, PAD_ID, UNK_ID


class MaskedTokens(NamedTuple):
    """One corrupted batch.

    Attributes:
      tokens: Int32[b n], what the encoder reads.
      targets: Int32[b n], the tokens before corruption.
      weights: Float32[b n], 1 where a token was chosen for prediction, else 0.
    """

    tokens: Int32[Array, "b n"]
    targets: Int32[Array, "b n"]
    weights: Float32[Array, "b n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCorruption:
    """Chooses tokens to predict; of those, most become the mask, some a random token, some stay.

    The last two kinds make the encoder describe every token and not only masks: frozen, it never
    reads a mask. Padding and `</s>` are never chosen. Shares are BERT's.

    Attributes:
      vocab_size: random tokens come from [3, vocab_size).
      rate: probability that a token is chosen.
      mask_share: of chosen tokens, replaced by mask_id.
      random_share: of chosen tokens, replaced by a random token; the rest stays as it is.
      mask_id: the unknown id by default, which a tokenizer with byte fallback never writes.

    Raises:
      ValueError: at construction, naming the field.
    """

    vocab_size: int
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    mask_id: int = UNK_ID

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate}, must be in (0, 1]")
        for name in ("mask_share", "random_share"):
            if getattr(self, name) < 0 or self.mask_share + self.random_share > 1:
                raise ValueError(f"{name}: {getattr(self, name)}, shares must be >= 0, sum <= 1")
        if self.vocab_size <= UNK_ID + 1:
            raise ValueError(f"vocab_size: {self.vocab_size}, must exceed {UNK_ID + 1}")
        if self.mask_id in (PAD_ID, EOS_ID) or not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"mask_id: {self.mask_id}, must be a token other than pad and </s>")

    def __call__(self, key: KeyArray, tokens: Int32[Array, "b n"]) -> MaskedTokens:
        """Corrupts a batch of ids; a pure function of (key, tokens)."""
        choice_key, kind_key, random_key = jax.random.split(key, 3)
        maskable = (tokens != PAD_ID) & (tokens != EOS_ID)
        chosen = maskable & jax.random.bernoulli(choice_key, self.rate, tokens.shape)
        kind = jax.random.uniform(kind_key, tokens.shape)
        other = jax.random.randint(random_key, tokens.shape, UNK_ID + 1, self.vocab_size)
        corrupted = jnp.where(
            kind < self.mask_share,
            self.mask_id,
            jnp.where(kind < self.mask_share + self.random_share, other, tokens),
        )
        return MaskedTokens(
            tokens=jnp.where(chosen, corrupted, tokens).astype(jnp.int32),
            targets=tokens,
            weights=chosen.astype(jnp.float32),
        )


class MaskedTokenModel(nn.Module):
    """A T5 encoder and logits over its own embedding table; used in training only.

    Its parameters are those of the encoder, under "t5": encoder_params cuts them out.
    """

    config: T5Config

    @nn.compact
    def __call__(self, tokens: Int32[Array, "b n"]) -> Float32[Array, "b n vocab"]:
        """Returns logits; scaled by emb_dim**-0.5 as T5 does where it ties the two tables."""
        encoder = T5Encoder(self.config, name="t5")
        hidden = encoder(tokens) * self.config.emb_dim**-0.5
        return encoder.token_embedder.attend(hidden)


def encoder_params(params: Any) -> Any:
    """Returns the encoder's tree, with T5X names, out of a MaskedTokenModel's params."""
    return params["t5"]


def masked_token_loss(
    logits: Float[Array, "b n vocab"],
    targets: Int32[Array, "b n"],
    weights: Float32[Array, "b n"],
) -> Float32[Array, ""]:
    """Mean cross-entropy in nats over the positions that carry weight; 0 where none does."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def init_masked_params(config: T5Config, key: KeyArray) -> Any:
    """Draws a MaskedTokenModel's float32 parameters, unboxed."""
    return nn.unbox(MaskedTokenModel(config).init(key, jnp.zeros((1, 2), jnp.int32))["params"])


def masked_token_objective(
    config: T5Config,
    corruption: TokenCorruption,
    params: Any,
    tokens: Int32[Array, "b n"],
    key: KeyArray,
) -> Float32[Array, ""]:
    """Returns the loss of predicting the tokens that `corruption` chooses with `key`."""
    corrupted = corruption(key, tokens)
    logits = MaskedTokenModel(config).apply({"params": params}, corrupted.tokens)
    return masked_token_loss(logits, corrupted.targets, corrupted.weights)
